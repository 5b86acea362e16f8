"""One interface to what wandb and TensorBoard show beside curves, through Lightning's loggers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

Picture = NDArray[np.uint8]  # (H, W, 3)
Wave = NDArray[np.float32]  # (T,)


class WandbBoard:
    """A run of wandb, online or offline. Everywhere there are as many `captions` as pictures or sounds."""

    def __init__(self, logger: WandbLogger) -> None:
        self.logger = logger

    def begin(self, facts: Mapping[str, Any], best: Mapping[str, str]) -> None:
        """Set the options that runs are compared by, and for which curves the `max` or `min` is the best value."""
        run: Any = self.logger.experiment
        run.config.update(dict(facts), allow_val_change=True)
        for name, which in best.items():
            run.define_metric(name, step_metric="trainer/global_step", summary=f"{which},last")

    def pictures(self, key: str, pictures: Sequence[Picture], captions: Sequence[str], step: int) -> None:
        """Show a panel of images."""
        self.logger.log_image(key, [*pictures], step, caption=[*captions])

    def sounds(self, key: str, waves: Sequence[Wave], captions: Sequence[str], rate: int, step: int) -> None:
        """Show a panel of players for sounds of `rate` Hz."""
        self.logger.log_audio(key, [*waves], step, caption=[*captions], sample_rate=[rate] * len(waves))

    def table(self, key: str, table: pd.DataFrame, step: int) -> None:
        """Show a table that can be sorted and filtered."""
        self.logger.log_table(key, columns=[*map(str, table)], data=table.to_numpy().tolist(), step=step)

    def end(self, facts: Mapping[str, Any], summary: Mapping[str, float]) -> None:
        """Log the figures that runs are compared by."""
        self.logger.experiment.summary.update(dict(summary))


class TensorBoardBoard:
    """An event file of TensorBoard."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.logger = logger

    def begin(self, facts: Mapping[str, Any], best: Mapping[str, str]) -> None:
        """Do nothing: the table of hyper-parameters is written with the figures, in `end`."""

    def pictures(self, key: str, pictures: Sequence[Picture], captions: Sequence[str], step: int) -> None:
        """Show each under a key that is the same in all epochs: TensorBoard then has a slider over them."""
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            self._writer.add_image(f"{key}/{i}", picture, step, dataformats="HWC")
            self._writer.add_text(f"{key}/{i}", _plain(caption), step)

    def sounds(self, key: str, waves: Sequence[Wave], captions: Sequence[str], rate: int, step: int) -> None:
        """Show each under such a key."""
        for i, (wave, caption) in enumerate(zip(waves, captions, strict=True)):
            self._writer.add_audio(f"{key}/{i}", np.clip(wave, -1, 1)[None], step, rate)
            self._writer.add_text(f"{key}/{i}/what", _plain(caption), step)

    def table(self, key: str, table: pd.DataFrame, step: int) -> None:
        """Show a Markdown table."""
        rows: list[list[object]] = [[*table.columns], ["---"] * table.shape[1], *table.to_numpy().tolist()]
        self._writer.add_text(key, "\n".join(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows), step)

    def end(self, facts: Mapping[str, Any], summary: Mapping[str, float]) -> None:
        """Add a row to the table of hyper-parameters."""
        self.logger.log_hyperparams(dict(facts), {f"summary/{name}": value for name, value in summary.items()})

    @property
    def _writer(self) -> Any:
        return self.logger.experiment


Board = WandbBoard | TensorBoardBoard


def boards_of(loggers: Iterable[Logger]) -> list[Board]:
    """The boards of those loggers that have one."""
    found: list[Board] = []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            found.append(WandbBoard(logger))
        elif isinstance(logger, TensorBoardLogger):
            found.append(TensorBoardBoard(logger))
    return found


def _plain(cell: object) -> str:
    """A cell or caption with Markdown's special characters escaped."""
    text = f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text
