"""Encoders that are not decar's, under the names `hear:MODULE[:WEIGHTS]` and `torch:MODULE.FUNCTION`.

They take waveforms. The front-end `Samples` hands a waveform through stores and batches as it is, so that such an
encoder goes the same way as one of decar's: it is judged, cached, embedded and searched with by the same code.

Naming one imports its module: only names that the user types are loaded, never names found in a file.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from decar.audio.logmel import Samples
from decar.errors import BundleError, reason_of
from decar.models.encoder import Encoder

HEAR, TORCH = "hear:", "torch:"
PREFIXES = (HEAR, TORCH)
PIECE_SECONDS = 10  # as decar's own encoders: a longer clip is the mean of its pieces
LEAST_SECONDS = 1  # a shorter clip is padded with silence


class WaveformNetwork(nn.Module):
    """A function of waveforms as a network of an `Encoder`: frames of `Samples` in, vectors out.

    Args:
        model: What the function needs; its parameters are the network's, where it is a module.
        function: From waveforms `(B, T)` float32 to `(B, D)`.
        settings: What determines the vectors beside the weights, for `Encoder.settings`.
        tunable: Whether gradients reach the parameters.
    """

    def __init__(
        self, model: object, function: Callable[[Tensor], Tensor], settings: dict[str, object], *, tunable: bool
    ) -> None:
        super().__init__()
        self.model, self.function, self.tunable = model, function, tunable
        self.decar_settings = settings

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(B, 1, 2 W, F)` of `Samples` to vectors `(B, D)`."""
        vectors = self.function(Samples.waveform(frames[:, 0]))
        if not isinstance(vectors, Tensor) or vectors.shape[:1] != frames.shape[:1]:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{len(frames)} waveforms gave {shape}, not a vector each")
        return vectors.flatten(1)


def is_other(name: object) -> bool:
    """Whether a bundle's name is that of an encoder which is not decar's."""
    return isinstance(name, str) and name.startswith(PREFIXES)


def load_other(name: str) -> Encoder:
    """Load an encoder by `hear:MODULE[:WEIGHTS]` or `torch:MODULE.FUNCTION`, in eval mode on the CPU.

    `hear:` takes a module with the common API of HEAR 2021 (Turian et al., arXiv:2203.03022): `load_model(WEIGHTS)`
    and `get_scene_embeddings(audio, model)`. It can be judged frozen: the API promises no gradients.

    `torch:` calls a function without arguments. It returns an `nn.Module` from waveforms `(B, T)` float32 to `(B, D)`
    with an attribute `sample_rate` (Hz).

    Raises:
        BundleError: There is no such module or function, it fails, or what it gives is not of that form.
    """
    try:
        model, function, settings = (_hear if name.startswith(HEAR) else _torch)(name)
        rate = int(_attribute(name, model, "sample_rate"))
        network = WaveformNetwork(model, function, settings, tunable=name.startswith(TORCH))
        spec = Samples.of(rate)
        least, most = (spec.n_frames(seconds * rate) for seconds in (LEAST_SECONDS, PIECE_SECONDS))
        return Encoder(network, spec, min_frames=least, max_frames=most).eval()
    except BundleError:
        raise
    except Exception as error:  # somebody else's code can raise anything
        raise BundleError(f"{name}: cannot be loaded ({reason_of(error)})") from error


def _hear(name: str) -> tuple[object, Callable[[Tensor], Tensor], dict[str, object]]:
    module_name, _, weights = name.removeprefix(HEAR).partition(":")
    module = _module(name, module_name)
    load, embed = (_attribute(name, module, key) for key in ("load_model", "get_scene_embeddings"))
    model = load(weights) if weights else load()
    settings: dict[str, object] = {"network": name, "source": _source(module)}
    if weights and not isinstance(model, nn.Module) and Path(weights).is_file():
        settings["weights"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return model, lambda audio: embed(audio, model), settings


def _torch(name: str) -> tuple[object, Callable[[Tensor], Tensor], dict[str, object]]:
    module_name, _, function_name = name.removeprefix(TORCH).rpartition(".")
    if not module_name:
        raise BundleError(f"{name}: give {TORCH}MODULE.FUNCTION")
    module = _module(name, module_name)
    model = _attribute(name, module, function_name)()
    if not isinstance(model, nn.Module):
        raise BundleError(f"{name}: gave {type(model).__name__}, not an nn.Module")
    return model, lambda audio: model(audio), {"network": name, "source": _source(module)}


def _module(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise BundleError(
            f"{name}: the module {module_name!r} cannot be imported ({reason_of(error)}); install its package, or put "
            "its folder on PYTHONPATH"
        ) from error


def _attribute(name: str, owner: object, key: str) -> Any:
    try:
        return getattr(owner, key)
    except AttributeError:
        what = getattr(owner, "__name__", type(owner).__name__)
        raise BundleError(f"{name}: {what} has no {key!r}, which such an encoder needs") from None


def _source(module: ModuleType) -> str:
    """SHA-256 of a module's source, 16 hex digits; "" where it has none."""
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
