"""The full-dataset pass inside `fit`: `z` of every clip, once, in dataset order.

`trainer.predict` inside `fit` asserts and a second Trainer rebinds the module, so the pass is our own.
"""

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor, nn

from decar.audio import LogMelStore
from decar.models.encode import run_pass
from decar.models.encoder import Encoder, evaluating


def embed_dataset(
    trainer: Trainer,
    module: nn.Module,
    encoder: Encoder,
    store: LogMelStore,
    *,
    dim: int,
    batch_size: int,
    title: str = "cluster: embedding all clips",
) -> NDArray[np.float32]:
    """Run a module over a whole store on the trainer's device, in its precision; it is in eval mode meanwhile.

    Args:
        trainer: Gives device and precision.
        module: From log-mels `(B, 1, M, F)` to vectors `(B, P)`.
        encoder: Says how clips are padded.
        store: `N` clips.
        dim: `P`.
        batch_size: Clips at a time.
        title: What the progress bar says.

    Returns:
        `(N, P)` float32, in store order.
    """

    def on_device(clips: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            vectors: Tensor = module(trainer.strategy.batch_to_device(clips))
        return vectors

    with evaluating(module):
        return run_pass(on_device, store, encoder, dim=dim, batch_size=batch_size, title=title)
