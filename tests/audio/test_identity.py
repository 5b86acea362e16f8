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


@pytest.mark.usefixtures("settled")
def test_a_process_that_is_given_the_identity_looks_at_no_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = Manifest.from_folder(root)
    first = LogMelStore.open_or_build(clips, cache_dir=tmp_path, progress=False)
    found = clips.identity(tmp_path)
    looked: list[str] = []
    monkeypatch.setattr(identity, "_stat", lambda file: looked.append(file) or (1, 1, 1, 1))
    monkeypatch.setattr(identity, "_digest", None)
    other = LogMelStore.open_or_build(clips, cache_dir=tmp_path, identity=found)
    assert not looked
    assert (other.fingerprint, other.content) == (first.fingerprint, first.content)


def test_a_process_with_other_sounds_than_the_first_is_refused(root: Path, tmp_path: Path) -> None:
    """On another machine, whose cache has no store of the identity it is given."""
    found = Manifest.from_folder(root).identity()
    exchange_content(root)
    with pytest.raises(StoreError, match="are not those of the job's first process"):
        LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=tmp_path, identity=found, progress=False)
    assert not [path for path in (tmp_path / "logmel").iterdir() if path.is_dir()]


def part_of(root: Path) -> Manifest:
    """Clips a and c of the three."""
    table = Manifest.from_folder(root).table.assign(used=["yes", "no", "yes"])
    return Manifest(table, root).where("used=yes")


def stores(cache: Path) -> int:
    return sum(path.is_dir() for path in (cache / "logmel").iterdir())


@pytest.fixture
def whole_store(root: Path, tmp_path: Path) -> Path:
    """A cache with the store of all three clips."""
    LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=tmp_path / "cache", progress=False)
    return tmp_path / "cache"


@pytest.mark.usefixtures("settled")
def test_part_of_a_manifest_is_taken_from_the_store_of_all_of_it(
    root: Path, whole_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LogMelStore.open_or_build(part_of(root), cache_dir=tmp_path / "own", progress=False)
    read: list[str] = []
    real = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda file, size: read.append(file) or real(file, size))
    monkeypatch.setattr(identity, "SPOT_CHECKS", 0)
    monkeypatch.setattr("decar.audio.clips.decode_blocks", None)
    shared = LogMelStore.open_or_build(part_of(root), cache_dir=whole_store, progress=False)
    assert stores(whole_store) == 1
    assert not read, "the files are known"
    assert (shared.fingerprint, shared.content) == (own.fingerprint, own.content), "whatever store it lies in"
    assert shared.manifest.part_of is None
    assert shared.manifest.table["path"].tolist() == ["a.wav", "c.wav"]
    for mine, theirs in zip((shared[0], shared[1]), (own[0], own[1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(("exchanged", "built"), [("a", 2), ("b", 1)], ids=["of the part", "not of the part"])
@pytest.mark.parametrize("seen", [False, True], ids=["", "found again by the whole"])
def test_an_exchanged_sound_of_the_part_is_noticed(
    root: Path, whole_store: Path, exchanged: str, built: int, seen: bool
) -> None:
    write(root / f"{exchanged}.wav", tone(0.5, hz=2_000))
    os.utime(root / f"{exchanged}.wav", ns=(10**18, 10**18))
    if seen:
        Manifest.from_folder(root).identity(whole_store)
    store = LogMelStore.open_or_build(part_of(root), cache_dir=whole_store, progress=False)
    fresh = LogMelStore.open_or_build(part_of(root), cache_dir=whole_store.parent / "fresh", progress=False)
    assert stores(whole_store) == (2 if seen else built)  # of other files the store's name is forgotten
    for mine, theirs in zip((store[0], store[1]), (fresh[0], fresh[1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("settled")
def test_an_edit_between_the_blocks_of_a_large_sound_of_the_part_is_noticed(root: Path, tmp_path: Path) -> None:
    write(root / "a.wav", tone(4.0))
    assert (root / "a.wav").stat().st_size > identity.WHOLE_BYTES
    LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=tmp_path, progress=False)
    data = bytearray((root / "a.wav").read_bytes())
    data[identity.BLOCK_BYTES + 1000] ^= 1
    (root / "a.wav").write_bytes(data)
    LogMelStore.open_or_build(part_of(root), cache_dir=tmp_path, progress=False)
    assert stores(tmp_path) == 2
