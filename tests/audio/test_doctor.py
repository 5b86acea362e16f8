"""Every kind of fault is found in its clip, and a healthy folder has none."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import Manifest
from decar.audio.doctor import _Seen, examine
from decar.errors import ManifestError

RATE = 16_000


def sine(hz, seconds):
    return 0.3 * np.sin(2 * np.pi * hz * seconds)


@pytest.fixture
def sounds(tmp_path):
    """Healthy and broken sounds, and what is wrong with each."""
    rng = np.random.default_rng(0)
    noise = {name: 0.1 * rng.normal(size=RATE // 2) for name in ("a", "b", "c")}
    tone = np.sin(np.linspace(0, 500, RATE // 2))
    for name, wave in noise.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE)
    soundfile.write(tmp_path / "copy of a.flac", *soundfile.read(tmp_path / "a.wav"))
    soundfile.write(tmp_path / "loud.wav", np.clip(5 * tone, -1, 1), RATE)
    soundfile.write(tmp_path / "peaky.wav", tone * 0.9995, RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "blip.wav", tone[:48], RATE)
    soundfile.write(tmp_path / "phone.wav", noise["b"], 8_000)
    seconds = np.arange(96_000) / 192_000
    soundfile.write(tmp_path / "bat.wav", sine(40_000, seconds), 192_000)
    soundfile.write(tmp_path / "wren.wav", sine(40_000, seconds) + 1.1 * sine(5_000, seconds), 192_000)
    soundfile.write(tmp_path / "opposite.wav", np.stack([noise["c"][::-1], -noise["c"][::-1]], axis=1), RATE)
    soundfile.write(tmp_path / "integers.wav", 20_000 * noise["a"][::-1], RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.wav", noise["b"][::-1], RATE)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-4_000])
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound " * 100)
    return tmp_path


FAULTS = {
    "copy of a.flac": ("warning", "duplicate", "as a.wav"),
    "loud.wav": ("warning", "clipped", "of the samples stand at full scale"),
    "silent.wav": ("error", "silent", "no sample above"),
    "blip.wav": ("error", "too short", "0.003 s, one window is 0.025 s"),
    "phone.wav": ("warning", "low rate", "8000 Hz: nothing above 4000 Hz"),
    "bat.wav": ("warning", "too high", "100% of its power is above 7800 Hz"),
    "opposite.wav": ("warning", "channels cancel", "opposite polarity"),
    "integers.wav": ("warning", "beyond full scale", "full scale is 1"),
    "cut.wav": ("warning", "cut short", "4000 of 16000 bytes are missing"),
    "zero.wav": ("error", "empty", "0 bytes"),
    "text.wav": ("error", "unreadable", "not audio"),
}


def test_every_fault_and_nothing_else(sounds):
    found = examine(Manifest.from_folder(sounds), progress=False).set_index("path")
    assert sorted(found.index) == sorted(FAULTS)
    for path, (severity, problem, detail) in FAULTS.items():
        row = found.loc[path]
        assert (row["severity"], row["problem"]) == (severity, problem), path
        assert detail in row["detail"], path


def write(folder, *rows):
    table = pd.DataFrame(rows, columns=["path", "split", "speaker"])
    table.to_csv(folder / "table.csv", index=False)
    return Manifest.from_csv(folder / "table.csv")


def test_leaks_between_splits(sounds):
    table = write(
        sounds, ("a.wav", "train", "ann"), ("b.wav", "train", "bob"), ("copy of a.flac", "test", "cid"),
        ("c.wav", "test", "bob"), ("peaky.wav", "test", "bob"), ("zero.wav", "", ""),
    )  # fmt: skip
    found = examine(table, progress=False)
    leaks = found[found["problem"].str.contains("across")]
    assert leaks[["path", "problem", "detail"]].to_numpy().tolist() == [
        ["copy of a.flac", "same content across splits", "as a.wav; train and test"],
        ["c.wav", "group across splits", "speaker bob is in train and in test"],  # told once, not for every clip
    ]
    assert (leaks["severity"] == "error").all()
    with pytest.raises(ManifestError, match="no column 'band'"):
        examine(table, apart=["band"], progress=False)


@pytest.mark.parametrize(
    ("splits", "leaks"),
    [
        (["", "train", "test", ""], [("b.wav", "as a.wav; train and test")]),  # was called a duplicate of the first
        (["Train", "train ", "val", "valid"], [(name, "as Train.wav; train and valid") for name in ("b.wav", "c.wav")]),
        (["", "", "", "test"], []),
    ],
)  # fmt: skip
def test_a_leak_is_one_of_clips_that_have_a_split(tmp_path, splits, leaks):
    """Wherever in the list clips without a split stand, and however a split is spelled, as the tasks read it."""
    names = ["Train.wav", "a.wav", "b.wav", "c.wav"]
    for name in names:
        soundfile.write(tmp_path / name, 0.1 * np.random.default_rng(0).normal(size=RATE), RATE)
    table = pd.DataFrame({"path": names, "split": splits, "speaker": ["bob", "bob ", "bob", "bob"]})
    found = examine(Manifest(table, tmp_path), progress=False)
    same = found[found["problem"] == "same content across splits"]
    assert list(same[["path", "detail"]].itertuples(index=False, name=None)) == leaks
    assert (found["problem"] == "duplicate").sum() == 3 - len(leaks)
    assert (found["problem"] == "group across splits").sum() == (len(leaks) > 0)


def test_pieces_of_one_file_are_no_duplicates(sounds):
    pd.DataFrame({"path": ["a.wav"] * 3, "start": [0, 0.1, 0.2], "duration": 0.1}).to_csv(sounds / "t.csv", index=False)
    assert not len(examine(Manifest.from_csv(sounds / "t.csv"), progress=False))
    pd.DataFrame({"path": ["a.wav"] * 2, "start": [0.1, 0.1], "duration": 0.1}).to_csv(sounds / "t.csv", index=False)
    assert examine(Manifest.from_csv(sounds / "t.csv"), progress=False)["problem"].tolist() == ["duplicate"]


def test_pieces_that_overlap_across_splits_leak(sounds):
    table = pd.DataFrame({"path": "a.wav", "start": [0, 0.1, 0.2, 0.3], "duration": 0.15, "split": [*"abba"]})
    table["split"] = table["split"].map({"a": "train", "b": "test"})
    table.to_csv(sounds / "t.csv", index=False)
    found = examine(Manifest.from_csv(sounds / "t.csv"), progress=False)
    assert found[["start", "severity", "problem", "detail"]].to_numpy().tolist() == [
        [0.1, "error", "same content across splits", "a part of it is in a clip of train; it is in test"],
        [0.3, "error", "same content across splits", "a part of it is in a clip of test; it is in train"],
    ]


def test_a_stretch_beyond_the_end_of_its_file_is_named(sounds):
    """Durations in another unit were read to the end of each file, without a word."""
    pd.DataFrame({"path": ["a.wav", "b.wav"], "start": 0.1, "duration": [0.4, 400]}).to_csv(
        sounds / "t.csv", index=False
    )
    found = examine(Manifest.from_csv(sounds / "t.csv"), progress=False)
    assert found[["path", "severity", "problem"]].to_numpy().tolist() == [["b.wav", "warning", "beyond the end"]]
    assert found["detail"][0] == "400.000 s from 0.100 s on are wanted, 0.400 s are there"


def clipped_share(*blocks):
    seen = _Seen(RATE, f_max=7_800)
    for block in blocks:
        seen.add(block)
    return seen.clipped_share


def test_single_peaks_are_no_clipping():
    wave = np.zeros(1000, np.float32)
    wave[::10] = 1
    assert clipped_share(wave) == 0
    wave[:20] = -1
    assert clipped_share(wave) == pytest.approx(21 / 1000)  # the peak at 20 stands beside them


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 999])
def test_blocks_change_nothing(size):
    """Runs of clipped samples across every border of blocks; the content too."""
    wave = np.repeat((np.random.default_rng(size).random(400) < 0.4).astype(np.float32), 3)[: 10 * 7 * 17]
    wave[::11] = 0
    expected, found = _Seen(RATE, f_max=7_800), _Seen(RATE, f_max=7_800)
    expected.add(wave)
    for at in range(0, len(wave), size):
        found.add(wave[at : at + size])
    high = np.concatenate([[False], wave >= 1, [False]])
    assert expected.clipped_share == np.mean(high[1:-1] & (high[:-2] | high[2:]))
    assert found.clipped_share == expected.clipped_share
    assert found.content.digest() == expected.content.digest()
    assert (found.samples, found.peak) == (len(wave), 1)
