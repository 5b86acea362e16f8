"""The encoder `f`: log-mel in, one embedding a clip out. A timm network, whole or cut, or a plain trunk.

Letters: `B` batch, `T` samples, `M` mel bands, `F` frames, `D` embedding.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import FrontEnd, LogMel
from decar.audio.samples import as_array, mono_batch
from decar.errors import ConfigError
from decar.models.frames import FrequencyKeeping, Pool, plain_trunk
from decar.models.networks import CONV, CutNetwork, unfit, whole_network
from decar.models.pieces import clip_vectors

PIECES_AT_ONCE = 64  # of 10 s in one batch at most: here, and in the full-dataset pass of training


class Encoder(nn.Module):
    """A network on log-mels, pooled to one vector a clip (paper, section 3: EfficientNet-B0, global max-pool).

    With a `stride`, or the name `conv`, the frequency axis is kept: see `FrequencyKeeping`.

    Args:
        name: Any timm network that takes images of any size, by timm's name; or `conv`, see `plain_trunk`.
        pool: Global pooling; the paper takes the maximum, its released code the average. Over time alone where the
            frequency axis is kept.
        frontend: The numbers of the log-mel that the weights are made for.
        min_frames: Shorter clips are padded with silence to this many frames (98 = 1 s, the length of a crop).
        max_frames: Longer clips are embedded in pieces of so many frames (998 = 10 s); see `pieces.clip_vectors`.
        seed: Seeds the weights; None draws from torch's global generator.
        stride: None takes the whole timm network; else it is cut where its maps have this stride. `conv` has one
            stride, two to the number of its widths, which None stands for.
        hidden: Units of the MLP on each frame, where frequency is kept.
        dropout: Of that MLP, in [0, 1).
        local: Whether the frames that the MLP reads are pooled beside those it makes.
        widths: Channels of each block of `conv`.

    Attributes:
        dim: `D`, the width of an embedding (1280 for EfficientNet-B0).

    Raises:
        ConfigError: timm knows no network of that name or has no map of that stride, or an argument is out of range.
    """

    def __init__(
        self,
        name: str = "efficientnet_b0",
        pool: Pool = "max",
        frontend: FrontEnd | None = None,
        min_frames: int = 98,
        max_frames: int = 998,
        seed: int | None = None,
        *,
        stride: int | None = None,
        hidden: int = 1024,
        dropout: float = 0.3,
        local: bool = False,
        widths: Sequence[int] = (32, 64, 64),
    ) -> None:
        super().__init__()
        self.name, self.pool = name, pool
        self.frontend = frontend or FrontEnd()
        self.min_frames, self.max_frames = min_frames, max_frames
        self._extra: dict[str, object] = {}  # settings that only the frequency-keeping networks have
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            trunk = self._build_trunk(stride, widths)
            if trunk is None:
                self.network: nn.Module = whole_network(name, pool)
            else:
                self._extra |= {"hidden": hidden, "dropout": dropout, "local": local}
                bands = self.frontend.n_mels
                self.network = FrequencyKeeping(trunk, bands, min_frames, hidden, dropout, pool, local)
        with torch.device("cpu"):  # its filters are numbers, also where the network is built for its shapes alone
            self.logmel = LogMel(self.frontend)
        self.dim = self._measure_dim()
        self.to(memory_format=torch.channels_last)  # 1.2-3 x faster on CPU, and what tensor cores want

    def _build_trunk(self, stride: int | None, widths: Sequence[int]) -> nn.Module | None:
        """What keeps the frequency axis, its settings noted; None stands for a whole network."""
        if self.name != CONV:
            if stride is None:
                return None
            self._extra = {"stride": stride}
            return CutNetwork(self.name, stride)
        trunk, own = plain_trunk(widths), 2 ** len(widths)
        if stride not in (None, own):
            raise ConfigError(
                f"encoder.stride={stride}: {CONV} of encoder.widths={list(widths)} has stride {own}; "
                f"pass encoder.stride={own}, or as many widths as the stride has factors of 2"
            )
        self._extra = {"stride": own, "widths": list(widths)}
        return trunk

    @property
    def normalises(self) -> bool:
        """Whether inputs are normalised by `set_input_statistics`: where the frequency axis is kept."""
        return isinstance(self.network, FrequencyKeeping)

    def set_input_statistics(self, mean: float, std: float) -> None:
        """Normalise log-mels by this mean and deviation, one number each, from now on and in the bundle.

        A whole network ignores it: the paper feeds log-mels as they are, and BatchNorm follows the first convolution.

        Raises:
            ConfigError: One is not finite, or `std` is not above 0.
        """
        if isinstance(self.network, FrequencyKeeping):
            self.network.set_input_statistics(mean, std)

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms that `embed` takes."""
        return self.frontend.sample_rate

    def forward(self, logmel: Tensor) -> Tensor:
        """Embed log-mels `(B, 1, M, F)` as `(B, D)`."""
        embedding: Tensor = self.network(logmel)
        return embedding

    def embed(self, waveform: Tensor | ArrayLike, sample_rate: int | None = None) -> Tensor:
        """Embed mono waveforms as `(B, D)` float32 on the encoder's device, in eval mode whatever the mode is.

        An embedding depends on its own clip alone and is the one that the full-dataset pass makes of it: the log-mel is
        rounded to float16 as in the store, and a clip longer than `max_frames` is the mean of its pieces
        (`pieces.clip_vectors`). What is shorter than a window is filled up with silence.

        Args:
            waveform: `(B, T)`, or `(T,)` for one; torch or numpy. Floats have full scale at ±1; integers are scaled by
                their type.
            sample_rate: Hz, of the waveforms; the encoder's own when None, else they are resampled.

        Raises:
            AudioError: No samples, samples that are not finite, a type without a scale, a float scale other than ±1, or
                a shape that is not `(T,)` or `(B, T)`.
        """
        samples = mono_batch(as_array(waveform), sample_rate, self.sample_rate)
        device = next(self.parameters()).device
        if not len(samples):
            return torch.zeros(0, self.dim, device=device)
        short = max(0, self.frontend.win_length - samples.shape[1])
        with evaluating(self):
            mel = self.logmel(functional.pad(torch.from_numpy(samples).to(device), (0, short)))
            clips = mel.half().transpose(1, 2).cpu().numpy()
            return clip_vectors(lambda x: self(x.to(device)), list(clips), self, PIECES_AT_ONCE).to(device)

    @torch.no_grad()
    def _measure_dim(self) -> int:
        """`D` as the network gives it: timm's own attributes leave out the pooling."""
        self.network.eval()
        try:
            out: Tensor = self.network(torch.zeros(1, 1, self.frontend.n_mels, self.min_frames))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise unfit(self.name, self.pool, error) from error
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
            **self._extra,
        }

    @property
    def description(self) -> str:
        """The network in a line: name, pooling and, where the frequency axis is kept, the options of that."""
        extra = [f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in sorted(self._extra.items())]
        return f"{self.name} ({', '.join([f'{self.pool}-pool', *extra])})"

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, on the CPU in standard memory layout; the log-mel has no weights."""
        return {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}

    def hash(self) -> str:
        """SHA-256 over weights and settings: two encoders of one hash embed alike."""
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
