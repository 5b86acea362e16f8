import dataclasses
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from decar.audio import FrontEnd, LogMel, LogMelStore, Manifest, decode
from decar.audio.clips import Windows
from decar.errors import ConfigError, StoreError
from tests.audio.sounds import FORMATS, tone, write, write_bad_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    for i, extension in enumerate(FORMATS):
        rate = (8_000, 44_100, 22_050, 48_000, 44_100)[i]
        write(folder / "näst ed" / f"{i} ü.{extension}", tone(0.5 + i / 4, rate), rate, channels=1 + i % 2)
    return folder


def open_store(root: Path, **options: object) -> LogMelStore:
    return LogMelStore.open_or_build(
        Manifest.from_folder(root),
        cache_dir=root.parent / "cache",
        progress=False,
        **options,  # type: ignore[arg-type]
    )


def test_each_clip_is_its_log_mel(root: Path) -> None:
    store = open_store(root)
    assert len(store) == 5
    assert store.reasons == [""] * 5
    assert store.mel.shape == (store.lengths.sum(), 64)
    assert store.offsets.dtype == store.lengths.dtype == np.int64
    for i, file in enumerate(store.manifest.files):
        expected = LogMel()(torch.from_numpy(decode(file))[None])[0].T.numpy()
        assert store[i].shape == (store.lengths[i], 64) == expected.shape
        assert store[i].dtype == np.float16
        np.testing.assert_array_equal(store[i], expected.astype(np.float16))
    assert store[-1].shape == store[4].shape
    with pytest.raises(IndexError):
        store[5]


def test_stretches_of_one_file_are_clips(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", np.concatenate([tone(1.0, hz=300), tone(1.0, hz=3_000)]))
    table = pd.DataFrame({"path": "long.wav", "start": [0.0, 1.0, 1.5], "duration": [1.0, 1.0, np.nan]})
    store = LogMelStore.open_or_build(Manifest(table, tmp_path), cache_dir=tmp_path / "cache", progress=False)
    assert store.lengths.tolist() == [98, 98, 48]
    peaks = [int(store[i].astype(np.float32).mean(axis=0).argmax()) for i in range(3)]
    assert peaks[0] < peaks[1] == peaks[2]


def test_bad_clips_are_kept_apart_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = write_bad_files(root)
    store = open_store(root)
    bad = store.bad
    assert list(bad.columns) == ["path", "reason"]
    assert len(bad) == 5
    for path, reason in bad.itertuples(index=False):
        assert reason.startswith(expected[path])
        assert f"{path}: {reason}" in caplog.text
    good = store.usable()
    assert len(good) == 5
    assert good.reasons == [""] * 5
    assert (good.lengths > 0).all()
    assert np.isfinite(good.mel).all()
    with_silence = store.usable(allow_silent=True)
    assert len(with_silence) == 6
    silent = with_silence[with_silence.manifest.column("path").tolist().index("silence.wav")]
    assert (silent == np.float16(FrontEnd().silence)).all()
    index = pd.read_parquet(next((root.parent / "cache" / "logmel").glob("*/index.parquet")))
    assert index["status"].value_counts().to_dict() == {"good": 5, "bad": 4, "silent": 1}
    assert store[store.reasons.index("empty file (0 bytes)")].shape == (0, 64)


def test_only_the_first_of_many_bad_clips_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in" / "good.wav", tone(0.1))
    for i in range(25):
        (tmp_path / "in" / f"{i}.wav").touch()
    open_store(tmp_path / "in")
    assert caplog.text.count("empty file") == 20
    assert "and 5 more of 26 clips" in caplog.text


def test_nothing_but_silence(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.wav", np.full(16_000, 5e-5))
    store = open_store(tmp_path / "in")
    assert len(store.usable(allow_silent=True)) == 1
    with pytest.raises(StoreError, match=r"none of the 1 clips can be used: a.wav \(silent: no sample above 1e-4\)$"):
        store.usable()


def test_an_empty_manifest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no clips"):
        LogMelStore.open_or_build(Manifest(pd.DataFrame({"path": []}), tmp_path), cache_dir=tmp_path)


def test_found_again_and_rebuilt_when_something_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(root)
    with monkeypatch.context() as patch:
        patch.setattr("decar.audio.clips.decode_blocks", None)  # whoever decodes now, fails
        again = open_store(root)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.mel, first.mel)
    other = open_store(root, frontend=dataclasses.replace(FrontEnd(), n_mels=32))
    assert other.fingerprint != first.fingerprint
    assert other.mel.shape[1] == 32
    file = first.manifest.files[0]
    write(file, tone(2.0))
    os.utime(file, ns=(1, 1))
    changed = open_store(root)
    assert changed.fingerprint != first.fingerprint
    assert changed.lengths[0] == 198


def damage_cut_data(folder: Path) -> None:
    os.truncate(folder / "mel.f16", 1_000)


def damage_longer_data(folder: Path) -> None:
    with open(folder / "mel.f16", "ab") as file:
        file.write(b"\0" * 128)


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def damage_meta_kind(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")


def damage_other_fingerprint(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "fingerprint": "0"}))


