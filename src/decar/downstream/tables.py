"""Results as the paper's Tables 2 and 3: pivots of one long table that has a row a result.

Every figure comes from a `result.json`. A cell is the mean over seeds, with its 95 % interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy import stats

from decar.downstream.protocol import KnnProtocol, PaperProtocol, Protocol, SearchProtocol
from decar.downstream.results import Kind, Mode, ProtocolName, Result
from decar.errors import DecarError, printable

EMPTY = "–"
NAMES = {
    "random": "random", "logmel": "log-mel", "other": "", "decar": "DECAR",
    "frozen": "frozen", "finetune": "fine-tuned",
}  # fmt: skip
USUAL: dict[str, Protocol] = {p.name: p for p in (PaperProtocol(), SearchProtocol(), KnnProtocol())}
CELL = ["title", "column", "protocol", "mode"]
PAPER2 = ("random_frozen", "random_finetune", "decar_frozen", "decar_finetune")
PAPER3 = ("kmeans_256", "kmeans_512", "kmeans_1024", "pic")
READINGS = {  # the paper's tasks of which there are several readings: first the one with the classes of its Table 1
    "librispeech": ("librispeech_585",),  # 251 speakers are another task than its 585 classes
    "voxceleb1": ("voxceleb1_1211", "voxceleb1"),
    "voxforge": ("voxforge_8803", "voxforge"),
    "nsynth": ("nsynth_train_valid", "nsynth"),
}
_TO_FILL = (
    f"{EMPTY}: not judged yet; `python eval.py task=TASK mode=MODE protocol=PROTOCOL bundle=BUNDLE` does, and with -m "
    "several at once."
)


class Column(NamedTuple):
    """One column of Table 2; `name` distinguishes encoders of one kind."""

    protocol: ProtocolName
    encoder: Kind
    mode: Mode
    name: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.protocol, NAMES[self.encoder], self.name, NAMES[self.mode]]))


def columns(results: Sequence[Result]) -> list[Column]:
    """All columns of Table 2 of these results, empty ones as well."""
    named = bundle_names(results)

    def names(kind: Kind) -> list[str]:
        found = {named.get(result.encoder_hash, "") for result in results if result.encoder == kind}
        return sorted(found) if kind == "other" else sorted(found) or [""]

    seen = {result.protocol for result in results}
    return [
        Column(protocol, encoder, mode, name)
        for protocol in get_args(ProtocolName)
        if protocol != "knn" or protocol in seen
        for encoder in get_args(Kind)
        for name in names(encoder)
        for mode in get_args(Mode)
        if mode == "frozen" or (encoder != "logmel" and protocol != "knn")  # neither has weights to tune
    ]


def bundle_names(results: Sequence[Result]) -> dict[str, str]:
    """A name for each encoder that needs one, by its hash: others than decar's, and decar's unless they are seeds.

    Encoders are seeds of one experiment when each was judged with a seed of its own (seed0/pretrain with seed=0,
    seed1/pretrain with seed=1). Two encoders judged with the same seed are two bundles to compare: their names are the
    shortest ends of their paths that differ.
    """
    others = {result.encoder_hash: result.bundle for result in results if result.encoder == "other"}
    ours = [result for result in results if result.encoder == "decar"]
    hashes = {(result.seed, result.encoder_hash) for result in ours}
    if len(hashes) == len({seed for seed, _ in hashes}):
        return others
    parts = {result.encoder_hash: result.bundle.strip("/").split("/") for result in ours}
    for depth in range(1, 1 + max(map(len, parts.values()))):
        names = {key: "/".join(path[-depth:]) for key, path in parts.items()}
        if len(set(names.values())) == len(names):
            return others | names
    return others | {key: f"{name} {key[:8]}" for key, name in names.items()}  # one path, trained again in place


def column_of(result: Result) -> str | None:
    """The column of Table 3: `kmeans_512`, `pic`; None where no clusterer is known.

    >>> from types import SimpleNamespace
    >>> column_of(SimpleNamespace(pretrained={"clusterer": "kmeans", "k": 64}))
    'kmeans_64'
    """
    clusterer, k = result.pretrained.get("clusterer"), result.pretrained.get("k")
    return f"kmeans_{k}" if clusterer == "kmeans" else str(clusterer) if clusterer else None


def rows2(results: Sequence[Result]) -> pd.DataFrame:
    """The long table of Table 2, a row a result: its fields, `title`, `column`, and `kind`, which a cell has one of.

    Raises:
        DecarError: A task was judged on different splits or folds, or a cell would average different experiments.
    """
    names = bundle_names(results)
    labels = [str(Column(r.protocol, r.encoder, r.mode, names.get(r.encoder_hash, ""))) for r in results]
    kinds = [{"network": r.network, **_settings(r)} for r in results]
    return _checked(results, labels, kinds, "table2")


def rows3(results: Sequence[Result]) -> pd.DataFrame:
    """As `rows2` for Table 3; only results of encoders whose clusterer is known."""
    ours = [result for result in results if column_of(result)]
    kinds = [{"network": r.network, "data": r.pretrained.get("data"), **_settings(r)} for r in ours]
    return _checked(ours, [str(column_of(result)) for result in ours], kinds, "table3")


def _settings(result: Result) -> dict[str, Any]:
    """The protocol's numbers; `refit`, which earlier versions did not have, was false."""
    return {"refit": False, **result.settings} if result.settings and result.protocol == "paper" else result.settings


