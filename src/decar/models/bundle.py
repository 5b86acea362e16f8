"""The encoder bundle: weights and the front-end numbers they were made for, in one safetensors file.

The header holds one key, `decar`, with JSON: format version, encoder settings with the front-end's numbers, the version
of decar that wrote it, facts about the training, and a digest. Version 2 has a readout or principal directions, which
earlier versions of decar cannot read; without them a bundle is of version 1, to the byte. The digest is xxh3 (128 bits)
over all bytes of the file, its own 32 characters read as zeros; it is compared whenever a bundle is opened. Nothing is
ever unpickled.

Settings without an entry `network` are arguments of `build_network`. A network of the user's is named there and never
imported from there: only a class that the caller of `load_encoder` passes is constructed.

Bundles come from a file, the folder of a run, the Hugging Face hub (`hf://USER/NAME[@REVISION]`), wandb
(`wandb://ENTITY/PROJECT/NAME[:VERSION]`), or the package: the text `small` always means that one; a file or folder of
that name is `./small`, or a `Path`.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import decar
from decar.audio import FrontEnd
from decar.digests import NO_DIGEST, seal_tensors, tensors_digest
from decar.errors import BundleError, check_whole, reason_of
from decar.files import advice, whole
from decar.models.artifacts import WANDB, exact_address, fetch_artifact
from decar.models.components import DIRECTIONS
from decar.models.encoder import Encoder
from decar.models.networks import CONV, build_network, check_readout, seeded
from decar.models.other import is_other, load_other

log = logging.getLogger(__name__)

FORMATS = (1, 2)
KEYS = {"format", "encoder", "facts", "version", "digest"}  # of the header: another one is a damaged one
MOST = {"n_fft": 2**16, "win_length": 2**16, "hop_length": 2**16, "n_mels": 1024}  # of a front-end
MOST_INPUT = 2**20  # bands times frames of a shortest clip: 160 times the usual
MOST_WIDTHS = 20  # blocks of a trunk: each halves the frames
HUB = "hf://"  # no local path is taken for a repository, nor the other way round
REMOTE = (HUB, WANDB)  # addresses, which are fetched only where a user types them
FILE = "encoder.safetensors"  # in a run's folder, on the hub and in an artifact
_OFFLINE = "the hub cannot be reached and the cache has no copy; go online, unset HF_HUB_OFFLINE, or give a file"
HUB_REASONS = {  # by class of the hub's client
    "GatedRepoError": "the repository is gated; ask for access on its page, then run `hf auth login`",
    "RepositoryNotFoundError": "no such repository, or a private one; check the name, or run `hf auth login`",
    "RevisionNotFoundError": "no such revision; leave @REVISION out for the latest",
    "LocalEntryNotFoundError": _OFFLINE,
    "OfflineModeIsEnabled": _OFFLINE,
    "EntryNotFoundError": f"the repository has no {FILE}; was it pushed with `decar push`?",
    "LocalTokenNotFoundError": "no token; run `hf auth login` or set HF_TOKEN",
}
READY = "small"  # the name of the bundle that comes with the package
READY_FILE = Path(__file__).parents[1] / "data" / READY / FILE


def save_bundle(
    encoder: Encoder,
    path: str | Path,
    facts: Mapping[str, object] | None = None,
    *,
    half: bool = False,
    directions: Tensor | None = None,
) -> Path:
    """Write an encoder to `path`, whole or not at all.

    Args:
        encoder: The encoder.
        path: Where to.
        facts: Where it comes from, as JSON values: name of the data, clips, seed, step and the like.
        half: Round the weights to float16, for half the size. They are loaded as float32; the hash is that of the
            rounded ones from then on.
        directions: `(d, D)`, what embeddings can be reduced by, see `principal_directions`; stored in float16.

    Raises:
        BundleError: The weights are not finite (or not in float16), the encoder is a reduced one, or the file cannot be
            written.
    """
    path, settings = Path(path), encoder.settings()
    if "dim" in settings:
        raise BundleError(f"{path}: not written, this encoder is reduced to {encoder.dim} numbers; save the whole one")
    given = encoder.weights() | ({} if directions is None else {DIRECTIONS: directions.detach().cpu().half()})
    weights = {key: _halved(value) if half else value for key, value in given.items()}
    broken = [key for key, value in weights.items() if not _is_finite(value)]
    if broken:
        raise BundleError(f"{path}: not written, the weights are no longer finite ({broken[0]}): lower optimizer.lr")
    header = {  # the digest first: nothing before it can look like it
        "digest": NO_DIGEST, "format": 2 if DIRECTIONS in weights or "readout" in settings else 1,
        "encoder": settings, "facts": dict(facts or {}), "version": decar.__version__,
    }  # fmt: skip
    try:
        content = save(weights, metadata={"decar": json.dumps(header)})
        with whole(path) as part:
            part.write_bytes(seal_tensors(content))
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: the bundle could not be written ({error}): {advice(error)}") from error
    return path


def read_facts(path: str | Path | None = None) -> dict[str, object]:
    """The facts that were saved with a bundle, or the bundle of a run's folder; `path` as of `load_encoder`.

    Raises:
        BundleError: There is no such file, it is no bundle, or it is damaged.
    """
    if is_other(path):
        return {}
    facts = _read_header(bundle_file(path)).get("facts", {})
    return dict(facts) if isinstance(facts, Mapping) else {}


def read_directions(path: str | Path | None = None) -> Tensor | None:
    """The principal directions `(d, D)` in a bundle, float32; None where it has none. `path` as of `load_encoder`.

    Raises:
        BundleError: There is no such file, it is no bundle, or it is damaged.
    """
    if is_other(path):
        return None
    path = bundle_file(path)
    _read_header(path)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(DIRECTIONS).float() if DIRECTIONS in file.keys() else None  # noqa: SIM118


def load_encoder(
    path: str | Path | None = None,
    *,
    dim: int | None = None,
    readout: Sequence[int] = (),
    readout_bands: int = 16,
    frontend: FrontEnd | None = None,
    network: Callable[..., nn.Module] | None = None,
) -> Encoder:
    """Load a bundle as an encoder in eval mode on the CPU.

    Args:
        path: A bundle, the folder of a run that holds `encoder.safetensors`, `hf://USER/NAME`, or
            `wandb://ENTITY/PROJECT/NAME:VERSION`. None, or the text "small": the one that comes with decar, see its
            MODEL_CARD.md. `hear:MODULE[:WEIGHTS]` or `torch:MODULE.FUNCTION`: an encoder that is not decar's, see
            `load_other`.
        dim: Embeddings of fewer numbers, for search: projected on so many of the bundle's principal directions.
        readout: Another readout than the bundle's, for a network with the trunk `conv`: it has no weights. See
            `FrequencyKeeping`, also for `readout_bands`; empty: the bundle's.
        readout_bands: See `readout`.
        frontend: The front-end of the log-mels to be embedded; a bundle made for another one is refused. Encoders that
            are not decar's have their own.
        network: The class of your own network, for a bundle that was made with one; it is called with the arguments in
            the bundle, first on torch's meta device. Unused by other bundles.

    Raises:
        BundleError: There is no such file, it is not a bundle, it is damaged, its front-end is another, its network
            is not decar's and `network` is not given, or it has fewer than `dim` principal directions.
    """
    if dim is not None:
        whole_one = load_encoder(path, readout=readout, readout_bands=readout_bands, frontend=frontend, network=network)
        return _reduced(path, whole_one, dim)
    if is_other(path):
        if readout:
            _with_readout(path, None, readout, readout_bands)  # raises
        return load_other(str(path))
    path = bundle_file(path)
    settings = _read_header(path).get("encoder")
    if readout:
        settings = _with_readout(path, settings, readout, readout_bands)
    encoder = _build(path, settings, network)
    _check_frontend(path, encoder.frontend, frontend)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys() if key != DIRECTIONS}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a readable bundle ({error}); was it copied whole?") from error
    broken = [key for key, value in weights.items() if not _is_finite(value)]
    if broken:
        raise BundleError(f"{path}: weights that are not finite ({broken[0]}): the file is damaged, copy it anew")
    encoder.network.load_state_dict(weights)
    return encoder.eval()


def _with_readout(path: str | Path | None, settings: object, readout: Sequence[int], bands: int) -> dict[str, Any]:
    """Settings of an encoder with another readout."""
    widths = settings.get("widths") if isinstance(settings, dict) and settings.get("name") == CONV else None
    if not isinstance(settings, dict) or not isinstance(widths, list):
        raise BundleError(f"{path or READY}: readout={readout}: only networks with the trunk {CONV} have one")
    check_readout(readout, bands, len(widths))
    return {**settings, "readout": list(readout), "readout_bands": bands}


def _reduced(path: str | Path | None, encoder: Encoder, dim: int) -> Encoder:
    """The encoder with its embeddings on the first `dim` principal directions of its bundle."""
    check_whole("dim", dim, 1)
    path, directions = path or READY, read_directions(path)
    if directions is None:
        raise BundleError(
            f"{path}: has no principal directions, so dim={dim} cannot be had; a run of this version of decar "
            "learns them at its end"
        )
    if directions.ndim != 2 or directions.shape[1] != encoder.dim or not _is_finite(directions):
        raise BundleError(
            f"{path}: its principal directions do not fit embeddings of {encoder.dim} numbers: give no other readout, "
            "or copy the file anew"
        )
    if dim > len(directions):
        raise BundleError(f"{path}: dim={dim}, but it has {len(directions)} principal directions; give at most that")
    return encoder.reduced(directions[:dim]).eval()


def _halved(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value  # BatchNorm's counters are whole numbers


def _is_finite(value: Tensor) -> bool:
    """Whether all values are finite: by the smallest and the largest, many times faster than `isfinite` of each."""
    return not value.numel() or bool(torch.isfinite(torch.stack(value.aminmax())).all())


def bundle_file(path: str | Path | None) -> Path:
    """The file of a bundle; `path` as of `load_encoder`. One on the hub or wandb is downloaded or found in the cache.

    Raises:
        BundleError: There is no such repository, revision, artifact or bundle, or the hub or wandb cannot be reached.
    """
    if path is None or path == READY:  # a Path never equals a text
        return READY_FILE
    if isinstance(path, str) and path.startswith(HUB):
        return _fetch(path)
    if isinstance(path, str) and path.startswith(WANDB):
        return fetch_artifact(path, FILE)
    path = Path(path)
    return path / FILE if path.is_dir() else path


def exact_name(bundle: str) -> str:
    """A bundle's name as files and results keep it: with the version of an artifact in place of an alias.

    Raises:
        BundleError: See `bundle_file`.
    """
    return exact_address(bundle, FILE) if bundle.startswith(WANDB) else bundle


def parse_address(address: str) -> tuple[str, str | None]:
    """`hf://USER/NAME[@REVISION]`, with or without the prefix, as repository and revision.

    Raises:
        BundleError: It is no such address.
    """
    repo, _, revision = address.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or address.endswith("@"):
        raise BundleError(f"{address}: not an address on the hub; give {HUB}USER/NAME or {HUB}USER/NAME@REVISION")
    return repo, revision or None


def hub_reason(error: Exception) -> str:
    """Why the hub's client failed, and what to do."""
    for kind in type(error).__mro__:  # the most specific class first
        if kind.__name__ in HUB_REASONS:
            return HUB_REASONS[kind.__name__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses (status {status}); run `hf auth login` with a token that may write there"
    return f"the hub gave an unexpected answer ({reason_of(error)}); try again later"


def _fetch(address: str) -> Path:
    """Download the safetensors file of a repository; nothing else of it is fetched."""
    import huggingface_hub

    repo, revision = parse_address(address)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, FILE, revision=revision))
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        raise BundleError(f"{address}: {hub_reason(error)}") from error


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
    if not isinstance(header, dict) or header.get("format") not in FORMATS:
        raise BundleError(
            f"{path}: bundle of another format than {FORMATS[-1]}; install the decar version that made it"
        )
    _check_digest(path, header)
    return header


