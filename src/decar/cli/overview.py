"""`decar runs` and `decar compare`: what there is in the folders of pre-training runs, and how two of them differ."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from decar.cli.runs import ASIDE, FINISHED, below, flat, read_config
from decar.cli.terminal import say, say_lines, start_log
from decar.digests import DamagedError, read_json
from decar.downstream import Result, collect, to_markdown
from decar.downstream.results import result_files
from decar.errors import ConfigError, DecarError
from decar.files import find_files, locked, write_table
from decar.metrics import epochs_of, last_figures, read_rows

CONFIG = "config.yaml"
SHOWN = (
    "loss_epoch",
    "nmi",
    "n_clusters",
    "embedding_rank",
    "probe_accuracy",
)  # last figures, as far as a run has them
DIFFER = ("init_hash", *ASIDE)  # options that say nothing about what was trained


@dataclass(frozen=True)
class Run:
    """What the folder of a run says of it.

    Attributes:
        options: All, by dotted key.
        state: "finished", "running", "stopped", or "damaged" where the options cannot be read.
        clips: That it was trained on; None before its end.
        epochs: Complete ones.
        figures: The last value of each metric.
    """

    options: dict[str, object]
    state: str
    clips: int | None
    epochs: int
    figures: dict[str, float]


def runs(args: argparse.Namespace) -> None:
    """Print a row a run."""
    start_log(logging.ERROR)
    folder: Path = args.folder
    if not folder.is_dir():
        raise DecarError(f"{folder}: no such folder; give the one with the runs of train.py, by default runs/pretrain")
    names = sorted(str(Path(name).parent) for name in find_files(folder) if Path(name).name == CONFIG)
    found = {name: run for name in names if (run := read_run(folder / name)) is not None}
    if not found:
        raise DecarError(f"{folder}: no run of train.py in there, at any depth")
    rows = {name: _row(run) for name, run in found.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    say_lines(to_markdown(table))
    write_table(table, args.csv, index=True)


def compare(args: argparse.Namespace) -> None:
    """Print the options that differ, the last figures, and the results on the same tasks."""
    start_log(logging.ERROR)
    first, second = (_wanted(folder) for folder in (args.first, args.second))
    names = [str(args.first), str(args.second)]
    parts = {
        "options that differ": _differing(first.options, second.options),
        "last figures": {
            key: (f"{first.figures.get(key, float('nan')):.4g}", f"{second.figures.get(key, float('nan')):.4g}")
            for key in sorted(first.figures.keys() | second.figures.keys())
        },
        "results, %": _results(args.first, args.second),
    }
    for title, rows in parts.items():
        say(f"{title}: {'' if rows else 'none'}")
        if rows:
            table = pd.DataFrame.from_dict(rows, orient="index", columns=names).replace("nan", "–")
            say_lines(to_markdown(table))
        say()


def _wanted(folder: Path) -> Run:
    run = read_run(folder)
    if run is None:
        raise DecarError(f"{folder}: not the folder of a run of train.py")
    if run.state == "damaged":
        read_config(folder / CONFIG)  # says what is wrong with it
    return run


def read_run(folder: Path) -> Run | None:
    """What a folder says of its run; None where it is another job's. Nothing in it is run.

    Damage of one of its files costs what that file would have said.
    """
    try:
        options = dict(flat(read_config(folder / CONFIG)))
    except ConfigError:
        return Run({}, "damaged", None, 0, {}) if (folder / CONFIG).exists() else None
    if "data.manifest._target_" not in options:
        return None
    try:
        ended = read_json(folder / FINISHED) if (folder / FINISHED).is_file() else {}
    except (OSError, DamagedError):
        ended = {}
    try:
        rows = read_rows(folder / "metrics.csv")
        figures, epochs = last_figures(rows), epochs_of(rows)
    except (OSError, ValueError):
        figures, epochs = {}, 0
    facts: Any = ended.get("run", {})
    return Run(options, _state(folder, bool(ended)), facts.get("n_clips"), int(ended.get("epochs", epochs)), figures)


def _state(folder: Path, ended: bool) -> str:
    """Whether a job holds the folder, or it has come to its end."""
    if not (folder / ".lock").is_file():
        return "finished" if ended else "stopped"
    try:
        with locked(folder / ".lock", wait=0):
            return "finished" if ended else "stopped"
    except BlockingIOError:
        return "running"
    except OSError:  # somebody else's, on a disk that cannot be written
        return "finished" if ended else "unknown"


def _row(run: Run) -> dict[str, str]:
    """A row of the table."""
    planned = run.options.get("trainer.max_epochs")
    return {
        "state": run.state,
        "data": str(run.options.get("data.name", "–")),
        "clips": "–" if run.clips is None else str(run.clips),
        "k": str(run.options.get("k", "–")),
        "epochs": f"{run.epochs}/{planned}" if planned else str(run.epochs),
        **{name: f"{run.figures[name]:.4g}" if name in run.figures else "–" for name in SHOWN},
    }


def _differing(first: dict[str, object], second: dict[str, object]) -> dict[str, tuple[str, str]]:
    """Options that are not the same, with both values."""
    keys = [key for key in sorted(first.keys() | second.keys()) if not below(key, DIFFER)]
    pairs = {key: (str(first.get(key, "–")), str(second.get(key, "–"))) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _results(first: Path, second: Path) -> dict[str, tuple[str, str]]:
    """Test results below both folders, of the tasks, modes and protocols that one of them has.

    What does not compare is in rows of its own: other splits or numbers of the protocol, and several encoders of a run.
    """
    sides = [collect([run]) if result_files(run) else [] for run in (first, second)]
    facts, encoders = dict[str, dict[str, set[str]]](), [dict[str, set[str]]() for _ in sides]
    for side, hashes in zip(sides, encoders, strict=True):
        for result in side:
            hashes.setdefault(_question(result), set()).add(result.encoder_hash)
            for name, value in _facts(result).items():
                facts.setdefault(_question(result), {}).setdefault(name, set()).add(value)

    def named(result: Result, hashes: dict[str, set[str]]) -> str:
        question = _question(result)
        differ = [f"{name} {v}" for name, v in _facts(result).items() if len(facts[question][name]) > 1]
        own = [f"encoder {result.encoder_hash[:8]}"] if len(hashes[question]) > 1 else []
        return ", ".join([question, *own, *differ])

    found = [
        {named(result, hashes): f"{100 * result.value:.1f}" for result in side}
        for side, hashes in zip(sides, encoders, strict=True)
    ]
    return {key: (found[0].get(key, "–"), found[1].get(key, "–")) for key in sorted(found[0].keys() | found[1].keys())}


def _question(result: Result) -> str:
    fold = f", fold {result.fold}" if result.fold else ""
    encoder = result.bundle if result.encoder == "other" else result.encoder
    return f"{result.title}{fold}, {result.mode}, {result.protocol}, seed {result.seed}, {encoder}"


def _facts(result: Result) -> dict[str, str]:
    """What two results of one question must share to compare."""
    return {"split": result.split_hash[:8], "metric": result.metric, **{k: str(v) for k, v in result.settings.items()}}
