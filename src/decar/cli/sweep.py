"""What a sweep says when all its jobs are done: its table, and which jobs failed and why.

A job may run in a process of its own, on another machine too (hydra/launcher): what failed stands in its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from decar.cli.terminal import say, say_lines
from decar.errors import DecarError

FAILED = "failed.txt"  # in the folder of a job: what it is called, and why it failed

_failures: list[str] = []


def note_failure(line: str) -> None:
    """Write down that the running job of a sweep has failed."""
    conf = HydraConfig.get()
    Path(conf.runtime.output_dir, FAILED).write_text(f"[{' '.join(conf.overrides.task)}] {line}\n")


def forget_failure() -> None:
    """The running job is tried again."""
    Path(HydraConfig.get().runtime.output_dir, FAILED).unlink(missing_ok=True)


def failures() -> list[str]:
    """A line for each job that failed in the sweeps of this process; they are told once."""
    told = [*_failures]
    _failures.clear()
    return told


class FailedJobs(Callback):
    """At the end of a sweep, collect which jobs failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Failures of an earlier sweep in the same folder are not this one's."""
        for note in Path(config.hydra.sweep.dir).glob(f"*/{FAILED}"):
            note.unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs have written."""
        notes = sorted(Path(config.hydra.sweep.dir).glob(f"*/{FAILED}"))
        _failures.extend(note.read_text().strip() for note in notes)


class PrintTable(Callback):
    """At the end of a sweep of `eval.py`: the table of its results, as `decar table2` prints it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print it; results that do not belong into one table are no mistake of the sweep's, and cost a line."""
        from decar.downstream import collect, table2_markdown
        from decar.downstream.results import result_files

        folder = Path(config.hydra.sweep.dir)
        if not result_files(folder):
            return
        try:
            say_lines(f"\n{table2_markdown(collect([folder]))}")
        except DecarError as error:
            say(f"no table: {error}")
        say(f"results: {folder}")
