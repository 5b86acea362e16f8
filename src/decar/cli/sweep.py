"""What a sweep says when all its jobs are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from decar.errors import DecarError


class PrintTable(Callback):
    """At the end of a sweep of `eval.py`: the table of its results, as `decar table2` prints it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print it; results that do not belong into one table are no mistake of the sweep's, and cost a line."""
        from decar.downstream import collect, table2_markdown

        folder = Path(config.hydra.sweep.dir)
        if not any(folder.rglob("result.json")):
            return
        try:
            print(f"\n{table2_markdown(collect([folder]))}")
        except DecarError as error:
            print(f"no table: {error}")
        print(f"results: {folder}")
