"""`UserError`, the exception that the command line prints as a message without a traceback."""


class UserError(ValueError):
    """An error that the user can correct.

    The message has three parts: the given value, the expected value, and the next step for the user.
    """
