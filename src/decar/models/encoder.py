"""The encoder `f` (paper, section 3): a network on log-mels, one vector a clip.

Letters: `B` batch, `T` samples, `M` mel bands, `F` frames, `D` embedding.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import FrontEnd, LogMelStore
from decar.audio.crops import Frames
from decar.audio.samples import as_array, mono_batch
from decar.errors import ConfigError, reason_of
from decar.models.components import Reduced
from decar.models.embed import PIECES_AT_ONCE, embed_clips, evaluating, run_pass
from decar.models.networks import FAILURES, FrequencyKeeping


class Encoder(nn.Module):
    """A network with the front-end it is made for.

    Args:
        network: Any module from log-mels `(B, 1, M, F)` to `(B, D)`; one of decar's is made by `build_network`.
        frontend: The numbers of the log-mel.
        min_frames: Shorter clips are padded with silence to this many frames (98 = 1 s, the length of a crop).
        max_frames: Longer clips are embedded in pieces of this many frames (998 = 10 s); see `embed_clips`.
        arguments: What the network was constructed with, as JSON values. A bundle holds them, so that the network can
            be constructed again. Those of `build_network` are known and need not be given.

    Attributes:
        dim: `D` (1280 for EfficientNet-B0).

    Raises:
        ConfigError: The network does not take such log-mels, or does not give one vector a clip.
    """

    def __init__(
        self,
        network: nn.Module,
        frontend: FrontEnd | None = None,
        *,
        min_frames: int = 98,
        max_frames: int = 998,
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.frontend = network, frontend or FrontEnd()
        self.min_frames, self.max_frames = min_frames, max_frames
        kind = type(network)
        foreign = {"network": f"{kind.__module__}.{kind.__qualname__}", "arguments": dict(arguments or {})}
        self._made_of: dict[str, object] = getattr(network, "decar_settings", foreign)
        with torch.device("cpu"):  # filters are constants: a network on the meta device needs their values too
            self.logmel = self.frontend.transform()
        if self.device.type != "meta":  # the shapes of a bundle are compared with those in its file instead
            _ = self.dim
        self.to(memory_format=torch.channels_last)  # 1.2-3 x faster on CPU, and what tensor cores want

    @cached_property
    def dim(self) -> int:
        """`D`. It is measured where the weights have memory: on the meta device that takes a second of imports."""
        return self._measure_dim()

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms that `embed` takes."""
        return self.frontend.sample_rate

    @property
    def tunable(self) -> bool:
        """Whether the network's parameters get gradients; only an encoder of another program may say no."""
        return bool(getattr(self.network, "tunable", True))

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        held = next(chain(self.network.parameters(), self.network.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    @property
    def objective_dim(self) -> int:
        """How many of the `D` numbers training's objective reads, the first ones: all but a readout."""
        return self.network.vector_dim if isinstance(self.network, FrequencyKeeping) else self.dim

    def forward(self, logmel: Tensor) -> Tensor:
        """Log-mels `(B, 1, M, F)` to vectors `(B, D)`."""
        embedding: Tensor = self.network(logmel)
        return embedding

    def for_objective(self, logmel: Tensor) -> Tensor:
        """The numbers that training's objective reads, `(B, objective_dim)`; a readout is not computed."""
        return self.network.vector(logmel) if isinstance(self.network, FrequencyKeeping) else self(logmel)

    def reduced(self, directions: Tensor) -> "Encoder":
        """This encoder with its embeddings projected on directions `(d, D)`: `(B, d)`. It shares the network.

        Raises:
            ConfigError: They are of another width than the embeddings.
        """
        if directions.ndim != 2 or directions.shape[1] != self.dim:
            raise ConfigError(f"directions of shape {tuple(directions.shape)} do not fit {self.dim} numbers a clip")
        network = Reduced(self.network, directions, self._made_of)
        return Encoder(network, self.frontend, min_frames=self.min_frames, max_frames=self.max_frames)

    def embed(self, waveform: Tensor | ArrayLike, sample_rate: int | None = None) -> Tensor:
        """Embed mono waveforms as `(B, D)` float32 on the encoder's device, in eval mode whatever the mode is.

        A clip's embedding does not depend on the others. It equals that of the full-dataset pass: the log-mel is
        rounded to float16 as in the store, and a clip longer than `max_frames` is the mean of its pieces
        (`embed_clips`). A clip shorter than a window is padded with silence.

        Args:
            waveform: `(B, T)`, or `(T,)` for one; torch or numpy. Floats have full scale at ±1; integers are scaled by
                their type.
            sample_rate: Hz, of the waveforms, which are resampled; None: the encoder's own.

        Raises:
            AudioError: No samples, samples that are not finite, a type without a scale, a float scale other than ±1, or
                a shape that is not `(T,)` or `(B, T)`.
        """
        samples = mono_batch(as_array(waveform), sample_rate, self.sample_rate)
        if not len(samples):
            return torch.zeros(0, self.dim, device=self.device)
        if self.frontend.l2:
            samples = np.stack([next(self.frontend.levelled([clip])) for clip in samples])
        short = max(0, self.frontend.win_length - samples.shape[1])
        with torch.no_grad():
            mel = self.logmel(functional.pad(torch.from_numpy(samples).to(self.device), (0, short)))
        return self.embed_logmels(list(mel.half().transpose(1, 2).cpu().numpy())).to(self.device)

    def embed_logmels(self, mels: Sequence[Frames]) -> Tensor:
        """Embed log-mels `(F, M)` of any length as `(B, D)` float32 on the CPU, in eval mode."""
        with evaluating(self):
            return embed_clips(lambda x: self(x.to(self.device)), mels, self, PIECES_AT_ONCE)

    def settings(self) -> dict[str, object]:
        """What determines this encoder besides the weights: arguments and front-end numbers, as JSON values."""
        sizes = {"min_frames": self.min_frames, "max_frames": self.max_frames, "frontend": self.frontend.as_dict()}
        return self._made_of | sizes

    @property
    def description(self) -> str:
        """The network in a line: its name and its arguments."""
        made_of = dict(self._made_of)
        name = made_of.pop("name", None) or made_of.pop("network")
        options: Any = made_of.pop("arguments", None) or made_of
        words = [f"{options['pool']}-pool"] if "pool" in options else []
        words += [
            f"{key}={json.dumps(options[key], separators=(',', ':'))}" for key in sorted(options) if key != "pool"
        ]
        return f"{name} ({', '.join(words)})" if words else str(name)

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters and buffers, on the CPU in standard memory layout; the log-mel has no weights."""
        return {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}

    def hash(self) -> str:
        """SHA-256 over weights and settings, and the source of a class of the user's: what determines an embedding."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode())
        if "network" in self._made_of:
            with suppress(OSError, TypeError):  # typed in a shell, or written in C
                network = self.network.network if isinstance(self.network, Reduced) else self.network
                digest.update(inspect.getsource(type(network)).encode())
        for key, value in sorted(self.weights().items()):
            digest.update(key.encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    def _measure_dim(self) -> int:
        """`D` as the network gives it, on the device where the network is."""
        spec, name = self.frontend, self.description
        name = f"encoder.name={name}" if "name" in self._made_of else name
        silence = torch.zeros(1, 1, spec.n_mels, self.min_frames, device=self.device)
        try:
            with evaluating(self.network):
                out: Tensor = self.network(silence)
        except FAILURES as error:
            raise ConfigError(
                f"{name}: this network cannot embed log-mels of {spec.n_mels} bands and {self.min_frames} "
                f"frames ({reason_of(error)}); take a convolutional network, or longer crops"
            ) from error
        if out.ndim != 2 or len(out) != 1:
            raise ConfigError(f"{name}: gives shape {tuple(out.shape)}, not one vector a clip")
        return int(out.shape[1])


def embed_store(
    encoder: Encoder,
    store: LogMelStore,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> NDArray[np.float32]:
    """Embed every clip of a store as `(N, D)` in store order, in eval mode on `device`; both are restored."""
    home = encoder.device
    encoder.to(device)
    with evaluating(encoder):
        out = run_pass(
            encoder, store, encoder, dim=encoder.dim, batch_size=batch_size, title="embed", device=device,
            progress=progress,
        )  # fmt: skip
    encoder.to(home)
    return out
