"""Results into the paper's Table 2: a row a task; each encoder, frozen and fine-tuned, under each protocol a column.

Every number comes from `result.json` files; nothing is filled in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import get_args

import numpy as np
import pandas as pd
from scipy import stats

from decar.downstream.columns import NAMES, Cells, Column, cells, columns
from decar.downstream.commands import missing_commands
from decar.downstream.paper import beside_table2
from decar.downstream.protocol import KnnProtocol, PaperProtocol, Protocol, SearchProtocol
from decar.downstream.results import Mode, ProtocolName, Result
from decar.errors import printable

EMPTY = "–"
USUAL: dict[str, Protocol] = {p.name: p for p in (PaperProtocol(), SearchProtocol(), KnnProtocol())}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; the half width is NaN for a single value."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def table2(results: Sequence[Result]) -> pd.DataFrame:
    """Table 2 as text cells: test accuracy in percent, with a 95 % interval where there are several seeds.

    The last rows are means. A mean compares columns, so each is taken over tasks that all of its columns have: one
    row over what the frozen columns share, one over what the fine-tuned ones share, or one row if that is the same.

    Where DECAR bundles are compared rather than repeated (`bundle_names`), each has columns of its own.

    Returns:
        Index `task` (tasks in alphabetical order, then the means), one column of text for each of `columns(results)`.

    Raises:
        DecarError: A task was judged on different splits, or a cell would average what is not one experiment.
    """
    found, shown = cells(results), columns(results)
    tasks = sorted({task for task, _ in found})
    rows = {task: [_text(list(runs_of(found.get((task, column), [])).values())) for column in shown] for task in tasks}
    for shared in _shared_tasks(found, tasks, shown):
        rows[f"mean of {len(shared)} task{'s'[: len(shared) > 1]}"] = [_mean(found, shared, c) for c in shown]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[str(c) for c in shown])
    return frame.rename_axis("task")


def table2_markdown(results: Sequence[Result]) -> str:
    """Table 2 as Markdown, one table for each protocol, with the commands that would fill the empty cells."""
    frame = table2(results)
    parts = [" ".join([heading(results), *_departures(results)])]
    if frame.map(lambda cell: "±" in cell).to_numpy().any():
        parts[0] += " ±: 95 % interval of the mean over seeds (Student's t)."
    for protocol in get_args(ProtocolName):
        names = [str(c) for c in columns(results) if c.protocol == protocol]
        part = frame[names].rename(columns=lambda name: name.split(" ", 1)[1])
        parts.append(f"protocol={protocol}\n\n{to_markdown(part)}")
    nine = beside_table2(results)
    by_accuracy = all(result.metric == "accuracy" for result in results if result.task in nine.index)
    if by_accuracy and not set(nine.index).isdisjoint(result.task for result in results):
        parts.append(f"Ours / the paper's Table 2 (protocol=paper, n seeds)\n\n{to_markdown(nine)}")
    commands = missing_commands(results)
    if commands:
        parts.append(to_fill(commands))
    return "\n\n".join(parts) + "\n"


def to_fill(commands: Sequence[str]) -> str:
    """A paragraph of commands, a line each, ready to paste."""
    return "To fill the empty cells:\n\n" + "\n".join(f"    {printable(command)}" for command in commands)


def heading(results: Sequence[Result]) -> str:
    """What the figures of a table are: accuracy, or what is said for the tasks that are judged otherwise.

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
    """A sentence for each way in which results do not compare: numbers not the protocol's own, different networks."""
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


def to_markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown that is also aligned to the eye: names to the left, numbers to the right."""
    head = [str(frame.index.name or ""), *map(str, frame.columns)]
    lines = [head, *([str(name), *map(str, row)] for name, row in zip(frame.index, frame.to_numpy(), strict=True))]
    lines = [[printable(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _shared_tasks(found: Cells, tasks: Sequence[str], shown: Sequence[Column]) -> Iterator[list[str]]:
    """For frozen, then fine-tuned columns: the tasks that all of those with any result have; each list once."""
    seen: list[list[str]] = []
    for mode in get_args(Mode):
        filled = [c for c in shown if c.mode == mode and any((task, c) in found for task in tasks)]
        shared = [task for task in tasks if filled and all((task, c) in found for c in filled)]
        if shared and shared not in seen:
            seen.append(shared)
            yield shared


def _mean(found: Cells, tasks: Sequence[str], column: Column) -> str:
    """Mean of a column over some tasks, with an interval when every task was judged by the same seeds and encoders."""
    if any((task, column) not in found for task in tasks):
        return ""
    runs = [runs_of(found[task, column]) for task in tasks]
    if all(run.keys() == runs[0].keys() for run in runs):
        return _text([float(np.mean([run[key] for run in runs])) for key in runs[0]])
    return _text([float(np.mean([np.mean(list(run.values())) for run in runs]))])


def runs_of(results: Sequence[Result]) -> dict[tuple[int, str], float]:
    """The value of each seed and encoder: of a task in folds, the mean over them."""
    values: dict[tuple[int, str], list[float]] = {}
    for r in results:
        values.setdefault((r.seed, r.encoder_hash), []).append(r.value)
    return {key: float(np.mean(folds)) for key, folds in values.items()}


def _text(values: Sequence[float]) -> str:
    if not len(values):
        return EMPTY
    mean, half = interval(list(values))
    return f"{100 * mean:.1f}" if np.isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f}"
