"""Pre-training: cluster the whole set, learn to predict the clusters, again."""

from decar.pretrain.callbacks import BundleExport, ClusterLog, EpochLine, StopOnNMI
from decar.pretrain.checkpoint import AtomicCheckpointIO
from decar.pretrain.datamodule import PretrainData
from decar.pretrain.labels import EpochLabels, NetworkLabels
from decar.pretrain.logger import ResumableCSVLogger
from decar.pretrain.module import DecarModule
from decar.pretrain.sampler import UniformClusterSampler, derive_seed

__all__ = [
    "AtomicCheckpointIO",
    "BundleExport",
    "ClusterLog",
    "DecarModule",
    "EpochLabels",
    "EpochLine",
    "NetworkLabels",
    "PretrainData",
    "ResumableCSVLogger",
    "StopOnNMI",
    "UniformClusterSampler",
    "derive_seed",
]
