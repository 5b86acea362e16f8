"""Networks for an encoder: timm's, whole or cut, and a plain convolutional one.

A whole timm network ends in global pooling over a map of stride 32. That loses where on the frequency axis something
happened, which pitch, chords, speakers and vowels depend on. `FrequencyKeeping` cuts the network at a small stride and
pools over time alone. timm is imported where one of its networks is asked for: it takes as long as torch.

Letters: `B` batch, `M` mel bands, `F` frames, `D` embedding, `C` channels of a map `(B, C, M', F')`.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from decar.errors import ConfigError, check_whole, one_line, reason_of

CONV = "conv"  # the one name of a network that is not timm's
FAILURES = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)  # raised by networks for wrong inputs

# Mean and deviation of the log-mels of the bundled sounds, for untrained weights. A training run measures its own.
MEAN, STD = -1.57, 2.41

READOUT_SCALE = 1 / 16
"""Of the readout's numbers. A linear probe standardises, so it sees them all the same. Neighbours by cosine, which are
worse with them (docs/recipe.md), stay those of the vector. No bundle holds this number: it cannot be changed."""

Pool = Literal["max", "avg", "avgmax", "catavgmax"]


def build_network(
    name: str = "efficientnet_b0",
    pool: Pool = "max",
    *,
    n_mels: int = 64,
    stride: int | None = None,
    hidden: int = 1024,
    dropout: float = 0.3,
    local: bool = False,
    widths: Sequence[int] = (32, 64, 64),
    readout: Sequence[int] = (),
    readout_bands: int = 16,
    pretrained: bool = False,
    drop_path: float | None = None,
) -> nn.Module:
    """Build one of decar's networks, `(B, 1, M, F)` to `(B, D)`: a whole or cut timm network, or `conv`.

    The paper takes EfficientNet-B0 with global max-pooling (section 3).

    Args:
        name: A timm network that takes images of any size; or `conv`, see `conv_trunk`.
        pool: Global pooling; the paper takes the maximum, its released code the average. Of a network that keeps the
            frequency axis: pooling over time.
        n_mels: `M`.
        stride: None: the whole timm network. Otherwise it is cut where its maps have this stride. For `conv` it is 2 to
            the number of `widths`, and may be None.
        hidden: See `FrequencyKeeping`, also for `dropout` and `local`. Ignored by a whole network.
        dropout: See `hidden`.
        local: See `hidden`.
        widths: See `conv_trunk`. Ignored by timm networks.
        readout: See `FrequencyKeeping`, also for `readout_bands`. Ignored by timm networks.
        readout_bands: See `readout`.
        pretrained: Start from the weights that timm has published, which are downloaded once; those of the first layer
            are summed over the colours. The MLP of a cut network starts from random weights all the same.
        drop_path: Probability with which training leaves out the last residual block for a clip; it falls linearly to 0
            at the first. Ignored by `conv`. The networks of the released code have 0.2, and a BatchNorm epsilon of
            1e-3 as `tf_efficientnet_b0`; the paper names neither.

    Returns:
        A network with an attribute `decar_settings`: the arguments that it depends on, for `Encoder.settings`.

    Raises:
        ConfigError: timm has no network of that name, no map of that stride or no weights, they cannot be downloaded,
            or an argument is out of range.
    """
    if pretrained:
        _check_published(name)
    _check_share("drop_path", drop_path or 0.0)
    settings: dict[str, object] = {"name": name, "pool": pool}
    if drop_path and name != CONV:  # bundles of before have no such entry
        settings["drop_path"] = drop_path
    if name != CONV and stride is None:
        network = timm_network(name, pool, pretrained, drop_path)
    else:
        if name == CONV:
            trunk: nn.Module = conv_trunk(widths, stride)
            settings |= {"stride": 2 ** len(widths), "widths": list(widths)}
        else:
            trunk = CutTimm(name, cast(int, stride), pretrained, drop_path)
            settings |= {"stride": stride}
        extra: dict[str, Any] = {"readout": readout, "readout_bands": readout_bands} if name == CONV and readout else {}
        network = FrequencyKeeping(trunk, n_mels, hidden, dropout, pool, local, **extra)
        # without a readout the hash is that of earlier bundles
        settings |= {"hidden": hidden, "dropout": dropout, "local": local, **extra}
    network.decar_settings = settings  # type: ignore[assignment]  # torch types attributes as tensors and modules
    return network


def timm_network(name: str, pool: str, pretrained: bool = False, drop_path: float | None = None) -> nn.Module:
    """Build a whole timm network with one input channel and global pooling.

    Raises:
        ConfigError: timm has no such network, or the network has no such pooling.
    """
    _check_name(name)
    try:
        network: nn.Module = _create(name, pretrained, drop_path, num_classes=0, global_pool=pool)
    except FAILURES as error:
        raise ConfigError(
            f"encoder.name={name} encoder.pool={pool}: this network cannot embed log-mels ({reason_of(error)}); "
            f"take a convolutional network, and {', '.join(get_args(Pool))}"
        ) from error
    return network


class CutTimm(nn.Module):
    """The first stages of a timm network: `(B, 1, M, F)` to its map `(B, C, M', F')` of the given stride.

    Args:
        name: A timm network that offers its intermediate maps and takes images of any size.
        stride: Mel bands per row, and frames per column, of the map.
        pretrained: See `build_network`.
        drop_path: See `build_network`.

    Raises:
        ConfigError: timm has no such network, or the network has no map of that stride.
    """

    def __init__(self, name: str, stride: int, pretrained: bool = False, drop_path: float | None = None) -> None:
        from timm.models.efficientnet import EfficientNetFeatures
        from timm.models.mobilenetv3 import MobileNetV3Features

        super().__init__()
        _check_name(name)
        check_whole("encoder.stride", stride, 1)
        try:
            strides = _create(name, features_only=True).feature_info.reduction()
            if stride not in strides:
                offered = ", ".join(map(str, sorted(set(strides))))
                raise ConfigError(f"encoder.stride={stride}: {name} has no map of that stride; it offers {offered}")
            at = (strides.index(stride),)
            self.stages = _create(name, pretrained, drop_path, features_only=True, out_indices=at)
        except FAILURES as error:
            raise ConfigError(
                f"encoder.name={name} encoder.stride={stride}: this network cannot be cut ({reason_of(error)}); "
                "take a convolutional network, or encoder.stride=null for the whole one"
            ) from error
        if isinstance(self.stages, EfficientNetFeatures | MobileNetV3Features):
            # timm leaves the stages behind the cut in these two, runs and saves them
            self.stages.blocks = self.stages.blocks[: self.stages.feature_info.get_dicts()[0]["stage"]]
        self.channels_last = str(getattr(self.stages, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 1, M, F)` to `(B, C, M', F')`."""
        features: Tensor = self.stages(x)[0]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


