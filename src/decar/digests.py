"""Checksums of the files that decar writes and reads again. They find accidents, not attackers: see docs/security.md.

XXH3 with 64 bits: damage goes unnoticed once in 2⁶⁴ times, and hashing is as fast as reading memory.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CHUNK = 2**20
WINDOW = 2**24  # a multiple of every page size
MADV_POPULATE_READ = 22  # Linux 5.14, <linux/mman.h>
DIGEST_BYTES = 8
ARRAY_SUFFIX = ".sealed.npy"  # of files that `save_array` writes, by which `decar doctor --cache` finds them
SEAL = "xxh3"  # the key of a JSON object that holds the digest of the others
PARQUET_TAIL = 8  # bytes: length of the footer, "PAR1"
NO_DIGEST = "0" * 32  # stands for the digest of a safetensors file while it is computed
MARK = b"XXH3"  # before the digest, in a zip's comment too


class DamagedError(ValueError):
    """A file does not hold what was written into it; the message says what is wrong, without the path."""


def digest_of(path: str | os.PathLike[str]) -> str:
    """The digest of a file in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return _digest_of_head(file).hex()


def sealed(facts: Mapping[str, Any], indent: int | None = None, *, ascii_only: bool = True) -> str:
    """A JSON object with its own digest under the key `SEAL`; `unsealed` reads it.

    >>> unsealed(sealed({"clips": 3}))
    {'clips': 3}
    """
    return json.dumps({**facts, SEAL: _digest_of_facts(facts)}, indent=indent, ensure_ascii=ascii_only)


def unsealed(text: str | bytes, *, required: bool = True) -> dict[str, Any]:
    """The object that `sealed` made a text of, without the digest.

    Args:
        text: JSON.
        required: Whether an object without a digest is damaged; otherwise an earlier version wrote it, or a person.

    Raises:
        DamagedError: It is no JSON object, or does not fit its digest.
    """
    try:
        facts = json.loads(text)
        seal = facts.pop(SEAL) if required or SEAL in facts else None
        wrong = seal is not None and seal != _digest_of_facts(facts)
        facts = dict(facts)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        kind = "no JSON object with a checksum" if required else "no JSON object"
        raise DamagedError(f"{kind} ({' '.join(str(error).split())})") from error
    if wrong:
        raise DamagedError("its checksum is wrong")
    return facts


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts with their digest.

    Raises:
        OSError: The file cannot be written.
    """
    text = sealed(facts, indent=1, ascii_only=False)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # \udcff, as JSON escapes it


def read_json(path: Path) -> dict[str, Any]:
    """The facts of a JSON file, which may have been written without a digest.

    Raises:
        OSError: The file is missing or cannot be read.
        DamagedError: It is no JSON object, or does not fit its digest.
    """
    return unsealed(path.read_bytes(), required=False)


def unreadable(path: Path, read: Callable[[Path], object]) -> str:
    """Why a file cannot be read, in a few words; empty where it can.

    Args:
        path: The file.
        read: Reads it, and raises where it is damaged.
    """
    if not path.is_file():
        return "it is missing"
    try:
        read(path)
    except Exception as error:  # readers of Parquet and safetensors raise half a dozen kinds
        return f"it is damaged ({' '.join(str(error).split())[:200]})"
    return ""


def sealed_lines(text: str) -> str:
    """A text in a language with `#` comments, with its digest as a first line; `check_lines` reads it.

    >>> check_lines(sealed_lines("k: 3").encode())
    """
    return f"# {SEAL} {xxhash.xxh3_64_hexdigest(text.encode())}\n{text}"


def check_lines(content: bytes) -> None:
    """Compare what `sealed_lines` made with its digest; a text without one was written by somebody else.

    Raises:
        DamagedError: It does not fit.
    """
    first, _, text = content.partition(b"\n")
    if SEAL.encode() in first and first != f"# {SEAL} {xxhash.xxh3_64_hexdigest(text)}".encode():
        raise DamagedError(
            "its checksum is wrong: it is damaged, or was edited; delete its first line to use it as it is"
        )


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
    with open(path, "rb", buffering=0) as file:
        end = max(os.fstat(file.fileno()).st_size - DIGEST_BYTES, 0)
        digest = _digest_of_head(file, end)
        file.seek(end)
        if file.read() != digest:
            raise DamagedError("its checksum is wrong")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table with checksums of its pages and its footer; `read_parquet` compares them.

    Raises:
        OSError: The file cannot be written.
    """
    table.to_parquet(path, write_page_checksum=True)
    seal_parquet(path)


