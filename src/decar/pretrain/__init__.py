"""Pre-training: cluster the whole set, learn to predict the clusters, again."""

from decar.pretrain.callbacks import BestBundle, BundleExport, ClusterLog, EpochLine, StepBar, StopOnNMI
from decar.pretrain.checkpoint import AtomicCheckpointIO, EpochCheckpoint, Safeguard
from decar.pretrain.dashboard import Dashboard
from decar.pretrain.datamodule import PretrainData
from decar.pretrain.health import EmbeddingHealth
from decar.pretrain.labels import BothLabels, DescriptorLabels, EpochLabels, LabelSource, NetworkLabels, Situation
from decar.pretrain.logger import EpochRow, ResumableCSVLogger
from decar.pretrain.module import DecarModule
from decar.pretrain.online import OnlineLabels
from decar.pretrain.probe import OnlineProbe
from decar.pretrain.ranks import on_rank_zero
from decar.pretrain.sampler import UniformClusterSampler, derive_seed
from decar.pretrain.stream import StreamData
from decar.pretrain.vectors import Vectors
from decar.pretrain.wandb_logger import ResumableWandbLogger

__all__ = [
    "AtomicCheckpointIO",
    "BestBundle",
    "BothLabels",
    "BundleExport",
    "ClusterLog",
    "Dashboard",
    "DecarModule",
    "DescriptorLabels",
    "EmbeddingHealth",
    "EpochCheckpoint",
    "EpochLabels",
    "EpochLine",
    "EpochRow",
    "LabelSource",
    "NetworkLabels",
    "OnlineLabels",
    "OnlineProbe",
    "PretrainData",
    "ResumableCSVLogger",
    "ResumableWandbLogger",
    "Safeguard",
    "Situation",
    "StepBar",
    "StopOnNMI",
    "StreamData",
    "UniformClusterSampler",
    "Vectors",
    "derive_seed",
    "on_rank_zero",
]