def _checked(
    results: Sequence[Result], labels: Sequence[str], kinds: Sequence[dict[str, Any]], table: str
) -> pd.DataFrame:
    """The long table, if its means compare: one split a task and fold, one kind a cell, the same folds everywhere."""
    first: dict[tuple[str, str | None], str] = {}
    for r in results:
        split = first.setdefault((r.task, r.fold), r.split_hash)
        if split != r.split_hash:
            raise DecarError(
                f"task {r.task}: results on two different splits ({split[:8]}, {r.split_hash[:8]}) do not compare; "
                f"give {table} the runs of one of them"
            )
    entries = [
        {**vars(r), "title": r.title, "column": label, "kind": kind}
        for r, label, kind in zip(results, labels, kinds, strict=True)
    ]
    rows = pd.DataFrame(entries, columns=[*(entry.name for entry in fields(Result)), "title", "column", "kind"])
    for (title, label, _, _), cell in rows.groupby(CELL, sort=False):
        for kind in cell["kind"]:
            _check_alike(f"task {title}, {label}", cell["kind"].iloc[0], kind, table)
        known: dict[str, object] = {}  # of their training, as far as results say it
        for facts in map(_training, cell["pretrained"]):
            _check_alike(f"task {title}, {label}", facts | known, known | facts, table)
            known.update(facts)
    for title, part in rows.groupby("title", sort=False):
        _check_folds(str(title), part)
    return rows


def _training(pretrained: Mapping[str, Any]) -> dict[str, object]:
    """What seeds of one training share: what the bundle says of clips and clusters, and options where these are known.

    >>> _training({"clusterer": "kmeans", "k": 64, "seed": 0, "options": {"optimizer.lr": 0.1}})
    {'clusterer': 'kmeans', 'k': 64, 'optimizer.lr': 0.1}
    """
    kept = ("data", "clips", "clusterer", *(["k"] if pretrained.get("clusterer") == "kmeans" else []))
    return {key: pretrained[key] for key in kept if key in pretrained} | dict(pretrained.get("options") or {})


def _not_known(rows: pd.DataFrame) -> str:
    """A sentence about averaged encoders of which nothing says how they were trained, "" where there are none."""
    averaged = rows.groupby(CELL)["encoder_hash"].transform("nunique") > 1
    silent = np.array([not facts.get("options") for facts in rows["pretrained"]], bool)
    n = rows[averaged & silent & (rows["encoder"] == "decar")]["encoder_hash"].nunique()
    return (
        f" With which options it was trained is not known of {n} of the averaged encoders (no config.yaml lay beside "
        "the bundle, or an earlier version judged it): nothing shows that they are seeds of one experiment."
        if n
        else ""
    )