def damage_no_index(folder: Path) -> None:
    (folder / "index.parquet").unlink()


def damage_index_bytes(folder: Path) -> None:
    (folder / "index.parquet").write_bytes(b"PAR1 and then nothing")


def damage_index_rows(folder: Path) -> None:
    index = pd.read_parquet(folder / "index.parquet")
    index["frames"] = index["frames"].to_numpy()[::-1]
    index.to_parquet(folder / "index.parquet")


def damage_empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_built_anew(root: Path, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    first = open_store(root)
    before = np.array(first.mel)
    folder = root.parent / "cache" / "logmel" / first.fingerprint
    del first
    damage(folder)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        again = open_store(root)
    assert "is damaged (" in caplog.text
    assert "building it anew" in caplog.text
    np.testing.assert_array_equal(again.mel, before)
    caplog.clear()
    open_store(root)
    assert caplog.text == ""


def test_take_shares_the_map_and_has_its_own_fingerprint(root: Path) -> None:
    store = open_store(root)
    taken = store.take([3, 1, -1])
    assert np.shares_memory(taken.mel, store.mel)
    for i, j in enumerate([3, 1, 4]):
        np.testing.assert_array_equal(taken[i], store[j])
    assert taken.manifest.column("path").tolist() == [store.manifest.column("path")[j] for j in (3, 1, 4)]
    prints = {s.fingerprint for s in (store, taken, store.take([1, 3, 4]), store.take([3, 1]), taken.take([0, 1]))}
    assert len(prints) == 5
    assert store.take([3, 1, 4]).fingerprint == taken.fingerprint
    assert store.take(np.ones(5, bool)).fingerprint == store.usable().fingerprint == store.fingerprint


def test_crops_are_stretches_of_their_clips(root: Path) -> None:
    store = open_store(root).take([3, 0, 4])
    places = [(0, 5), (2, 0), (1, int(store.lengths[1]) - 3), (0, 0)]
    for (index, first), crop in zip(places, store.crops(places, 20), strict=True):
        np.testing.assert_array_equal(crop, store[index][first : first + 20])
    assert [len(crop) for crop in store.crops(places, 20)] == [20, 20, 3, 20]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no page cache to be emptied")
def test_crops_from_a_cold_disk_read_little_else(tmp_path: Path) -> None:
    """Read around as kernels do by default, a crop of 12 KiB costs some 500."""
    file = tmp_path / "mel.f16"
    n, frames = 400, 1000
    np.random.default_rng(0).integers(0, 255, (n * frames, 128), np.uint8).tofile(file)
    mel = np.memmap(file, np.float16, "r", shape=(n * frames, 64))
    manifest, lengths = Manifest(pd.DataFrame({"path": ["a"] * n}), tmp_path), np.full(n, frames)
    store = LogMelStore(manifest, FrontEnd(), mel, np.arange(n) * frames, lengths, [""] * n, "f")
    places = list(zip(range(0, n, 4), np.random.default_rng(0).integers(frames - 98, size=n).tolist(), strict=False))

    def read_by(work: Callable[[], object]) -> int:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        before = bytes_read()
        work()
        return bytes_read() - before

    def bytes_read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    if not read_by(lambda: np.array(store[0])):
        pytest.skip("this file system does not give up its pages")
    read = read_by(lambda: [np.array(crop) for crop in store.crops(places, 98)])
    assert 12 * 1024 * len(places) <= read <= 20 * 1024 * len(places)
    store.advise("sequential")
    assert read_by(lambda: [np.array(store[i]) for i in range(n)]) <= 1.1 * mel.nbytes


def test_pickling_does_not_copy_the_data(root: Path) -> None:
    store = open_store(root).take([1, 2])
    data = pickle.dumps(store)
    assert len(data) < store.mel.nbytes
    again = pickle.loads(data)
    assert isinstance(again.mel, np.memmap)
    np.testing.assert_array_equal(again[0], store[0])
    in_memory = dataclasses.replace(store, mel=np.array(store.mel))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(in_memory))[1], store[1])


