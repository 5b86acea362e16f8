"""Masked segments in place of clusters of clips: an arm of the trial of docs/recipe.md.

The frames of a crop whose segments are masked predict which of `k` clusters each hidden patch of 8 frames belongs to,
as HuBERT does for speech (Hsu et al., arXiv 2106.07447, section II). In the first half of the training the patches are
those of the log-mel, in the second half the frames of the network as it then stands, of the same crops unmasked. The
heads of the descriptors learn beside.

    python -m benchmarks.masked OPTIONS     # options of train.py; recipe_arms.yaml has them

Letters: `B` crops of a batch, `F` frames, `T` patches of a crop, `D` numbers of a patch.
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from decar.audio.crops import as_input, stack
from decar.clustering import Clusterer, KMeans
from decar.errors import TrainingError
from decar.models.encoder import Encoder
from decar.models.heads import Projection
from decar.models.networks import seeded
from decar.pretrain import DecarModule, EpochLabels, Situation, Vectors
from decar.pretrain.labels import DescriptorLabels, FittedLabels
from decar.pretrain.sampler import Stream, derive_seed

PATCH = 8  # frames: the stride of the default trunk
SAMPLE = 3_000  # crops, whose patches are clustered


@dataclass(frozen=True)
class PatchLabels:
    """The labels of the descriptors, and how patches are clustered and hidden.

    Attributes:
        first: The clusterings of descriptors.
        k: Clusters of patches.
        dim: Whitened dimensions of a patch.
        spans: Segments of a crop that are masked; they may overlap.
        shortest: Frames of a segment.
        longest: Frames of a segment.
        weight: Of the patches' loss; the descriptors' has the rest.
        everywhere: Whether patches that are seen are predicted too.
        second_from: First epoch in which the network's frames are clustered.
    """

    first: DescriptorLabels
    k: int = 256
    dim: int = 48
    spans: int = 2
    shortest: int = 16
    longest: int = 32
    weight: float = 0.5
    everywhere: bool = False
    second_from: int = 2

    @property
    def clusterers(self) -> list[Clusterer]:
        """Of the descriptors."""
        return [*self.first.clusterers]

    def needs_vectors(self, epoch: int) -> bool:
        """Never."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The same labels in every epoch."""
        return self.first.assign(z, situation)

    def hidden(self, n: int, frames: int) -> Tensor:
        """`(n, F)`, True in masked frames; draws from torch's generator."""
        lengths = torch.randint(self.shortest, self.longest + 1, (n, self.spans, 1)).clamp_max(frames)
        starts = (torch.rand(n, self.spans, 1) * (frames - lengths + 1)).long()
        at = torch.arange(frames)
        return ((at >= starts) & (at < starts + lengths)).any(1)


class FrameProjection(Projection):
    """`g`, and the network over time that predicts patches from the frames of the MLP, thrown away like `g`.

    Args:
        dim: Of the embedding.
        out: Of `g`.
        kind: Of `g`.
        hidden: Numbers of a frame of the MLP.
        k: Clusters of patches.
        width: Channels of the layers over time, which see 4 patches to each side.
        seed: Of the weights.
    """

    def __init__(
        self, dim: int, out: int = 512, kind: Any = "batchnorm", hidden: int = 1024, k: int = 256, width: int = 256,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, out, kind, seed)
        with seeded(seed):
            self.over_time = nn.Sequential(
                nn.Conv1d(hidden, width, 1), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Conv1d(width, k, 1),
            )  # fmt: skip


