"""The one exception that the command line shows as a message instead of a traceback."""


class UserError(ValueError):
    """Something that a user gave cannot be used: the message says what, what is allowed and what to do next."""
