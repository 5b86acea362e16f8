"""Judging an encoder on labelled tasks: frozen probe, fine-tuning, and the tables that come of it."""

from decar.downstream.evaluate import cached_embeddings, judge
from decar.downstream.probe import fit_frozen
from decar.downstream.protocol import KnnProtocol, Outcome, PaperProtocol, Protocol, SearchProtocol
from decar.downstream.results import Result, by_metric, collect
from decar.downstream.tables import table2, table2_markdown, table3, table3_cells, table3_markdown, to_markdown
from decar.downstream.task import Task, TaskSpec, load_task

__all__ = [
    "KnnProtocol",
    "Outcome",
    "PaperProtocol",
    "Protocol",
    "Result",
    "SearchProtocol",
    "Task",
    "TaskSpec",
    "by_metric",
    "cached_embeddings",
    "collect",
    "fit_frozen",
    "judge",
    "load_task",
    "table2",
    "table2_markdown",
    "table3",
    "table3_cells",
    "table3_markdown",
    "to_markdown",
]
