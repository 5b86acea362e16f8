"""The full-dataset pass inside `fit`: `z` of every clip, once, in dataset order.

`trainer.predict` inside `fit` asserts and a second Trainer rebinds the module, so the pass is our own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor, nn

from decar.audio import LogMelStore
from decar.models import Encoder
from decar.models.embed import PIECES_AT_ONCE, batches_by_length, evaluating, run_pass
from decar.pretrain.ranks import collect_rows, rank_and_size, share_buffers

Share = tuple[NDArray[np.float32], list[NDArray[np.int64]]]


def embed_share(
    trainer: Trainer,
    module: nn.Module,
    encoder: Encoder,
    store: LogMelStore,
    *,
    dim: int,
    batch_size: int,
    title: str = "cluster: embedding all clips",
) -> Share:
    """Run a module over a whole store on the trainer's device, in its precision; it is in eval mode meanwhile.

    Several processes share the batches that one process would make: every clip is embedded once, and to the same bits.
    Before, all get rank 0's buffers.

    Args:
        trainer: Gives device and precision.
        module: From log-mels `(B, 1, M, F)` to vectors `(B, P)`.
        encoder: Says how clips are padded.
        store: `N` clips.
        dim: `P`.
        batch_size: Pieces at a time, never more than `PIECES_AT_ONCE`: the training batch is that of all processes
            together, of crops ten times shorter.
        title: What the progress bar says.

    Returns:
        This process's rows, and for each process which clips it has: `(n_r, P)` float32 and the rows' store indices.
    """

    def on_device(clips: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            vectors: Tensor = module(trainer.strategy.batch_to_device(clips))
        return vectors

    batch_size = min(batch_size, PIECES_AT_ONCE)
    rank, size = rank_and_size()
    if size == 1:
        with evaluating(module):
            rows = run_pass(on_device, store, encoder, dim=dim, batch_size=batch_size, title=title)
        return rows, [np.arange(len(store))]
    share_buffers(module)
    batches = batches_by_length(store, np.arange(len(store)), encoder, batch_size)
    with evaluating(module):
        rows = run_pass(
            on_device, store, encoder, dim=dim, batch_size=batch_size, title=title, progress=rank == 0,
            batches=batches[rank::size],
        )  # fmt: skip
    nothing = np.empty(0, np.int64)
    places = [np.concatenate([nothing, *batches[r::size]]) for r in range(size)]
    return rows, places


def embed_dataset(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
    """All rows in one place; arguments as of `embed_share`.

    Returns:
        `(N, P)` float32, in store order; of several processes on rank 0, the others return None.
    """
    rows, places = embed_share(trainer, *args, **kwargs)
    return rows if len(places) == 1 else collect_rows(rows, places, trainer.strategy.root_device)
