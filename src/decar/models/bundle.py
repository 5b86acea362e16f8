"""The encoder bundle: weights and the front-end numbers they were made for, in one safetensors file.

The header holds one key, `decar`, with JSON: format version, encoder settings with the front-end's numbers, the version
of decar that wrote it, and facts about the training. Nothing in a bundle is ever unpickled.

One bundle comes with the package: `small`. The bare word always means that one, as `random` and `logmel` have their
meaning; a file or folder of that name is `./small`, or a `Path`.
"""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import decar
from decar.audio import FrontEnd
from decar.errors import BundleError
from decar.files import whole
from decar.models import hub
from decar.models.encoder import Encoder

FORMAT = 1
MOST = {"n_fft": 2**16, "win_length": 2**16, "hop_length": 2**16, "n_mels": 1024}  # of a front-end
MOST_INPUT = 2**20  # bands times frames of a shortest clip: 160 times the usual
READY = "small"  # the name of the bundle that comes with the package
READY_FILE = Path(__file__).parents[1] / "data" / READY / "encoder.safetensors"


def save_bundle(
    encoder: Encoder, path: str | Path, facts: Mapping[str, object] | None = None, *, half: bool = False
) -> Path:
    """Write an encoder to `path`, whole or not at all.

    Args:
        encoder: The encoder.
        path: Where to.
        facts: Where it comes from, as JSON values: name of the data, clips, seed, step and the like.
        half: Round the weights to float16, for half the size. They are loaded as float32; the hash is that of the
            rounded ones from then on.

    Raises:
        BundleError: The weights are not finite (or not in float16), or the file cannot be written.
    """
    path = Path(path)
    weights = {key: _halved(value) if half else value for key, value in encoder.weights().items()}
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise BundleError(f"{path}: not written, the weights are no longer finite ({broken[0]}): lower optimizer.lr")
    header = {
        "format": FORMAT, "encoder": encoder.settings(), "facts": dict(facts or {}), "version": decar.__version__
    }  # fmt: skip
    try:
        with whole(path) as part:
            save_file(weights, part, metadata={"decar": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: the bundle could not be written ({error}); is the disk full?") from error
    return path


def read_facts(path: str | Path | None = None) -> dict[str, object]:
    """The facts that were saved with a bundle, or the bundle of a run's folder; `path` as of `load_encoder`."""
    facts = _read_header(bundle_file(path)).get("facts", {})
    return dict(facts) if isinstance(facts, Mapping) else {}


def load_encoder(path: str | Path | None = None, *, frontend: FrontEnd | None = None) -> Encoder:
    """Load a bundle as an encoder in eval mode on the CPU.

    Args:
        path: A bundle, or the folder of a run that holds `encoder.safetensors`. None, or the text "small": the one that
            comes with decar, see its MODEL_CARD.md.
        frontend: What the caller is going to feed it; a bundle made for another one is refused.

    Raises:
        BundleError: There is no such file, it is no bundle, it is damaged, or its front-end is another.
    """
    path = bundle_file(path)
    header = _read_header(path)
    encoder = _build(path, header.get("encoder"))
    _check_frontend(path, encoder.frontend, frontend)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        encoder.network.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(
            f"{path}: the weights do not fit {encoder.name} ({reason}); export the bundle anew"
        ) from error
    return encoder.eval()


def _halved(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value  # BatchNorm's counters are whole numbers


def bundle_file(path: str | Path | None) -> Path:
    """The file that is meant: a bundle, that of a run's folder, the one that comes with decar, or one on the hub."""
    if path is None or path == READY:  # a Path never equals a text
        return READY_FILE
    if isinstance(path, str) and path.startswith(hub.PREFIX):
        return hub.fetch(path)
    path = Path(path)
    return path / "encoder.safetensors" if path.is_dir() else path


def _read_header(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise BundleError(
            f"{path}: no such bundle; give the path of an encoder.safetensors or of a run, `small` (it comes "
            "with decar) or, where that makes sense, `random`, `logmel`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["decar"])
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a readable bundle ({error}); was it copied whole?") from error
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path}: a safetensors file without a decar header; was it made by decar?") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BundleError(f"{path}: bundle of another format than {FORMAT}; install the decar version that made it")
    return header


def _build(path: Path, settings: object) -> Encoder:
    try:
        if not isinstance(settings, dict):
            raise TypeError("no encoder settings")
        _check_sizes(settings, _shapes(path))
        return Encoder(**{**settings, "frontend": FrontEnd(**settings["frontend"])}, seed=0)
    except Exception as error:  # a foreign header can make the builders of networks raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BundleError(
            f"{path}: the header does not describe an encoder ({reason}); export the bundle anew"
        ) from error


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the weights, from the file's header alone."""
    with safe_open(path, framework="pt") as file:
        return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping


def _check_sizes(settings: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Refuse sizes that the file does not bear out, before a network of them takes all the memory there is."""
    front = settings["frontend"]
    for key, most in MOST.items():
        if key in front and not (isinstance(front[key], int) and front[key] <= most):
            raise ValueError(f"frontend.{key}={front[key]} is no whole number up to {most}")
    frames = settings["min_frames"]
    if not (isinstance(frames, int) and frames * front["n_mels"] <= MOST_INPUT):
        raise ValueError(f"min_frames={frames} is no sensible number")
    held = sum(math.prod(shape) for shape in shapes.values())
    widths, hidden = settings.get("widths", []), settings.get("hidden", 0)
    if not all(isinstance(size, int) and abs(size) <= held for size in [hidden, *widths]):
        raise ValueError(f"widths={widths} and hidden={hidden} are no sizes of these weights")
    wanted = hidden**2 + 9 * sum(a * b for a, b in pairwise(widths))
    if wanted > held:
        raise ValueError(f"widths={widths} and hidden={hidden} make more weights than the {held} that are there")


def _check_frontend(path: Path, ours: FrontEnd, theirs: FrontEnd | None) -> None:
    if theirs is None or theirs == ours:
        return
    mine, other = ours.as_dict(), theirs.as_dict()
    wrong = [key for key in mine if mine[key] != other[key]]
    found = ", ".join(f"{key}={mine[key]}" for key in wrong)
    asked = ", ".join(f"{key}={other[key]}" for key in wrong)
    fix = " ".join(f"frontend.{key}={mine[key]}" for key in wrong)
    raise BundleError(f"{path}: made for another front-end ({found}; asked for {asked}): pass {fix}")
