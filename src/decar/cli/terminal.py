"""Print and log with control characters escaped, also to a reader that goes away, such as `head`.

File names, labels and values from found files may hold line breaks and escape sequences, see `decar.errors.printable`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from decar.errors import DecarError, printable

LINES = "\n\t"  # what a traceback keeps


def say(line: object = "") -> None:
    """Print one line to standard output.

    Where the reader has gone, as of `| head`, nothing is printed from here on, and the command goes on: it still writes
    its files and ends with its own exit status.

    Raises:
        DecarError: The disk that standard output goes to is full, or the like.
    """
    try:
        print(printable(line))
    except OSError as error:
        _give_up_printing(error)


def say_lines(text: str) -> None:
    """Print the lines of a text; names in it must have been escaped before, or their line breaks are taken for its."""
    for line in text.split("\n"):
        say(line)


def complain(line: object) -> None:
    """Print the one line of an error to standard error."""
    print(printable(f"decar: error: {line}"), file=sys.stderr)


def _give_up_printing(error: OSError) -> None:
    """Print to nowhere from here on, or Python fails once more at exit; raise unless it was the reader who has gone."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open as long as the process
    if not isinstance(error, BrokenPipeError):
        raise DecarError(f"standard output cannot be written ({error.strerror})") from error


def _flush() -> bool:
    """Print what is buffered; whether anybody reads it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up_printing(error)
        return False
    return True


@contextmanager
def terminal() -> Iterator[None]:
    """Around a command: what it prints and raises is escaped, and what it has printed is out when the block ends.

    Raises:
        DecarError: Standard output cannot be written.
    """
    sys.excepthook = _print_traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without the character
    try:
        yield
    except BrokenPipeError:  # of a library's own print, such as the text of --help; else of some other pipe
        if _flush():
            raise
    finally:
        _flush()


def start_log(level: int) -> None:
    """Log messages of this level and above to standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class EscapingFormatter(logging.Formatter):
    """Formats records with control characters escaped; only the lines of a traceback stay lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """The traceback below it."""
        return printable(super().formatException(ei), keep=LINES)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an internal error as Python does, escaped."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace)), keep=LINES))
