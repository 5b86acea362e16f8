"""Digests do not depend on how a file is read."""

import io
import mmap
from pathlib import Path

import numpy as np
import pytest
import xxhash

from decar import digests

SIZES = [0, 1, 4_096, 99_999, 3 * 2**16, 3 * 2**16 + 5]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "WINDOW", 2**16)


def refuse(*_: object, **__: object) -> None:
    raise OSError(14, "Bad address")  # what Linux says of a sector that cannot be read


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mapped", [True, False])
def test_the_digest_is_that_of_all_bytes(tmp_path: Path, size: int, mapped: bool, monkeypatch: pytest.MonkeyPatch):
    if not mapped:
        monkeypatch.setattr(mmap, "mmap", refuse)
    content = bytes(range(251)) * (size // 251 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert digests.digest_of(path) == xxhash.xxh3_64_hexdigest(content[:size])


@pytest.mark.parametrize("size", SIZES)
def test_the_same_file_in_memory_has_the_same_seal(tmp_path: Path, size: int):
    empty_zip = b"x" * size + b"PK\5\6" + bytes(18)
    in_memory = io.BytesIO(empty_zip)
    digests.seal_zip(in_memory)
    path = tmp_path / "file.zip"
    with open(path, "w+b") as file:
        file.write(empty_zip)  # still in the buffer when the seal is made
        digests.seal_zip(file)
    assert path.read_bytes() == in_memory.getvalue()
    with open(path, "rb") as file:
        assert digests.check_zip(file)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("size", [0, 3, 2**17])
def test_an_array_is_checked_however_it_is_read(
    tmp_path: Path, size: int, mapped: bool, monkeypatch: pytest.MonkeyPatch
):
    if not mapped:
        monkeypatch.setattr(mmap, "mmap", refuse)
    path = tmp_path / "array.sealed.npy"
    digests.save_array(path, np.arange(size))
    digests.check_array(path)
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], content[:5], b"", bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(digests.DamagedError):
            digests.check_array(path)


def test_a_sector_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A mapping is filled before it is used: where that fails, read() raises, and no access is a SIGBUS."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2**17)

    class Broken(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: type("Map", (), {"madvise": refuse})())
    with Broken(path) as file, pytest.raises(OSError, match="Input/output"):
        digests._digest_of_head(file)
