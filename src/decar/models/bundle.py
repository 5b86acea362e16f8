"""The encoder bundle: weights and the front-end numbers they were made for, in one safetensors file.

The header holds one key, `decar`, with JSON: format version, encoder settings with the front-end's numbers, the version
of decar that wrote it, facts about the training, and a digest. The digest is xxh3 (128 bits) over all bytes of the
file, its own 32 characters read as zeros; it is compared whenever a bundle is opened. Nothing is ever unpickled.

One bundle comes with the package: `small`. The bare word always means that one, as `random` and `logmel` have their
meaning; a file or folder of that name is `./small`, or a `Path`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import decar
from decar.audio import FrontEnd
from decar.errors import BundleError
from decar.files import advice, whole
from decar.models import hub
from decar.models.encoder import Encoder

log = logging.getLogger(__name__)

FORMAT = 1
KEYS = {"format", "encoder", "facts", "version", "digest"}  # of the header: another one is a damaged one
BLANK = "0" * 32  # stands for the digest while it is computed
BLOCK = 2**20  # bytes read at once
MOST = {"n_fft": 2**16, "win_length": 2**16, "hop_length": 2**16, "n_mels": 1024}  # of a front-end
MOST_INPUT = 2**20  # bands times frames of a shortest clip: 160 times the usual
MOST_WIDTHS = 20  # blocks of a trunk: each halves the frames
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
    broken = [key for key, value in weights.items() if not _is_finite(value)]
    if broken:
        raise BundleError(f"{path}: not written, the weights are no longer finite ({broken[0]}): lower optimizer.lr")
    header = {  # the digest first: nothing before it can look like it
        "digest": BLANK, "format": FORMAT, "encoder": encoder.settings(), "facts": dict(facts or {}),
        "version": decar.__version__,
    }  # fmt: skip
    try:
        with whole(path) as part:
            save_file(weights, part, metadata={"decar": json.dumps(header)})
            _fill_in_digest(part)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: the bundle could not be written ({error}): {advice(error)}") from error
    return path


def read_facts(path: str | Path | None = None) -> dict[str, object]:
    """The facts that were saved with a bundle, or the bundle of a run's folder; `path` as of `load_encoder`.

    Raises:
        BundleError: There is no such file, it is no bundle, or it is damaged.
    """
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
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a readable bundle ({error}); was it copied whole?") from error
    broken = [key for key, value in weights.items() if not _is_finite(value)]
    if broken:
        raise BundleError(f"{path}: weights that are not finite ({broken[0]}): the file is damaged, copy it anew")
    encoder.network.load_state_dict(weights)
    return encoder.eval()


def _halved(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value  # BatchNorm's counters are whole numbers


def _is_finite(value: Tensor) -> bool:
    """Whether all values are finite: by the smallest and the largest, many times faster than `isfinite` of each."""
    return not value.numel() or bool(torch.isfinite(torch.stack(value.aminmax())).all())


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
    _check_digest(path, header)
    return header


def _check_digest(path: Path, header: Mapping[str, object]) -> None:
    """Refuse a file that is not as it was written; one of an earlier version, without a digest, costs a log line."""
    digest, unknown = header.get("digest"), set(header) - KEYS
    if unknown or (digest is not None and digest != _digest(path, str(digest))):
        raise BundleError(
            f"{path}: damaged, {f'unknown entry {min(unknown)!r} in its header' if unknown else 'its digest differs'}; "
            "copy or download it anew, or export it from its run's last checkpoint"
        )
    if digest is None:
        log.info("%s was written without a digest: damage to it goes unnoticed; save it anew", path)


def _digest(path: Path, filled: str) -> str:
    """The digest of a bundle in whose header `filled` stands for it."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = file.read(8)
        head = file.read(int.from_bytes(size, "little"))  # bounded by safetensors, which has read it before
        found.update(size + head.replace(filled.encode(), BLANK.encode(), 1))
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _fill_in_digest(path: Path) -> None:
    """Write the digest over the zeros that stand for it."""
    digest = _digest(path, BLANK)
    with path.open("r+b") as file:
        head = file.read(8 + int.from_bytes(file.read(8), "little"))
        file.seek(8 + head.index(BLANK.encode()))
        file.write(digest.encode())


def _build(path: Path, settings: object) -> Encoder:
    """The encoder that a header describes, once its weights are known to be those in the file."""
    try:
        if not isinstance(settings, dict):
            raise TypeError("no encoder settings")
        _check_sizes(settings)
        arguments = {**settings, "frontend": FrontEnd(**settings["frontend"])}
        with torch.device("meta"):  # shapes without memory: the name of a network can stand for gigabytes
            encoder = Encoder(**arguments)
        wanted = {key: tuple(value.shape) for key, value in encoder.network.state_dict().items()}
        reason = _difference(wanted, _shapes(path))
        if not reason:
            return Encoder(**arguments, seed=0) if _holds_more(encoder.network) else _allocated(encoder)
    except Exception as error:  # a foreign header can make the builders of networks raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BundleError(
            f"{path}: the header does not describe an encoder ({reason}); export the bundle anew"
        ) from error
    raise BundleError(f"{path}: the weights do not fit {settings['name']} ({reason}); export the bundle anew")


def _holds_more(network: nn.Module) -> bool:
    """Whether a network has tensors beside those that bundles hold: on the meta device they have no values."""
    saved = network.state_dict().keys()
    loose = any(isinstance(value, Tensor) for module in network.modules() for value in vars(module).values())
    return loose or any(name not in saved for name, _ in network.named_buffers())


def _allocated(encoder: Encoder) -> Encoder:
    """An encoder of the meta device on the CPU, its weights not yet set."""
    encoder.network.to_empty(device="cpu")
    return encoder


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights, from the file's header alone."""
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping


def _difference(wanted: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> str:
    """The first weight that is missing, too many, or of another shape; empty where all fit."""
    for key in sorted(wanted.keys() | held.keys()):
        if wanted.get(key) != held.get(key):
            there, needed = held.get(key, "missing"), wanted.get(key, "none")
            return f"{key}: {there} in the file, {needed} in the network"
    return ""


def _check_sizes(settings: Mapping[str, Any]) -> None:
    """Refuse sizes of inputs beyond all reason: no weight in the file bears them out."""
    front = settings["frontend"]
    for key, most in MOST.items():
        if key in front and not (isinstance(front[key], int) and front[key] <= most):
            raise ValueError(f"frontend.{key}={front[key]} is no whole number up to {most}")
    for key in ("min_frames", "max_frames"):
        if not (isinstance(settings[key], int) and 1 <= settings[key] <= MOST_INPUT // front["n_mels"]):
            raise ValueError(f"{key}={settings[key]} is no sensible number")
    if len(settings.get("widths", [])) > MOST_WIDTHS:
        raise ValueError(f"widths={settings['widths'][:3]}… are more than {MOST_WIDTHS}")


def _check_frontend(path: Path, ours: FrontEnd, theirs: FrontEnd | None) -> None:
    if theirs is None or theirs == ours:
        return
    mine, other = ours.as_dict(), theirs.as_dict()
    wrong = [key for key in mine if mine[key] != other[key]]
    found = ", ".join(f"{key}={mine[key]}" for key in wrong)
    asked = ", ".join(f"{key}={other[key]}" for key in wrong)
    fix = " ".join(f"frontend.{key}={mine[key]}" for key in wrong)
    raise BundleError(f"{path}: made for another front-end ({found}; asked for {asked}): pass {fix}")
