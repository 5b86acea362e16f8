"""The encoder `f`: log-mel in, one embedding a clip out. Any timm network with one input channel and global pooling.

Letters: `B` batch, `T` samples, `M` mel bands, `F` frames, `D` embedding.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import FrontEnd, LogMel
from decar.audio.crops import padded_frames
from decar.errors import ConfigError

Pool = Literal["max", "avg", "avgmax", "catavgmax"]


class Encoder(nn.Module):
    """A timm network on log-mels, pooled over frequency and time (paper, section 3: EfficientNet-B0, global max-pool).

    Args:
        name: Any timm network that takes images of any size, by timm's name.
        pool: Global pooling; the paper takes the maximum, its released code the average.
        frontend: The numbers of the log-mel that the weights are made for.
        min_frames: Shorter clips are padded with silence to this many frames (98 = 1 s, the length of a crop).
        max_frames: Of longer clips the middle is taken (998 = 10 s).
        seed: Seeds the weights; None draws from torch's global generator.

    Attributes:
        dim: `D`, the width of an embedding (1280 for EfficientNet-B0).

    Raises:
        ConfigError: timm knows no network of that name.
    """

    def __init__(
        self,
        name: str = "efficientnet_b0",
        pool: Pool = "max",
        frontend: FrontEnd | None = None,
        min_frames: int = 98,
        max_frames: int = 998,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.pool = name, pool
        self.frontend = frontend or FrontEnd()
        self.min_frames, self.max_frames = min_frames, max_frames
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.network = _create_network(name, pool)
        self.logmel = LogMel(self.frontend)
        self.dim = self._measure_dim()
        self.to(memory_format=torch.channels_last)  # 1.2-3 x faster on CPU, and what tensor cores want

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms that `embed` takes."""
        return self.frontend.sample_rate

    def forward(self, logmel: Tensor) -> Tensor:
        """Embed log-mels `(B, 1, M, F)` as `(B, D)`."""
        embedding: Tensor = self.network(logmel)
        return embedding

    def embed(self, waveform: Tensor) -> Tensor:
        """Embed mono waveforms `(B, T)` float32 at `sample_rate` as `(B, D)`, in eval mode whatever the mode is.

        A clip is padded or cut as in the full-dataset pass, so that an embedding depends on its own clip alone.
        """
        short = self.frontend.win_length - waveform.shape[-1]
        mel = self.logmel(functional.pad(waveform, (0, max(0, short))))
        frames = int(padded_frames(mel.shape[-1], min_frames=self.min_frames, max_frames=self.max_frames))
        start = max(0, (mel.shape[-1] - frames) // 2)
        mel = mel[..., start : start + frames]
        mel = functional.pad(mel, (0, frames - mel.shape[-1]), value=self.frontend.silence)
        with evaluating(self):
            embedding: Tensor = self(mel.unsqueeze(1))
        return embedding

    @torch.no_grad()
    def _measure_dim(self) -> int:
        """`D` as the network gives it: timm's own attributes leave out the pooling."""
        self.network.eval()
        try:
            out: Tensor = self.network(torch.zeros(1, 1, self.frontend.n_mels, self.min_frames))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _unfit(self.name, self.pool, error) from error
        self.network.train()
        if out.ndim != 2:
            raise ConfigError(f"encoder.name={self.name}: gives shape {tuple(out.shape)}, not one vector a clip")
        return int(out.shape[1])

    def settings(self) -> dict[str, object]:
        """What, beside the weights, makes this encoder: arguments and front-end numbers, as plain JSON values."""
        return {
            "name": self.name,
            "pool": self.pool,
            "min_frames": self.min_frames,
            "max_frames": self.max_frames,
            "frontend": self.frontend.as_dict(),
        }

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, on the CPU in standard memory layout; the log-mel has no weights."""
        return {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}

    def hash(self) -> str:
        """SHA-256 over weights and settings: the same for two encoders exactly when they embed alike."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        for key, value in sorted(self.weights().items()):
            digest.update(key.encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No gradients and eval mode; after it, each part has its own train/eval flag back."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():  # not inference_mode: parameters made inside that cannot be trained
            yield
    finally:
        for part, training in flags:
            part.training = training


def _create_network(name: str, pool: Pool) -> nn.Module:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ConfigError(
            f"encoder.name={name}: timm knows no such network"
            + (f"; close to it: {', '.join(close)}" if close else "")
            + " (see timm.list_models())"
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool=pool)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(name, pool, error) from error
    return network


def _unfit(name: str, pool: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(
        f"encoder.name={name} encoder.pool={pool}: this network cannot embed log-mels ({reason}); "
        "take a convolutional network, and max, avg, avgmax or catavgmax"
    )
