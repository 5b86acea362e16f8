"""What of a network an embedding should hold beside its vector: candidates, on a folder of tasks (docs/recipe.md).

    python benchmarks/readout.py --root DIR --bundles small RUN random:0 random:1 --rank
    python benchmarks/readout.py --root DIR --bundles small random:0 --probe "vector" "b1 16 + b2 16"  # --test: once
    python benchmarks/readout.py --root DIR --bundles small --search

`random:S`: the default network with weights of seed S. Candidates are statistics over time of the log-mel (`in`), of
the map of each block (`b1` to `b3`, bands averaged to so many) and of the MLP's frames. They are computed once a bundle
and kept in float16 in `--out`.

--rank   accuracy of ridge classifiers, four folds of train and validation by groups of recordings, the best penalty of
         each task. Features enter as products of clips only, so that a candidate is a sum of matrices: seconds each.
--probe  the probe of `protocol=search`, on validation; with --test also on test.
--search the share of clips of the same label among the ten nearest, in train and validation.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import LogMelStore, Manifest
from decar.downstream.probe import fit_logistic, fit_search, preparation
from decar.downstream.protocol import Known, SearchProtocol, score
from decar.downstream.task import Task, TaskSpec, load_task
from decar.embedder.output import write_rows
from decar.models import Encoder, build_network, load_encoder
from decar.models.components import principal_directions
from decar.models.embed import run_pass, standardiser
from decar.models.networks import READOUT_SCALE, ConvTrunk, FrequencyKeeping, seeded
from decar.neighbours.index import Index

BANDS = {"in": (64,), "b1": (32, 16, 8, 4), "b2": (16, 8, 4), "b3": (8,)}
QUARTERS = ("q0", "q1", "q2", "q3")
STATS = ("mean", "max", "std", "delta", *QUARTERS)
PENALTIES = 10.0 ** np.arange(-4, 2)  # times the mean square length of a clip
FOLDS = 4
SHARES = (0, 0.01, 0.1, 0.3, 1, 3)  # of the mean variance, that --search adds to each
GROUPS = ("speaker", "instrument_preset", "kit", "recording", "group", "source_package")  # columns of index.csv
MM = ("mean", "max")
VECTOR = ["mlp.mean", "mlp.max", "b3.mean.8", "b3.max.8"]

Floats = NDArray[np.float32]


def part(block: str, bands: int, stats: Sequence[str] = MM) -> list[str]:
    """Names of the features of a block."""
    return [f"{block}.{stat}.{bands}" for stat in stats]


def both(first: int, second: int, stats: Sequence[str] = MM) -> list[str]:
    """Names of the features of the first two blocks."""
    return part("b1", first, stats) + part("b2", second, stats)


CANDIDATES: dict[str, list[str]] = {
    "vector": VECTOR,
    "MLP only": VECTOR[:2],
    "b3 only": VECTOR[2:],
    "log-mel": VECTOR + part("in", 64),
    "log-mel, std": VECTOR + part("in", 64, (*MM, "std")),
    **{f"b1 {n}": VECTOR + part("b1", n) for n in (8, 16, 32)},
    **{f"b2 {n}": VECTOR + part("b2", n) for n in (4, 8, 16)},
    **{f"b1 {a} + b2 {b}": VECTOR + both(a, b) for a, b in ((4, 4), (8, 8), (8, 16), (16, 8), (16, 16), (32, 16))},
    "b1 8 + b2 8, mean only": VECTOR + both(8, 8, ("mean",)),
    "b1 8 + b2 8, max only": VECTOR + both(8, 8, ("max",)),
    "b1 8 + b2 8, std only": VECTOR + both(8, 8, ("std",)),
    "b1 8 + b2 8, and std": VECTOR + both(8, 8, (*MM, "std")),
    "b1 8 + b2 8, and delta": VECTOR + both(8, 8, (*MM, "delta")),
    "b2 16, and std": VECTOR + part("b2", 16, (*MM, "std")),
    "b2 16, and delta": VECTOR + part("b2", 16, (*MM, "delta")),
    "b3, std": VECTOR + part("b3", 8, ("std",)),
    "b3, delta": VECTOR + part("b3", 8, ("delta",)),
    "MLP, std": [*VECTOR, "mlp.std"],
    "b3 + b2 16, no MLP": VECTOR[2:] + part("b2", 16),
    "b3 + b1 8 + b2 8, no MLP": VECTOR[2:] + both(8, 8),
    "b3 + b1 32 + b2 16, no MLP": VECTOR[2:] + both(32, 16),
    "quarters of b3": VECTOR + part("b3", 8, QUARTERS),
    "quarters of the MLP": [*VECTOR, *(f"mlp.{quarter}" for quarter in QUARTERS)],
    "b1 16 + b2 16, quarters of b3": VECTOR + both(16, 16) + part("b3", 8, QUARTERS),
    "b1 16 + b2 16, quarters of b2 8": VECTOR + both(16, 16) + part("b2", 8, QUARTERS),
    "MLP max + b3 + b2 16": VECTOR[1:] + part("b2", 16),
    "MLP mean + b3 + b2 16": [*VECTOR[:1], *VECTOR[2:], *part("b2", 16)],
}


class Groups(nn.Module):
    """All features of a network, side by side: `(B, 1, M, F)` to `(B, D)`; `sizes` has the width of each group."""

    def __init__(self, network: FrequencyKeeping) -> None:
        super().__init__()
        self.network = network
        self.sizes: dict[str, int] = {}

    def forward(self, logmel: Tensor) -> Tensor:
        """Features of log-mels."""
        network = self.network
        x = (logmel - network.mean) / network.std
        maps = cast(ConvTrunk, network.trunk).maps(x)
        found: dict[str, Tensor] = {}
        for name, bands in BANDS.items():
            of = x if name == "in" else maps[int(name[1]) - 1]
            for n in bands:
                pooled = functional.avg_pool2d(of, (of.shape[2] // n, 1))
                found |= {f"{name}.{stat}.{n}": value for stat, value in statistics(pooled.flatten(1, 2)).items()}
        deep = network.mlp(maps[-1].permute(0, 3, 1, 2).flatten(2)).transpose(1, 2)
        found |= {f"mlp.{stat}": value for stat, value in statistics(deep).items()}
        self.sizes = {name: value.shape[1] for name, value in found.items()}
        return torch.cat(list(found.values()), dim=1)


def statistics(x: Tensor) -> dict[str, Tensor]:
    """Of `(B, C, F)` over time, each `(B, C)`.

    `delta` is the mean absolute difference of neighbouring frames, `q0` to `q3` the means of the quarters of the time.
    """
    delta, quarters = x.diff(dim=2).abs().mean(2), functional.adaptive_avg_pool1d(x, len(QUARTERS)).unbind(2)
    return dict(zip(STATS, (x.mean(2), x.amax(2), x.std(2, correction=0), delta, *quarters), strict=True))


class Features:
    """The features of all clips of the folder, by a bundle; computed where `folder` has them not."""

    def __init__(self, name: str, store: LogMelStore, folder: Path) -> None:
        file = folder / f"{name.replace('/', '_')}.npy"
        if not file.with_suffix(".json").is_file():
            groups = Groups(network_of(name)).eval()
            encoder = Encoder(groups)
            with torch.no_grad():
                made = run_pass(encoder, store, encoder, dim=encoder.dim, batch_size=32, title=name)
            np.save(file, made.astype(np.float16))
            file.with_suffix(".json").write_text(json.dumps(groups.sizes))
        self.name, self.x = name, np.load(file, mmap_mode="r")
        sizes: dict[str, int] = json.loads(file.with_suffix(".json").read_text())
        ends = np.cumsum(list(sizes.values()))
        self.columns = {key: np.arange(end - sizes[key], end) for key, end in zip(sizes, ends, strict=True)}

    def take(self, rows: NDArray[np.int64], groups: Iterable[str]) -> Floats:
        """`(n, D)` features of some clips."""
        return np.asarray(self.x[rows], np.float32)[:, np.concatenate([self.columns[group] for group in groups])]


def network_of(name: str) -> FrequencyKeeping:
    """The network of a bundle, or untrained weights."""
    if not name.startswith("random:"):
        return cast(FrequencyKeeping, load_encoder(name).network)
    with seeded(int(name.removeprefix("random:"))):
        return cast(FrequencyKeeping, build_network("conv", "catavgmax", local=True))


def tasks_of(root: Path) -> list[Task]:
    """The tasks of the folder, as `task=table` reads them."""
    source = str(root / "index.csv")
    return [
        load_task(TaskSpec(file.stem, label="label", path=str(file), root=str(root), source=source))
        for file in sorted((root / "tasks").glob("*.csv"))
    ]


def fold_of(task: Task, rows: NDArray[np.int64], index: pd.DataFrame) -> NDArray[np.int64]:
    """The fold of some clips of a task: no value is divided of the columns that its own split does not divide."""
    table = index.iloc[task.rows][[*GROUPS]].astype("string").fillna("").astype(object)
    component = np.arange(len(rows))
    for name in GROUPS:
        values = table[name].to_numpy()
        known = values != ""
        splits = pd.Series(task.split[known]).groupby(values[known]).nunique()
        if known.mean() > 0.5 and len(splits) >= 2 * FOLDS and (splits == 1).all():
            places = pd.Series(np.flatnonzero(known[rows]))
            for _, same in places.groupby(values[rows][known[rows]]):
                joined = np.unique(component[same])
                component[np.isin(component, joined)] = joined[0]
    fold, load = np.zeros(len(rows), np.int64), np.zeros((FOLDS, len(task.classes)))
    groups, sizes = np.unique(component, return_counts=True)
    for group in groups[np.argsort(-sizes, kind="stable")]:  # the largest first, where there are fewest like it
        held = np.bincount(task.y[rows][component == group], minlength=len(task.classes))
        fold[component == group] = chosen = int(np.argmin(load @ held + 1e-3 * load.sum(1)))
        load[chosen] += held
    return fold


class Ridge:
    """Accuracy of ridge classifiers on a task, by the products of standardised features of its clips."""

    def __init__(self, task: Task, features: Features, groups: Iterable[str], index: pd.DataFrame) -> None:
        rows = np.concatenate([task.indices("train"), task.indices("valid")])
        self.fold, self.y, self.n_classes = fold_of(task, rows, index), task.y[rows], len(task.classes)
        self.products: dict[str, Floats] = {}
        for group in groups:
            x = features.take(task.rows[rows], [group])
            mean, factor = standardiser([x])
            scaled = ((x - mean) * factor).astype(np.float32)
            self.products[group] = scaled @ scaled.T

    def accuracy(self, groups: Sequence[str]) -> float:
        """Of the best penalty."""
        kernel = np.sum([self.products[group] for group in groups], axis=0)
        hits = np.zeros((len(PENALTIES), len(self.y)))
        for fold in range(FOLDS):
            known, asked = np.flatnonzero(self.fold != fold), np.flatnonzero(self.fold == fold)
            truth = np.eye(self.n_classes, dtype=np.float32)[self.y[known]]
            square = kernel[np.ix_(known, known)]
            for i, penalty in enumerate(PENALTIES * np.trace(square) / len(known)):
                weights = cho_solve(cho_factor(square + np.float32(penalty) * np.eye(len(known), dtype=np.float32)),
                                    truth - truth.mean(0))  # fmt: skip
                found = (kernel[np.ix_(asked, known)] @ weights).argmax(1)
                hits[i, asked] = found == self.y[asked]
        return float(hits.mean(1).max())


def rank(features: Features, tasks: Sequence[Task], index: pd.DataFrame, chosen: Mapping[str, list[str]]) -> None:
    """Print the accuracy of candidates by ridge."""
    wanted = list(dict.fromkeys(group for groups in chosen.values() for group in groups))
    ridges = [Ridge(task, features, wanted, index) for task in tasks]
    for name, groups in chosen.items():
        show(features, name, groups, "folds", [ridge.accuracy(groups) for ridge in ridges])


def probe(features: Features, tasks: Sequence[Task], chosen: Mapping[str, list[str]], test: bool) -> None:
    """Print the accuracy of candidates by the probe of `protocol=search`."""
    for name, groups in chosen.items():
        pairs = [probed(features.take(task.rows, groups), task, test) for task in tasks]
        show(features, name, groups, "validation", [valid for valid, _ in pairs])
        if test:
            show(features, name, groups, "test", [value for _, value in pairs])


def probed(x: Floats, task: Task, test: bool) -> tuple[float, float]:
    """Accuracy on validation, at the best strength, and on test."""
    train, valid = task.indices("train"), task.indices("valid")
    known = Known(x[train], task.y[train], x[valid], task.y[valid], len(task.classes), True)
    if test:
        fitted, last = fit_search(known, SearchProtocol()), task.indices("test")
        return fitted.valid_value, score(fitted.scores(x[last]), task.y[last])
    prepare = preparation(known.x_train)
    given = prepare(known.x_train), prepare(known.x_valid)
    return max(
        score(fit_logistic(given[0], known.y_train, strength, known.n_classes)(given[1]), known.y_valid)
        for strength in SearchProtocol().strengths
    ), 0.0


def search(features: Features, tasks: Sequence[Task], index: pd.DataFrame) -> None:
    """Print how many of the ten nearest clips have the label of a clip, by several vectors, and what a search costs."""
    trained_on, readout = np.flatnonzero(index["pretrain"]), VECTOR + both(16, 16)
    every = np.arange(len(features.x))
    vector, plain = features.take(every, VECTOR), features.take(every, readout)
    scaled = plain.copy()
    scaled[:, vector.shape[1] :] *= READOUT_SCALE
    for name, x in (("vector", vector), ("b1 16 + b2 16, not scaled", plain), ("b1 16 + b2 16", scaled)):
        show(features, name, [], "cosine", [alike(x, task) for task in tasks])
        print(f"{name}: {seconds(x, index):.2f} s a search")
        for part in SHARES:
            mean, factor = standardiser([x], share=part)
            levelled = ((x - mean) * factor).astype(np.float32)
            show(features, name, [], f"standardised, {part}", [alike(levelled, task) for task in tasks])
        for dim in (512, 256, 128) if x is not plain else ():
            less = x @ principal_directions(x[trained_on], dim).numpy().T
            show(features, f"{name}, --dim {dim}", [], "cosine", [alike(less, task) for task in tasks])
            print(f"{name}, --dim {dim}: {seconds(less, index):.2f} s a search")


def seconds(x: Floats, index: pd.DataFrame) -> float:
    """CPU seconds of a search of one sound in a file of these embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.parquet"
        write_rows(file, index[["path"]], x, {})
        table = Index.from_parquet(file)
        began = time.process_time()
        table.nearest(x[:1], 10)
        return time.process_time() - began


