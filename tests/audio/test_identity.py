"""Other sounds of equal size and modification time are noticed; a copy of the same sounds is not computed anew."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from decar.audio import LogMelStore, Manifest, identity
from decar.errors import StoreError
from tests.audio.sounds import tone, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, hz in (("a", 300), ("b", 3_000), ("c", 1_000)):
        write(tmp_path / "sounds" / f"{name}.wav", tone(0.5, hz=hz))
        os.utime(tmp_path / "sounds" / f"{name}.wav", ns=(10**18, 10**18))
    return tmp_path / "sounds"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now count as old."""
    monkeypatch.setattr(identity, "FRESH_NS", 0)


def peaks(root: Path, cache: Path) -> list[int]:
    """The loudest mel band of each clip."""
    store = LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=cache, progress=False)
    return [int(store[i].astype(np.float32).mean(axis=0).argmax()) for i in range(len(store))]


def exchange_content(root: Path) -> None:
    """As `cp -p` of other sounds over these."""
    a, b = (root / "a.wav").read_bytes(), (root / "b.wav").read_bytes()
    for name, content in (("a", b), ("b", a)):
        (root / f"{name}.wav").write_bytes(content)
        os.utime(root / f"{name}.wav", ns=(10**18, 10**18))


def exchange_names(root: Path) -> None:
    (root / "a.wav").rename(root / "t")
    (root / "b.wav").rename(root / "a.wav")
    (root / "t").rename(root / "b.wav")


def link_to_the_other(link: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        kept = root.parent / "kept"
        kept.mkdir()
        for name in "ab":
            (root / f"{name}.wav").rename(kept / f"{name}.wav")
        link(kept / "b.wav", root / "a.wav")
        link(kept / "a.wav", root / "b.wav")

    return change


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "change",
    [exchange_content, exchange_names, link_to_the_other(os.symlink), link_to_the_other(os.link)],
    ids=["content", "names", "symlink", "hard link"],
)
def test_exchanged_sounds_are_noticed(root: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    low, high, middle = peaks(root, tmp_path / "cache")
    assert low < middle < high
    change(root)
    assert peaks(root, tmp_path / "cache") == [high, low, middle]


def test_a_copy_is_the_same_data_set(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = peaks(root, tmp_path / "cache")
    monkeypatch.setattr("decar.audio.clips.decode_blocks", None)  # fails whoever decodes from here on
    shutil.copytree(root, tmp_path / "copy")
    assert peaks(tmp_path / "copy", tmp_path / "cache") == before
    for file in (tmp_path / "copy").iterdir():
        os.utime(file)  # as `cp` without -p, or a checkout
    assert peaks(tmp_path / "copy", tmp_path / "cache") == before


@pytest.mark.usefixtures("settled")
def test_unstable_inodes_cost_reading_not_building(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = peaks(root, tmp_path / "cache")
    monkeypatch.setattr("decar.audio.clips.decode_blocks", None)
    real, shift = identity._stat, 0

    def unstable(file: str) -> tuple[int, int, int, int]:
        size, mtime, ctime, inode = real(file)
        return size, mtime, ctime + shift, inode + shift

    monkeypatch.setattr(identity, "_stat", unstable)
    for shift in (1, 2):  # noqa: B007 - read by `unstable`
        caplog.clear()
        assert peaks(root, tmp_path / "cache") == before
        assert "3 files have another inode or time of change, but the same content" in caplog.text


@pytest.mark.usefixtures("settled")
def test_nothing_is_read_again_but_a_few(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_folder(root)
    first = manifest.identity(tmp_path)
    monkeypatch.setattr(identity, "SPOT_CHECKS", 0)
    monkeypatch.setattr(identity, "_digest", None)
    assert manifest.identity(tmp_path) == first


@pytest.mark.usefixtures("settled")
def test_a_file_system_without_ctime_is_found_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high, middle = peaks(root, tmp_path / "cache")
    real = identity._stat
    monkeypatch.setattr(identity, "_stat", lambda file: (*real(file)[:2], 0, 0))
    peaks(root, tmp_path / "cache")
    exchange_content(root)
    assert peaks(root, tmp_path / "cache") == [high, low, middle]


def test_a_file_written_just_now_is_read_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of a file system that ticks each 2 s gives two writes one ctime."""
    low, high, middle = peaks(root, tmp_path / "cache")
    real = identity._stat(str(root / "a.wav"))
    monkeypatch.setattr(identity, "SPOT_CHECKS", 0)
    monkeypatch.setattr(identity, "_stat", lambda file: real)
    peaks(root, tmp_path / "cache")
    exchange_content(root)
    assert peaks(root, tmp_path / "cache") == [high, low, middle]


@pytest.mark.usefixtures("settled")
def test_an_edit_between_the_blocks_of_a_large_file_changes_its_modification_time(tmp_path: Path) -> None:
    file = tmp_path / "sounds" / "large.wav"
    write(file, tone(10.0))
    before = Manifest.from_folder(file.parent).identity(tmp_path)
    data = bytearray(file.read_bytes())
    data[identity.BLOCK_BYTES + 1000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    after = Manifest.from_folder(file.parent).identity(tmp_path)
    assert after.fingerprint != before.fingerprint
    assert after.content == before.content


def test_a_named_pipe_and_a_damaged_memory(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe.wav")
    manifest = Manifest.from_folder(root)
    first = manifest.identity(tmp_path)
    [memory] = (tmp_path / "identity").iterdir()
    memory.write_bytes(b"no array")
    assert manifest.identity(tmp_path) == first == manifest.identity()


def test_files_that_change_during_a_build_are_no_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decar.audio import build

    real = build._finish

    def finish(*args: object) -> None:
        exchange_content(root)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "_finish", finish)
    with pytest.raises(StoreError, match="changed while their log-mels were computed"):
        peaks(root, tmp_path / "cache")
    monkeypatch.undo()
    assert peaks(root, tmp_path / "cache")[0] > peaks(root, tmp_path / "cache")[1]
