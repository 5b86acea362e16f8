"""Which column of Table 2 a result belongs to, and which results may share a cell."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from decar.downstream.results import Kind, Mode, ProtocolName, Result
from decar.errors import DecarError

NAMES = {"random": "random", "logmel": "log-mel", "decar": "DECAR", "frozen": "frozen", "finetune": "fine-tuned"}


class Column(NamedTuple):
    """One column of Table 2; `name` tells DECAR bundles apart where there are several."""

    protocol: ProtocolName
    encoder: Kind
    mode: Mode
    name: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.protocol, NAMES[self.encoder], self.name, NAMES[self.mode]]))


Cells = Mapping[tuple[str, Column], list[Result]]


def columns(results: Sequence[Result]) -> list[Column]:
    """All columns of a table of these results, empty ones as well."""
    names = sorted(bundle_names(results).values()) or [""]
    seen = {result.protocol for result in results}
    return [
        Column(protocol, encoder, mode, name)
        for protocol in get_args(ProtocolName)
        if protocol != "knn" or protocol in seen
        for encoder in get_args(Kind)
        for name in (names if encoder == "decar" else [""])
        for mode in get_args(Mode)
        if mode == "frozen" or (encoder != "logmel" and protocol != "knn")  # neither has weights to tune
    ]


def cells(results: Sequence[Result]) -> Cells:
    """Results by task and column.

    Raises:
        DecarError: A task was judged on different splits or folds, or a cell would average what is not one experiment.
    """
    found: dict[tuple[str, Column], list[Result]] = {}
    splits: dict[tuple[str, str | None], str] = {}
    names = bundle_names(results)
    for result in results:
        if splits.setdefault((result.task, result.fold), result.split_hash) != result.split_hash:
            raise DecarError(
                f"task {result.task}: results on two different splits ({splits[result.task, result.fold][:8]}, "
                f"{result.split_hash[:8]}) do not compare; give table2 the runs of one of them"
            )
        column = Column(result.protocol, result.encoder, result.mode, names.get(result.encoder_hash, ""))
        cell = found.setdefault((result.title, column), [])
        cell.append(result)
        _check_alike(cell[0], result, column)
    _check_folds(found)
    return found


def _check_folds(found: Cells) -> None:
    """Every seed of every column of a task was judged on the same folds: else their means do not compare."""
    seen: dict[str, tuple[Column, set[str | None]]] = {}
    for (task, column), results in found.items():
        for run in {(r.seed, r.encoder_hash) for r in results}:
            folds = {r.fold for r in results if (r.seed, r.encoder_hash) == run}
            first, usual = seen.setdefault(task, (column, folds))
            if folds != usual:
                one, two = (", ".join(sorted(map(str, some))) for some in (usual, folds))
                raise DecarError(
                    f"task {task}: {first} has fold {one}, {column} (seed {run[0]}) has fold {two}; judge all on the "
                    "same, such as task.fold=range(1,6)"
                )


def bundle_names(results: Sequence[Result]) -> dict[str, str]:
    """What to call each DECAR encoder, by its hash; empty when all of them are seeds of one experiment.

    Encoders are seeds of one experiment when each was judged with a seed of its own (seed0/pretrain with seed=0,
    seed1/pretrain with seed=1). Two of them judged with the same seed are two bundles to compare: each is called by
    the shortest end of its path that tells them all apart.
    """
    ours = [result for result in results if result.encoder == "decar"]
    hashes = {(result.seed, result.encoder_hash) for result in ours}
    if len(hashes) == len({seed for seed, _ in hashes}):
        return {}
    parts = {result.encoder_hash: result.bundle.strip("/").split("/") for result in ours}
    for depth in range(1, 1 + max(map(len, parts.values()))):
        names = {key: "/".join(path[-depth:]) for key, path in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {key: f"{name} {key[:8]}" for key, name in names.items()}  # one path, trained anew in place


def _check_alike(first: Result, other: Result, column: Column) -> None:
    """Seeds may be averaged, but not different numbers of the protocol or different networks."""
    one, two = ({"network": result.network, **result.settings} for result in (first, other))
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    if keys:
        told = (", ".join(f"{key}={settings.get(key, '?')}" for key in keys) for settings in (one, two))
        raise DecarError(
            f"task {first.task}, {column}: results with {' and with '.join(told)} are not seeds of one experiment; "
            "give table2 the runs of one of them, or delete the other's result.json"
        )


COLUMNS = columns([])  # of a table with at most one DECAR bundle