class Masked(DecarModule):
    """Predicts the descriptors' clusters of masked crops, and the clusters of their hidden patches.

    The clusters of patches are not in checkpoints: such a run is not resumed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert isinstance(self.source, PatchLabels)
        self.patches: Callable[[Tensor], Tensor] = patches_of
        self.fitted: FittedLabels | None = None

    def ensure_labels(self) -> None:
        """Cluster patches of a sample in the first epoch, and frames of the network from `second_from` on.

        Raises:
            TrainingError: The run was resumed.
        """
        before = self.data.labels
        super().ensure_labels()
        source = cast(PatchLabels, self.source)
        if self.current_epoch == source.second_from and (before is None or before.epoch != self.current_epoch):
            self.patches = frames_of(copy.deepcopy(self.encoder).eval().requires_grad_(False))
        elif self.fitted is not None or self.current_epoch:
            if self.fitted is None:
                raise TrainingError("clusters of patches are not in a checkpoint: pass resume=null")
            return
        seed = derive_seed(Stream.CLUSTERS, self.seed, self.current_epoch, 99) % 2**31
        sample = self._sample(seed)
        points = [self.patches(sample[i : i + 64]).flatten(0, 1).numpy() for i in range(0, len(sample), 64)]
        self.fitted = FittedLabels.fit(np.concatenate(points), [KMeans(source.k, seed=seed)], source.dim)

    def _sample(self, seed: int) -> Tensor:
        """Crops `(n, 1, M, F)` of clips, each once."""
        data, rng = self.data, np.random.default_rng(seed)
        clips = rng.permutation(len(data.store))[:SAMPLE]
        firsts = rng.integers(np.maximum(data.store.lengths[clips] - data.crop_frames, 0) + 1)
        crops = data.store.crops(np.stack([clips, firsts], axis=1).tolist(), data.crop_frames)
        return as_input(*stack(crops, data.crop_frames), data.store.frontend.silence)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the descriptors, and of the patches that are hidden."""
        (crops, index), source = batch, cast(PatchLabels, self.source)
        seen = self._augmented(crops, batch_idx)
        hidden = source.hidden(len(seen), seen.shape[3])
        seen = torch.where(hidden[:, None, None], cast(Tensor, self.encoder.network.mean), seen)
        with Frames(self.encoder) as frames:
            projected, _ = self._project(seen)
        logits = self.heads(projected)
        descriptors = [functional.cross_entropy(x, y) for x, y in zip(logits, self.data.targets(index).T, strict=True)]
        assert self.fitted is not None
        found = cast(FrameProjection, self.projection).over_time(frames.found.transpose(1, 2)).transpose(1, 2)
        wanted = torch.from_numpy(self.fitted(self.patches(crops).flatten(0, 1).numpy())[:, 0])
        asked = torch.ones(found.shape[:2], dtype=torch.bool) if source.everywhere else whole(hidden)
        found, wanted = found[asked], wanted.reshape(asked.shape)[asked]
        own = functional.cross_entropy(found, wanted)
        loss = (1 - source.weight) * torch.stack(descriptors).mean() + source.weight * own
        self.record(loss, (found.argmax(1) == wanted).float().mean(), index, batch_idx)
        return loss


class Frames:
    """A context in which the MLP's frames `(B, T, D)` of the last call of an encoder are kept as `found`."""

    def __init__(self, encoder: Encoder) -> None:
        self.mlp, self.found = cast(nn.Module, encoder.network.mlp), torch.empty(0)

    def __enter__(self) -> "Frames":
        self.handle = self.mlp.register_forward_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.found = output


def whole(hidden: Tensor) -> Tensor:
    """`(B, T)`: the patches all of whose frames are hidden, of `(B, F)`."""
    n = hidden.shape[1] // PATCH
    return hidden[:, : n * PATCH].reshape(-1, n, PATCH).all(2)


def patches_of(crops: Tensor) -> Tensor:
    """Log-mels `(B, 1, M, F)`, less the mean of each crop, as patches `(B, T, M * 8)`."""
    n = crops.shape[3] // PATCH
    level = crops.mean((1, 2, 3), keepdim=True)
    kept = (crops - level)[:, 0, :, : n * PATCH]
    return kept.reshape(len(kept), kept.shape[1], n, PATCH).permute(0, 2, 1, 3).flatten(2)


def frames_of(teacher: Encoder) -> Callable[[Tensor], Tensor]:
    """From log-mels `(B, 1, M, F)` to the frames `(B, T, D)` of a network's MLP."""

    def patches(crops: Tensor) -> Tensor:
        with torch.no_grad(), Frames(teacher) as frames:
            teacher.for_objective(crops)
        return frames.found

    return patches


def main() -> None:
    """`train.py` with masked segments."""
    import decar.pretrain
    from decar.cli.train import main as train

    # build_module takes it from there; by its name, since the configuration names its classes so
    decar.pretrain.DecarModule = importlib.import_module("benchmarks.masked").Masked  # type: ignore[misc]
    train()


if __name__ == "__main__":
    main()
