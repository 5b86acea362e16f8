"""The full-dataset pass inside `fit`: `z` of every clip, once, in dataset order.

`trainer.predict` inside `fit` asserts and a second Trainer rebinds the module, so the loop is written out.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor, nn

from decar.audio import LogMelStore
from decar.audio.progress import progress_bar
from decar.models.encode import batches_by_length, whole_clips
from decar.models.encoder import Encoder, evaluating


def embed_dataset(
    trainer: Trainer,
    module: nn.Module,
    forward: Callable[[Tensor], Tensor],
    encoder: Encoder,
    store: LogMelStore,
    batch_size: int,
) -> NDArray[np.float32]:
    """Run `forward` over a whole store on the trainer's device, in its precision.

    Args:
        trainer: Gives device and precision.
        module: All of this is in eval mode meanwhile.
        forward: From log-mels `(B, 1, M, F)` to vectors `(B, P)`.
        encoder: Says how clips are padded.
        store: `N` clips.
        batch_size: Clips at a time.

    Returns:
        `(N, P)` float32, in store order.
    """
    out: NDArray[np.float32] | None = None
    with evaluating(module), progress_bar("cluster: embedding all clips", len(store), enabled=True) as advance:
        for batch in batches_by_length(store, np.arange(len(store)), encoder, batch_size):
            clips = trainer.strategy.batch_to_device(whole_clips(store, batch, encoder))
            with trainer.precision_plugin.forward_context():
                vectors = forward(clips).float().cpu().numpy()
            out = np.empty((len(store), vectors.shape[1]), np.float32) if out is None else out
            out[batch] = vectors
            advance(len(batch))
    assert out is not None  # a store without clips is refused by PretrainData
    return out
