"""Clusters on wandb and TensorBoard: the clips nearest to their centres, their sizes, the labels in them.

Lightning itself logs the curves. Nothing here changes training; if a dashboard fails, a warning is logged once.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer

from decar.audio.decode import SAMPLE_RATE
from decar.audio.picture import RANGE, spectrogram, waveform_of
from decar.clustering import l2_normalize
from decar.clustering.stats import cluster_sizes
from decar.errors import AudioError, check_whole, reason_of
from decar.pretrain.boards import Board, boards_of
from decar.pretrain.module import DecarModule
from decar.pretrain.ranks import broadcast
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Rows

log = logging.getLogger(__name__)

BEST = {"nmi": "max", "probe_accuracy": "max", "pseudo_accuracy": "max", "loss_epoch": "min", "embedding_rank": "max"}
_EMBEDDED = 50  # clips of a cluster at most: enough for its centre
_BAR = 96  # pixels, height of the picture of sizes

Members = dict[int, Rows]  # clips of each cluster that is shown


class Dashboard(Callback):
    """Show clusters wherever the run is logged to wandb or TensorBoard; without either it does nothing.

    Args:
        facts: Options by which runs are compared and grouped.
        label: Column of the manifest that clusters are compared with.
        every_n_epochs: Interval; the last epoch is always shown.
        clusters: Number of clusters, from the largest to the smallest.
        clips: Number of clips per cluster, nearest to its centre.
        seconds: Length of sounds; 0: none.
    """

    def __init__(
        self,
        facts: Mapping[str, Any] | None = None,
        label: str | None = None,
        every_n_epochs: int = 1,
        clusters: int = 6,
        clips: int = 3,
        seconds: float = 5.0,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("clusters", clusters), ("clips", clips)):
            check_whole(f"callbacks.dashboard.{name}", value, 1)
        self.facts, self.label, self.every_n_epochs = dict(facts or {}), label, every_n_epochs
        self.clusters, self.clips, self.seconds = clusters, clips, seconds
        self.extremes: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._boards: list[Board] = []
        self._failed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the boards, which only rank 0 has."""
        self._boards = boards_of(trainer.loggers) if trainer.is_global_zero else []
        self._try(lambda board: board.begin(self.facts, BEST))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the figures of the previous epoch: the module logs its own after the callbacks' end-of-epoch hooks."""
        self._note(trainer.callback_metrics)

    def _note(self, metrics: Mapping[str, Any]) -> None:
        """Keep best and last values."""
        for name, value in metrics.items():
            if name in BEST and math.isfinite(float(value)):
                self.last[name] = float(value)
                better = max if BEST[name] == "max" else min
                self.extremes[name] = better(float(value), self.extremes.get(name, float(value)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the clusters of the epoch: all ranks embed, rank 0 shows."""
        assert isinstance(pl_module, DecarModule)
        done = trainer.current_epoch + 1
        due = done % self.every_n_epochs == 0 or done == trainer.max_epochs
        if not due or not broadcast(bool(self._boards) and not self._failed):
            return
        try:
            members = self._members(pl_module)
            clips = pl_module.data.store.take(np.concatenate([*members.values()]))
            z = pl_module.embed_store(clips, "dashboard: embedding a few clips")
            if trainer.is_global_zero:
                self._show(pl_module, _by_distance(members, z))
        except Exception as error:
            self._give_up(error)

    def _show(self, module: DecarModule, found: Members) -> None:
        """On rank 0 only."""
        step = module.trainer.global_step - 1
        sizes, compared, table = self._sizes(module), self._compared(module), self._table(module, found)
        for place, (cluster, clips) in enumerate(found.items()):
            self._show_clips(module, place, cluster, clips[: self.clips], step)
        for board in self._boards:
            board.pictures("clusters/sizes", [sizes], ["clips a cluster, from the largest"], step)
            if compared is not None:
                board.pictures("clusters/labels", [compared[0]], [compared[1]], step)
            board.table("clusters/table", table, step)

    def _show_clips(self, module: DecarModule, place: int, cluster: int, clips: Rows, step: int) -> None:
        """Pictures and sounds of some clips of a cluster; sounds only of those that can be read."""
        store, waves, heard = module.data.store.take(clips), [], []
        captions = [f"cluster {cluster}: {path}" for path in store.manifest.table["path"]]
        pictures = [spectrogram(store[i]) for i in range(len(store))]
        sounds = zip(captions, store.manifest.files, store.manifest.stretches, strict=True)
        for caption, file, stretch in sounds if self.seconds > 0 else ():
            try:
                waves.append(waveform_of(file, *stretch, self.seconds))
                heard.append(caption)
            except AudioError as error:
                log.debug("%s: cannot be heard (%s)", file, error)
        for board in self._boards:
            board.pictures(f"clusters/rank_{place}", pictures, captions, step)
            if waves:
                board.sounds(f"sounds/rank_{place}", waves, heard, SAMPLE_RATE, step)

    def _members(self, module: DecarModule) -> Members:
        """Some clips of some clusters of the last clustering: the network's own, where there is one."""
        labels = module.data.labels
        assert labels is not None
        clips, column, k = labels.last()
        sizes = cluster_sizes(column, k)
        order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        chosen = order[np.unique(np.linspace(0, len(order) - 1, self.clusters).round().astype(int))]
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, module.seed, labels.epoch, 3))
        return {int(c): np.sort(rng.permutation(clips[column == c])[:_EMBEDDED]) for c in chosen}

    def _sizes(self, module: DecarModule) -> NDArray[np.uint8]:
        """Bars of the sorted cluster sizes of the last clustering; they should fall off slowly."""
        labels = module.data.labels
        assert labels is not None
        sizes = np.sort(cluster_sizes(*labels.last()[1:]))[::-1]
        height = np.ceil(sizes / max(1, sizes.max()) * _BAR)
        filled = np.arange(_BAR)[::-1, None] < np.repeat(height, max(1, 384 // len(sizes)))[None]
        return np.where(filled[..., None], np.array([60, 90, 170]), 255).astype(np.uint8)

    def _compared(self, module: DecarModule) -> tuple[NDArray[np.uint8], str] | None:
        """Share of each label (row) in each cluster (column), ordered by most frequent label; None without labels."""
        shares = self._shares(module)
        if shares is None:
            return None
        order = np.lexsort((-shares.to_numpy().max(axis=1), shares.to_numpy().argmax(axis=1)))
        level = RANGE * (np.repeat(np.repeat(shares.to_numpy()[order], 12, axis=1), 4, axis=0) - 1)
        picture = spectrogram(level[:, ::-1], max_frames=4 * len(shares))  # one colour scale for everything
        return picture, f"share of each {self.label} (from above: {', '.join(shares.columns)}) in each cluster"

    def _shares(self, module: DecarModule) -> pd.DataFrame | None:
        table, labels = module.data.store.manifest.table, module.data.labels
        assert labels is not None
        if self.label is None or self.label not in table:
            return None
        clips, column, _ = labels.last()
        words = table[self.label].fillna("").astype(str).to_numpy()[clips]
        known = words != ""
        return pd.crosstab(column[known], words[known], normalize="index") if known.any() else None

    def _table(self, module: DecarModule, found: Members) -> pd.DataFrame:
        """One row per cluster: size, most frequent label, its share and, if shown, the clip nearest to the centre."""
        labels, shares = module.data.labels, self._shares(module)
        assert labels is not None
        sizes = cluster_sizes(*labels.last()[1:])
        paths = module.data.store.manifest.table["path"]
        rows = []
        for cluster in np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)].tolist():
            row = {"cluster": cluster, "size": int(sizes[cluster])}
            if shares is not None:
                share = shares.loc[cluster] if cluster in shares.index else pd.Series({"": 0.0})
                row |= {str(self.label): str(share.idxmax()), "share": float(share.max())}
            row["nearest"] = str(paths.iloc[found[cluster][0]]) if cluster in found else ""
            rows.append(row)
        return pd.DataFrame(rows)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log best and final figures, by which runs are compared."""
        self._note(trainer.callback_metrics)
        summary = {f"best_{name}": value for name, value in self.extremes.items()}
        summary |= {f"final_{name}": value for name, value in self.last.items()}
        self._try(lambda board: board.end(self.facts, summary))

    def _try(self, show: Callable[[Board], None]) -> None:
        """Show on every board, unless one has failed."""
        try:
            for board in () if self._failed else self._boards:
                show(board)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        reason = reason_of(error)
        log.warning("the dashboard failed and is left out from here on, training is not touched (%s)", reason)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save best and last values; Lightning calls `state_dict` before the epoch's figures are complete."""
        self._note(trainer.callback_metrics)
        checkpoint["dashboard"] = {"extremes": dict(self.extremes), "last": dict(self.last)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore best and last values."""
        kept = checkpoint.get("dashboard", {})
        self.extremes, self.last = dict(kept.get("extremes", {})), dict(kept.get("last", {}))


def _by_distance(members: Members, vectors: Floats) -> Members:
    """The clips of each cluster, nearest to the centre of their embeddings `(n, D)` first."""
    unit, found, first = l2_normalize(vectors), {}, 0
    for cluster, clips in members.items():
        rows = unit[first : first + len(clips)]
        found[cluster] = clips[np.argsort(-(rows @ rows.mean(axis=0)), kind="stable")]
        first += len(clips)
    return found
