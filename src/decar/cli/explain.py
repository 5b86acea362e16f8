"""From an exception to the one line that a user reads."""

import difflib
import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from decar.cli.config import conf_dir
from decar.errors import DecarError

log = logging.getLogger(__name__)

_GROUP = re.compile(r"Could not override '([^']+)'\. No match in the defaults list")
_ELSEWHERE = re.compile(r"In '([^'/]+)/([^']+)': Could not override '[^']+'\. No match in the defaults list")
_OPTION = re.compile(r"Could not override '([^']+)'")
_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?)(?: Config search path|$)")
_MISSING = re.compile(r"Missing mandatory value: (\S+)")


def explain(error: BaseException, config_name: str) -> str | None:
    """One line for an error that the user can mend, None for any other.

    Args:
        error: With all that led to it.
        config_name: `train` or `eval`: whose options to suggest.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, DecarError):
            return _message(link)
    for link in chain:
        if isinstance(link, OSError) and link.filename:  # a disk, a folder, a right: not ours to mend
            log.debug("where it happened", exc_info=error)
            return f"{link.filename}: {link.strerror}"
        if _from_lost_worker(link):
            option = {"train": "loader.num_workers", "eval": "mode.num_workers"}.get(config_name, "num_workers")
            what = _one_line(link).split(" It is")[0][:120] or type(link).__name__
            return (
                f"a process that reads batches is dead or stuck ({what}): pass {option}=0, or, in a container, give it "
                "more shared memory (docker run --shm-size=8g)"
            )
        if type(link).__name__ == "MisconfigurationException":  # Lightning's word for the user's mistakes
            return _one_line(link)
    if isinstance(error, HydraException | OmegaConfBaseException) or _raised_in(error) in ("hydra", "omegaconf"):
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


def _raised_in(error: BaseException) -> str:
    """The package whose code raised it: Hydra has plain ValueErrors for some of the things that it refuses."""
    return (_modules(error) or [""])[-1].split(".")[0]


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
        other = {"train": "eval.py", "eval": "train.py"}[config_name]
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
    from hydra import compose, initialize_config_dir

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(config_name)
    return list(_dotted(OmegaConf.to_container(cfg)))  # unresolved: some values need a run


def _dotted(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
