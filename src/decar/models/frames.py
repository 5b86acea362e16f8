"""Networks that keep the frequency axis: a trunk of small stride, an MLP on each frame, and pooling over time alone.

Global pooling over a deep map of stride 32 throws away where on the frequency axis something happened, which is what
pitch, chords, speakers and vowels are made of. Here a frame of the trunk's map is flattened, channels × bands, so that
each band has weights of its own.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from decar.errors import ConfigError, check_whole

Pool = Literal["max", "avg", "avgmax", "catavgmax"]

# Mean and deviation of the log-mels of the bundled sounds: near enough to any recording for untrained weights, too,
# to see inputs of a sensible size. A training run measures its own.
MEAN, STD = -1.57, 2.41


class FrequencyKeeping(nn.Module):
    """Log-mels through a trunk, and its map through an MLP frame by frame, pooled over time.

    The shape is that of BYOL-A's network (Niizumi et al. 2021, arXiv:2103.06695, section III-D: three blocks of
    convolution and 2×2 max-pooling, then Linear, ReLU, Dropout 0.3, Linear, ReLU on each frame).

    Args:
        trunk: `(B, 1, M, F)` to `(B, C, M', F')`.
        bands: `M`; fixed, the first linear layer has weights for each band.
        frames: The fewest frames it will be given.
        hidden: Units of both linear layers.
        dropout: Probability of the dropout between them, in [0, 1).
        pool: Over time: `max`, `avg`, their mean `avgmax`, or `catavgmax`, first the average and then the maximum.
        local: Whether each frame of the trunk's map stands beside what the MLP makes of it, as in BYOL-A's second
            version (Niizumi et al. 2023, arXiv:2204.07402, section III-C): fine detail is pooled too.

    Attributes:
        mean: What is taken off the log-mels; a buffer, so it is saved and hashed with the weights.
        std: What they are then divided by; likewise.

    Raises:
        ConfigError: An argument is out of range, or the trunk takes no such log-mels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        bands: int,
        frames: int,
        hidden: int = 1024,
        dropout: float = 0.3,
        pool: Pool = "max",
        local: bool = False,
    ) -> None:
        super().__init__()
        _check(hidden, dropout, pool)
        self.pool, self.local = pool, local
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float32))
        self.trunk = trunk
        flat = _flat_size(trunk, bands, frames)
        self.mlp = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(),
        )  # fmt: skip

    def forward(self, logmel: Tensor) -> Tensor:
        """Embed log-mels `(B, 1, M, F)` as `(B, D)`: `hidden`, `C * M'` more if local; twice that for `catavgmax`."""
        features: Tensor = self.trunk((logmel - self.mean) / self.std)
        by_frame = features.permute(0, 3, 1, 2).flatten(2)  # (B, C, M', F') to (B, F', C * M')
        deep = wide_at_the_end(self.mlp, by_frame)
        return _pool_over_time(torch.cat([deep, by_frame], dim=2) if self.local else deep, self.pool)

    def set_input_statistics(self, mean: float, std: float) -> None:
        """Make `mean` and `std` of the log-mels, each one number over all bands, those that inputs are normalised by.

        Raises:
            ConfigError: One is not finite, or `std` is not above 0.
        """
        given = torch.tensor([mean, std], dtype=torch.float32)
        if not (torch.isfinite(given).all() and given[1] > 0):
            raise ConfigError(f"log-mels of mean {mean} and deviation {std} cannot be normalised; are they all silent?")
        self.mean.copy_(given[0])
        self.std.copy_(given[1])


def wide_at_the_end(layers: nn.Sequential, x: Tensor) -> Tensor:
    """`layers(x)`, under autocast in float32 from the last linear layer on.

    Clips differ by little against what all vectors have in common. A last layer that rounds to bfloat16 hides it, and
    whitening then scales up the rounding.
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # which knows no meta device
        return cast(Tensor, layers(x))
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    x = layers[:last](x)
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, layers[last:](x.float()))


def plain_trunk(widths: Sequence[int]) -> nn.Sequential:
    """Blocks of 3×3 convolution, 2×2 max-pooling, BatchNorm, ReLU: `(B, 1, M, F)` to `(B, C, M/2^n, F/2^n)`.

    Pooling comes first because it quarters the cost of what follows; the maximum commutes with ReLU, and with
    BatchNorm's affine map wherever that increases.

    Args:
        widths: Channels of each of the `n` blocks; the last is `C`.

    Raises:
        ConfigError: `widths` is no list of whole numbers above 0, or empty.
    """
    if not isinstance(widths, Sequence) or isinstance(widths, str) or not len(widths):
        raise ConfigError(f"encoder.widths={widths}: not allowed; give a list of whole numbers, as in [32, 64, 64]")
    blocks: list[nn.Module] = []
    for before, width in zip([1, *widths], widths, strict=False):
        check_whole("encoder.widths", width, 1)
        blocks += [
            nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]  # fmt: skip
    return nn.Sequential(*blocks)


def _pool_over_time(x: Tensor, pool: Pool) -> Tensor:
    """`(B, F', D')` to `(B, D)`, in timm's words for pooling."""
    if pool == "max":
        return x.amax(1)
    if pool == "avg":
        return x.mean(1)
    if pool == "avgmax":
        return 0.5 * (x.mean(1) + x.amax(1))
    return torch.cat([x.mean(1), x.amax(1)], dim=1)


@torch.no_grad()
def _flat_size(trunk: nn.Module, bands: int, frames: int) -> int:
    """`C * M'`, measured: networks round the edges of a map differently."""
    trunk.eval()  # the zeros must not enter the BatchNorm's running averages
    try:
        features: Tensor = trunk(torch.zeros(1, 1, bands, frames))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"encoder.stride: the trunk cannot take log-mels of {bands} bands and {frames} frames ({reason}); "
            "take a convolutional network, a smaller stride or longer crops"
        ) from error
    trunk.train()
    if features.ndim != 4:
        raise ConfigError(f"encoder.stride: the trunk gives shape {tuple(features.shape)}, not (B, C, M', F')")
    return features.shape[1] * features.shape[2]


def _check(hidden: int, dropout: float, pool: str) -> None:
    check_whole("encoder.hidden", hidden, 1)
    number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if not (number and math.isfinite(dropout) and 0 <= dropout < 1):
        raise ConfigError(f"encoder.dropout={dropout}: not allowed; give a number from 0 to below 1")
    if pool not in get_args(Pool):
        raise ConfigError(f"encoder.pool={pool}: choose one of {', '.join(get_args(Pool))}")
