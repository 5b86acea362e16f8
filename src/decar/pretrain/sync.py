"""BatchNorm over the batches of all ranks, on any device.

torch's `SyncBatchNorm` runs on GPUs only, and its conversion replaces each layer by a bare normalisation. What a
subclass adds is lost, such as the activation in timm's `BatchNormAct2d`: 49 layers of EfficientNet-B0. Here each layer
keeps its class, weights, hooks and `forward`; only its call of `functional.batch_norm` is replaced.
"""

from typing import Any, cast

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm as FusedSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from decar.errors import TrainingError
from decar.pretrain.ranks import rank_and_size, sum_over_ranks


class SyncLayers(LayerSync):
    """Plugin for Lightning's trainer, in place of `sync_batchnorm=True`."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Let all BatchNorm layers, subclasses too, use the statistics of all ranks; changes the module in place."""
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm | SyncedLayer):
                layer.__class__ = _synced(type(layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Give the layers their own classes back."""
        for layer in model.modules():
            if isinstance(layer, SyncedLayer):
                layer.__class__ = type(layer).__bases__[1]
        return model


class SyncedLayer(nn.Module):
    """Base class put before that of a BatchNorm layer: in train mode `forward` normalises over all ranks."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` of the layer's own class.

        Raises:
            TrainingError: It does not call `functional.batch_norm`.
        """
        if not self.training or rank_and_size()[1] == 1:
            return super().forward(*args, **kwargs)
        with _OverRanks() as over_ranks:
            out = super().forward(*args, **kwargs)
        if not over_ranks.called:
            raise TrainingError(
                f"trainer.sync_batchnorm=true: the BatchNorm subclass {type(self).__bases__[1].__name__} does not call "
                "torch.nn.functional.batch_norm, so its statistics cannot be shared; pass trainer.sync_batchnorm=false"
            )
        return out


def _synced(cls: type[_BatchNorm]) -> type[_BatchNorm]:
    return cast(type[_BatchNorm], type(f"Synced{cls.__name__}", (SyncedLayer, cls), {}))


class _OverRanks(TorchFunctionMode):
    """Replaces `functional.batch_norm` by `batch_norm_over_ranks`."""

    called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.batch_norm:
            return func(*args, **(kwargs or {}))
        self.called = True
        return batch_norm_over_ranks(*args, **(kwargs or {}))


def batch_norm_over_ranks(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm` with mean and variance over the batches of all ranks; gradients flow through both.

    Args:
        x: `(B, C, …)`, of any float type; statistics are float32 at least.
        running_mean: `(C,)`, updated in place; None: not tracked.
        running_var: Likewise.
        weight: `(C,)`.
        bias: `(C,)`.
        training: Must be true.
        momentum: Share of this batch in the running statistics.
        eps: Added to the variance.
    """
    assert training
    if x.is_cuda:
        size, group = rank_and_size()[1], distributed.group.WORLD
        numbers = (running_mean, running_var, eps, momentum)
        return cast(Tensor, FusedSyncBatchNorm.apply(x, weight, bias, *numbers, group, size))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rest, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    local = torch.cat([wide.new_tensor([x.numel() / x.shape[1]]), wide.sum(rest)])
    count, total = torch.split(sum_over_ranks(local), [1, x.shape[1]])
    mean = total / count
    centred = wide - mean.view(shape)  # two sums rather than E[x²] − E[x]²: that loses digits
    var = sum_over_ranks(centred.square().sum(rest)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * count / (count - 1), momentum)
    out: Tensor = centred * (var + eps).rsqrt().view(shape)
    out = out if weight is None else out * weight.view(shape)
    return (out if bias is None else out + bias.view(shape)).to(x.dtype)