def alike(x: Floats, task: Task) -> float:
    """The share of the same label among the ten nearest by cosine."""
    rows = np.concatenate([task.indices("train"), task.indices("valid")])
    unit, y = x[task.rows[rows]], task.y[rows]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argpartition(-likeness, 10, axis=1)[:, :10]
    return float((y[nearest] == y[:, None]).mean())


def show(features: Features, name: str, groups: Sequence[str], what: str, values: Sequence[float]) -> None:
    """Print a line: mean over the tasks, then each."""
    dim = sum(len(features.columns[group]) for group in groups)
    each = " ".join(f"{100 * value:.1f}" for value in values)
    print(f"{features.name} | {name} | {dim or ''} | {what} | {100 * np.mean(values):.2f} | {each}", flush=True)


def main() -> None:
    """Compute features, print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="index.csv and tasks/*.csv")
    parser.add_argument("--bundles", nargs="+", default=["small", "random:0", "random:1"])
    parser.add_argument("--out", type=Path, default=Path("runs/readout"), help="where features are kept")
    parser.add_argument("--rank", nargs="*", metavar="CANDIDATE", help="all where none is named")
    parser.add_argument("--probe", nargs="+", default=[], metavar="CANDIDATE")
    parser.add_argument("--test", action="store_true", help="read the test split too: for what has been chosen")
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    index = pd.read_csv(args.root / "index.csv")
    store = LogMelStore.open_or_build(
        Manifest.from_csv(args.root / "index.csv"), load_encoder().frontend, cache_dir=args.out / "cache"
    )
    tasks = tasks_of(args.root)
    for name in args.bundles:
        features = Features(name, store, args.out)
        if args.rank is not None:
            rank(features, tasks, index, candidates(args.rank or CANDIDATES))
        probe(features, tasks, candidates(args.probe), args.test)
        if args.search:
            search(features, tasks, index)


def candidates(names: Iterable[str]) -> dict[str, list[str]]:
    """The candidates of these names."""
    return {name: CANDIDATES[name] for name in names}


if __name__ == "__main__":
    main()
