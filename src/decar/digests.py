"""Checksums of the files that decar writes and reads again. They find accidents, not attackers: see docs/security.md.

XXH3 with 64 bits: damage goes unnoticed once in 2⁶⁴ times, and hashing is as fast as reading memory.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 2**20
DIGEST_BYTES = 8
ARRAY_SUFFIX = ".sealed.npy"  # of files that `save_array` writes, by which `decar doctor --cache` finds them
SEAL = "xxh3"  # the key of a JSON object that holds the digest of the others
PARQUET_TAIL = 8  # bytes: length of the footer, "PAR1"
PARQUET_MARK = b"XXH3"


class DamagedError(ValueError):
    """A file does not hold what was written into it; the message says what is wrong, without the path."""


def digest_of(path: str | os.PathLike[str]) -> str:
    """The digest of a file in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    digest = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sealed(facts: Mapping[str, Any], indent: int | None = None) -> str:
    """A JSON object with its own digest under the key `SEAL`; `unsealed` reads it.

    >>> unsealed(sealed({"clips": 3}))
    {'clips': 3}
    """
    return json.dumps({**facts, SEAL: _digest_of_facts(facts)}, indent=indent)


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The object that `sealed` made a text of, without the digest.

    Raises:
        DamagedError: It is not JSON, or does not fit its digest.
    """
    try:
        facts = json.loads(text)
        seal = facts.pop(SEAL)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DamagedError(f"no JSON object with a checksum ({' '.join(str(error).split())})") from error
    if seal != _digest_of_facts(facts):
        raise DamagedError("its checksum is wrong")
    return dict(facts)


def _digest_of_facts(facts: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(facts).encode())


def save_array(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write an array as npy, followed by the digest of all that, which numpy's own readers ignore.

    Raises:
        OSError: It cannot be written.
    """
    import numpy as np

    array = np.ascontiguousarray(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    digest = xxhash.xxh3_64(head.getvalue())
    digest.update(array.reshape(-1).view(np.uint8).data)
    with open(path, "wb") as file:
        file.write(head.getvalue())
        array.tofile(file)
        file.write(digest.digest())


def load_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array that `save_array` wrote.

    Raises:
        OSError: The file is missing or cannot be read.
        DamagedError: It does not fit its digest; one without a digest neither.
    """
    import numpy as np

    data = np.fromfile(path, np.uint8)
    content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:].tobytes()
    if xxhash.xxh3_64_digest(content.data) != digest:
        raise DamagedError("its checksum is wrong")
    head = io.BytesIO(content[:CHUNK].tobytes())
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    array: NDArray[Any] = content[head.tell() :].view(dtype).reshape(shape)
    return array


def check_array(path: str | os.PathLike[str]) -> None:
    """Compare a file that `save_array` wrote with its digest, in little memory.

    Raises:
        OSError: It cannot be read.
        DamagedError: It does not fit.
    """
    digest = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        while left > 0 and (chunk := file.read(min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read() != digest.digest():
            raise DamagedError("its checksum is wrong")


def seal_parquet(path: str | os.PathLike[str]) -> None:
    """Put a digest of a Parquet file's footer before the footer.

    Page checksums do not cover the footer, which holds names, numbers of rows and metadata. Readers of Parquet find
    pages by their offsets and ignore the bytes between the last page and the footer.
    """
    with open(path, "r+b") as file:
        footer = _footer(file)
        file.seek(-len(footer), os.SEEK_END)
        file.write(PARQUET_MARK + xxhash.xxh3_64_digest(footer) + footer)


def check_parquet(path: str | os.PathLike[str]) -> bool:
    """Whether the footer of a Parquet file has a digest; other programs write none.

    Raises:
        OSError: The file cannot be read.
        DamagedError: The footer does not fit its digest.
    """
    with open(path, "rb") as file:
        footer = _footer(file)
        here = file.seek(0, os.SEEK_END) - len(footer) - len(PARQUET_MARK) - DIGEST_BYTES
        if here < 0:
            return False
        file.seek(here)
        mark, digest = file.read(len(PARQUET_MARK)), file.read(DIGEST_BYTES)
    if mark != PARQUET_MARK:
        return False
    if digest != xxhash.xxh3_64_digest(footer):
        raise DamagedError("the checksum of its footer is wrong")
    return True


def _footer(file: BinaryIO) -> bytes:
    """The footer of a Parquet file with its tail; the whole file where it is shorter than it says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - PARQUET_TAIL, 0))
    length = int.from_bytes(file.read(4), "little") + PARQUET_TAIL
    file.seek(max(size - length, 0))
    return file.read()
