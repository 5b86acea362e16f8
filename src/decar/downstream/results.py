"""The result of one job of `eval.py`, kept as `result.json`."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from decar.digests import DamagedError, read_json, write_json
from decar.errors import DecarError
from decar.files import advice, find_files, whole

FILE_NAME = "result.json"
Mode = Literal["frozen", "finetune"]
Kind = Literal["random", "logmel", "other", "decar"]
ProtocolName = Literal["paper", "search", "knn"]


@dataclass(frozen=True)
class Result:
    """One judged cell of a table.

    Attributes:
        task: Name of the task.
        mode: Whether the encoder was frozen or fine-tuned.
        protocol: "paper", "search" or "knn".
        bundle: As the user gave it: a path, "random", "logmel", or the name of an encoder that is not decar's.
        encoder: The kind of encoder, by which a table has columns.
        encoder_hash: Hash of weights and settings before any fine-tuning; "logmel" for the baseline.
        seed: Seed of the probe, and of the weights when they are random.
        split_hash: Hash of the clips, labels and splits.
        value: `metric` on test, 0 to 1.
        valid_value: `metric` of what was chosen on validation, 0 to 1.
        n_train: Readable training clips.
        n_valid: Readable validation clips.
        n_test: Readable test clips.
        n_classes: Number of classes.
        dropped: Clips of each split left out because they could not be read.
        confusion: `C` rows (true class) of `C` counts (predicted class) on the test split.
        classes: Names of the classes, in the order of `confusion`.
        chosen: The setting that validation chose.
        version: Version of decar.
        seconds: Time the judging took, s.
        metric: What `value` and `valid_value` are: accuracy, or mAP of several labels a clip.
        metrics: All measures of the test split, 0 to 1, by name.
        fold: The fold that was tested on, of a task in folds.
        shots: Training clips a class, of a few-shot task.
        settings: The protocol's numbers.
        network: The encoder's network, its `description`; "" for the log-mel baseline.
        pretrained: Facts about the pre-training that the bundle holds: data, seed, clusterer, k, epoch, step; and
            `options`, those that seeds of one experiment share, by dotted key, where a config.yaml lies beside it.
    """

    task: str
    mode: Mode
    protocol: ProtocolName
    bundle: str
    encoder: Kind
    encoder_hash: str
    seed: int
    split_hash: str
    value: float
    valid_value: float
    n_train: int
    n_valid: int
    n_test: int
    n_classes: int
    dropped: dict[str, int]
    confusion: list[list[int]]
    classes: list[str]
    chosen: dict[str, float | int]
    version: str
    seconds: float
    metric: str = "accuracy"
    metrics: dict[str, float] = field(default_factory=dict)
    fold: str | None = None
    shots: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    network: str = ""
    pretrained: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The task as a row of a table; with few shots it is a task of its own."""
        return self.task if self.shots is None else f"{self.task}, {self.shots} shot{'s'[: self.shots > 1]}"

    def write(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all; a folder gets a `result.json`.

        Raises:
            DecarError: The file cannot be written.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            with whole(path) as part:
                write_json(part, asdict(self))
        except OSError as error:
            raise DecarError(f"{path}: the result could not be written ({error}): {advice(error)}") from error
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        """Read a result back; entries that this version does not know are ignored.

        Raises:
            DecarError: There is no such file, or it is no whole result.
        """
        try:
            entries = read_json(Path(path))
        except (OSError, DamagedError) as error:
            raise DecarError(f"{path}: not a readable result ({error}); delete it and run eval.py again") from error
        problem = _problem(entries)
        if problem:
            raise DecarError(f"{path}: not a whole result ({problem}); delete it and run eval.py again")
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})


def collect(roots: Iterable[str | Path]) -> list[Result]:
    """All results under some folders (or named as files), in the order of their paths.

    Of results for the same question (task, mode, protocol, encoder, seed, split, shots) the newest file counts.

    Raises:
        DecarError: A root does not exist, there is no result at all, or one of them is damaged.
    """
    folders = [Path(root) for root in roots]
    paths: dict[Path, None] = {}
    for root in folders:
        if not root.exists():
            raise DecarError(f"{root}: no such file or folder; give the folder that eval.py wrote its runs to")
        paths.update(dict.fromkeys(result_files(root) if root.is_dir() else [root]))
    if not paths:
        where = ", ".join(map(str, folders))
        raise DecarError(f"{where}: no {FILE_NAME} in there; make one with `python eval.py task=… bundle=…`")
    newest = latest((path, Result.read(path)) for path in by_age(paths))
    return [result for _, result in sorted(newest, key=lambda found: found[0])]


def by_age(paths: Iterable[Path]) -> list[Path]:
    """The oldest file first."""
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, str(path)))


def latest(found: Iterable[tuple[Path, Result]]) -> list[tuple[Path, Result]]:
    """Of results for the same question the last, in the order given."""
    newest: dict[tuple[object, ...], tuple[Path, Result]] = {}
    for path, r in found:
        question = (r.task, r.mode, r.protocol, r.encoder, r.encoder_hash, r.seed, r.split_hash, r.shots)
        newest.pop(question, None)
        newest[question] = path, r
    return [*newest.values()]


def result_files(folder: Path) -> list[Path]:
    """The result files at any depth of a folder, sorted."""
    return sorted(folder / name for name in find_files(folder) if PurePath(name).name == FILE_NAME)


def by_metric(results: Iterable[Result], name: str) -> list[Result]:
    """The same results with another of their measures of the test split as `value`.

    Raises:
        DecarError: One of them does not have it.
    """
    chosen = []
    for r in results:
        if name not in r.metrics:
            has = ", ".join(r.metrics) or "none, it was judged by an older version"
            raise DecarError(f"{r.title}, {r.bundle}: there is no measure '{name}' (there is: {has})")
        chosen.append(replace(r, metric=name, value=r.metrics[name]))
    return chosen


def _problem(entries: Mapping[str, Any]) -> str:
    """What is wrong with the content of a result file, "" when nothing is."""
    needed = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in entries]
    if missing:
        return f"no {', '.join(missing)}"
    for key, allowed in (("mode", Mode), ("protocol", ProtocolName), ("encoder", Kind)):
        if entries[key] not in get_args(allowed):
            return f"{key} is {entries[key]!r}"
    for key in ("value", "valid_value"):
        if isinstance(entries[key], bool) or not isinstance(entries[key], (int, float)):
            return f"{key} is {entries[key]!r}"
        if not 0 <= entries[key] <= 1:  # NaN is not either
            return f"{key} is {entries[key]}, not between 0 and 1"
    return ""