def read_parquet(path: Path) -> pd.DataFrame:
    """A table; what has checksums is compared with them.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is no Parquet, or damaged.
    """
    import pandas as pd

    check_parquet(path)
    return pd.read_parquet(path, page_checksum_verification=True)


def seal_parquet(path: str | os.PathLike[str]) -> None:
    """Put a digest of a Parquet file's footer before the footer.

    Page checksums do not cover the footer, which holds names, numbers of rows and metadata. Readers of Parquet find
    pages by their offsets and ignore the bytes between the last page and the footer.
    """
    with open(path, "r+b") as file:
        footer = _footer(file)
        file.seek(-len(footer), os.SEEK_END)
        file.write(MARK + xxhash.xxh3_64_digest(footer) + footer)


def check_parquet(path: str | os.PathLike[str]) -> bool:
    """Whether the footer of a Parquet file has a digest; other programs write none.

    Raises:
        OSError: The file cannot be read.
        DamagedError: The footer does not fit its digest.
    """
    with open(path, "rb") as file:
        footer = _footer(file)
        here = file.seek(0, os.SEEK_END) - len(footer) - len(MARK) - DIGEST_BYTES
        if here < 0:
            return False
        file.seek(here)
        mark, digest = file.read(len(MARK)), file.read(DIGEST_BYTES)
    if mark != MARK:
        return False
    if digest != xxhash.xxh3_64_digest(footer):
        raise DamagedError("the checksum of its footer is wrong")
    return True


def seal_zip(file: BinaryIO) -> None:
    """Give a zip file that has just been written its digest, as the comment that the format ends with.

    The digest covers all bytes before the comment. Readers of zip ignore the comment.
    """
    file.seek(-2, os.SEEK_END)  # the length of the comment: there is none yet
    file.write((len(MARK) + DIGEST_BYTES).to_bytes(2, "little"))
    file.write(MARK + _digest_of_head(file, file.tell()))


def check_zip(file: BinaryIO) -> bool:
    """Whether a zip file has a digest, which other programs do not write.

    Raises:
        OSError: It cannot be read.
        DamagedError: It does not fit its digest.
    """
    end = file.seek(0, os.SEEK_END) - len(MARK) - DIGEST_BYTES
    file.seek(max(end, 0))
    if file.read(len(MARK)) != MARK:
        return False
    digest = file.read()
    if digest != _digest_of_head(file, end):
        raise DamagedError("its checksum is wrong")
    return True


def seal_tensors(content: bytes) -> bytes:
    """A safetensors file whose header holds `NO_DIGEST` before anything like it: with the digest in that place.

    The digest has 128 bits and covers all bytes.
    """
    return content.replace(NO_DIGEST.encode(), xxhash.xxh3_128_hexdigest(content).encode(), 1)


def tensors_digest(path: Path, filled: str) -> str:
    """The digest of a safetensors file in whose header `filled` stands for it; the library has read the header before.

    Raises:
        OSError: It cannot be read.
    """
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = file.read(8)
        head = file.read(int.from_bytes(size, "little"))  # bounded by safetensors
        found.update(size + head.replace(filled.encode(), NO_DIGEST.encode(), 1))
        while block := file.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def _digest_of_head(file: BinaryIO, length: int = sys.maxsize) -> bytes:
    """The digest of the first `length` bytes of a file, or of all where there are fewer; its position changes."""
    digest, start = xxhash.xxh3_64(), 0
    length = min(length, file.seek(0, os.SEEK_END))  # which writes out what is buffered
    while start < length and (window := _window(file, start, min(WINDOW, length - start))):
        digest.update(window)
        start += len(window)
    return digest.digest()


def _window(file: BinaryIO, start: int, length: int) -> bytes | mmap.mmap:
    """Bytes of a file, by the page cache's own memory where the system can: copying them takes as long as hashing."""
    try:
        window = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
        window.madvise(MADV_POPULATE_READ)  # raises where the disk cannot read; a later access would be a SIGBUS
    except (OSError, ValueError, AttributeError):  # not Linux from 5.14 on, or not a file that can be mapped
        file.seek(start)
        return file.read(length)
    return window


def _footer(file: BinaryIO) -> bytes:
    """The footer of a Parquet file with its tail; the whole file where it is shorter than it says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - PARQUET_TAIL, 0))
    length = int.from_bytes(file.read(4), "little") + PARQUET_TAIL
    file.seek(max(size - length, 0))
    return file.read()