def _check_alike(where: str, first: Mapping[str, object], other: Mapping[str, object], table: str) -> None:
    """Only seeds may be averaged, not different networks, data, trainings or numbers of the protocol."""
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    if keys:
        one, two = (", ".join(f"{key}={kind.get(key, '?')}" for key in keys) for kind in (first, other))
        raise DecarError(
            f"{where}: results with {one} and with {two} are not seeds of one experiment; give {table} the runs of one "
            "of them, or delete the other's result.json"
        )


def _check_folds(title: str, rows: pd.DataFrame) -> None:
    """Every seed of every column was judged on the same folds."""
    seen: list[tuple[object, list[str]]] = []  # column and folds of each run
    for (label, _, _, seed, _), run in rows.groupby([*CELL[1:], "seed", "encoder_hash"], sort=False):
        seen.append((label, sorted(set(map(str, run["fold"])))))
        (usual, expected), (_, folds) = seen[0], seen[-1]
        if folds != expected:
            raise DecarError(
                f"task {title}: {usual} has fold {', '.join(expected)}, {label} (seed {seed}) has fold "
                f"{', '.join(folds)}; judge all on the same, such as task.fold=range(1,6)"
            )


def over_folds(rows: pd.DataFrame) -> "pd.Series[float]":
    """The value of each seed and encoder in each cell, 0 to 1: of a task in folds, the mean over them."""
    return rows.groupby([*CELL, "seed", "encoder_hash"])["value"].mean()


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; the half width is NaN for a single value."""
    x = np.asarray(list(values))
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def as_text(values: Iterable[float]) -> str:
    """Mean and interval of values from 0 to 1, in percent."""
    mean, half = interval(values)
    return f"{100 * mean:.1f}" if np.isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f}"


def pivot(rows: pd.DataFrame, titles: list[str], labels: list[str]) -> pd.DataFrame:
    """Text cells, a row a task and a column a label, `EMPTY` where there is no result."""
    cells = over_folds(rows).groupby(["title", "column"]).agg(as_text).unstack("column")
    return cells.reindex(index=titles, columns=labels).fillna(EMPTY).rename_axis(index="task", columns=None)


def table2(results: Sequence[Result]) -> pd.DataFrame:
    """Table 2 as text cells: test accuracy in percent, with a 95 % interval where there are several seeds.

    The last rows are means. A mean compares columns, so each is taken over tasks that all of its columns have: one
    row over what the frozen columns share, one over what the fine-tuned ones share, or one row if that is the same.

    Where DECAR bundles are compared rather than repeated (`bundle_names`), each has columns of its own.

    Returns:
        Index `task` (tasks in alphabetical order, then the means), one column of text for each of `columns(results)`.

    Raises:
        DecarError: As of `rows2`.
    """
    rows = rows2(results)
    table = pivot(rows, sorted(rows["title"].unique()), [str(column) for column in columns(results)])
    means = {
        f"mean of {len(tasks)} task{'s'[: len(tasks) > 1]}": [_mean(rows, tasks, str(label)) for label in table]
        for tasks in _shared_tasks(rows)
    }
    return pd.concat([table, pd.DataFrame.from_dict(means, orient="index", columns=table.columns)]).rename_axis("task")


def _shared_tasks(rows: pd.DataFrame) -> Iterator[list[str]]:
    """For frozen, then fine-tuned columns: the tasks that all of those with any result have; each list once."""
    seen: list[list[str]] = []
    for mode in get_args(Mode):
        tasks = rows[rows["mode"] == mode].groupby("column")["title"].agg(set)
        shared = sorted(set.intersection(*tasks)) if len(tasks) else []
        if shared and shared not in seen:
            seen.append(shared)
            yield shared


def _mean(rows: pd.DataFrame, tasks: list[str], label: str) -> str:
    """Mean of a column over some tasks, with an interval when every task was judged by the same seeds and encoders."""
    part = rows[(rows["column"] == label) & rows["title"].isin(tasks)]
    if part["title"].nunique() < len(tasks):
        return ""
    runs = over_folds(part).unstack("title")
    return as_text([runs.mean().mean()] if runs.isna().to_numpy().any() else runs.mean(axis=1))


def table2_markdown(results: Sequence[Result]) -> str:
    """Table 2 as Markdown: a table for each protocol with results, and ours beside the paper's on the paper's tasks."""
    table = table2(results)
    parts = [" ".join([heading(results), *_departures(results)]) + _not_known(rows2(results))]
    if table.map(lambda cell: "±" in cell).to_numpy().any():
        parts[0] += " ±: 95 % interval of the mean over seeds (Student's t)."
    judged = {result.protocol for result in results}
    for protocol in (name for name in get_args(ProtocolName) if name in judged):
        labels = [str(c) for c in columns(results) if c.protocol == protocol]
        part = table[labels].rename(columns=lambda label: label.split(" ", 1)[1])
        parts.append(f"protocol={protocol}\n\n{to_markdown(part)}")
    names = bundle_names(results)
    for name in sorted({names.get(r.encoder_hash, "") for r in results if r.encoder == "decar"}) or [""]:
        ours = [r for r in results if r.encoder != "decar" or names.get(r.encoder_hash, "") == name]
        nine = beside_table2(ours)
        by_accuracy = all(result.metric == "accuracy" for result in ours if result.task in nine.index)
        if by_accuracy and not set(nine.index).isdisjoint(result.task for result in ours):
            title = f"Ours{printable(f', {name},') if name else ''} / the paper's Table 2 (protocol=paper, n seeds)"
            parts.append(f"{title}\n\n{to_markdown(nine)}")
    if (table == EMPTY).to_numpy().any():
        parts.append(_TO_FILL)
    return "\n\n".join(parts) + "\n"


def beside_table2(results: Sequence[Result]) -> pd.DataFrame:
    """Ours (`protocol=paper`) / the paper's, a row for each of its nine tasks, with the name of our reading of it.

    Args:
        results: Of one experiment: those of all DECAR bundles are seeds of it.
    """
    folds: dict[tuple[str, str, int, str], list[float]] = {}
    for r in results:
        if r.protocol == "paper" and r.shots is None:
            folds.setdefault((r.task, f"{r.encoder}_{r.mode}", r.seed, r.encoder_hash), []).append(r.value)
    ours: dict[tuple[str, str], list[float]] = {}
    for (task, label, _, _), values in folds.items():
        ours.setdefault((task, label), []).append(float(np.mean(values)))
    rows: dict[str, dict[str, str]] = {}
    for (task, label), paper in beside_paper(2, results).items():
        values = ours.get((task, label), [])
        mine = f"{100 * np.mean(values):.1f}" if values else EMPTY
        rows.setdefault(task, {})[label] = f"{mine} / {paper:.1f}" + (f" (n={len(values)})" if values[1:] else "")
    return pd.DataFrame.from_dict(rows, orient="index")[list(PAPER2)].rename_axis("task")


def paper_cells(number: int) -> dict[tuple[str, str], float]:
    """The cells of one of the paper's Tables 1 to 3, from `data/paper_tables.csv`: (task, column) → %."""
    with resources.files("decar").joinpath("data", "paper_tables.csv").open() as file:
        cells = pd.read_csv(file).query(f"table == {number}")
    return {(str(t), str(c)): float(v) for t, c, v in zip(cells["task"], cells["column"], cells["value"], strict=True)}


