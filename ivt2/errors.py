"""The one exception that speaks to the user."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the thing and the remedy in one line.

    The command line prints the message alone, without a stack trace, and exits with status 2. Anything else that is
    raised is a defect of the program and keeps its trace.
    """
