"""What stands beside the recipe in a trial: BYOL-A's objective, stronger augmentation, and other sources of clusters.

Arms of `recipe.py` (recipe_arms.yaml) name these classes. BYOL-A (Niizumi et al., arXiv 2103.06695 and 2204.07402) is
written here from its papers, on the recipe's trunk, clips and crops:

    python -m benchmarks.rivals loader.batch_size=32 OPTIONS     # options of train.py, 32 clips = 64 crops a step

Letters: `B` crops of a batch, `N` clips, `D` numbers of an embedding, `H` clusterings.
"""

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from decar.audio.descriptors import describe
from decar.clustering import Assignment, Clusterer, KMeans, l2_normalize
from decar.clustering.whiten import whiten
from decar.models import build_network, load_encoder
from decar.models.embed import run_pass
from decar.models.encoder import Encoder
from decar.models.heads import Projection
from decar.models.networks import seeded
from decar.pretrain import BothLabels, DecarModule, EpochLabels, Situation, Vectors, on_rank_zero
from decar.pretrain.labels import DescriptorLabels
from decar.pretrain.sampler import Stream, derive_seed

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Strong(nn.Module):
    """BYOL-A's changes of a crop: background, another frame, another course of level; `(B, 1, M, F)` as before.

    In this order (2204.07402, section III-B): another crop of the batch, up to `mix` of it, is added to the magnitudes;
    a window of .6 to 1.5 of the bands and frames is taken, no higher than the spectrum; a line in time is added.

    Args:
        mix: The largest share of the other crop.
        low: The smallest window.
        high: The largest.
        fade: Where the line begins and ends, at most, in natural logarithms.
    """

    def __init__(self, mix: float = 0.4, low: float = 0.6, high: float = 1.5, fade: float = 1.0) -> None:
        super().__init__()
        self.mix, self.low, self.high, self.fade = mix, low, high, fade

    def forward(self, x: Tensor) -> Tensor:
        """As a new tensor; in eval mode x itself. Draws from torch's generator, which training seeds step by step."""
        return self._faded(self._resized(self._mixed(x))) if self.training else x

    def _mixed(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            return x
        share = (self.mix * torch.rand(len(x), 1, 1, 1)).clamp_min(1e-6).to(x)
        other = x.roll(int(torch.randint(1, len(x), ())), dims=0)
        return torch.logaddexp(torch.log1p(-share) + x, share.log() + other)

    def _resized(self, x: Tensor) -> Tensor:
        draws = torch.rand(2, len(x), 2).to(x)
        scale = self.low + (self.high - self.low) * draws[0]  # of frames, of bands: affine_grid has the last axis first
        scale = torch.stack([scale[:, 0], scale[:, 1].clamp_max(1.0)], dim=1)
        middle = (1 - scale).abs() * (2 * draws[1] - 1)
        theta = torch.cat([torch.diag_embed(scale), middle[:, :, None]], dim=2)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _faded(self, x: Tensor) -> Tensor:
        ends = (self.fade * (2 * torch.rand(2, len(x), 1, 1, 1) - 1)).to(x)
        return x + torch.lerp(ends[0], ends[1], torch.linspace(0, 1, x.shape[-1]).to(x))


class EmaPass(Callback):
    """Vectors of a pass are those of the network's moving average over steps, not of the network as it stands.

    The average is not in checkpoints: arms that use it are not resumed.

    Args:
        decay: Of the average, a step.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay, self._mean = decay, dict[str, Tensor]()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Lightning calls this before the module clusters: lend it the average."""
        self._trade(module)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take it back before the first step."""
        if batch_idx == 0:
            self._trade(module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the network."""
        now = _network(module)
        for name, value in now.items():
            mine = self._mean.setdefault(name, value.clone())
            mine.lerp_(value, 1 - self.decay) if mine.is_floating_point() else mine.copy_(value)

    @torch.no_grad()
    def _trade(self, module: LightningModule) -> None:
        for name, value in _network(module).items():
            if name in self._mean:
                kept = value.clone()
                value.copy_(self._mean[name])
                self._mean[name] = kept


def _network(module: LightningModule) -> dict[str, Tensor]:
    """The tensors of `f` and `g`."""
    return {name: value for name, value in module.state_dict().items() if name.startswith(("encoder.", "projection."))}


@dataclass(frozen=True)
class MatchedLabels(BothLabels):
    """As `labels=both`, but the head of the network's own clusters stays.

    The clusters of an epoch are numbered as those before that share most clips with them (an assignment problem), so
    the head need not learn other numbers.
    """

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """Rename the last column, and keep all heads where there was one before."""
        now, before = super().assign(z, situation), situation.previous
        if before is None or before.sizes != now.sizes or len(now.sizes) == len(self.first.descriptors):
            return now
        names = matched(now.labels[:, -1], before.labels[:, -1], now.sizes[-1])
        labels = np.concatenate([now.labels[:, :-1], names[now.labels[:, -1:]]], axis=1)
        return replace(now, labels=labels, kept=len(now.sizes))


def matched(new: Labels, old: Labels, k: int) -> Labels:
    """`(k,)`, the old name of each new cluster: a permutation that keeps as many of the clips `(N,)` as can be.

    >>> matched(np.array([0, 0, 1, 1, 2]), np.array([2, 2, 0, 1, 1]), 3)
    array([2, 0, 1])
    """
    shared = np.zeros((k, k), np.int64)
    np.add.at(shared, (new, old), 1)
    return np.asarray(linear_sum_assignment(-shared)[1], np.int64)


@dataclass(frozen=True)
class TeacherLabels:
    """Clusters of another encoder's vectors and the descriptors together, made once, beside those of each descriptor.

    Attributes:
        first: The clusterings of descriptors.
        clusterer: K-Means.
        teacher: A bundle or run; `random` is an untrained network of the default kind.
        ks: A clustering of each size.
        dim: Whitened dimensions of the vectors.
    """

    first: DescriptorLabels
    clusterer: KMeans
    teacher: str
    ks: Sequence[int] = (64, 512, 2048)
    dim: int = 64

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """Of the descriptors, and of the vectors."""
        return [*self.first.clusterers, *(replace(self.clusterer, k=k) for k in self.ks)]

    def needs_vectors(self, epoch: int) -> bool:
        """Never those of the network that is trained."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The same labels in every epoch."""
        before = situation.previous
        if before is not None:
            return before.again(situation.epoch)
        columns = self.first.assign(None, situation)
        return on_rank_zero(lambda: self._joined(columns, situation))

    def _joined(self, columns: EpochLabels, situation: Situation) -> EpochLabels:
        plain = describe(situation.store, self.first.descriptors).values()
        parts = [whiten(self._vectors(situation), self.dim), *(whiten(x, self.first.dim) for x in plain)]
        points = l2_normalize(np.concatenate(parts, axis=1))
        seed = derive_seed(Stream.CLUSTERS, situation.seed, situation.epoch, len(columns.sizes)) % 2**31
        found = [replace(self.clusterer, k=k, seed=seed).fit_predict(points) for k in self.ks]
        labels = np.concatenate([columns.labels, np.stack([a.labels for a in found], axis=1)], axis=1)
        return replace(columns, labels=labels, sizes=[*columns.sizes, *(a.n_clusters for a in found)])

    def _vectors(self, situation: Situation) -> Floats:
        store = situation.store
        if self.teacher == "random":
            with seeded(situation.seed):
                network = build_network("conv", "catavgmax", n_mels=store.frontend.n_mels, local=True)
            encoder = Encoder(network, store.frontend)
        else:
            encoder = load_encoder(self.teacher, frontend=store.frontend)
        with torch.inference_mode():
            return run_pass(encoder.eval(), store, encoder, dim=encoder.dim, batch_size=64, title="teacher")


@dataclass(frozen=True)
class RandomCodes:
    """In place of K-Means: the nearest of `k` random directions, as BEST-RQ has them (arXiv 2202.01855, section 3.1).

    A clusterer. Nothing is fitted, so clusters are neither even nor dense.
    """

    k: int
    seed: int = 0

    def with_seed(self, seed: int) -> "RandomCodes":
        """The same with other directions."""
        return replace(self, seed=seed)

    def fit_predict(self, features: NDArray[Any]) -> Assignment:
        """The code of each of `(N, d)` whitened vectors."""
        codes = np.random.default_rng(self.seed).standard_normal((features.shape[1], self.k)).astype(np.float32)
        codes /= np.linalg.norm(codes, axis=0)
        cosines = np.asarray(features, np.float32) @ codes
        return Assignment(cosines.argmax(axis=1), self.k, float(1 - cosines.max(axis=1).mean()))


@dataclass(frozen=True)
class NoLabels:
    """A label source for an objective without labels: one cluster, from which clips are drawn evenly."""

    clusterers: Sequence[Clusterer] = ()

    def needs_vectors(self, epoch: int) -> bool:
        """Never."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """One cluster."""
        return EpochLabels(np.zeros((len(situation.store), 1), np.int64), [1], situation.epoch)


class ByolProjection(Projection):
    """`g`, which nothing trains, with BYOL's projector and predictor (arXiv 2006.07733, section 3.3).

    Args:
        dim: `D`.
        out: Of `g`.
        hidden: Units of the hidden layer of both.
        numbers: That the projector has.
        kind: Of `g`.
        seed: Of the weights.
    """

    def __init__(
        self, dim: int, out: int = 512, hidden: int = 4096, numbers: int = 256, kind: Any = "batchnorm",
        seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, out, kind, seed)
        with seeded(seed):
            self.projector, self.predictor = _mlp(dim, hidden, numbers), _mlp(numbers, hidden, numbers)


def _mlp(dim: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


class Byol(DecarModule):
    """BYOL (arXiv 2006.07733) on two views of one crop, as in BYOL-A; the target follows after each step.

    Args:
        args: Of `DecarModule`; `projection` is a `ByolProjection`.
        decay: Of the target (BYOL-A: .99).
        options: Of `DecarModule`.
    """

    def __init__(self, *args: Any, decay: float = 0.99, **options: Any) -> None:
        super().__init__(*args, **options)
        assert isinstance(self.projection, ByolProjection)
        self.decay = decay
        self.target: Any = copy.deepcopy(nn.ModuleList([self.encoder, self.projection.projector])).requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean over both directions of 2 − 2 cos(prediction of one view, projection of the other by the target)."""
        crops, index = batch
        torch.manual_seed(derive_seed(Stream.STEP, self.seed, self.current_epoch, batch_idx))
        views = torch.cat([self._view(crops), self._view(crops)])
        assert isinstance(self.projection, ByolProjection)
        found = self.projection.predictor(self.projection.projector(self.encoder.for_objective(views)))
        with torch.no_grad():
            wanted = self.target[1](self.target[0].for_objective(views)).roll(len(crops), dims=0)
        loss = (2 - 2 * functional.cosine_similarity(found, wanted)).mean()
        self.record(loss, torch.zeros(()), index, batch_idx)
        return loss

    def _view(self, crops: Tensor) -> Tensor:
        """Augmented, then given the set's mean and deviation, which the network takes away (2103.06695, Fig. 2)."""
        view: Tensor = self.augment(crops)
        mean, std = (cast(Tensor, getattr(self.encoder.network, name)) for name in ("mean", "std"))
        return (view - view.mean()) / view.std() * std + mean

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the target towards the network."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        assert isinstance(self.projection, ByolProjection)
        student = nn.ModuleList([self.encoder, self.projection.projector])
        for mean, now in zip(self.target.parameters(), student.parameters(), strict=True):
            mean.lerp_(now, 1 - self.decay)
        for kept, counted in zip(self.target.buffers(), student.buffers(), strict=True):
            kept.copy_(counted)


def main() -> None:
    """`train.py` with BYOL's objective."""
    import decar.pretrain
    from decar.cli.train import main as train

    # build_module takes it from there; by its name, since the configuration names its classes so
    decar.pretrain.DecarModule = importlib.import_module("benchmarks.rivals").Byol  # type: ignore[misc]
    train()


if __name__ == "__main__":
    main()
