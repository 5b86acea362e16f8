"""Metrics as CSV, kept over a resume: Lightning's own logger deletes the file that it finds."""

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only


class ResumableCSVLogger(CSVLogger):
    """Writes `metrics.csv` into a run's folder; a resumed run keeps the rows from before it stopped.

    The rows that were there are put aside under another name while Lightning opens its file, and come back with the
    first row that is logged; a run that is stopped before it logs anything finds them there the next time.

    Args:
        save_dir: The run's folder.
        flush_logs_every_n_steps: How often rows reach the disk.
    """

    def __init__(self, save_dir: str | Path, flush_logs_every_n_steps: int = 10) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._file, self._aside = Path(save_dir) / "metrics.csv", Path(save_dir) / ".metrics.before.csv"
        if (
            not getattr(rank_zero_only, "rank", 0) and self._file.is_file()
        ):  # it holds what a file put aside earlier held
            os.replace(self._file, self._aside)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; before the first one, write again those of the run before that come earlier in training."""
        if self._aside.is_file():
            kept = [row for row in _rows(self._aside) if step is None or int(row["step"]) < step]
            self.experiment.metrics.extend(kept)
            self.save()
            self._aside.unlink()
        super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        """Write what is left; a run that logged nothing gives back what it found."""
        super().finalize(status)
        if self._aside.is_file():
            os.replace(self._aside, self._file)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a kill may have cut the last one."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k and v} for row in rows if (row.get("step") or "").isdigit()]
