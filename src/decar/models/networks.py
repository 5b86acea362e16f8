"""What timm gives: a network whole, with its global pooling, or cut where its maps have a given stride."""

import difflib
from typing import Any

import timm
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import Tensor, nn

from decar.errors import ConfigError, check_whole

CONV = "conv"  # the name of the plain trunk, the one network that is not timm's

_FAULTS = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)  # how timm says no


def whole_network(name: str, pool: str) -> nn.Module:
    """A timm network of one input channel: `(B, 1, M, F)` to `(B, D)` by the global pooling of that name.

    Raises:
        ConfigError: timm knows no such network, or it has no such pooling.
    """
    _check_name(name)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool=pool)
    except _FAULTS as error:
        raise unfit(name, pool, error) from error
    return network


class CutNetwork(nn.Module):
    """The first stages of a timm network: `(B, 1, M, F)` to its map `(B, C, M', F')` of the given stride.

    Args:
        name: Any timm network that gives its intermediate maps and takes images of any size.
        stride: Mel bands, and frames, to one row, and column, of the map.

    Raises:
        ConfigError: timm knows no such network, it gives no maps, or none has that stride.
    """

    def __init__(self, name: str, stride: int) -> None:
        super().__init__()
        _check_name(name)
        check_whole("encoder.stride", stride, 1)
        try:
            strides = _maps(name).feature_info.reduction()
            if stride not in strides:
                offered = ", ".join(map(str, sorted(set(strides))))
                raise ConfigError(f"encoder.stride={stride}: {name} has no map of that stride; it offers {offered}")
            self.stages = _maps(name, out_indices=(strides.index(stride),))
        except _FAULTS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"encoder.name={name} encoder.stride={stride}: this network cannot be cut ({reason}); "
                "take a convolutional network, or encoder.stride=null for the whole one"
            ) from error
        if isinstance(self.stages, EfficientNetFeatures | MobileNetV3Features):
            # these two of timm's keep, run and save the stages after the cut too
            self.stages.blocks = self.stages.blocks[: self.stages.feature_info.get_dicts()[0]["stage"]]
        self.channels_last = str(getattr(self.stages, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, 1, M, F)` to `(B, C, M', F')`."""
        features: Tensor = self.stages(x)[0]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


def unfit(name: str, pool: str, error: Exception) -> ConfigError:
    """What to raise when a whole network refuses one channel, the pooling, or the size of a log-mel."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(
        f"encoder.name={name} encoder.pool={pool}: this network cannot embed log-mels ({reason}); "
        "take a convolutional network, and max, avg, avgmax or catavgmax"
    )


def _maps(name: str, **options: object) -> Any:  # timm has no types
    return timm.create_model(name, pretrained=False, in_chans=1, features_only=True, **options)


def _check_name(name: str) -> None:
    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, [*timm.list_models(), CONV], n=3, cutoff=0.5)
    raise ConfigError(
        f"encoder.name={name}: timm knows no such network"
        + (f"; close to it: {', '.join(close)}" if close else "")
        + " (see timm.list_models())"
    )