def beside_paper(number: int, results: Iterable[Any]) -> dict[tuple[str, str], float]:
    """`paper_cells` by our names: of the readings of a task the first that was judged, else the first."""
    judged = {result.task for result in results}

    def ours(task: str) -> str:
        readings = READINGS.get(task, (task,))
        return next((name for name in readings if name in judged), readings[0])

    return {(ours(task), column): value for (task, column), value in paper_cells(number).items()}


def table3_cells(results: Sequence[Result]) -> pd.DataFrame:
    """The cells of Table 3 as numbers: task, column, protocol, mode, ours, interval, seeds, paper (in %).

    Raises:
        DecarError: As of `rows3`.
    """
    theirs, cells = beside_paper(3, results), []
    for (task, column, protocol, mode), values in over_folds(rows3(results)).groupby(CELL):
        mean, half = interval(values)
        compares = (protocol, mode) == ("paper", "finetune")
        paper = theirs.get((str(task), str(column)), np.nan) if compares else np.nan
        cells.append((task, column, protocol, mode, 100 * mean, 100 * half, len(values), paper))
    return pd.DataFrame(cells, columns=["task", *CELL[1:], "ours", "interval", "seeds", "paper"])


def table3(results: Sequence[Result], protocol: ProtocolName, mode: Mode) -> pd.DataFrame:
    """Table 3 as text cells, %: the paper's columns, then what else was found; the paper's nine tasks, then others.

    A cell is ours, with a 95 % interval over seeds; behind it, where the paper has one (fine-tuned, its protocol),
    `/ the paper's`.

    Raises:
        DecarError: As of `rows3`.
    """
    rows = rows3(results)
    rows = rows[(rows["protocol"] == protocol) & (rows["mode"] == mode)]
    theirs = beside_paper(3, rows.itertuples())
    nine = list(dict.fromkeys(task for task, _ in theirs))
    others = sorted(set(rows["column"]) - set(PAPER3), key=_by_number)
    table = pivot(rows, [*nine, *sorted(set(rows["title"]) - set(nine))], [*PAPER3, *others])
    if (protocol, mode) != ("paper", "finetune"):
        return table
    beside = pd.DataFrame("", index=table.index, columns=table.columns)
    for (task, label), value in theirs.items():
        beside.loc[task, label] = f" / {value:.1f}"
    return table + beside


