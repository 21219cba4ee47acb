"""The errors a user can cause, each with the exit code that tells a supervisor what to do next.

1 stands for what may pass when the same command is run again: a network or store that cannot be
reached (``remote_files.UnreachableError``), and everything else that escapes, which is a bug. What
exits with 2, 3 or 4 only a person can mend. A message has one form: what was wrong, what is
allowed, what to do.
"""


class UserError(Exception):
    """Base of all errors that are reported in one line instead of a traceback."""

    exit_code = 1


class UsageError(UserError):
    """A setting, an argument or a place to write that cannot be used (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A data set, an image or a weight file that cannot be used (exit code 3)."""

    exit_code = 3


class DivergedError(UserError):
    """Training produced numbers that are not finite (exit code 4)."""

    exit_code = 4


class InterruptedRunError(UserError):
    """Training was asked to stop, has saved itself and can be resumed (exit code 33)."""

    exit_code = 33
