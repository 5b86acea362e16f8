"""The parts of a page from the folder of a run: curves, downstream results, environment."""

import math
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from decar import __version__
from decar.cores import cpu_count
from decar.digests import DamagedError, read_json, write_json
from decar.downstream import Result
from decar.downstream.results import result_files
from decar.errors import DecarError
from decar.files import whole
from decar.pretrain.logger import read_rows

KNOWN = {  # curves by their name in metrics.csv: a title, and what to look for
    "loss_epoch": ("Loss", "cross-entropy of the pseudo-labels; starts again where the heads are renewed"),
    "pseudo_accuracy": ("Pseudo-label accuracy", "share of crops whose cluster is predicted"),
    "nmi": ("NMI to the assignment before", "1: nothing moves any more; only where both epochs were clustered"),
    "probe_accuracy": ("Online probe", "nearest-neighbour accuracy on the watched label; should rise"),
    "n_clusters": ("Clusters", "non-empty ones, of all clusterings"),
    "entropy": ("Entropy of the cluster sizes", "1: all of one size; near 0: one cluster has swallowed the rest"),
    "effective_rank": ("Effective rank of what is clustered", "dimensions in use; a fall to 1 is collapse"),
    "embedding_rank": ("Effective rank of the embedding", "dimensions in use; should rise"),
}
MAX_POINTS = 2000  # of a curve; of a longer one every n-th
ENVIRONMENT = "environment.json"
PACKAGES = (
    "torch", "torchaudio", "pytorch-lightning", "hydra-core", "timm", "faiss-cpu", "faiss-gpu", "numpy", "scipy",
    "scikit-learn", "pandas", "pyarrow", "soundfile", "plotly",
)  # fmt: skip
ENCODERS = {"decar": "this encoder", "random": "random weights", "logmel": "log-mel statistics"}


def curves(run: Path) -> list[dict[str, Any]]:
    """The curves of a run, known ones first; `loss_step` is drawn with the loss.

    Raises:
        DecarError: There is no metrics file, or there is nothing in it.
    """
    file = run / "metrics.csv"
    try:
        rows = read_rows(file)
    except (OSError, ValueError) as error:
        raise DecarError(f"{file}: cannot be read ({error})") from error
    if not rows:
        raise DecarError(f"{file}: {'holds no figures' if file.is_file() else 'not there'}; was logger=csv left out?")
    names = {name for row in rows for name in row} - {"epoch", "step", "loss_step"}
    order = [name for name in KNOWN if name in names] + sorted(names - set(KNOWN))
    found = []
    for name in order:
        title, hint = KNOWN.get(name, (name.replace("_", " "), ""))
        series: dict[str, Any] = {"name": name, "title": title, "hint": hint, **_series(rows, name)}
        if name == "loss_epoch":
            series["fine"] = _series(rows, "loss_step")
        if series["y"]:
            found.append(series)
    return found


def _series(rows: list[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """Steps, epochs and values where there is a finite one."""
    points = []
    for row in rows:
        try:
            value = float(row[name])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            points.append((int(row["step"]) + 1, int(float(row.get("epoch", 0))) + 1, value))
    points = points[::-1][:: max(1, math.ceil(len(points) / MAX_POINTS))][::-1]  # the last one stays
    steps, epochs, values = ([point[i] for point in points] for i in range(3))
    return {"x": steps, "epoch": epochs, "y": values}


def results_of(
    run: Path, encoder_hash: Callable[[], str], others: Sequence[Path] = ()
) -> tuple[list[dict[str, Any]], str]:
    """The results of an encoder, and of random weights and log-mels on the same tasks, splits and seeds.

    Args:
        run: Folder of the run, searched at any depth.
        encoder_hash: Returns the hash of the encoder; called where there are results.
        others: More folders with results.

    Returns:
        A row a result, with its confusion matrix, for JSON; and a line about results that cannot be read, or "".

    Raises:
        DecarError: There is no result of this encoder, or one of `others` does not exist.
    """
    found, faults = _read_all([run, *others])
    note = f"{len(faults)} cannot be read: {'; '.join(faults[:3])}" if faults else ""
    wanted = encoder_hash() if found else ""
    own = [result for result in found if result.encoder_hash == wanted]
    if not own:
        other = f"{len(found)} results there are of other encoders; " if found else ""
        raise DecarError(
            f"no results of this encoder: {other}judge it with decar-eval -m 'task=glob(*)' bundle=RUN, then "
            f"decar report RUN --downstream DIR{'; ' if note else ''}{note}"
        )
    questions = {_question(result) for result in own}
    own += [result for result in found if result.encoder != "decar" and _question(result) in questions]
    rows = [_row(result) for result in own]
    return sorted(rows, key=lambda row: [row[key] for key in ("task", "mode", "protocol", "encoder", "seed")]), note


def _read_all(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """All results in some folders, and what is wrong with those that cannot be read."""
    found, faults = [], []
    for folder in folders:
        if not folder.exists():
            raise DecarError(f"--downstream {folder}: no such folder; give the one that eval.py wrote its runs to")
    for file in sorted({file.resolve() for folder in folders for file in result_files(folder)}):
        try:
            found.append(Result.read(file))
        except DecarError as error:
            faults.append(str(error))
    return found, faults


def _question(r: Result) -> tuple[object, ...]:
    return r.task, r.mode, r.protocol, r.seed, r.split_hash, r.shots


def _row(r: Result) -> dict[str, Any]:
    return {
        "task": r.title + (f", fold {r.fold}" if r.fold else ""),
        "mode": r.mode, "protocol": r.protocol, "encoder": ENCODERS[r.encoder], "seed": r.seed, "metric": r.metric,
        "value": r.value, "valid": r.valid_value, "n_train": r.n_train, "n_test": r.n_test,
        "n_classes": r.n_classes, "classes": r.classes, "confusion": r.confusion,
    }  # fmt: skip


def environment(command: Sequence[str]) -> dict[str, str]:
    """Versions, hardware, date and command of this process; no names of machines or people."""
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(command),
        "decar": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "accelerators": ", ".join(cards) or "none",
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def write_environment(run: Path) -> None:
    """Write `environment.json` into the folder of a run."""
    with whole(run / ENVIRONMENT) as part:
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        write_json(part, environment(command))


def read_environment(run: Path) -> dict[str, str]:
    """The environment of a run.

    Raises:
        DecarError: The file does not exist, or is damaged.
    """
    file = run / ENVIRONMENT
    if not file.is_file():  # a named pipe would block
        raise DecarError(f"{file}: not there: the run was made without a report")
    try:
        return {str(key): str(value) for key, value in read_json(file).items()}
    except (OSError, DamagedError) as error:
        raise DecarError(f"{file}: damaged ({error}): nothing says what the run was made with") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
