"""What goes wrong with data: one error class, so that bad files and bad code stay apart."""


class DataError(ValueError):
    """A file or data set is not what it should be; the message names it, found and wanted.

    The pipeline skips and counts clips that raise this (or `OSError`) while training; any other
    exception is a fault of the program and stops it.
    """


class TooManyBadClips(DataError):
    """More clips than the config allows could not be read."""