def _check_digest(path: Path, header: Mapping[str, object]) -> None:
    """Refuse a file that is not as it was written; one of an earlier version, without a digest, costs a log line."""
    digest, unknown = header.get("digest"), set(header) - KEYS
    if unknown or (digest is not None and digest != tensors_digest(path, str(digest))):
        raise BundleError(
            f"{path}: damaged, {f'unknown entry {min(unknown)!r} in its header' if unknown else 'its digest differs'}; "
            "copy or download it anew, or export it from its run's last checkpoint"
        )
    if digest is None:
        log.info("%s was written without a digest: damage to it goes unnoticed; save it anew", path)


def _build(path: Path, settings: object, network: Callable[..., nn.Module] | None) -> Encoder:
    """The encoder that a header describes, constructed only where the shapes of its weights are those in the file."""
    foreign = settings.get("network") if isinstance(settings, dict) else None
    if foreign and network is None:
        raise BundleError(
            f"{path}: its network is {str(foreign)[:100]!r}, which is not decar's. A bundle runs no code; if you have "
            "and trust this class, name it yourself: load_encoder(PATH, network=CLASS), eval.py encoder=ITS_YAML, "
            "--network MODULE.CLASS"
        )
    try:
        if not isinstance(settings, dict):
            raise TypeError("no encoder settings")
        _check_sizes(settings)
        make = _maker(settings, network if foreign else None)
        with torch.device("meta"):  # shapes without memory: the name of a network can stand for gigabytes
            encoder = make()
        wanted = {key: tuple(value.shape) for key, value in encoder.network.state_dict().items()}
        reason = _difference(wanted, _shapes(path))
        if not reason and not foreign and not _holds_more(encoder.network):
            encoder.network.to_empty(device="cpu")
            return encoder
        if not reason:
            with seeded(0):
                return make()
    except Exception as error:  # a foreign header can make the builders of networks raise anything
        raise BundleError(
            f"{path}: the header does not describe an encoder ({reason_of(error)}); export the bundle anew"
        ) from error
    name = foreign or settings["name"]
    raise BundleError(f"{path}: the weights do not fit {name} ({reason}); export the bundle anew")


