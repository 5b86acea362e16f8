"""Run a Hydra command: a user's mistake ends in one line that names the cure, a fault of ours in a traceback."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from decar.cli.config import conf_dir, register_resolvers
from decar.cli.expand import expand_tasks
from decar.cli.explain import explain
from decar.cli.sweep import failures, forget_failure, note_failure
from decar.cli.terminal import complain, terminal
from decar.errors import PreemptedError, printable

log = logging.getLogger(__name__)


def run_hydra(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and run `task`; exit with 2 on a user's error.

    In a sweep the other jobs go on, and the last lines say which failed and why.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of find_unused_parameters
    register_resolvers()
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")  # of the launchers

    @functools.wraps(task)
    def job(cfg: DictConfig) -> object:
        quiet()
        forget_failure()
        try:
            return task(cfg)
        except PreemptedError:  # the other jobs of a sweep have to wait too
            raise
        except Exception as error:
            line, alone = explain(error, config_name), HydraConfig.get().mode != RunMode.MULTIRUN
            if line is None and alone:
                raise
            log.error("%s", line or "a fault of decar's, not yours:", exc_info=line is None)
            if alone:
                raise
            note_failure(line or f"{type(error).__name__}: {error} (a fault of decar's: see {config_name}.log there)")
            return None

    told: list[str] = []
    try:
        with terminal():
            sys.argv[1:] = expand_tasks(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
    except PreemptedError as stopped:
        print(f"decar: {printable(stopped)}", file=sys.stderr)
        sys.exit(stopped.EXIT_STATUS)
    except Exception as error:
        line = explain(error, config_name)
        if line is None:
            raise
        told.append(line)
    told += failures()
    for line in told:
        complain(line)
    if told:
        sys.exit(2)


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
