"""BatchNorm over the batches of all ranks, on any device.

torch's `SyncBatchNorm` runs on GPUs only, and its conversion replaces each layer by a bare normalisation. What a
subclass adds is lost, such as the activation in timm's `BatchNormAct2d`: 49 layers of EfficientNet-B0. Here each layer
keeps its class, weights, hooks and `forward`; only its call of `functional.batch_norm` is replaced.
"""

from typing import Any, cast

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from decar.errors import TrainingError
from decar.pretrain.ranks import all_gather, rank_and_size, sum_over_ranks


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
        return cast(Tensor, _OnGpu.apply(x, weight, bias, running_mean, running_var, eps, momentum))
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


class _OnGpu(torch.autograd.Function):
    """The same by the kernels that `nn.SyncBatchNorm` uses, to the same bits.

    That looks for ranks without a batch, and so makes the CPU wait in each layer. Here each rank has its share.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        x, width = _dense(x), x.shape[1]
        mean, inverse = torch.batch_norm_stats(x, eps)
        own = torch.cat([mean, inverse, mean.new_full((1,), x.numel() / width)])
        means, inverses, counts = torch.split(torch.stack(all_gather(own)), [width, width, 1], dim=1)
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x, means, inverses, running_mean, running_var, momentum, eps, counts.flatten()
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts.flatten().int())
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        above, wanted = _dense(gradients[0]), ctx.needs_input_grad[:3]
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(above, x, mean, inverse, weight, *wanted)
        of_x = None
        if wanted[0]:
            total, dot = sum_over_ranks(torch.cat(sums)).chunk(2)
            of_x = torch.batch_norm_backward_elemt(above, x, mean, inverse, weight, total, dot, counts)
        affine = (of_weight, of_bias) if weight is not None else (None, None)
        return of_x, *(g if w else None for g, w in zip(affine, wanted[1:], strict=True)), None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """As the kernels take it: channels last, or in order."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
