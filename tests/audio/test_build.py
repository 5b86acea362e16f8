"""The hard cases of building a store: killed, twice at once, no room, odd clips. Its contents are in test_store.py."""

import errno
import logging
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from decar.audio import LogMel, LogMelStore, Manifest, build, clips, decode
from decar.audio.logmel import BLOCK_FRAMES, waveform_to_frames
from decar.errors import StoreError
from tests.audio import build_slowly
from tests.audio.sounds import tone, write, write_bad_files
from tests.conftest import FORK

N_GOOD = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 good clips of many lengths, and one of each bad kind among them."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i in range(N_GOOD):
        write(folder / f"{i:02d}.wav", tone(0.1 + 0.37 * (i % 7), hz=200 + 50 * i) + rng.normal() * 0.01)
    write_bad_files(folder)
    (folder / "zero.wav").rename(folder / "07 zero.wav")  # in the middle of the order
    return folder


def build_in(cache: Path, root: Path) -> LogMelStore:
    return LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=cache, progress=False)


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of the one store in a cache, byte for byte."""
    (folder,) = (path for path in (cache / "logmel").iterdir() if path.is_dir())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(root: Path, cache: Path, seconds: float, together: int = 1) -> BaseProcess:
    cache.mkdir(exist_ok=True)
    words = (str(root), str(cache), str(seconds), str(together))
    process = FORK.Process(target=build_slowly.main, args=words)
    process.start()
    return process


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(root: Path, cache: Path, clips: int) -> None:
    """Starts a build and kills it (SIGKILL) when so many clips are in the journal."""
    process = start(root, cache, 0.05)
    give_up = time.monotonic() + 60
    while sum(map(lines, cache.glob("logmel/*.partial/journal.jsonl"))) < clips:
        assert process.is_alive()
        assert time.monotonic() < give_up
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def log_of(process: BaseProcess, cache: Path) -> str:
    """The log of a build that ended well; its last line has the fingerprint of its store."""
    process.join(60)
    assert process.exitcode == 0
    return (cache / f"log-{process.pid}.txt").read_text()


def test_killed_builds_resume_and_end_bit_for_bit_as_an_unbroken_one(root: Path, tmp_path: Path) -> None:
    build_in(tmp_path / "unbroken", root)
    broken = tmp_path / "broken"
    kill_after(root, broken, 5)
    kill_after(root, broken, 15)  # and once more: a resumed build is killed too
    (unfinished,) = broken.glob("logmel/*.partial")
    assert not (broken / "logmel" / unfinished.name.removesuffix(".partial")).exists()
    with open(unfinished / "mel.f16", "ab") as file:  # what a kill in the middle of two writes leaves
        file.write(b"\x00\x7e\x00")
    with open(unfinished / "journal.jsonl", "ab") as file:
        file.write(b'{"clips": [[12')
    done = lines(unfinished / "journal.jsonl")
    before = lines(broken / "decoded.txt")
    last = start(root, broken, 0.0)
    log = log_of(last, broken)
    assert f"at clip {done} of {N_GOOD + 5}" in log
    assert lines(broken / "decoded.txt") - before == N_GOOD + 5 - done  # resumed, not begun again
    assert contents(broken) == contents(tmp_path / "unbroken")
    assert {path.suffix for path in (broken / "logmel").iterdir()} == {"", ".lock"}


def test_two_processes_at_once_build_one_store(root: Path, tmp_path: Path) -> None:
    build_in(tmp_path / "alone", root)
    both = tmp_path / "both"
    processes = [start(root, both, 0.05, together=2) for _ in range(2)]
    logs = [log_of(process, both) for process in processes]
    assert logs[0].splitlines()[-1] == logs[1].splitlines()[-1], "the fingerprint"
    assert lines(both / "decoded.txt") == N_GOOD + 5  # each clip once
    assert sum("another process builds" in log for log in logs) == 1
    assert contents(both) == contents(tmp_path / "alone")


def test_a_full_disk_is_told_and_the_next_try_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_in(tmp_path / "whole", root)
    monkeypatch.setattr(build, "COMMIT_SECONDS", 0.0)
    real, written = os.write, [0]

    def write_until_full(descriptor: int, data: memoryview) -> int:
        written[0] += len(data)
        if written[0] > 200_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write_until_full)
    full = tmp_path / "full"
    with pytest.raises(StoreError) as caught:
        build_in(full, root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(full / "logmel"),
        "No space left on device",
        "bytes free",
        "goes on where it stopped",
        "cache_dir=",
    ):
        assert part in message
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        build_in(full, root)
    assert "going on with the log-mel store" in caplog.text
    assert contents(full) == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["index.parquet", "meta.json"])
def test_a_disk_that_fills_up_at_the_very_end(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build_in(tmp_path / "whole", root)
    real = build.sync

    def full(path: Path) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(build, "sync", full)
    with pytest.raises(StoreError, match="No space left"):
        build_in(tmp_path / "full", root)
    monkeypatch.undo()
    build_in(tmp_path / "full", root)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be written in .*file/logmel: Not a directory .* cache_dir=DIR"):
        build_in(tmp_path / "file", root)

    def denied(*_: object, **__: object) -> None:  # the tests may run as root, whom no mode stops
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(
        StoreError, match=r"cannot be written in .*: Permission denied \([\d,]+ bytes free\); give another"
    ):
        build_in(tmp_path / "locked", root)


def test_a_finished_store_opens_where_nothing_may_be_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_in(tmp_path, root)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "write_text", "unlink"):
        monkeypatch.setattr(Path, name, forbidden)
    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    assert build_in(tmp_path, root).fingerprint == first.fingerprint


def test_no_usable_clip_at_all(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / "in" / f"{i}.wav").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.wav").touch()
    expected = r"none of the 5 clips can be used: 0.wav \(empty file \(0 bytes\)\); .*2.wav \(.*\); and 2 more$"
    for _ in range(2):
        with pytest.raises(StoreError, match=expected):
            build_in(tmp_path / "cache", tmp_path / "in")
    assert [path.suffix for path in (tmp_path / "cache" / "logmel").iterdir()] == [".lock"]


def test_an_odd_clip_does_not_end_the_build(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = clips.decode_blocks

    def odd(file: Path, **options: float) -> Iterator[np.ndarray]:
        if file.name == "03.wav":
            raise RuntimeError("something\nnobody thought of")
        for wave in real(file, **options):
            yield wave * np.float32(3e37) if file.name == "04.wav" else wave

    monkeypatch.setattr(clips, "decode_blocks", odd)
    store = build_in(tmp_path, root)
    assert store.reasons[3] == "cannot be processed (RuntimeError: something nobody thought of)"
    assert store.reasons[4] == "samples too large for a spectrum"
    assert np.isfinite(store.mel).all()


def test_workers_and_chunks_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_folder(root)
    LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "1", num_workers=1, progress=False)
    monkeypatch.setattr(build, "COMMIT_SECONDS", 0.0)
    LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "5", num_workers=5, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


def test_short_clips_are_worked_on_together_and_long_ones_alone(tmp_path: Path) -> None:
    def job(name: str, size: int, duration: float | None = None) -> clips.Job:
        (tmp_path / name).write_bytes(bytes(size))
        return tmp_path / name, 0.0, duration

    jobs = [job(f"short{i}", 10) for i in range(11)]
    jobs += [job("long", clips.GROUP_BYTES + 1), job("a", clips.GROUP_BYTES // 2), job("b", clips.GROUP_BYTES // 2)]
    jobs += [job("stretch", 10**6, 0.5), (tmp_path / "missing", 0.0, None), job("long stretch", 10, 60.0)]
    parts = list(clips.groups(jobs))
    assert [job for part in parts for job in part] == jobs
    assert [len(part) for part in parts] == [8, 3, 1, 2, 2, 1]


def test_a_long_clip_goes_to_the_disk_in_parts(tmp_path: Path) -> None:
    """Bit for bit the log-mel of the whole, which is never in memory; of one that is bad at its end nothing is left."""
    wave = tone(600.0) + np.linspace(0, 0.1, 600 * 16_000)
    write(tmp_path / "in" / "long.wav", wave)
    cut = write(tmp_path / "in" / "cut.flac", wave[: 100 * 16_000])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 9 // 10])
    write(tmp_path / "in" / "short.wav", tone(1.0))
    tracemalloc.start()
    store = build_in(tmp_path / "cache", tmp_path / "in")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.reasons[0].startswith("truncated: header says 100.000 s, ")
    assert store.reasons[1:] == ["", ""]
    assert store.lengths.tolist() == [0, 59_998, 98]
    np.testing.assert_array_equal(store[1], waveform_to_frames(LogMel(), decode(tmp_path / "in" / "long.wav")))
    assert peak < 20e6  # bytes; the waveform alone has 38 MB


def test_a_clip_that_is_longer_than_its_size_suggests_is_no_burden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence makes a small FLAC: 10 s of it are in memory, its neighbours come out as they are."""
    write(tmp_path / "in" / "a.wav", tone(1.0))
    write(tmp_path / "in" / "b.flac", np.append(np.zeros(16_000 * 70), tone(1.0)))
    write(tmp_path / "in" / "c.wav", tone(2.0))
    assert (tmp_path / "in" / "b.flac").stat().st_size < clips.GROUP_BYTES / 2
    longest = []
    real = clips.waveforms_to_frames
    monkeypatch.setattr(
        clips, "waveforms_to_frames", lambda log_mel, waves: longest.extend(map(len, waves)) or real(log_mel, waves)
    )
    store = build_in(tmp_path / "cache", tmp_path / "in")
    assert store.lengths.tolist() == [98, 7098, 198]
    assert 16_000 <= max(longest) <= BLOCK_FRAMES * 160 + 400


@pytest.mark.parametrize("together", [1, 3, 100])
def test_groups_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    manifest = Manifest.from_folder(root)
    LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "before", progress=False)
    monkeypatch.setattr(clips, "GROUP_CLIPS", together)
    monkeypatch.setattr(clips, "GROUP_BYTES", 2**40)
    LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "after", progress=False)
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_torch_threads_are_restored_also_after_an_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build_in(tmp_path / "a", root)
        assert torch.get_num_threads() == 2

        def interrupt(*_: object) -> None:
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt

        monkeypatch.setattr(build.Journal, "end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_in(tmp_path / "b", root)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    monkeypatch.undo()
    build_in(tmp_path / "b", root)  # the lock was let go
    shutil.rmtree(tmp_path / "b")
