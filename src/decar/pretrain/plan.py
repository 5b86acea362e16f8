"""How many clusters and how many steps a folder of `N` clips wants, and how many of them fit into a given time.

The paper's numbers (k = 512, one clustering a pass, 100 passes) suit a hundred thousand clips. What suits fewer was
measured; docs/recipe.md has the tables.
"""

import copy
import re
import statistics
import time
from dataclasses import dataclass

import torch

from decar.errors import ConfigError
from decar.models import Encoder

PASSES = 20  # over the data; beyond, a small set is learned by heart
STAGE_STEPS = 155  # steps between two clusterings at least: fewer teach a fresh head nothing
STAGE_PASSES = 30  # of a small set, where they are fewer steps: 220 passes over 45 clips learn the descriptors by heart
STAGES = 4  # at most: clusterings of the network's own vectors change little from one to the next
NETWORK_FROM = 2  # epoch from which the network's own vectors are clustered, counted from 0
CLIPS_PER_CLUSTER = 30
LEAST_CLIPS_PER_CLUSTER = 5
MOST_CLUSTERS = 128  # of a descriptor
_OVERHEAD = 1.15  # a step of the real loop against the bare network: crops, augmentation, heads, logging


@dataclass(frozen=True)
class Plan:
    """What was picked.

    Attributes:
        k: Clusters of each clustering.
        every_n_steps: Steps between two clusterings; an epoch.
        max_epochs: Epochs.
        network_from: First epoch with clusters of the network's own vectors, counted from 0; never if >= `max_epochs`.
        reason: In a few words, for the log.
    """

    k: int
    every_n_steps: int
    max_epochs: int
    network_from: int
    reason: str

    @property
    def steps(self) -> int:
        """All of them."""
        return self.every_n_steps * self.max_epochs


def clusters_for(n_clips: int) -> int:
    """A power of two with some 30 clips per cluster, up to 128; of few clips up to 8 with at least 5 each.

    Two clusters cannot tell five kinds of sound apart: with 8 in place of 2, clusters of 45 clips match their kinds
    better (docs/recipe.md).

    >>> [clusters_for(n) for n in (5, 30, 45, 100, 2_000, 10_000)]
    [2, 4, 8, 8, 64, 128]
    """
    k = 2
    while 2 * k <= MOST_CLUSTERS and n_clips >= 1.5 * k * CLIPS_PER_CLUSTER:  # the nearer one, on a log scale
        k *= 2
    few = max(size for size in (2, 4, 8) if size == 2 or n_clips >= size * LEAST_CLIPS_PER_CLUSTER)
    return max(k, few)


def join_epoch(max_epochs: int) -> int:
    """The epoch at which the network's own clusters join the descriptors': the third, or the last of two.

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
    """Steps for `PASSES` passes over the data, or as many as fit into `seconds`, in stages of equal length.

    Without a limit the last stage always has clusters of the network's own vectors, however few the clips.

    Args:
        n_clips: `N`.
        batch_size: Crops a step.
        seconds: Time for training; None: no limit.
        step_seconds: What a step costs on this machine.
        network_from: The epoch at which they join, where that is fixed; None: `join_epoch`.
        every_n_steps: Steps of a stage, where that is fixed (the run goes on); None: picked.
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
