"""Object storage (s3://, gs://, az://, hf://datasets/…) through the package `fsspec`: list, read, write.

Credentials come from where the packages look for them (environment, their own files), never from an address: an address
is logged and stands in tables. An object is known by its size and version: what the store says of its content, such as
an ETag.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from decar.errors import DecarError, ManifestError, one_line, reason_of
from decar.fetch import UnreachableError, copy
from decar.unpack import saving

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "hf")
WAITS = (1.0, 2.0, 4.0)  # s before each further try
BLOCK = 4 << 20  # bytes read ahead of an object
CHANGED = "it has changed since it was listed, or while it was read; run the same command again"
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "created")
KEYS = {  # where the packages look for credentials
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_ENDPOINT_URL of another store",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_CONNECTION_STRING", "abfs": "AZURE_STORAGE_CONNECTION_STRING",
    "hf": "HF_TOKEN or `hf auth login`",
}  # fmt: skip
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SECRET = re.compile(r"[^:/]+://[^/@]*:[^/@]*@")
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
            "TokenRetrievalError", "DefaultCredentialsError", "RefreshError", "ClientAuthenticationError")  # fmt: skip
_NOTHING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


class Stored(NamedTuple):
    """An object: bytes, and what changes when its content does, "" where the store does not say."""

    size: int
    version: str

    @property
    def digest(self) -> bytes:
        """32 bytes that another object has not, nor another version of this one."""
        return hashlib.sha256(f"{self.size} {self.version}".encode()).digest()

    def differs(self, other: Stored) -> bool:
        """Whether the object has changed; versions of two kinds, as some stores give in answers, do not compare."""
        comparable = self.version.split(" ")[0] == other.version.split(" ")[0]
        return self.size != other.size or (comparable and self.version != other.version)


def is_address(path: str) -> bool:
    """Whether a path is an address.

    >>> is_address("s3://bucket/a.wav"), is_address("bucket/a.wav")
    (True, False)
    """
    return "://" in path and _ADDRESS.match(path) is not None


def is_object(address: str) -> bool:
    """Whether an address is of object storage.

    >>> is_object("S3://bucket/a.wav"), is_object("https://example.org/a.wav")
    (True, False)
    """
    return scheme_of(address) in SCHEMES


def scheme_of(address: str) -> str:
    """What stands before ://, in small letters."""
    return address.split("://", 1)[0].lower()


def listed(address: str) -> dict[str, Stored]:
    """All objects below a prefix, by their names below it; of an address that is an object, that with the name "".

    Raises:
        UnreachableError: The store cannot be reached, refuses, or has nothing there.
    """
    fs, path = _open(address)

    def find() -> dict[str, Any]:
        fs.invalidate_cache()
        found: dict[str, Any] = fs.find(path, detail=True)
        fs.invalidate_cache()  # a million objects need not be in memory twice
        return found

    return _below(address, path.strip("/"), patiently(address, find))


def matching(address: str) -> dict[str, Stored]:
    """The objects that fit a pattern with `*`, by their names below the last folder without a sign of patterns.

    Raises:
        UnreachableError: As `listed`.
    """
    folder = folder_of_pattern(address)
    fits = re.compile(importlib.import_module("fsspec.utils").glob_translate(address[len(folder) + 1 :]))
    found = {name: stored for name, stored in listed(folder).items() if fits.match(name)}
    if not found:
        raise UnreachableError("no object fits this pattern", final=True)
    return found


def folder_of_pattern(pattern: str) -> str:
    """The part of a pattern before the first folder or name with a sign of patterns in it.

    >>> folder_of_pattern("hf://datasets/me/birds/data/train-*.parquet")
    'hf://datasets/me/birds/data'
    """
    return re.split(r"/[^/]*[*?\[]", pattern, maxsplit=1)[0]


def _below(address: str, folder: str, found: dict[str, Any]) -> dict[str, Stored]:
    if not found:
        raise UnreachableError("nothing lies there, or there is no such bucket", final=True)
    objects = {name.strip("/"): info for name, info in found.items() if not name.endswith("/")}  # which mark folders
    return {name.removeprefix(folder).removeprefix("/"): _stored(info) for name, info in objects.items()}


def _stored(info: dict[str, Any]) -> Stored:
    version = next((f"{key} {info[key]}".replace('"', "") for key in VERSIONS if info.get(key)), "")
    return Stored(int(info.get("size") or 0), version)


