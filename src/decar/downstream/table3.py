"""Results into the paper's Table 3: a row a task, a column for each clusterer and number of clusters.

Which column a result belongs to is told by the facts that its bundle carries.
"""

import math
from collections.abc import Sequence
from typing import get_args

import pandas as pd

from decar.downstream.columns import NAMES
from decar.downstream.commands import option
from decar.downstream.paper import paper_column, paper_tables
from decar.downstream.results import Mode, ProtocolName, Result
from decar.downstream.tables import EMPTY, heading, interval, runs_of, to_fill, to_markdown
from decar.errors import DecarError

CELL = ["task", "column", "protocol", "mode", "ours", "interval", "seeds", "paper"]
PAPER = ("kmeans_256", "kmeans_512", "kmeans_1024", "pic")


def column_of(result: Result) -> str | None:
    """`kmeans_512`, `pic`; None when the result is not of a pre-trained encoder, or its bundle does not say.

    >>> from types import SimpleNamespace
    >>> column_of(SimpleNamespace(pretrained={"clusterer": "kmeans", "k": 64}))
    'kmeans_64'
    """
    clusterer, k = result.pretrained.get("clusterer"), result.pretrained.get("k")
    if not clusterer:
        return None
    return f"{clusterer}_{k}" if clusterer == "kmeans" else str(clusterer)


def table3_cells(results: Sequence[Result]) -> pd.DataFrame:
    """Every cell that there is a result for: task, column, protocol, mode, ours, interval, seeds, paper (all in %).

    Raises:
        DecarError: A cell would average different splits, networks, data or numbers of the protocol.
    """
    found: dict[tuple[str, str, str, str], list[Result]] = {}
    for r in results:
        column = column_of(r)
        if column:
            found.setdefault((r.title, column, r.protocol, r.mode), []).append(r)
    theirs, rows = paper_column(3), []
    for (task, column, protocol, mode), cell in sorted(found.items()):
        _check_alike(task, column, cell)
        values = list(runs_of(cell).values())
        mean, half = interval(values)
        paper = theirs.get((task, column), math.nan) if (protocol, mode) == ("paper", "finetune") else math.nan
        rows.append((task, column, protocol, mode, 100 * mean, 100 * half, len(values), paper))
    return pd.DataFrame(rows, columns=CELL)


def table3(results: Sequence[Result], protocol: ProtocolName, mode: Mode) -> pd.DataFrame:
    """Table 3 as text cells, %: the paper's columns, then what else was found; the paper's nine tasks, then others.

    A cell is ours, with a 95 % interval over seeds; behind it, where the paper has one (fine-tuned, its protocol),
    `/ the paper's`.

    Raises:
        DecarError: A cell would average what is not one experiment.
    """
    all_cells = table3_cells(results)
    cells = all_cells[(all_cells["protocol"] == protocol) & (all_cells["mode"] == mode)]
    figures = zip(cells["task"], cells["column"], cells["ours"], cells["interval"], strict=True)
    texts = {(task, column): _text(mean, half) for task, column, mean, half in figures}
    theirs = paper_column(3)
    nine = list(dict.fromkeys(task for task, _ in theirs))
    beside = theirs if (protocol, mode) == ("paper", "finetune") else {}
    columns = [*PAPER, *sorted(set(cells["column"]) - set(PAPER), key=_by_number)]
    rows = {
        task: [
            texts.get((task, column), EMPTY) + (f" / {beside[task, column]:.1f}" if (task, column) in beside else "")
            for column in columns
        ]
        for task in [*nine, *sorted(set(cells["task"]) - set(nine))]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("task")


def table3_markdown(results: Sequence[Result]) -> str:
    """Table 3 as Markdown, a table for each protocol and mode there is, and the commands that fill what is empty.

    Raises:
        DecarError: No result is of an encoder whose clusterer is known.
    """
    ours = [result for result in results if column_of(result)]
    if not ours:
        raise DecarError(
            f"none of {len(results)} results is of a bundle that says its clusterer and k: pre-train with "
            "`python train.py -m clusterer=kmeans,pic k=256,512`, then judge, or run `python eval.py experiment=table3`"
        )
    parts = [f"{heading(ours)} By clusterer and number of clusters; ours, / the paper's Table 3."]
    for protocol in get_args(ProtocolName):
        for mode in get_args(Mode):
            if any((r.protocol, r.mode) == (protocol, mode) for r in ours):
                table = to_markdown(table3(ours, protocol, mode))
                parts.append(f"protocol={protocol}, {NAMES[mode]}\n\n{table}")
                gaps = missing(ours, protocol, mode)
                parts += [to_fill(gaps)] if gaps else []
    return "\n\n".join(parts) + "\n"


def missing(results: Sequence[Result], protocol: ProtocolName, mode: Mode) -> list[str]:
    """The commands that fill the empty cells of the table of a protocol and mode: one for each column."""
    bundles = {column_of(r): r.bundle for r in results}
    table = table3(results, protocol, mode)
    named = {r.title for r in results if len(r.task_options) == 1} | set(paper_tables().query("table == 3")["task"])
    commands = []
    for column in table.columns:
        tasks = [str(task) for task in table.index if table.loc[task, column].startswith(EMPTY) and task in named]
        if not tasks:
            continue
        words = ["-m"] if len(tasks) > 1 else []
        words += [f"task={','.join(tasks)}", f"mode={mode}", f"protocol={protocol}"]
        if column in bundles:
            commands.append(" ".join(["python eval.py", *words, option("bundle", bundles[column])]))
        else:
            commands.append(f"python eval.py experiment=table3 pretrain.column={column} {' '.join(words[-3:])}")
    return commands


def _check_alike(task: str, column: str, found: Sequence[Result]) -> None:
    """Seeds may be averaged, but not different splits, networks, data or numbers of the protocol."""
    kinds = [
        {"network": r.network, "data": r.pretrained.get("data"), **r.settings, "split": (r.fold, r.split_hash[:8])}
        for r in found
    ]
    splits: dict[str | None, str] = {}
    for kind in kinds:
        fold, hashed = kind.pop("split")
        different = [key for key in kind if kind[key] != kinds[0].get(key)]
        if splits.setdefault(fold, hashed) != hashed:
            different.append("split")
        if different:
            raise DecarError(
                f"task {task}, {column}: results with different {', '.join(different)} do not belong into one cell; "
                "give table3 the runs of one of them"
            )


def _text(mean: float, half: float) -> str:
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _by_number(column: str) -> tuple[str, int]:
    name, _, number = column.partition("_")
    return name, int(number) if number.isdigit() else 0
