"""The vectors `z` that are clustered: of a pass over the whole set within `fit`, or those that training has seen.

`trainer.predict` asserts within `fit`, and a second Trainer rebinds the module, so the pass is our own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor, nn

from decar.audio import LogMelStore
from decar.audio.blocks import Blocks
from decar.models import Encoder
from decar.models.embed import PIECES_AT_ONCE, batches_by_length, evaluating, run_pass
from decar.pretrain.ranks import failing_together, gather_rows, gather_values, rank_and_size, share_buffers

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_STAY_ON_DEVICE = 32  # steps whose vectors wait on the device: copying each at once would make a GPU wait


@dataclass(frozen=True)
class Vectors:
    """The vectors `(N, P)` of the whole set, divided over the ranks. All ranks must call its methods together.

    Attributes:
        rows: `(n_r, P)`, those that this rank has.
        index: `(n_r,)`, the clip of each.
    """

    rows: Floats
    index: Rows

    def gather(self, clips: Rows | None = None) -> Floats:
        """The vectors of all clips, or of some: `(n, P)` on rank 0, `(0, P)` on the others.

        Args:
            clips: `(n,)`, ascending; None: all `N`.
        """
        if clips is None:
            return gather_rows(self.rows, self.index)
        chosen = np.isin(self.index, clips)
        return gather_rows(self.rows[chosen], np.searchsorted(clips, self.index[chosen]))

    def map(self, function: Callable[[Floats], NDArray[Any]]) -> NDArray[Any]:
        """Apply a function from `(n, P)` to `(n, H)` on each rank: `(N, H)` on rank 0, `(0, H)` on the others."""
        with failing_together():
            made = function(self.rows)
        return gather_rows(made, self.index)


def embed_dataset(
    trainer: Trainer,
    module: nn.Module,
    encoder: Encoder,
    store: LogMelStore,
    *,
    dim: int,
    batch_size: int,
    title: str = "cluster: embedding all clips",
) -> Vectors:
    """Run a module in eval mode over a whole store, on the trainer's device and in its precision. Collective.

    The ranks divide the batches that one process would make: each clip is embedded once, and to the same bits. All
    ranks first get rank 0's buffers.

    Args:
        trainer: Has device and precision.
        module: From log-mels `(B, 1, M, F)` to vectors `(B, P)`.
        encoder: Defines how clips are padded.
        store: `N` clips.
        dim: `P`.
        batch_size: Pieces at a time, at most `PIECES_AT_ONCE`: the training batch is that of all ranks, of crops ten
            times shorter.
        title: Of the progress bar.
    """

    def in_precision(clips: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            vectors: Tensor = module(clips)
        return vectors

    batch_size, device = min(batch_size, PIECES_AT_ONCE), trainer.strategy.root_device
    module.to(device)  # Lightning has moved it to the CPU before `on_fit_end`
    rank, size = rank_and_size()
    batches, index = None, np.arange(len(store))
    if size > 1:
        share_buffers(module)
        batches = batches_by_length(store, index, encoder, batch_size)[rank::size]
        index = np.concatenate([index[:0], *batches])
    with evaluating(module), failing_together():
        rows = run_pass(
            in_precision, store, encoder, dim=dim, batch_size=batch_size, title=title,
            device=device, progress=rank == 0, batches=batches,
        )  # fmt: skip
    if size > 1:
        _share_checks(store.blocks)
    return Vectors(rows, index)


def _share_checks(blocks: Blocks | None) -> None:
    """Give each rank the list of blocks that others on its machine have compared with their digests. Collective.

    A rank's pass reads its share of the store; its crops come from all of it. It would read the rest again, in blocks
    of 1 MiB for crops of 12 KiB.
    """
    own = None if blocks is None else (blocks.file_id(), blocks.checked)
    for found in gather_values(own):
        if blocks is not None and found is not None and found[0] == blocks.file_id():
            blocks.trust(found[1])


class FeatureBank:
    """The latest `z` of each clip, from training itself: no extra pass over the set in each epoch.

    The paper pays one forward pass an epoch to cluster, and names saving it as future work. Here only the first
    clustering makes a pass. After that each step leaves the `z` of its crops in the bank, and the next epoch clusters
    those: vectors of augmented crops, by weights up to an epoch old; a clip that was not drawn keeps its older vector.

    Rank 0 holds all vectors; the other ranks hold what they have seen until it is brought there. Within an epoch the
    rows stay as they were when it began, and what has been seen is kept beside them, so that a checkpoint within the
    epoch has nothing new but that.

    Args:
        dim: `P`, the width of `z`.
    """

    def __init__(self, dim: int) -> None:
        self.filled = False
        self._rows: Floats = np.empty((0, dim), np.float32)
        self._waiting: list[tuple[Tensor, Tensor]] = []  # on the device
        self._seen: list[tuple[Rows, Floats]] = [(np.empty(0, np.int64), self._rows)]
        self._newer: list[tuple[Rows, Floats]] = []  # on rank 0: of all ranks, in the order of the draw

    def fill(self, rows: Floats) -> None:
        """Start with the vectors of a pass, as `Vectors.gather` returns them."""
        self._rows, self.filled = rows, True

    def add(self, index: Tensor, vectors: Tensor) -> None:
        """Keep the vectors `(B, P)` of the clips `(B,)` of one step; ignored before `fill`."""
        if not self.filled:
            return
        self._waiting.append((index, vectors.detach()))
        if len(self._waiting) == _STAY_ON_DEVICE:
            self._fetch()

    def _fetch(self) -> None:
        """Move what waits on the device to memory."""
        if self._waiting:
            index, vectors = (torch.cat(part) for part in zip(*self._waiting, strict=True))
            self._seen.append((index.cpu().numpy(), vectors.float().cpu().numpy()))
            self._waiting.clear()

    def _collect(self) -> None:
        """Bring what all ranks have seen to rank 0. Collective."""
        self._fetch()
        index, vectors = (np.concatenate(part) for part in zip(*self._seen, strict=True))
        del self._seen[1:]
        rank, size = rank_and_size()
        drawn = np.arange(len(index)) * size + rank  # places in the draw of all ranks, dealt out as by `deal_batch`
        clips, latest = gather_rows(index[:, None], drawn)[:, 0], gather_rows(vectors, drawn)
        if len(clips):
            self._newer.append((clips, latest))

    def merge(self) -> None:
        """Put what all ranks have seen into the rows; the result does not depend on when. Collective."""
        self._collect()
        for clips, latest in self._newer:
            self._rows[clips] = latest  # of several vectors of one clip the last stays
        self._newer.clear()

    def vectors(self) -> Vectors:
        """All vectors, on rank 0. Collective."""
        self.merge()
        return Vectors(self._rows, np.arange(len(self._rows)))

    def state_dict(self, *, within_epoch: bool = False) -> dict[str, Any]:
        """The vectors, for a checkpoint. Collective.

        Args:
            within_epoch: Leave the rows as they are, and add what has been seen since, in pieces that stay the same
                from one checkpoint to the next.
        """
        if not self.filled:
            return {}
        if within_epoch:
            self._collect()
        else:
            self.merge()
        newer = [[torch.from_numpy(part) for part in pair] for pair in self._newer]
        return {"rows": torch.from_numpy(self._rows), "newer": newer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there, on rank 0 alone, since the vectors may be gigabytes."""
        if state:
            leads = rank_and_size()[0] == 0
            self.fill(state["rows"].numpy() if leads else self._rows)
            self._newer = [(clips.numpy(), rows.numpy()) for clips, rows in state.get("newer", ())] if leads else []