def read(address: str, part: Path, *, expected: Stored | None = None, most: int | None = None) -> None:
    """Copy an object into a file.

    Args:
        address: The object.
        part: Where to; what is there is replaced.
        expected: What was listed.
        most: Bytes that it may have; None: any number.

    Raises:
        UnreachableError: The store cannot be reached, refuses, or has no such object.
        ManifestError: It has another version of it.
        CorpusError: The part cannot be written.
    """
    fs, path = _open(address)

    def get() -> None:
        with fs.open(path, "rb", block_size=BLOCK) as source:
            details = getattr(source, "details", None)
            said = _stored(details) if details else None
            if expected and said and expected.differs(said):
                raise ManifestError(f"{address}: {CHANGED}")
            with saving(part):
                target = part.open("wb")
            with target:
                copy(source, target, part, most=most)
        if expected and part.stat().st_size != expected.size:
            raise ManifestError(f"{address}: {CHANGED}")
        if said and said.size > BLOCK:  # by several requests
            fs.invalidate_cache()
            if said.differs(_stored(fs.info(path))):
                raise ManifestError(f"{address}: {CHANGED}")

    patiently(address, get)


def write(file: Path, address: str) -> None:
    """Copy a file to an object; readers see the old object or the whole new one.

    Raises:
        UnreachableError: The store cannot be reached or refuses, or there is no such bucket.
    """
    fs, path = _open(address)

    def put() -> None:
        fs.put_file(str(file), path)
        fs.invalidate_cache()
        size, there = file.stat().st_size, fs.info(path)["size"]
        if size != there:
            raise UnreachableError(f"{size:,} bytes were written, and {there:,} are there")

    patiently(address, put)


def look(address: str) -> Stored:
    """What a store says of an object.

    Raises:
        UnreachableError: The store cannot be reached, refuses, or has no such object.
    """
    fs, path = _open(address)
    fs.invalidate_cache()
    return _stored(patiently(address, lambda: fs.info(path)))


def check_bucket(address: str) -> None:
    """Look for the bucket, or the repository, that an address lies in.

    Raises:
        UnreachableError: There is none, or its store cannot be reached or refuses.
    """
    fs, path = _open(address)
    parts = path.strip("/").split("/")
    depth = 1 if scheme_of(address) != "hf" else 3 if parts[0] in ("datasets", "spaces") else 2
    patiently(address, lambda: fs.info("/".join(parts[:depth])))


def remove(address: str) -> None:
    """Delete an object if there is one.

    Raises:
        UnreachableError: The store cannot be reached or refuses.
    """
    fs, path = _open(address)

    def delete() -> None:
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm_file(path)

    patiently(address, delete)


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        UnreachableError: The credentials that a package looks for are missing.
        ManifestError: The address is of an unknown kind or holds credentials, or a package is missing.
    """
    scheme = check_address(address, SCHEMES)
    require_package(scheme)
    core = importlib.import_module("fsspec.core")
    fs, path = patiently(address, lambda: core.url_to_fs(scheme + address[len(scheme) :]))
    return fs, path


def require_package(scheme: str) -> None:
    """Raise a ManifestError where what reads addresses of a scheme is not installed."""
    try:
        importlib.import_module("fsspec").get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ManifestError(
            f"{scheme}:// needs another package ({one_line(error)}): pip install 'decar[remote]'"
        ) from error


def check_address(address: str, schemes: tuple[str, ...]) -> str:
    """The scheme of an address.

    Raises:
        ManifestError: It is none of `schemes`, a chain of several addresses, or holds a password.
    """
    if _SECRET.match(address):
        where, _, rest = address.partition("://")
        raise ManifestError(
            f"{where}://…@{rest.rpartition('@')[2]}: holds a password, and addresses are logged: leave it out; "
            f"credentials are taken from the environment ({KEYS.get(where.lower(), 'or a signed address')})"
        )
    scheme = scheme_of(address)
    if scheme not in schemes or "::" in address:
        raise ManifestError(f"{address}: unknown kind of address; known are {' '.join(f'{s}://' for s in schemes)}")
    return scheme


def patiently(address: str, work: Callable[[], T]) -> T:
    """What `work` returns; where the store does not answer, it is called again after each of `WAITS`.

    Raises:
        UnreachableError: It failed each time, or no further try can be of use.
    """
    waits = iter(WAITS)
    while True:
        try:
            return work()
        except Exception as error:  # each package raises its own
            reason = _reason(error, scheme_of(address))
            wait = next(waits, None)
            if reason is None:
                raise
            if reason.final or wait is None:
                raise reason from error
            log.warning("%s: %s; next try in %.0f s", address, reason, wait)
            time.sleep(wait)


def _reason(error: Exception, scheme: str) -> UnreachableError | None:
    """What the exception of a package means; None for one of decar's own."""
    if isinstance(error, UnreachableError):
        return error
    if isinstance(error, DecarError):
        return None
    if isinstance(error, _NOTHING):
        return UnreachableError(f"there is no such object or bucket ({one_line(error)})", final=True)
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_KEYS:
        keys = f"check the credentials in the environment: {KEYS[scheme]}"
        return UnreachableError(f"access denied ({one_line(error)}); {keys}", final=True)
    return UnreachableError(f"cannot be reached ({reason_of(error)})")