class ConvTrunk(nn.Sequential):
    """What `conv_trunk` builds."""

    @property
    def n_blocks(self) -> int:
        """Each halves bands and frames, rounded down."""
        return sum(isinstance(layer, nn.MaxPool2d) for layer in self)

    @property
    def channels(self) -> int:
        """Of the last map."""
        return [layer.out_channels for layer in self if isinstance(layer, nn.Conv2d)][-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The map behind each block: of block `b` `(B, C_b, M/2^b, F/2^b)`."""
        found = []
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.ReLU):  # the end of a block
                found.append(x)
        return found


def conv_trunk(widths: Sequence[int], stride: int | None = None) -> ConvTrunk:
    """Blocks of 3×3 convolution, 2×2 max-pooling, BatchNorm, ReLU: `(B, 1, M, F)` to `(B, C, M/2^n, F/2^n)`.

    Pooling comes first because it quarters the cost of what follows; the maximum commutes with ReLU, and with
    BatchNorm's affine map wherever that increases.

    Args:
        widths: Channels of each of the `n` blocks; the last is `C`.
        stride: Of the map; None or `2^n`.

    Raises:
        ConfigError: `widths` is not a list of whole numbers above 0, or is empty, or `stride` is another.
    """
    if not isinstance(widths, Sequence) or isinstance(widths, str) or not len(widths):
        raise ConfigError(f"encoder.widths={widths}: not allowed; give a list of whole numbers, as in [32, 64, 64]")
    if stride not in (None, 2 ** len(widths)):
        raise ConfigError(
            f"encoder.stride={stride}: {CONV} of encoder.widths={list(widths)} has stride {2 ** len(widths)}; "
            f"pass encoder.stride={2 ** len(widths)}, or as many widths as the stride has factors of 2"
        )
    blocks: list[nn.Module] = []
    for before, width in zip([1, *widths], widths, strict=False):
        check_whole("encoder.widths", width, 1)
        blocks += [
            nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]  # fmt: skip
    return ConvTrunk(*blocks)


class FrequencyKeeping(nn.Module):
    """A trunk, then an MLP on each frame of its map, then pooling over time: `(B, 1, M, F)` to `(B, D)`.

    A frame of the map is flattened, channels × bands, so that each band has weights of its own. The shape is that of
    BYOL-A's network (Niizumi et al. 2021, arXiv:2103.06695, section III-D: three blocks of convolution and 2×2
    max-pooling, then Linear, ReLU, Dropout 0.3, Linear, ReLU on each frame).

    Args:
        trunk: `(B, 1, M, F)` to `(B, C, M', F')`.
        n_mels: `M`; fixed, because the first linear layer has weights for each band.
        hidden: Units of both linear layers.
        dropout: Probability of the dropout between them, in [0, 1).
        pool: Over time: `max`, `avg`, their mean `avgmax`, or `catavgmax`, the average followed by the maximum.
        local: Whether the frames of the map are pooled beside the MLP's outputs, as in BYOL-A's second version
            (Niizumi et al. 2023, arXiv:2204.07402, section III-C).
        readout: Blocks of a `ConvTrunk`, 1 for the first, whose maps are pooled over time behind all that, for
            classifiers: training's objective reads `vector`, which lacks them. See docs/recipe.md.
        readout_bands: Neighbouring bands of those maps are first averaged, as many as leave this many at most.

    Attributes:
        mean: Subtracted from the log-mels; a buffer, saved and hashed with the weights.
        std: Divides the log-mels after that; likewise.

    Raises:
        ConfigError: An argument is out of range, or the trunk does not take such log-mels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        n_mels: int,
        hidden: int = 1024,
        dropout: float = 0.3,
        pool: Pool = "max",
        local: bool = False,
        *,
        readout: Sequence[int] = (),
        readout_bands: int = 16,
    ) -> None:
        super().__init__()
        _check_options(hidden, dropout, pool)
        self.pool, self.local = pool, local
        if readout:
            if not isinstance(trunk, ConvTrunk):
                raise ConfigError(f"encoder.readout={readout}: this network has none; pass encoder.readout=[]")
            check_readout(readout, readout_bands, sum(isinstance(layer, nn.ReLU) for layer in trunk))
        self.readout, self.readout_bands = tuple(readout), readout_bands
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float32))
        self.trunk = trunk
        self.mlp = nn.Sequential(
            nn.Linear(_frame_size(trunk, n_mels), hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(),
        )  # fmt: skip

    def forward(self, logmel: Tensor) -> Tensor:
        """Embed log-mels `(B, 1, M, F)` as `(B, D)`: `vector`, then each block of the readout.

        `vector` is `hidden` wide, `C * M'` more if local; a block `C_b` times its bands; twice that for `catavgmax`.
        """
        if not self.readout:
            return self.vector(logmel)
        maps = cast(ConvTrunk, self.trunk).maps((logmel - self.mean) / self.std)
        early = [self._pool_map(maps[block - 1]) for block in self.readout]
        return torch.cat([self._pool_deep(maps[-1]), *early], dim=1)

    @property
    def vector_dim(self) -> int:
        """How many numbers `vector` has."""
        first, last = (layer for layer in self.mlp if isinstance(layer, nn.Linear))
        by_frame = last.out_features + (first.in_features if self.local else 0)
        return by_frame * (2 if self.pool == "catavgmax" else 1)

    def vector(self, logmel: Tensor) -> Tensor:
        """The first numbers of `forward`, without the readout: what training's objective reads."""
        return self._pool_deep(self.trunk((logmel - self.mean) / self.std))

    def _pool_map(self, x: Tensor) -> Tensor:
        """The map of a block `(B, C_b, M_b, F_b)`, as a part of the readout."""
        step = -(-x.shape[2] // self.readout_bands)
        by_band = x if step == 1 else functional.avg_pool2d(x, (step, 1), ceil_mode=True)
        return READOUT_SCALE * _pool_over_time(by_band.flatten(1, 2).transpose(1, 2), self.pool)

    def _pool_deep(self, features: Tensor) -> Tensor:
        by_frame = features.permute(0, 3, 1, 2).flatten(2)  # (B, C, M', F') to (B, F', C * M')
        deep = with_float32_end(self.mlp, by_frame)
        return _pool_over_time(torch.cat([deep, by_frame], dim=2) if self.local else deep, self.pool)

    def set_input_statistics(self, mean: float, std: float) -> None:
        """Normalise log-mels by this mean and deviation, one number each over all bands, from now on.

        Raises:
            ConfigError: One is not finite, or `std` is not above 0.
        """
        given = torch.tensor([mean, std], dtype=torch.float32)
        if not (torch.isfinite(given).all() and given[1] > 0):
            raise ConfigError(f"log-mels of mean {mean} and deviation {std} cannot be normalised; are they all silent?")
        self.mean.copy_(given[0])
        self.std.copy_(given[1])


def with_float32_end(layers: nn.Sequential, x: Tensor) -> Tensor:
    """`layers(x)`, under autocast in float32 from the last linear layer on.

    Clips differ by little against what all vectors have in common. A last layer that rounds to bfloat16 hides it, and
    whitening then scales up the rounding.
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):  # autocast does not support the meta device
        return cast(Tensor, layers(x))
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    x = layers[:last](x)
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, layers[last:](x.float()))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw weights from this seed and restore torch's global generator; None: draw from that."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def check_readout(readout: Sequence[int], bands: int, n_blocks: int) -> None:
    """Refuse a readout that is not a list of some of `n_blocks` blocks, and bands that are no number.

    Raises:
        ConfigError: It is such a one.
    """
    check_whole("encoder.readout_bands", bands, 1)
    if not isinstance(readout, Sequence) or isinstance(readout, str):
        raise ConfigError(f"encoder.readout={readout}: not allowed; give a list of blocks, as in [1, 2]")
    for block in readout:
        check_whole("encoder.readout", block, 1)
        if block > n_blocks or list(readout).count(block) > 1:
            raise ConfigError(f"encoder.readout={list(readout)}: give each block once, from 1 to {n_blocks}, or []")


def _pool_over_time(x: Tensor, pool: Pool) -> Tensor:
    """`(B, F', D')` to `(B, D)`; timm's names of pooling."""
    if pool == "max":
        return x.amax(1)
    if pool == "avg":
        return x.mean(1)
    if pool == "avgmax":
        return 0.5 * (x.mean(1) + x.amax(1))
    return torch.cat([x.mean(1), x.amax(1)], dim=1)


@torch.no_grad()
def _frame_size(trunk: nn.Module, n_mels: int) -> int:
    """`C * M'`, measured: networks round the edges of a map differently."""
    if isinstance(trunk, ConvTrunk) and (bands := n_mels >> trunk.n_blocks):
        return trunk.channels * bands  # measured on the meta device it costs every command a second of imports
    trunk.eval()  # the zeros must not enter the BatchNorm's running averages
    try:
        features: Tensor = trunk(torch.zeros(1, 1, n_mels, max(n_mels, 98)))
    except FAILURES as error:
        raise ConfigError(
            f"encoder.stride: the trunk cannot take log-mels of {n_mels} bands ({reason_of(error)}); "
            "take a convolutional network, or a smaller stride"
        ) from error
    trunk.train()
    if features.ndim != 4:
        raise ConfigError(f"encoder.stride: the trunk gives shape {tuple(features.shape)}, not (B, C, M', F')")
    return features.shape[1] * features.shape[2]


def _create(
    name: str, pretrained: bool = False, drop_path: float | None = None, **options: Any
) -> Any:  # timm has no types
    """A timm network with one input channel.

    Raises:
        ConfigError: Its published weights cannot be loaded, or it has no blocks to leave out.
    """
    import timm

    if drop_path:
        options["drop_path_rate"] = drop_path
    # first without weights: what fails here is not for want of them
    try:
        network = timm.create_model(name, pretrained=False, in_chans=1, **options)
    except TypeError as error:
        if drop_path and "drop_path_rate" in str(error):
            raise ConfigError(f"encoder.drop_path={drop_path}: encoder.name={name} has no such option") from error
        raise
    if not pretrained:
        return network
    try:
        return timm.create_model(name, pretrained=True, in_chans=1, **options)
    except Exception as error:  # of the network, the hub's library or the disk
        raise ConfigError(f"encoder.pretrained=true: no weights of {name} ({one_line(error)})") from error


def _check_published(name: str) -> None:
    """Refuse a network of which there are no weights: timm would leave it at random ones."""
    import timm

    if name != CONV:
        _check_name(name)
    if not timm.is_model_pretrained(name):
        raise ConfigError(f"encoder.pretrained=true: timm has published no weights of encoder.name={name}")


def _check_name(name: str) -> None:
    import timm

    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, [*timm.list_models(), CONV], n=3, cutoff=0.5)
    raise ConfigError(
        f"encoder.name={name}: timm knows no such network"
        + (f"; close to it: {', '.join(close)}" if close else "")
        + " (see timm.list_models())"
    )


def _check_share(key: str, value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and 0 <= value < 1):
        raise ConfigError(f"encoder.{key}={value}: not allowed; give a number from 0 to below 1")


def _check_options(hidden: int, dropout: float, pool: str) -> None:
    check_whole("encoder.hidden", hidden, 1)
    _check_share("dropout", dropout)
    if pool not in get_args(Pool):
        raise ConfigError(f"encoder.pool={pool}: choose one of {', '.join(get_args(Pool))}")