def test_the_store_cannot_be_written_by_accident(root: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_store(root)[0][:] = 0


def recordings(tmp_path: Path, *seconds: float) -> LogMelStore:
    """Noise of these lengths; the first file cannot be read."""
    rng = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "0.wav").write_text("no sound")
    for i, length in enumerate(seconds):
        write(tmp_path / "sounds" / f"{i + 1}.wav", 0.1 * rng.normal(size=round(length * 16_000)).astype(np.float32))
    return open_store(tmp_path / "sounds")


@pytest.mark.parametrize("segment", ["auto", 1.0, 2.5, 0.6])
def test_segments_are_the_frames_of_their_stretches(tmp_path: Path, segment: object) -> None:
    """Numbers and starts as `decar embed --segment` has them, and the log-mels of the stretches decoded alone."""
    lengths = [0.5, 3.7, 14.99, 15.02, 17.4, 17.6, 23.0]
    store = recordings(tmp_path, *lengths)
    cut = store.segmented(segment)  # type: ignore[arg-type]
    windows = Windows(None, None, FrontEnd(), 998, segment=segment)  # type: ignore[arg-type]
    table = cut.manifest.table
    assert (len(cut), int((cut.lengths == 0).sum())) == (len(table), 1), "the bad file is one row, with its reason"
    assert [reason != "" for reason in cut.reasons] == [True] + [False] * (len(cut) - 1)
    for i, seconds in enumerate(lengths):
        rows = np.flatnonzero(table["path"] == f"{i + 1}.wav")
        samples = [
            len(piece) for row in windows.rows(iter([np.zeros(round(seconds * 16_000), np.float32)])) for piece in row
        ]
        n = (
            1
            if segment == "auto" and seconds <= 15
            else max(1, round(seconds / (5.0 if segment == "auto" else segment) + 1e-9))
        )  # type: ignore[operator]
        assert len(rows) == n, (seconds, samples)
        assert cut.lengths[rows].sum() == store.lengths[i + 1], "without a gap and without an overlap"
        np.testing.assert_array_equal(np.concatenate([cut[row] for row in rows]), store[i + 1])
        if n == 1:
            assert np.isnan(table["duration"][rows[0]]), "a file that stays whole is no stretch"
            continue
        ends = table["start"][rows] + table["duration"][rows]
        assert table["start"][rows].tolist() == pytest.approx([0.0, *ends.tolist()[:-1]])
        assert ends.iloc[-1] == pytest.approx(seconds, abs=0.02)
        places = windows.places(n, round(seconds * 16_000))
        assert table["start"][rows].tolist() == pytest.approx(places[:, 0].tolist(), abs=0.005 * n)
        for row in rows:
            alone = decode(cut.manifest.files[row], start=table["start"][row], duration=table["duration"][row])
            mel = LogMel()(torch.from_numpy(alone)[None])[0].T.numpy()
            assert abs(len(mel) - cut.lengths[row]) <= 2, "the last windows of a segment reach into the next one"
            n_both = min(len(mel), int(cut.lengths[row]))
            np.testing.assert_allclose(mel[:n_both], cut[row][:n_both], atol=0.02)


