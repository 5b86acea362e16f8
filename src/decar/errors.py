"""Errors that a user can mend: one clear line each, naming what was found and what to do next.

The command line prints these without a traceback; everything else that is raised is a fault of ours.
"""

import math
import signal
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: control, format (bidi), surrogate, separators of lines
_JOINERS = "\u200c\u200d"  # format characters that only shape letters: Persian, Hindi and emoji need them

TEMPORARY_FAILURE = 75
REASON_LENGTH = 200  # characters that are quoted of a library's message
GRACE = 20.0  # seconds that a job has to stop or to end a step once it was asked to stop: Kubernetes kills after 30


class DecarError(Exception):
    """Base of every error whose cure lies with the user.

    Attributes:
        status: What the process ends with.
    """

    status = 2


class ManifestError(DecarError):
    """The list of clips cannot be made or lacks a column."""


class CorpusError(DecarError):
    """A public corpus does not lie as its publishers lay it out."""


class AudioError(DecarError):
    """One stretch of audio cannot be used; the message is the reason, without the path."""


class StoreError(DecarError):
    """The log-mel store cannot be built, opened or read."""


class ClusteringError(DecarError):
    """The features cannot be clustered as asked."""


class TrainingError(DecarError):
    """Training cannot go on, or cannot go on from this checkpoint."""


class LostProcessError(TrainingError):
    """Another process of the job was killed, ended with an error, or does not answer."""

    status = 3


class PreemptedError(BaseException):
    """A signal has asked the job to stop. No Exception: no `except Exception` on its way may swallow it.

    Attributes:
        status: What the process ends with: 128 + the signal for SIGINT and SIGHUP, as a shell counts; for the signals
            of schedulers EX_TEMPFAIL of sysexits.h, "try again later", to be requeued by.
    """

    def __init__(self, number: int, go_on: str = "run the same command with resume=auto", saved: bool = True) -> None:
        name = signal.Signals(number).name
        self.status = exit_status(number)
        requeue = ", to be requeued" if self.status == TEMPORARY_FAILURE else ""
        stuck = f" and ended after {GRACE:.0f} s without a step; the last checkpoint stands"
        done = "; what is done is kept" if saved else stuck
        super().__init__(f"stopped by {name}{done}. To go on: {go_on} (exit status {self.status}{requeue})")


def exit_status(number: int) -> int:
    """The exit status of a job that a signal has stopped."""
    return 128 + number if signal.Signals(number).name in ("SIGINT", "SIGHUP") else TEMPORARY_FAILURE


class BundleError(DecarError):
    """An encoder bundle is missing, damaged, or made for another front-end."""


class ExportError(DecarError):
    """An encoder cannot be written in the form that was asked for."""


class TaskError(DecarError):
    """A downstream task cannot be set up from what was given."""


class SearchError(DecarError):
    """A table of embeddings cannot be searched, or not for this sound."""


class ConfigError(DecarError):
    """An option, or a combination of options, makes no sense."""


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_positive(key: str, value: object) -> None:
    """Raise a ConfigError naming the option unless its value is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):  # type: ignore[arg-type,operator]
        raise ConfigError(f"{key}={value}: not allowed; give a number above 0")


def check_whole(key: str, value: object, least: int) -> None:
    """Raise a ConfigError naming the option unless its value is a whole number that is not below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key}={value}: not allowed; give a whole number, {least} or more")


def one_line(error: BaseException) -> str:
    r"""The message of a library's exception on one line, cut after `REASON_LENGTH`; its type where there is none.

    >>> one_line(ValueError("two\nlines")), one_line(KeyError())
    ('two lines', 'KeyError')
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:REASON_LENGTH]


def reason_of(error: BaseException) -> str:
    """The type before the message, where a message such as `'seed'` says too little."""
    return f"{type(error).__name__}: {one_line(error)}"[:REASON_LENGTH]


def printable(text: object, keep: str = "") -> str:
    r"""One line that is safe to print: control characters, bidi overrides and surrogates are escaped as Python does.

    A file name may hold line breaks and sequences that retitle or erase a terminal. Escaping twice changes nothing:
    backslashes stay as they are.

    Args:
        text: A text, or anything whose `str` is printed.
        keep: Control characters to leave alone, such as the line breaks of a traceback.

    >>> print(printable("\x1b]0;evil\x07a\n.wav"), printable("two\nlines", keep="\n"))
    \x1b]0;evil\x07a\n.wav two
    lines
    """
    text = str(text)
    return text if text.isprintable() else "".join(_escaped(sign, keep) for sign in text)


def _escaped(sign: str, keep: str) -> str:
    hidden = unicodedata.category(sign) in _HIDDEN and sign not in keep and sign not in _JOINERS
    return sign.encode("unicode_escape").decode("ascii") if hidden else sign


def is_unicode(text: str) -> bool:
    """Whether a file name is text: no table, page or JSON can hold one whose bytes are not valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
