"""Metrics as CSV, kept over a resume: Lightning's own logger deletes the file that it finds.

A hidden copy has a digest before each line: damage to `metrics.csv` is noticed, and loses nothing.
"""

import csv
import io
import logging
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from decar.errors import TrainingError
from decar.files import advice, whole
from decar.metrics import COPY, read_lines, read_rows, sealed_line
from decar.pretrain.checkpoint import epoch_is_whole
from decar.pretrain.wandb_logger import ResumableWandbLogger

log = logging.getLogger(__name__)

FIRST = ("epoch", "step")  # columns


class ResumableCSVLogger(Logger):
    """Writes `metrics.csv` into a run's folder, each row at once; a resumed run keeps the rows from before it stopped.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self._file = self._folder / "metrics.csv"
        self._copy = self._file.with_name(COPY)
        self._columns: list[str] | None = None  # of the file, once it holds nothing but this run's rows

    @property
    def name(self) -> str:
        """None is needed: the folder is the run's."""
        return ""

    @property
    def version(self) -> str:
        """None is needed."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write `hparams.yaml`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(self._folder / "hparams.yaml", params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row; before the first one, of those that are there only the ones earlier in training stay."""
        row = {**{name: _plain(value) for name, value in metrics.items()}, "step": int(step or 0)}
        if self._columns is None:
            self._rewrite([old for old in read_rows(self._file) if int(old["step"]) < row["step"]], row)
        assert self._columns is not None
        if not row.keys() <= set(self._columns):
            self._rewrite(read_rows(self._file), row)
        line = _csv_line([row.get(name, "") for name in self._columns])
        try:
            for path, text in ((self._copy, sealed_line(line)), (self._file, f"{line}\r\n")):
                with open(path, "a", encoding="utf-8", newline="") as file:
                    file.write(text)
        except OSError as error:
            raise TrainingError(
                f"{self._file}: a row could not be written ({error.strerror}): {advice(error)}"
            ) from error

    @rank_zero_only
    def put_back(self, row: Mapping[str, float], step: int) -> None:
        """Add a row unless it is there: a kill came between its checkpoint and itself."""
        _, problem = read_lines(self._file)
        rows = [old for old in read_rows(self._file) if int(old["step"]) <= step]
        missing = not any(int(old["step"]) == step and row.keys() <= old.keys() for old in rows)
        if missing or problem:
            self._rewrite([*rows, {**row, "step": step}] if missing else rows, {})

    @rank_zero_only
    def take_back(self, epoch: int) -> None:
        """Drop the row of an epoch that was cut short and is continued: it gets its row at its end."""
        rows = read_rows(self._file)
        kept = [row for row in rows if not ("loss_epoch" in row and row.get("epoch") == str(epoch))]
        if len(kept) < len(rows):
            self._rewrite(kept, {})
            self._columns = None  # rows after the checkpoint may still be there

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop the rows from a step on, which an earlier call has logged."""
        rows = read_rows(self._file)
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self._rewrite(kept, {})

    def _rewrite(self, rows: list[dict[str, Any]], new: Mapping[str, Any]) -> None:
        """The file anew, with all columns that are needed; whole or as it was, whatever happens meanwhile."""
        names = sorted({name for row in [*rows, new] for name in row} - set(FIRST))
        columns = [*FIRST, *names]
        lines = [_csv_line(columns), *(_csv_line([row.get(name, "") for name in columns]) for row in rows)]
        with whole(self._copy) as part:
            part.write_text("".join(map(sealed_line, lines)), encoding="utf-8", newline="")
        with whole(self._file) as part:
            part.write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8", newline="")
        self._columns = columns


class EpochRow(Callback):
    """Keeps the figures of an epoch or step in the checkpoint at its end: Lightning logs them only after that."""

    def __init__(self) -> None:
        self._row: dict[str, float] = {}
        self._step = -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take along what is logged only after this: the figures of the epoch at its end, else those of the step."""
        ended, step = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch, trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # 0: no step is logged
        due = ended or (every and step % every == 0)
        fresh = trainer.fit_loop._results.metrics(on_step=not ended)["log"]  # logged_metrics has older ones too
        row = {name: float(value) for name, value in fresh.items()} if due else {}
        checkpoint["epoch_row"] = {"step": step - 1, "values": {**row, "epoch": trainer.current_epoch} if row else {}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember them."""
        kept = checkpoint.get("epoch_row", {})
        self._row, self._step = dict(kept.get("values", {})), int(kept.get("step", -1))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give them to the loggers that lack them; an epoch that goes on has no figures yet."""
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger) and trainer.fit_loop.restarted_mid_epoch:
                logger.take_back(trainer.current_epoch)
            if isinstance(logger, ResumableCSVLogger | ResumableWandbLogger) and self._row:
                logger.put_back(self._row, self._step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop rows behind the end: a run that was complete by an earlier checkpoint has logged no row that does so."""
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.forget_from(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that an epoch is cut short, before its figures are logged: wandb cannot take them back."""
        for logger in trainer.loggers:
            if isinstance(logger, ResumableWandbLogger):
                logger.cut_short = not epoch_is_whole(trainer)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _csv_line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
