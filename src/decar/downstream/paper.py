"""The paper's tables (`data/paper_tables.csv`), and our results beside its Table 2."""

from collections.abc import Sequence
from importlib import resources

import numpy as np
import pandas as pd

from decar.downstream.results import Result

TABLE2 = ("random_frozen", "random_finetune", "decar_frozen", "decar_finetune")
EMPTY = "–"


def paper_tables() -> pd.DataFrame:
    """The paper's Tables 1 to 3: columns table, task, column, value."""
    with resources.files("decar").joinpath("data", "paper_tables.csv").open() as file:
        return pd.read_csv(file)


def paper_column(number: int) -> dict[tuple[str, str], float]:
    """The cells of one of the paper's tables: (task, column) → %."""
    tables = paper_tables()
    rows = tables[tables["table"] == number]
    return {(str(t), str(c)): float(v) for t, c, v in zip(rows["task"], rows["column"], rows["value"], strict=True)}


def beside_table2(results: Sequence[Result]) -> pd.DataFrame:
    """Ours (`protocol=paper`) / the paper's, a row for each of its nine tasks."""
    ours: dict[tuple[str, str], list[float]] = {}
    for r in results:
        if r.protocol == "paper" and r.shots is None:
            ours.setdefault((r.task, f"{r.encoder}_{r.mode}"), []).append(r.value)
    theirs = paper_column(2)
    tasks = list(dict.fromkeys(task for task, _ in theirs))
    rows = {task: [_cell(ours.get((task, c), []), theirs[task, c]) for c in TABLE2] for task in tasks}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(TABLE2)).rename_axis("task")


def _cell(values: Sequence[float], paper: float) -> str:
    mine = f"{100 * np.mean(values):.1f}" if values else EMPTY
    return f"{mine} / {paper:.1f}" + (f" (n={len(values)})" if len(values) > 1 else "")
