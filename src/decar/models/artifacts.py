"""Bundles that wandb keeps: `wandb://ENTITY/PROJECT/NAME[:VERSION]`, as `logger.wandb.log_model=true` makes them.

Of an artifact its safetensors file alone is fetched, once, into the cache. A version (`v3`) that is there needs no
network; an alias such as `latest`, which may mean another version tomorrow, does. wandb then says the digest of the
artifact too: one that was deleted and made anew has the version of the old one.
"""

import functools
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from decar.digests import read_json, write_json
from decar.errors import BundleError, reason_of
from decar.files import advice, cache_home, whole

log = logging.getLogger(__name__)

WANDB = "wandb://"
ORIGIN = "origin.json"  # beside a fetched bundle: the run of wandb that made it, and the digest of the artifact
TIMEOUT = 30  # s
_VERSION = re.compile(r"v\d{1,9}")


def parse_artifact(address: str) -> tuple[str, str]:
    """`wandb://ENTITY/PROJECT/NAME[:VERSION]` as path and version or alias, which is `latest` where none is given.

    Raises:
        BundleError: It is no such address.
    """
    place, colon, version = address.removeprefix(WANDB).partition(":")
    names = place.split("/")
    if len(names) != 3 or not all(map(_is_name, names)) or (colon and not _is_name(version)):
        raise BundleError(f"{address}: not an artifact of wandb; give {WANDB}ENTITY/PROJECT/NAME:VERSION")
    return place, version or "latest"


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*", text, re.ASCII))


def exact_address(address: str, name: str) -> str:
    """The address with its version in place of an alias.

    Raises:
        BundleError: See `fetch_artifact`.
    """
    return f"{WANDB}{parse_artifact(address)[0]}:{fetch_artifact(address, name).parent.name}"


@functools.cache  # in one process an alias means one version
def fetch_artifact(address: str, name: str) -> Path:
    """The file `name` of an artifact, from the cache or downloaded.

    Raises:
        BundleError: There is no such artifact, version or file, or wandb cannot be reached or refuses.
    """
    place, version = parse_artifact(address)
    folder = Path(cache_home()) / "artifacts" / place
    if _VERSION.fullmatch(version) and (folder / version / name).is_file():
        return folder / version / name
    try:
        import wandb

        artifact = wandb.Api(timeout=TIMEOUT).artifact(f"{place}:{version}")
        exact = str(artifact.version)
        if not _VERSION.fullmatch(exact):
            raise ValueError(f"its version is {exact!r}")
        file = folder / exact / name
        digest = str(artifact.digest)  # came with the version
        other = file.is_file() and _origin(file).get("digest") != digest
        if other:
            log.info("%s: %s has been made anew since it was fetched", address, exact)
        if other or not file.is_file():
            _download(artifact, name, file, digest)
    except Exception as error:  # wandb's client raises a dozen kinds
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise BundleError(f"{address}: cannot be kept in {folder} ({reason_of(error)}): {advice(error)}") from error
        raise BundleError(f"{address}: {_reason(error, name)}{_versions(folder, place, name)}") from error
    log.info("%s is version %s, made by the run %s", address, exact, origin_of(file) or "that is not known")
    return file


def origin_of(file: Path) -> str:
    """The run of wandb (ENTITY/PROJECT/ID) that made a fetched bundle; "" where it is not known."""
    return str(_origin(file).get("run", ""))


def _origin(file: Path) -> dict[str, Any]:
    beside = file.with_name(ORIGIN)
    return read_json(beside) if beside.is_file() else {}


def _download(artifact: Any, name: str, file: Path, digest: str) -> None:
    """Fetch one file of an artifact with this digest, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as part:
        fetched = Path(artifact.get_entry(name).download(root=part))
        file.unlink(missing_ok=True)  # of another origin
        with whole(file.with_name(ORIGIN)) as target:
            write_json(target, {"run": _made_by(artifact), "digest": digest})
        fetched.replace(file)


def _made_by(artifact: Any) -> str:
    """The run that logged an artifact, as ENTITY/PROJECT/ID; "" where there is none, or it may not be seen."""
    try:
        run = artifact.logged_by()
    except Exception as error:  # wandb's client raises a dozen kinds
        log.debug("the run of the artifact is not known (%s)", reason_of(error))
        return ""
    return "/".join(run.path) if run else ""


def _reason(error: Exception, name: str) -> str:
    """Why wandb's client failed, and what to do."""
    import wandb.errors

    text = reason_of(error)
    if isinstance(error, KeyError):
        return f"the artifact has no {name}; was it logged with logger.wandb.log_model=true?"
    if isinstance(error, wandb.errors.UsageError) or "API key" in text:
        return "wandb has no login here; run `wandb login` or set WANDB_API_KEY"
    if isinstance(error, ValueError) or re.search(r"not found|does not (contain|exist)|404|403|permission", text):
        return f"no such artifact or version, or a private one ({text}); look at its page, or run `wandb login`"
    return f"wandb cannot be reached ({text}); try again, or give a file"


def _versions(folder: Path, place: str, name: str) -> str:
    """The versions in the cache, for an error."""
    found = sorted(path.parent.name for path in folder.glob(f"v*/{name}"))
    return f"; the cache has {', '.join(f'{WANDB}{place}:{name}' for name in found)}" if found else ""
