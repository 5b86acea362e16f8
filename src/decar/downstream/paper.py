"""Our results beside the paper's Table 2 (`data/paper_tables.csv`)."""

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


def beside_table2(results: Sequence[Result]) -> pd.DataFrame:
    """Ours (`protocol=paper`) / the paper's, a row for each of its nine tasks."""
    ours: dict[tuple[str, str], list[float]] = {}
    for r in results:
        if r.protocol == "paper" and r.shots is None:
            ours.setdefault((r.task, f"{r.encoder}_{r.mode}"), []).append(r.value)
    return _beside(2, TABLE2, ours)


def _beside(number: int, columns: Sequence[str], ours: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Text cells `ours / paper's` in %, with our number of seeds where there are several."""
    tables = paper_tables()
    theirs = tables[tables["table"] == number].set_index(["task", "column"])["value"]
    tasks = list(dict.fromkeys(theirs.index.get_level_values("task")))
    rows = {task: [_cell(ours.get((task, c), []), float(theirs[task, c])) for c in columns] for task in tasks}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).rename_axis("task")


def _cell(values: Sequence[float], paper: float) -> str:
    mine = f"{100 * np.mean(values):.1f}" if values else EMPTY
    return f"{mine} / {paper:.1f}" + (f" (n={len(values)})" if len(values) > 1 else "")