def _by_number(label: str) -> tuple[str, int]:
    name, _, number = label.partition("_")
    return name, int(number) if number.isdigit() else 0


def table3_markdown(results: Sequence[Result]) -> str:
    """Table 3 as Markdown, a table for each protocol and mode that there is.

    Raises:
        DecarError: No result is of an encoder whose clusterer is known.
    """
    ours = [result for result in results if column_of(result)]
    if not ours:
        raise DecarError(
            f"none of {len(results)} results is of a bundle with a known clusterer and k: pre-train with "
            "`python train.py -m clusterer=kmeans,pic k=256,512`, then judge, or run `python eval.py experiment=table3`"
        )
    parts = [
        f"{heading(ours)} By clusterer and number of clusters; ours, / the paper's Table 3.{_not_known(rows3(ours))}"
    ]
    for protocol in get_args(ProtocolName):
        for mode in get_args(Mode):
            if any((r.protocol, r.mode) == (protocol, mode) for r in ours):
                table = to_markdown(table3(ours, protocol, mode))
                parts.append(f"protocol={protocol}, {NAMES[mode]}\n\n{table}")
    return "\n\n".join([*parts, _TO_FILL]) + "\n"


def heading(results: Sequence[Result]) -> str:
    """The measure that the figures of a table are; tasks with another measure are named.

    >>> from types import SimpleNamespace as R
    >>> heading([R(title="esc50", metric="accuracy"), R(title="fsd50k", metric="mAP")])
    'Accuracy on the test split, %; fsd50k: mAP.'
    """
    metrics = {result.title: result.metric for result in results}
    usual = "accuracy" if "accuracy" in metrics.values() else min(metrics.values(), default="accuracy")
    name = usual if usual == "mAP" else usual.replace("_", " ").capitalize().replace("f1", "F1")
    others = [f"{title}: {metric}" for title, metric in sorted(metrics.items()) if metric != usual]
    return printable("; ".join([f"{name} on the test split, %", *others]) + ".")


def _departures(results: Sequence[Result]) -> list[str]:
    """A sentence for each way in which results do not compare: other numbers than the protocol's, other networks."""
    found: set[str] = set()
    networks = sorted({result.network for result in results if result.network})
    if len(networks) > 1:
        found.add(f"Different networks are mixed here: {', '.join(networks)}.")
    for result in results:
        usual = asdict(USUAL[result.protocol])
        for key, value in result.settings.items():
            usually = list(usual[key]) if isinstance(usual.get(key), tuple) else usual.get(key)
            if value != usually:
                found.add(f"{NAMES[result.mode].capitalize()}, {result.protocol}: {key}={value}, usually {usually}.")
    return [printable(sentence) for sentence in sorted(found)]


def to_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown that is aligned as plain text too: names to the left, numbers to the right."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    lines = [head, *([str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True))]
    lines = [[printable(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])
