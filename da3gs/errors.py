"""Error types of the library.

Every message is one line that says what was expected, what came, and what to do. The command line prints that line and
exits with status 2; a traceback appears only with ``--debug``.
"""


class Da3gsError(Exception):
    """Base of everything da3gs raises on purpose."""


class InputError(Da3gsError, ValueError):
    """An argument or a piece of data is not what the function needs."""


class FormatError(Da3gsError, ValueError):
    """A file's content is damaged or is not the format its name promises."""


class WeightsError(Da3gsError, RuntimeError):
    """Model weights cannot be found, read, or do not fit the network they are loaded into."""


class BackendError(Da3gsError, RuntimeError):
    """A compute backend was asked for that cannot run here."""


class MissingDependencyError(Da3gsError, ImportError):
    """An optional package is needed; the message gives the install command."""
