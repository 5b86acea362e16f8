"""Run a Hydra command so that a user's mistake ends in one line that names the cure; a fault of ours in a traceback."""

import difflib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from decar.cli.config import conf_dir, register_resolvers
from decar.errors import ConfigError, DecarError

log = logging.getLogger(__name__)


def run_hydra(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and run `task`; exit with 2 on a user's error.

    In a sweep the other jobs go on, and the last lines say which failed and why.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to here
    register_resolvers()
    failures: list[str] = []

    @functools.wraps(task)
    def job(cfg: DictConfig) -> object:
        _quiet()
        try:
            return task(cfg)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            log.error("%s", line)
            failures.append(f"{_job_name()}{line}")
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        failures.append(line)
    for line in failures:
        print(f"decar: error: {line}", file=sys.stderr)
    if failures:
        sys.exit(2)


def _job_name() -> str:
    """What to call this job in a sweep: its overrides."""
    conf = HydraConfig.get()
    return f"[{' '.join(conf.overrides.task)}] " if conf.mode == RunMode.MULTIRUN else ""


def _quiet() -> None:
    """Keep the advertisements and hints of the libraries out of the log; warnings that matter stay."""
    for name in ("pytorch_lightning.utilities.rank_zero", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*isinstance.treespec, LeafSpec.*", ".*smaller than the logging interval.*", ".*is not empty.*",
                    ".*does not have many workers.*", ".*callbacks used to create the checkpoint.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend, None for any other."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, DecarError):
            return str(link)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(" ".join(str(link) for link in chain))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_config(text: str) -> str:
    text = " ".join(text.split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"there is no option {match[1]!r}{_suggest(match[1])}; --help lists all options"
    if match := re.search(
        r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?)(?: Config search path|$)", text
    ):
        choices = match[3].split()
        close = difflib.get_close_matches(match[2], choices, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{match[1]}={match[2]}: unknown {match[1]}{hint}; choose from {', '.join(choices)}"
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", text):
        return f"there is no group {match[1]!r}; --help lists the groups"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]} is not set: pass {match[1].rstrip('.')}=…"
    return text


def _suggest(key: str) -> str:
    """A near option from the configuration's own files."""
    known: set[str] = set()
    for path in conf_dir().rglob("*.yaml"):
        known.update(re.findall(r"^\s*(\w+):", path.read_text(), flags=re.M))
        known.update(path.relative_to(conf_dir()).parts[:-1])
    wrong = next((part for part in key.split(".") if part not in known), key.split(".")[-1])
    close = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {key.replace(wrong, close[0])!r}?)" if close and close[0] != wrong else ""


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
