"""The number of clusters and steps for `N` clips, and how many steps fit into a given time.

The paper's numbers (k = 512, one clustering per pass, 100 passes) suit a hundred thousand clips. Those for fewer clips
were measured; see the tables of docs/recipe.md.
"""

import copy
import re
import statistics
import time
from dataclasses import dataclass

import torch

from decar.errors import ConfigError
from decar.models import Encoder

PASSES = 20  # over the data; with more, a small set is memorised
STAGE_STEPS = 155  # least steps between two clusterings: with fewer, a fresh head learns nothing
STAGE_PASSES = 30  # of a small set, where they are fewer steps: 220 passes over 45 clips memorise the descriptors
STAGES = 4  # at most: clusterings of the network's own vectors change little from one to the next
NETWORK_FROM = 2  # epoch from which the network's own vectors are clustered, counted from 0
CLIPS_PER_CLUSTER = 30
LEAST_CLIPS_PER_CLUSTER = 5
MOST_CLUSTERS = 128  # of a descriptor
_OVERHEAD = 1.15  # a step of the real loop against the bare network: crops, augmentation, heads, logging


@dataclass(frozen=True)
class Plan:
    """Numbers of clusters, steps and epochs.

    Attributes:
        k: Clusters of each clustering.
        every_n_steps: Steps between two clusterings; an epoch.
        max_epochs: Epochs.
        network_from: First epoch with clusters of the network's own vectors, counted from 0; never if >= `max_epochs`.
        reason: For the log.
    """

    k: int
    every_n_steps: int
    max_epochs: int
    network_from: int
    reason: str

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.every_n_steps * self.max_epochs


def clusters_for(n_clips: int) -> int:
    """A power of two up to 128, for some 30 clips per cluster; for few clips up to 8, with at least 5 clips each.

    Eight clusters of 45 clips of five kinds match the kinds better than two (docs/recipe.md).

    >>> [clusters_for(n) for n in (5, 30, 45, 100, 2_000, 10_000)]
    [2, 4, 8, 8, 64, 128]
    """
    k = 2
    while 2 * k <= MOST_CLUSTERS and n_clips >= 1.5 * k * CLIPS_PER_CLUSTER:  # the nearer one, on a log scale
        k *= 2
    few = max(size for size in (2, 4, 8) if size == 2 or n_clips >= size * LEAST_CLIPS_PER_CLUSTER)
    return max(k, few)


def join_epoch(max_epochs: int) -> int:
    """The first epoch with clusters of the network's own vectors: the third, or the second of two.

    Args:
        max_epochs: Of the run; -1: no end.

    >>> [join_epoch(epochs) for epochs in (1, 2, 3, 50, -1)]
    [1, 1, 2, 2, 2]
    """
    return 1 if 0 <= max_epochs <= NETWORK_FROM else NETWORK_FROM


def plan(
    n_clips: int,
    batch_size: int,
    *,
    seconds: float | None = None,
    step_seconds: float = 0.0,
    network_from: int | None = None,
    every_n_steps: int | None = None,
) -> Plan:
    """Steps for `PASSES` passes over the data, or as many as fit into `seconds`, in epochs of equal length.

    Without a limit the last epoch always has clusters of the network's own vectors, however few the clips.

    Args:
        n_clips: `N`.
        batch_size: Crops per step.
        seconds: Time for training; None: no limit.
        step_seconds: Time of a step on this machine.
        network_from: The first epoch with those clusters, if fixed; None: `join_epoch`.
        every_n_steps: Steps of an epoch, if fixed, as in a resumed run; None: chosen here.
    """
    least = 2 if network_from is None else network_from + 1
    stage = min(STAGE_STEPS, max(1, STAGE_PASSES * n_clips // batch_size))
    wanted = max(least * stage, PASSES * n_clips // batch_size)
    most = max(STAGES, least)
    if every_n_steps is not None:
        stage, most = every_n_steps, max(least, wanted // every_n_steps)
        wanted = most * stage
    affordable = wanted if seconds is None else max(1, int(seconds / (step_seconds * _OVERHEAD)))
    steps = min(wanted, affordable)
    stages = max(1, min(most, steps // stage))
    if every_n_steps is not None:
        steps = stages * stage
    first = join_epoch(stages) if network_from is None else network_from
    why = f"{steps * batch_size / n_clips:.0f} passes over {n_clips} clips"
    if affordable < wanted:
        why += f", fewer than the {PASSES} wanted, since a step takes {step_seconds:.2f} s here"
    return Plan(clusters_for(n_clips), max(1, steps // stages), stages, first, why)


def parse_budget(text: str) -> float:
    """Seconds of `45s`, `10min`, `1h`, `1h30min`.

    Raises:
        ConfigError: It is none of these.

    >>> parse_budget("10min"), parse_budget("1h30min")
    (600.0, 5400.0)
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?", str(text).strip())
    seconds = sum(float(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if seconds <= 0:
        raise ConfigError(f"budget={text}: give a time such as 10min, 1h, 8h or 1h30min")
    return float(seconds)


def measure_step(encoder: Encoder, batch_size: int, crop_frames: int, device: str | torch.device) -> float:
    """Seconds of one forward and backward pass of a copy of the encoder on a batch of noise, median of three."""
    twin = copy.deepcopy(encoder).to(device).train()
    crops = torch.zeros(batch_size, 1, encoder.frontend.n_mels, crop_frames, device=device)
    times = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(4):  # the first warms up
            began = time.perf_counter()
            twin(crops).square().mean().backward()
            if crops.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
