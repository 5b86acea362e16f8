"""BatchNorm over all ranks. torch's SyncBatchNorm runs on GPUs only; this one on anything, CPUs with gloo included."""

from typing import cast

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from decar.pretrain.ranks import rank_and_size


class SyncBatchNorm(_BatchNorm):
    """Normalises by mean and variance of the batches of all ranks together, through which gradients flow."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, …)` to the same shape."""
        if not self.training or rank_and_size()[1] == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        rest = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        local = torch.cat([x.new_tensor([x.numel() / x.shape[1]]), x.sum(rest)])
        count, total = all_reduce(local).split([1, x.shape[1]])  # type: ignore[no-untyped-call]
        mean = total / count
        centred = x - mean.view(shape)  # two sums rather than E[x²] − E[x]²: that loses digits
        var = all_reduce(centred.square().sum(rest)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * count / (count - 1), share)
        out: Tensor = centred * (var + self.eps).rsqrt().view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


class SyncLayers(LayerSync):
    """Plugin for Lightning's trainer, in place of `sync_batchnorm=True`: torch's own on GPUs, ours elsewhere."""

    def __init__(self, on_gpu: bool | None = None) -> None:
        self.on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        """The module with all its BatchNorm layers exchanged; weights and statistics stay."""
        if not self.on_gpu:
            return _convert(model)
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]

    def revert(self, model: nn.Module) -> nn.Module:
        """As it is: the layers are the same outside of training."""
        return model


def _convert(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    if not isinstance(module, _BatchNorm) or isinstance(module, SyncBatchNorm):
        return module
    made = SyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    made.__dict__.update({key: module.__dict__[key] for key in ("_parameters", "_buffers", "training")})
    return made
