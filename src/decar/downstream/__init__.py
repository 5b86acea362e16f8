"""Judging an encoder on labelled tasks: frozen probe, fine-tuning, and the tables that come of it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decar.downstream.evaluate import cached_embeddings as cached_embeddings
    from decar.downstream.evaluate import judge as judge
    from decar.downstream.finetune import fit_finetune as fit_finetune
    from decar.downstream.probe import fit_frozen as fit_frozen
    from decar.downstream.protocol import KnnProtocol as KnnProtocol
    from decar.downstream.protocol import Outcome as Outcome
    from decar.downstream.protocol import PaperProtocol as PaperProtocol
    from decar.downstream.protocol import Protocol as Protocol
    from decar.downstream.protocol import SearchProtocol as SearchProtocol
    from decar.downstream.results import Result as Result
    from decar.downstream.results import by_metric as by_metric
    from decar.downstream.results import collect as collect
    from decar.downstream.tables import table2 as table2
    from decar.downstream.tables import table2_markdown as table2_markdown
    from decar.downstream.tables import table3 as table3
    from decar.downstream.tables import table3_cells as table3_cells
    from decar.downstream.tables import table3_markdown as table3_markdown
    from decar.downstream.tables import to_markdown as to_markdown
    from decar.downstream.task import Task as Task
    from decar.downstream.task import TaskSpec as TaskSpec
    from decar.downstream.task import load_task as load_task

_HOMES = {
    "evaluate": ("cached_embeddings", "judge"),
    "finetune": ("fit_finetune",),
    "probe": ("fit_frozen",),
    "protocol": ("KnnProtocol", "Outcome", "PaperProtocol", "Protocol", "SearchProtocol"),
    "results": ("Result", "by_metric", "collect"),
    "tables": ("table2", "table2_markdown", "table3", "table3_cells", "table3_markdown", "to_markdown"),
    "task": ("Task", "TaskSpec", "load_task"),
}

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
    "fit_finetune",
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


def __getattr__(name: str) -> object:
    """Import what is asked for, and Lightning, which fine-tuning alone needs, only then."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