def test_segments_of_stretches_begin_where_these_do(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", tone(40.0, hz=300))
    table = pd.DataFrame({"path": "long.wav", "start": [2.0, 30.0], "duration": [20.0, 5.0], "site": ["a", "b"]})
    store = LogMelStore.open_or_build(Manifest(table, tmp_path), cache_dir=tmp_path / "cache", progress=False)
    cut = store.segmented("auto").manifest.table
    assert cut["start"].tolist() == [2.0, 7.0, 12.0, 17.0, 30.0]
    assert cut["duration"].tolist() == [5.0] * 5
    assert cut["site"].tolist() == ["a"] * 4 + ["b"]


def test_the_last_segment_of_a_clip_that_ends_early_is_as_long_as_its_sound(tmp_path: Path) -> None:
    """A table said 60 s of a file of 20 s, and the last of its segments of 5 s had a duration of 45 s."""
    write(tmp_path / "a.wav", tone(20.0, hz=300))
    table = pd.DataFrame({"path": "a.wav", "start": [0.0, 0.0, 2.0], "duration": [60.0, 20.0, 17.003]})
    store = LogMelStore.open_or_build(Manifest(table, tmp_path), cache_dir=tmp_path / "cache", progress=False)
    durations = store.segmented(5.0).manifest.table["duration"]
    np.testing.assert_allclose(durations, [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 7.003], atol=0.011)
    assert durations.tolist()[7:] == [5.0, 5.0, 5.0, 17.003 - 10.0]


def test_what_is_cut_otherwise_has_another_fingerprint_and_what_is_not_cut_is_the_store(tmp_path: Path) -> None:
    store = recordings(tmp_path, 2.0, 30.0)
    assert store.segmented("none") is store
    assert recordings_whole(store).segmented("auto").fingerprint == recordings_whole(store).fingerprint
    found = {store.segmented(segment).fingerprint for segment in ("none", "auto", 2.0, 3.0)}  # type: ignore[arg-type]
    assert len(found) == 4
    assert store.segmented(5.0).fingerprint == store.segmented("auto").fingerprint, "the same clips"
    assert {store.segmented(segment).content for segment in ("none", "auto", 2.0)} == {store.content}  # type: ignore[arg-type]
    some = store.segmented("auto").usable().take([3, 1])
    np.testing.assert_array_equal(some[1], store.segmented("auto").usable()[1])
    with pytest.raises(ConfigError, match=r"segment=0\.03: give at least 0\.05 s"):
        store.segmented(0.03)


def recordings_whole(store: LogMelStore) -> LogMelStore:
    """The part of a store that `auto` leaves as it is."""
    return store.take(store.seconds <= 15)


def test_with_l2_level_does_not_matter_and_frames_are_those_of_the_normalised_clip(tmp_path):
    """Also of a clip that is read in several pieces, and of a stretch of a file: the norm is that of the clip."""
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.normal(size=16_000 * 25)).astype(np.float32)
    for name, level in (("loud.wav", 1.0), ("quiet.wav", 0.02)):
        soundfile.write(tmp_path / name, level * wave, 16_000, subtype="FLOAT")
    table = pd.DataFrame({"path": ["loud.wav", "quiet.wav", "loud.wav"], "start": [0, 0, 2], "duration": [25, 25, 1]})
    store = LogMelStore.open_or_build(Manifest(table, tmp_path), FrontEnd(l2=True), tmp_path / "cache")
    for i, part in enumerate((wave, wave, wave[32_000:48_000])):
        normalised = torch.from_numpy(part / np.linalg.norm(part.astype(np.float64))).float()
        np.testing.assert_allclose(store[i], LogMel()(normalised[None])[0].T.numpy(), atol=0.01)
    plain = LogMelStore.open_or_build(Manifest(table, tmp_path), FrontEnd(), tmp_path / "cache")
    assert np.abs(plain[0].astype(float) - plain[1].astype(float)).mean() > 3, "ln 50"
