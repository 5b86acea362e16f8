"""Two networks, each predicting the other's clusters: an arm of the trial of docs/recipe.md.

Both see the same crops, augmented each for itself, and both learn the descriptors' clusters beside. The first is kept.
A step costs twice that of one network.

    python -m benchmarks.pair OPTIONS     # options of train.py; recipe_arms.yaml has them
"""

import copy
import importlib
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from decar.models import PseudoLabelHeads
from decar.models.encoder import Encoder
from decar.models.heads import Projection
from decar.models.networks import seeded
from decar.pretrain import BothLabels, DecarModule, EpochLabels, Situation, Vectors
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import embed_dataset

_NEVER = 2**31


@dataclass(frozen=True)
class PairLabels(BothLabels):
    """As `labels=both`, but with the clusters of two networks, whose vectors stand side by side in `z`."""

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The columns of the descriptors, then that of the first network, then that of the second."""
        columns = BothLabels.assign(replace(self, network_from=_NEVER), None, situation)
        if z is None:
            return columns
        own = [
            self.network.assign(Vectors(np.ascontiguousarray(rows), z.index), replace(situation, previous=None))
            for rows in np.split(z.rows, 2, axis=1)
        ]
        labels = np.concatenate([columns.labels, *(part.labels for part in own)], axis=1)
        sizes = [*columns.sizes, *(size for part in own for size in part.sizes)]
        return replace(columns, labels=labels, sizes=sizes, health=own[0].health)


class Network(nn.Module):
    """An encoder, its `g` and its heads."""

    def __init__(self, encoder: Encoder, projection: Projection) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection
        self.heads = PseudoLabelHeads(projection.out)

    def forward(self, logmel: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads read, and `z`."""
        found: tuple[Tensor, Tensor] = self.projection(self.encoder.for_objective(logmel))
        return found


class Pair(DecarModule):
    """Trains two networks. One process; the second has other weights from the start."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.other = Network(copy.deepcopy(self.encoder), copy.deepcopy(self.projection))
        with seeded(derive_seed(Stream.HEADS, self.seed, 99) % 2**31):
            for layer in self.other.modules():
                if layer is not self.other and hasattr(layer, "reset_parameters"):
                    cast(Any, layer).reset_parameters()

    def _vectors(self) -> Vectors:
        """`z` of both networks side by side, from one pass."""
        return embed_dataset(
            self.trainer, _SideBySide(self), self.encoder, self.data.store, dim=2 * self.projection.out,
            batch_size=self.data.batch_size,
        )  # fmt: skip

    def _renew_heads(self, sizes: list[int], kept: int) -> None:
        old = set(self.other.heads.parameters())
        super()._renew_heads(sizes, kept)
        self.other.heads.reset(sizes, derive_seed(Stream.HEADS, self.seed, self.current_epoch, 1), keep=kept)
        optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        for parameter in old - set(self.other.heads.parameters()):
            optimizer.state.pop(parameter, None)
        optimizer.param_groups[1]["params"] = [*self.heads.parameters(), *self.other.heads.parameters()]

    def configure_optimizers(self) -> Any:
        """As that of one network, with the weights of the second."""
        made = super().configure_optimizers()
        groups = (made["optimizer"] if isinstance(made, dict) else made).param_groups
        groups[0]["params"] += [*self.other.encoder.parameters(), *self.other.projection.parameters()]
        return made

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The sum of both networks' mean cross-entropy; neither predicts its own clusters."""
        crops, index = batch
        targets = self.data.targets(index)
        views = self._augmented(crops, batch_idx), self.augment(crops)
        scores = self.heads(self._project(views[0])[0]), self.other.heads(self.other(views[1])[0])
        left_out = (-2, -1) if len(self.heads) > len(cast(PairLabels, self.source).first.descriptors) else (None, None)
        losses = [loss(logits, targets, own) for logits, own in zip(scores, left_out, strict=True)]
        hits = (scores[0][-1].argmax(1) == targets[:, -1]).float().mean()
        total = torch.stack(losses).sum()
        self.record(total, hits, index, batch_idx)
        return total


def loss(logits: list[Tensor], targets: Tensor, left_out: int | None) -> Tensor:
    """Mean cross-entropy over the clusterings `(B, H)` but one, counted from the end."""
    pairs = list(zip(logits, targets.T, strict=True))
    if left_out is not None:
        del pairs[left_out]
    return torch.stack([functional.cross_entropy(scores, wanted) for scores, wanted in pairs]).mean()


class _SideBySide(nn.Module):
    """`z` of both networks of a pair, `(B, 2P)`."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.encoder, self.projection, self.other = pair.encoder, pair.projection, pair.other

    def forward(self, logmel: Tensor) -> Tensor:
        first = self.projection(self.encoder.for_objective(logmel))[1]
        return torch.cat([first, self.other(logmel)[1]], dim=1)


def main() -> None:
    """`train.py` with two networks."""
    import decar.pretrain
    from decar.cli.train import main as train

    # build_module takes it from there; by its name, since the configuration names its classes so
    decar.pretrain.DecarModule = importlib.import_module("benchmarks.pair").Pair  # type: ignore[misc]
    train()


if __name__ == "__main__":
    main()
