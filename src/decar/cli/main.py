"""Run a Hydra command: one job, or the jobs of a sweep with a summary at its end."""

import fnmatch
import functools
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from decar.cli.config import conf_dir, hydra_value
from decar.cli.terminal import command, complain, explain, say, say_lines
from decar.errors import DecarError, PreemptedError, reason_of, require
from decar.files import find_files
from decar.metrics import JOURNAL
from decar.signals import active, go_on_by, stoppable

log = logging.getLogger(__name__)

SKIP = "DECAR_SKIP_TASKS"  # in hydra.job.env_set: the one place that a job in another process is handed, and no option
FOREIGN = ("hear:", "torch:")  # bundles that have no network of decar's; `models.other` would import torch
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"
FAILED = "failed.txt"  # in the folder of a job, which may run on another machine: its options, and why it failed

_failures: list[str] = []  # a line for each failed job of the sweep that has just ended
_sweeps: list[Path] = []  # the folder of the sweep that has begun


def run_hydra(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and run `task`; exit with 2 on a user's error.

    In a sweep the other jobs go on, and the last lines say which failed and why.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of find_unused_parameters
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
        log.error("%s", line or "internal error, please report it:", exc_info=None if line else error)
        if alone:
            raise error
        note_failure(line or f"{type(error).__name__}: {error} (a fault of decar's: see {config_name}.log there)")
        return None

    with command(config_name):
        replace_sweeper(sys.argv)
        sys.argv[1:] = name_neighbours(expand_tasks(sys.argv[1:]))
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
        except ValueError:  # of Optuna, which has nothing to compare where all jobs have failed
            _failures.extend(line for folder in _sweeps for line in notes_of(folder))
            if not _failures:
                raise
    lines = [*_failures]
    _failures.clear()
    _sweeps.clear()
    for line in lines:
        complain(line)
    if lines:
        sys.exit(DecarError.status)


def replace_sweeper(arguments: Sequence[str]) -> None:
    """Let `conf/hydra/sweeper/optuna.yaml` stand for the plugin's own settings, which minimise.

    Hydra refuses a file beside settings of the same name that have defaults.

    Raises:
        ConfigError: It is asked for and not installed.
    """
    there = "hydra/sweeper=optuna" not in arguments or find_spec(OPTUNA) is not None
    require(there, "hydra/sweeper=optuna: the plugin is not installed; pip install 'decar[sweep]'")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's, which lists what it loads
    Plugins.instance()  # registers them, where the plugin is installed
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


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


def quiet() -> None:
    """Silence advertisements and hints of the libraries."""
    for name in ("pytorch_lightning.utilities.rank_zero", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*is not empty.*",
        ".*does not have many workers.*",
        ".*callbacks used to create the checkpoint.*",
        ".*Found .* module.s. in eval mode.*",
        ".*validation_step. but have no .val_dataloader.*",
        ".*when logging on epoch level in distributed setting.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def expand_tasks(arguments: list[str]) -> list[str]:
    """Replace a pattern in `task.name=` by the names of the tables in `task.root=DIR`'s folder `tasks` that fit it.

    Hydra's own `glob(*)` looks at files of the configuration, not of the user. It also names tasks whose clips are not
    here: a sweep over it carries the mark `SKIP`, also into jobs of other processes.

    Raises:
        ConfigError: There is no such table, or the command is no sweep.
    """
    several = any(word in ("-m", "--multirun") for word in arguments)
    if several and any(word.startswith("task=") and "glob(" in word for word in arguments):
        arguments = [*arguments, f"++hydra.job.env_set.{SKIP}=1"]
    given = dict(word.split("=", 1) for word in arguments if word.startswith(("task.root=", "task.name=")))
    pattern, root = given.get("task.name", ""), given.get("task.root")
    if not any(sign in pattern for sign in "*?") or root is None:
        return arguments
    folder = Path(root).expanduser() / "tasks"
    files = find_files(folder, recursive=False) if folder.is_dir() else []
    tables = [Path(file).stem for file in files if file.endswith(".csv")]
    names = sorted(name for name in tables if fnmatch.fnmatch(name, pattern))
    require(bool(names), f"task.name={pattern}: no such table in {folder}; DIR/tasks/NAME.csv is looked for")
    require(several, f"task.name={pattern} means {len(names)} tasks: add -m")
    return [f"task.name={','.join(names)}" if word.startswith("task.name=") else word for word in arguments]


def name_neighbours(arguments: list[str]) -> list[str]:
    """In a sweep over `random` and bundles, add `beside`, the list of these bundles.

    Options that choose a network for `random` themselves keep their effect.
    """
    given = [word for word in arguments if word.startswith("bundle=")]
    chosen = any(word.lstrip("+").startswith(("encoder", "frontend", "beside", "experiment")) for word in arguments)
    if len(given) != 1 or chosen or not {"-m", "--multirun"} & set(arguments):
        return arguments
    try:
        sweep = OverridesParser.create().parse_override(given[0]).value()
    except HydraException:  # of which Hydra itself tells
        return arguments
    names = [str(getattr(entry, "text", entry)) for entry in sweep.list] if isinstance(sweep, ChoiceSweep) else []
    beside = [name for name in names if name not in ("random", "logmel") and not name.startswith(FOREIGN)]
    if "random" not in names or not beside:
        return arguments
    return [*arguments, f"beside=[{','.join(map(hydra_value, beside))}]"]


def note_failure(line: str) -> None:
    """Write down that the running job of a sweep has failed."""
    conf = HydraConfig.get()
    Path(conf.runtime.output_dir, FAILED).write_text(f"[{' '.join(conf.overrides.task)}] {line}\n")


def forget_failure() -> None:
    """Delete the note of an earlier attempt at the running job."""
    Path(HydraConfig.get().runtime.output_dir, FAILED).unlink(missing_ok=True)


def notes_of(sweep: Path) -> list[str]:
    """A line for each job of a sweep that has failed."""
    return [note.read_text().strip() for note in sorted(sweep.glob(f"*/{FAILED}"))]


class FailedJobs(Callback):
    """At the end of a sweep, collect which jobs failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Delete the notes of an earlier sweep in the same folder."""
        _sweeps[:] = [Path(config.hydra.sweep.dir)]
        for note in _sweeps[0].glob(f"*/{FAILED}"):
            note.unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs have written."""
        _failures.extend(notes_of(Path(config.hydra.sweep.dir)))


class PrintTable(Callback):
    """At the end of a sweep of `eval.py`: the table of its results, as `decar table2` prints it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print it, or a line if the results do not fit into one table."""
        from decar.downstream import collect, table2_markdown
        from decar.downstream.results import result_files

        folder = Path(config.hydra.sweep.dir)
        if not result_files(folder):
            return
        try:
            say_lines(f"\n{table2_markdown(collect([folder]))}")
        except DecarError as error:
            say(f"no table: {error}")
        if any(folder.glob(f"*/{JOURNAL}")):  # jobs have logged to wandb
            from decar.cli.eval_wandb import log_table

            try:
                log_table(folder, collect([folder]))
            except Exception as error:  # wandb's client raises a dozen kinds
                log.warning("%s: the table is not on wandb (%s)", folder, reason_of(error))
        say(f"results: {folder}")
