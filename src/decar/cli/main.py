"""Run a Hydra command: a user's mistake ends in one line that names the cure, a fault of ours in a traceback."""

import functools
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from decar.cli.config import conf_dir, hydra_value, register_resolvers
from decar.cli.expand import expand_tasks
from decar.cli.explain import explain
from decar.cli.sweep import failures, forget_failure, note_failure
from decar.cli.terminal import complain, terminal
from decar.errors import DecarError, PreemptedError, printable
from decar.signals import active, go_on_by, stoppable

log = logging.getLogger(__name__)


def run_hydra(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and run `task`; exit with 2 on a user's error.

    In a sweep the other jobs go on, and the last lines say which failed and why.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of find_unused_parameters
    register_resolvers()
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")  # of the launchers

    typed = list(sys.argv)

    @functools.wraps(task)
    def job(cfg: DictConfig) -> object:
        quiet()
        forget_failure()
        here = active()  # else this is a launcher's process, which `run_hydra` was not called in
        try:
            with stoppable():
                go_on_by(same_command(typed))
                found = task(cfg)
            forget_failure()  # another sweep into this folder may have met the lock of this job
            return found
        except PreemptedError as stopped:
            if here:
                raise
            error: Exception = DecarError(str(stopped))  # the sweep counts the job as failed
        except Exception as raised:
            error = raised
        line, alone = explain(error, config_name), HydraConfig.get().mode != RunMode.MULTIRUN
        if line is None and alone:
            raise error
        log.error("%s", line or "a fault of decar's, not yours:", exc_info=None if line else error)
        if alone:
            raise error
        note_failure(line or f"{type(error).__name__}: {error} (a fault of decar's: see {config_name}.log there)")
        return None

    told: list[str] = []
    status = 2
    try:
        with terminal(), stoppable():
            sys.argv[1:] = expand_tasks(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    except PreemptedError as stopped:
        _leave(stopped.status, str(stopped))
    except Exception as error:
        line = explain(error, config_name)
        if line is None:
            raise
        told.append(line)
        status = error.status if isinstance(error, DecarError) else 2
    told += failures()
    for line in told:
        complain(line)
    if told:
        _leave(status)


def same_command(typed: Sequence[str]) -> str:
    """What to run to go on with this job or sweep: the command as typed, its folder named, with `resume=auto`."""
    conf = HydraConfig.get()
    sweep = conf.mode == RunMode.MULTIRUN
    key, folder = ("hydra.sweep.dir", conf.sweep.dir) if sweep else ("hydra.run.dir", conf.runtime.output_dir)
    options = [word for word in typed[1:] if not word.lstrip("+").startswith("resume=")]
    more = ["resume=auto"]
    if not any(word.startswith(f"{key}=") for word in options):
        more.insert(0, f"{key}={hydra_value(str(folder))}")
    if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys():  # what started this process is not known
        return f"the same torchrun or srun command with {shlex.join(more)}"
    program = Path(typed[0])
    start = ["python", str(program)] if program.suffix == ".py" else [program.name]
    return shlex.join([*start, *options, *more])


def _leave(status: int, line: str = "") -> NoReturn:
    """Print a last line and end the command."""
    if line:
        print(printable(f"decar: {line}"), file=sys.stderr)
    sys.exit(status)


def quiet() -> None:
    """Keep the advertisements and hints of the libraries out of the log; warnings that matter stay."""
    for name in ("pytorch_lightning.utilities.rank_zero", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*is not empty.*",
        ".*does not have many workers.*",
        ".*callbacks used to create the checkpoint.*",
        ".*Found .* module.s. in eval mode.*",
        ".*when logging on epoch level in distributed setting.*",
    ):
        warnings.filterwarnings("ignore", message=message)