def _maker(settings: Mapping[str, Any], network: Callable[..., nn.Module] | None) -> Callable[[], Encoder]:
    """The constructor of an encoder of these settings; None: with a network of decar's."""
    given = dict(settings)
    front = FrontEnd(**given.pop("frontend"))
    sizes = {key: given.pop(key) for key in ("min_frames", "max_frames")}
    if network is None:
        return lambda: Encoder(build_network(**given, n_mels=front.n_mels), front, **sizes)
    arguments = given["arguments"]
    return lambda: Encoder(network(**arguments), front, **sizes, arguments=arguments)


def _holds_more(network: nn.Module) -> bool:
    """Whether a network has tensors beside those that bundles hold: on the meta device they have no values."""
    saved = network.state_dict().keys()
    loose = any(isinstance(value, Tensor) for module in network.modules() for value in vars(module).values())
    return loose or any(name not in saved for name, _ in network.named_buffers())


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights, from the file's header alone."""
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys()) - {DIRECTIONS}
        return {key: tuple(file.get_slice(key).get_shape()) for key in keys}


def _difference(wanted: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> str:
    """The first weight that is missing, too many, or of another shape; empty where all fit."""
    for key in sorted(wanted.keys() | held.keys()):
        if wanted.get(key) != held.get(key):
            there, needed = held.get(key, "missing"), wanted.get(key, "none")
            return f"{key}: {there} in the file, {needed} in the network"
    return ""


def _check_sizes(settings: Mapping[str, Any]) -> None:
    """Refuse unreasonable sizes of inputs, which no shape of a weight limits."""
    front = settings["frontend"]
    for key, most in MOST.items():
        if key in front and not (isinstance(front[key], int) and front[key] <= most):
            raise ValueError(f"frontend.{key}={front[key]} is not a whole number up to {most}")
    for key in ("min_frames", "max_frames"):
        if not (isinstance(settings[key], int) and 1 <= settings[key] <= MOST_INPUT // front["n_mels"]):
            raise ValueError(f"{key}={settings[key]} is not a sensible number")
    if len(settings.get("widths", [])) > MOST_WIDTHS:
        raise ValueError(f"widths={settings['widths'][:3]}… are more than {MOST_WIDTHS}")


def _check_frontend(path: Path, ours: FrontEnd, theirs: FrontEnd | None) -> None:
    if theirs is None or theirs == ours:
        return
    mine, other = ours.as_dict(), theirs.as_dict()
    wrong = [key for key in {**mine, **other} if mine.get(key, False) != other.get(key, False)]
    found = ", ".join(f"{key}={mine.get(key, False)}" for key in wrong)
    asked = ", ".join(f"{key}={other.get(key, False)}" for key in wrong)
    fix = " ".join(f"frontend.{key}={mine.get(key, False)}" for key in wrong)
    raise BundleError(f"{path}: made for another front-end ({found}; asked for {asked}): pass {fix}")
