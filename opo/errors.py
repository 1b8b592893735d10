"""The one exception that stands for a mistake of the user's."""


class UserError(Exception):
    """A wrong configuration or input: one line that names the key or file and says what is allowed.

    The command line prints it without a traceback and exits with status 2.
    """
