"""Tasks in memory and a network that is small enough to fine-tune in a blink."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from decar.audio import FrontEnd, Manifest
from decar.downstream.results import Result
from decar.downstream.task import Task, TaskSpec


class TinyEncoder(nn.Module):
    """What the probes ask of an encoder: one convolution, BatchNorm, dropout, max-pool; D = 8."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.name, self.pool, self.description = "tiny", "max", "tiny (max-pool)"
        self.dim, self.min_frames, self.max_frames, self.frontend = 8, 98, 998, FrontEnd()
        self.tunable, self.device = True, torch.device("cpu")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 8, (64, 5), stride=(1, 4))
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)).amax((2, 3)))

    def hash(self) -> str:
        return "tiny" + str(self.conv.weight.sum().item())


def make_task(y: list[int] | np.ndarray, split: list[str] | np.ndarray) -> Task:
    """A task whose clip i is `clip{i}.wav`, with classes c0, c1, …"""
    y = np.asarray(y, np.int64)
    classes = [f"c{i}" for i in range(int(y.max()) + 1)]
    table = pd.DataFrame({"path": [f"clip{i}.wav" for i in range(len(y))], "label": [classes[i] for i in y]})
    manifest = Manifest(table, Path("/nowhere"))
    return Task(TaskSpec("synthetic", "label"), manifest, np.arange(len(y)), manifest, y, classes, np.asarray(split))


def blob_task(per_class: int = 30, n_classes: int = 3, dim: int = 6, noise: float = 1.0, seed: int = 0):
    """Embeddings in overlapping blobs, and their task: half train, a quarter valid, a quarter test."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), per_class)
    x = rng.normal(size=(n_classes, dim))[y] + noise * rng.normal(size=(len(y), dim))
    split = np.tile(["train", "valid", "train", "test"], len(y))[: len(y)]
    return x.astype(np.float32), make_task(y, split)


def make_result(**changes: object) -> Result:
    """A result with plausible entries, some of them changed."""
    entries: dict[str, object] = {
        "task": "speaker", "mode": "frozen", "protocol": "search", "bundle": "random", "encoder": "random",
        "encoder_hash": "h", "seed": 0, "split_hash": "s", "value": 0.5, "valid_value": 0.6, "n_train": 4, "n_valid": 2,
        "n_test": 2, "n_classes": 2, "dropped": {"train": 0, "valid": 0, "test": 0}, "confusion": [[1, 0], [1, 0]],
        "classes": ["a", "ä"], "chosen": {"C": 0.1}, "version": "0", "seconds": 1.0,
    }  # fmt: skip
    return Result(**{**entries, **changes})  # type: ignore[arg-type]


def make_decar(**changes: object) -> Result:
    """A result of a pre-trained encoder."""
    return make_result(
        **{"encoder": "decar", "bundle": "runs/my run/encoder.safetensors", "encoder_hash": "d", **changes}
    )
