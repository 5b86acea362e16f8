"""What a user reads: lines and logs with control characters escaped, and one line for an error.

File names, labels and values from found files may hold line breaks and escape sequences, see `decar.errors.printable`.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from decar.cli.config import conf_dir, walk
from decar.errors import DecarError, PreemptedError, printable
from decar.signals import stoppable

log = logging.getLogger(__name__)

LINES = "\n\t"  # what a traceback keeps

_GROUP = re.compile(r"Could not override '([^']+)'\. No match in the defaults list")
_ELSEWHERE = re.compile(r"In '([^'/]+)/([^']+)': Could not override '[^']+'\. No match in the defaults list")
_OPTION = re.compile(r"Could not override '([^']+)'")
_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?)(?: Config search path|$)")
_MISSING = re.compile(r"Missing mandatory value: (\S+)")


def say(line: object = "") -> None:
    """Print one line to standard output.

    If the reader of a pipe has exited, as `| head` does, further output is dropped and the command continues: it still
    writes its files and ends with its own exit status.

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
    """Drop further output, or Python fails once more at exit; raise unless the reader of a pipe has exited."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open as long as the process
    if not isinstance(error, BrokenPipeError):
        raise DecarError(f"standard output cannot be written ({error.strerror})") from error


def _flush() -> bool:
    """Print what is buffered; whether that worked."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up_printing(error)
        return False
    return True


@contextmanager
def command(config_name: str, go_on: str = "run the same command with resume=auto") -> Iterator[None]:
    """Around a command: a signal, or an error that the user can mend, ends the process with a line and a status.

    Args:
        config_name: As in `explain`.
        go_on: What to do after a signal, for its line.
    """
    try:
        with terminal(), stoppable(go_on):
            yield
    except PreemptedError as stopped:
        print(printable(f"decar: {stopped}"), file=sys.stderr)
        sys.exit(stopped.status)
    except Exception as error:
        line = explain(error, config_name)
        if line is None:
            raise
        complain(line)
        sys.exit(error.status if isinstance(error, DecarError) else DecarError.status)


def _reader_has_exited() -> bool:
    """Whether standard output is a pipe that nobody reads. With PYTHONUNBUFFERED nothing is left to flush."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):  # no POSIX, or no file
        return False


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
        if _flush() and not _reader_has_exited():
            raise
    finally:
        _flush()


def start_log(level: int) -> None:
    """Log messages of this level and above to standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("faiss.loader", "botocore", "aiobotocore", "httpx"):  # processors, credentials found, each request
        logging.getLogger(chatty).setLevel(logging.WARNING)


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


def explain(error: BaseException, config_name: str) -> str | None:
    """One line for an error that the user can mend, None for any other.

    Args:
        error: With all that led to it.
        config_name: `train` or `eval`, whose options to suggest; else a command of `decar`.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, DecarError):
            return _message(link)
    for link in chain:
        if isinstance(link, OSError) and link.filename:  # a disk, a folder, a right: not ours to mend
            log.debug("where it happened", exc_info=error)
            return f"{link.filename2 or link.filename}: {link.strerror or link}"
        if _from_lost_worker(link):
            option = {"train": "loader.num_workers", "eval": "mode.num_workers"}.get(config_name, "num_workers")
            what = _one_line(link).split(" It is")[0][:120] or type(link).__name__
            return (
                f"a process that reads batches is dead or stuck ({what}): pass {option}=0, or, in a container, give it "
                "more shared memory (docker run --shm-size=8g)"
            )
        if type(link).__name__ == "MisconfigurationException":  # Lightning's word for the user's mistakes
            return _one_line(link)
    modules = (type(error).__module__, *_modules(error)[-1:])  # Hydra raises plain ValueErrors as well
    if {"hydra", "omegaconf"} & {module.split(".")[0] for module in modules}:
        return _explain_config(" ".join(_one_line(link) for link in chain), config_name)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _from_lost_worker(error: BaseException) -> bool:
    """Whether a worker of torch's loader has died or is stuck; one that dies while its batch is fetched breaks off."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker", "DataLoader timed out"))
    return isinstance(error, EOFError | ConnectionError) and "multiprocessing.resource_sharer" in _modules(error)


def _modules(error: BaseException) -> list[str]:
    """Names of the modules that an error came through, the one that raised it last."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]


def _message(error: BaseException) -> str:
    """The message; of an error in a worker of torch's loader, whose message holds the worker's traceback, the end."""
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return text.strip()


def _one_line(error: BaseException) -> str:
    return " ".join(_message(error).split())


def _explain_config(text: str, config_name: str) -> str:
    if match := _ELSEWHERE.search(text):
        other = "eval.py" if config_name == "train" else "train.py"
        return f"{match[1]}={match[2]} is not for this command, but for {other}"
    if match := _GROUP.search(text):
        groups = [path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra"]
        return f"there is no group or option {match[1]!r}{did_you_mean(match[1], groups)}; --help lists all"
    if match := _OPTION.search(text):
        return (
            f"there is no option {match[1]!r}{did_you_mean(match[1], _options(config_name))}; --help lists all options"
        )
    if match := _CHOICE.search(text):
        choices = match[3].split()
        hint = did_you_mean(match[2], choices)
        return f"{match[1]}={match[2]}: unknown {match[1]}{hint}; choose from {', '.join(choices)}"
    if match := _MISSING.search(text):
        return f"{match[1]} is not set: pass {match[1]}=…"
    if "mismatched input" in text or "token recognition error" in text:
        return f"an option cannot be read; quote odd characters twice, as in \"data.root='/my (sounds)'\" [{text}]"
    return text


def did_you_mean(wrong: str, known: list[str]) -> str:
    """` (did you mean X?)` with the known name nearest to a wrong one; empty where none is near."""
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _options(config_name: str) -> list[str]:
    """All dotted keys of a command's configuration."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(config_name)
    return [key for key, _ in walk(OmegaConf.to_container(cfg))]  # unresolved: some values need a run
