"""How much a command prints beside its results: the options -q and -v of every command, before or after its name."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from stm_fast.commands.options import general_option
from stm_fast.errors import InputError, Message
from stm_fast.printing import warn
from stm_fast.tasks.flags import with_flags

_LOGGER = logging.getLogger("stm_fast")
_MORE = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the number of -v

Quiet = Annotated[
    bool, general_option("--quiet", "-q", help="Only results and errors are printed: no notes and no progress.")
]
Verbose = Annotated[
    int,
    general_option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="More is printed about the work: with -v the log at level INFO, with -vv at level DEBUG.",
    ),
]


class _Notes(logging.Handler):
    """Prints the package's log, such as how ambiguous input was interpreted, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:  # a bug, in another thread
            traceback.print_exception(record.exc_info[1])
        warn(with_flags(record.msg if isinstance(record.msg, Message) else record.getMessage()))


_NOTES = _Notes()


@contextmanager
def notes_printed() -> Iterator[None]:
    """Within the block, warnings of the package are printed, or what `set_verbosity` selects."""
    _set_levels(logging.NOTSET, logging.WARNING)
    _LOGGER.addHandler(_NOTES)
    try:
        yield
    finally:
        _LOGGER.removeHandler(_NOTES)
        _LOGGER.setLevel(logging.NOTSET)


def set_verbosity(quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Applies the options; without one of them, everything stays as it is.

    Raises:
        InputError: both are given.
    """
    if quiet and verbose:
        raise InputError("--quiet: found with --verbose, expected one of them")
    if quiet or verbose:
        level = logging.ERROR if quiet else _MORE[min(verbose, len(_MORE) - 1)]
        _set_levels(level, level)


def _set_levels(logger: int, handler: int) -> None:
    _LOGGER.setLevel(logger)
    _NOTES.setLevel(handler)
