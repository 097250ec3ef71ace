"""The one exception that commands print as a message instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: its text names the file or field, what was expected, and the way out."""
