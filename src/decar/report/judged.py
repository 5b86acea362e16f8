"""The downstream results of a run's encoder, as its page shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decar.downstream import Result
from decar.downstream.results import result_files
from decar.errors import DecarError


def find_results(run: Path, others: Sequence[Path] = ()) -> tuple[list[Result], list[str]]:
    """All results in the run's folder and in other ones, and what is wrong with those that cannot be read.

    Raises:
        DecarError: One of `others` does not exist.
    """
    for folder in others:
        if not folder.exists():
            raise DecarError(f"--downstream {folder}: no such folder; give the one that eval.py wrote its runs to")
    files = {file.resolve() for folder in (run, *others) for file in result_files(folder)}
    found, faults = [], []
    for file in sorted(files):
        try:
            found.append(Result.read(file))
        except DecarError as error:
            faults.append(str(error))
    return found, faults


def of_encoder(results: Sequence[Result], encoder_hash: str) -> list[Result]:
    """Those of this encoder, and what compares with them: random weights and log-mels of the same tasks and seeds."""
    own = [result for result in results if result.encoder_hash == encoder_hash]
    asked = {(r.task, r.mode, r.protocol, r.seed, r.split_hash, r.shots) for r in own}
    return own + [
        r
        for r in results
        if r.encoder != "decar" and (r.task, r.mode, r.protocol, r.seed, r.split_hash, r.shots) in asked
    ]


def as_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row a result, with its confusion matrix, for JSON."""
    names = {"decar": "this encoder", "random": "random weights", "logmel": "log-mel statistics"}
    rows = [
        {
            "task": r.title + (f", fold {r.fold}" if r.fold else ""),
            "mode": r.mode, "protocol": r.protocol, "encoder": names[r.encoder], "seed": r.seed, "metric": r.metric,
            "value": r.value, "valid": r.valid_value, "n_train": r.n_train, "n_test": r.n_test,
            "n_classes": r.n_classes, "classes": r.classes, "confusion": r.confusion,
        }
        for r in results
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["task"], row["mode"], row["protocol"], row["encoder"], row["seed"]))
