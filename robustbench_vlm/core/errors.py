"""`UserError`, the exception that the command line prints as a message without a traceback."""


class UserError(ValueError):
    """An error that the user can correct; its message says what was given, what is expected, and what to do next."""
