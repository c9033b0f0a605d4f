"""What a user did wrong, in one line."""


class InputError(ValueError):
    """Bad input of a user: a file, an option, a mask.

    The message is one line that names the file or argument, what was found and what was expected. The command line
    prints it and exits with code 2; nothing else of the package is caught there.
    """
