"""Metrics as CSV, kept over a resume: Lightning's own logger deletes the file that it finds."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger


class ResumableCSVLogger(CSVLogger):
    """Writes `metrics.csv` into a run's folder; a resumed run keeps the rows from before it stopped.

    Args:
        save_dir: The run's folder.
        flush_logs_every_n_steps: How often rows reach the disk.
    """

    def __init__(self, save_dir: str | Path, flush_logs_every_n_steps: int = 10) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._before: list[dict[str, Any]] = []
        path = Path(save_dir) / "metrics.csv"
        if path.is_file():
            with open(path, newline="") as file:
                self._before = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; before the first one, write again those of the run before that come earlier in training."""
        if self._before:
            kept = [row for row in self._before if step is None or int(row["step"]) < step]
            self._before = []
            self.experiment.metrics.extend(kept)
            self.save()
        super().log_metrics(metrics, step)
