import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from decar import embedder
from decar.audio import Manifest, decode
from decar.embedder import Embedder
from decar.errors import AudioError, DecarError
from decar.files import locked
from tests.audio.sounds import tone, write, write_bad_files
from tests.conftest import make_encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder("conv", pool="catavgmax", seed=0, hidden=16, widths=(4, 4), max_frames=298).eval()


def noise(seconds, rate=16_000, seed=0):
    return np.random.default_rng(seed).normal(size=round(seconds * rate)) * 0.1


def by_hand(encoder, wave):
    return encoder.embed(torch.from_numpy(wave)[None])[0].numpy()


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"), [(16_000, 1, "PCM_16"), (44_100, 2, "FLOAT"), (8_000, 1, "PCM_24")]
)
def test_a_short_clip_gets_what_the_encoder_makes_of_its_waveform(tmp_path, encoder, rate, channels, subtype):
    lengths = (0.03, 0.5, 1.0, 1.7, 2.995)
    for i, seconds in enumerate(lengths):
        wave = np.stack([noise(seconds, rate, i + c) for c in range(channels)], axis=1)
        soundfile.write(tmp_path / f"{i}.wav", wave, rate, subtype=subtype)
    made = Embedder(encoder).files(Manifest.from_folder(tmp_path))
    assert made.table["path"].tolist() == [f"{i}.wav" for i in range(len(lengths))]
    for i in range(len(lengths)):
        expected = by_hand(encoder, decode(tmp_path / f"{i}.wav"))
        np.testing.assert_allclose(made.vectors[i], expected, rtol=1e-4, atol=1e-5)
    waves = [soundfile.read(tmp_path / f"{i}.wav")[0] for i in range(len(lengths))]
    np.testing.assert_allclose(Embedder(encoder).waveforms(waves, rate), made.vectors, rtol=1e-3, atol=1e-4)


def test_a_long_clip_is_the_mean_of_its_pieces_by_their_frames(tmp_path, encoder, monkeypatch):
    soundfile.write(tmp_path / "long.wav", noise(25.3), 16_000, subtype="FLOAT")
    wave = decode(tmp_path / "long.wav")
    step, size = 298 * 160, 297 * 160 + 400
    pieces = [wave[i : i + size] for i in range(0, len(wave), step)]
    frames = [1 + (len(p) - 400) // 160 for p in pieces]
    assert sum(frames) == 1 + (len(wave) - 400) // 160  # each frame once
    expected = np.average([by_hand(encoder, p) for p in pieces], axis=0, weights=frames)

    def embed():
        return Embedder(encoder).files([tmp_path / "long.wav"]).vectors[0]

    np.testing.assert_allclose(embed(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Embedder(encoder).waveforms([wave])[0], expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(embedder, "BLOCK_FRAMES", 300)  # closed within the recording
    np.testing.assert_allclose(embed(), expected, rtol=1e-4, atol=1e-5)


def test_windows_say_where_they_are_and_labels_stay(tmp_path, encoder):
    soundfile.write(tmp_path / "a.wav", noise(5), 16_000, subtype="FLOAT")
    table = pd.DataFrame(
        {"path": ["a.wav", "a.wav"], "start": [0.0, 2.0], "duration": [1.0, 2.2], "species": ["x", "y"]}
    )
    made = Embedder(encoder, windows=0.8, hop=0.4).files(Manifest(table, tmp_path))
    assert made.table["species"].tolist() == ["x"] * 2 + ["y"] * 5
    assert made.table["start"].tolist() == pytest.approx([0, 0.4, 2.0, 2.4, 2.8, 3.2, 3.6])
    assert made.table["duration"].tolist() == pytest.approx([0.8, 0.6, 0.8, 0.8, 0.8, 0.8, 0.6])
    for (start, duration), vector in zip(made.table[["start", "duration"]].to_numpy(), made.vectors, strict=True):
        expected = by_hand(encoder, decode(tmp_path / "a.wav", start=start, duration=duration))
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_bad_files_are_told_and_silent_ones_embedded(tmp_path, encoder, caplog):
    reasons = write_bad_files(tmp_path / "in")
    write(tmp_path / "in" / "good.flac", tone(1.0))
    silent = reasons.pop("silence.wav")
    assert silent
    clips = Manifest.from_folder(tmp_path / "in")
    Embedder(encoder).write(clips, tmp_path / "out.parquet", progress=False)
    assert pd.read_parquet(tmp_path / "out.parquet")["path"].tolist() == ["good.flac", "silence.wav"]
    bad = pd.read_csv(tmp_path / "out.parquet.bad.csv").set_index("path")["reason"]
    assert set(bad.index) == set(reasons)
    assert all(bad[name].startswith(reason) for name, reason in reasons.items())
    assert "silence.wav: silent" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.parquet", "out.parquet.bad.csv"]
    (tmp_path / "in" / "good.flac").unlink()
    (tmp_path / "in" / "silence.wav").unlink()
    with pytest.raises(DecarError, match="none of the 6 clips can be embedded"):
        Embedder(encoder).write(clips, tmp_path / "none.parquet", progress=False)
    assert not (tmp_path / "none.parquet").exists()


def test_what_breaks_off_late_leaves_no_rows(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(embedder, "BLOCK_FRAMES", 200)
    write(tmp_path / "a.flac", noise(30))
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 3 // 4])
    write(tmp_path / "b.flac", tone(1.0))
    made = Embedder(encoder, windows=0.5).write(Manifest.from_folder(tmp_path), tmp_path / "o.npy", progress=False)
    assert made.bad["path"].tolist() == ["a.flac"]
    wave = decode(tmp_path / "b.flac")
    expected = np.stack([by_hand(encoder, wave[:8000]), by_hand(encoder, wave[8000:])])
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), expected, rtol=1e-4, atol=1e-5)  # none of a.flac's
    assert pd.read_csv(tmp_path / "o.npy.paths.csv")["start"].tolist() == [0.0, 0.5]


def test_parquet_says_what_made_it(tmp_path, encoder):
    write(tmp_path / "a.wav", tone(1.0))
    made = Embedder(encoder).write(Manifest.from_folder(tmp_path), tmp_path / "o.parquet", progress=False)
    schema = pq.read_schema(tmp_path / "o.parquet")
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: float>[{encoder.dim}]"
    assert encoder.hash() in schema.metadata[b"decar"].decode()
    np.testing.assert_array_equal(np.stack(pd.read_parquet(tmp_path / "o.parquet")["embedding"]), made.vectors)


def test_waveforms_that_cannot_be_embedded(encoder):
    with pytest.raises(AudioError, match="waveform 1: samples that are not finite"):
        Embedder(encoder).waveforms([np.zeros(16_000), np.full(16_000, np.nan)])
    with pytest.raises(AudioError, match="waveform 0: too short"):
        Embedder(encoder).waveforms([np.zeros(10)])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_that_cancel_are_no_silence_by_either_door(rate, tmp_path, encoder, caplog):
    mono = (0.2 * np.sin(np.arange(3 * rate) * 2000 / rate)).astype(np.float32)
    second = np.where(np.arange(3 * rate) < rate, mono, -mono)  # opposite from the second second on
    stereo = np.stack([mono, second], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, rate, "FLOAT")
    wanted = Embedder(encoder).waveforms([mono], rate)[0]
    np.testing.assert_allclose(Embedder(encoder).waveforms([stereo], rate)[0], wanted, rtol=0, atol=1e-5)
    assert "waveform 0: channels cancel" in caplog.text
    np.testing.assert_allclose(Embedder(encoder).files([tmp_path / "a.wav"]).vectors[0], wanted, rtol=0, atol=1e-5)


def test_a_waveform_that_is_lost_at_the_rate_of_the_encoder_is_reported(encoder, caplog):
    waves = np.sin(np.arange(96_000) / 192_000 * 2 * np.pi * np.array([[500], [40_000]]))
    said = "waveform 1: too high: 100.0% of its power is above 8000 Hz, which is left out"
    for embed in (Embedder(encoder).waveforms, encoder.embed):
        caplog.clear()
        embed(waves, 192_000)
        assert caplog.messages == [said]


def test_waveforms_may_be_tensors_of_any_float_type(encoder):
    wave = torch.linspace(-0.5, 0.5, 16_000).bfloat16()
    wanted = Embedder(encoder).waveforms([wave.float().numpy()])
    np.testing.assert_array_equal(Embedder(encoder).waveforms([wave]), wanted)
    np.testing.assert_array_equal(Embedder(encoder).waveforms([wave.float().requires_grad_()]), wanted)


def test_another_key_starts_anew(tmp_path):
    for key, left in (("a", 0), ("a", 1), ("b", 0)):
        embedder._prepare(tmp_path / "parts", key)
        assert len([*(tmp_path / "parts").glob("rows")]) == left
        (tmp_path / "parts" / "rows").touch()


def test_the_folder_of_unfinished_rows_is_deleted_before_the_next_call_may_begin_in_it(tmp_path, encoder, monkeypatch):
    """The other way round it was deleted under a call that had waited: hours later its rows were not there."""
    write(tmp_path / "a.wav", tone(0.3))
    delete = shutil.rmtree

    def rmtree(folder, **options):
        with pytest.raises(BlockingIOError), locked(f"{folder}.lock", 0):
            pass
        delete(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    Embedder(encoder).write(Manifest.from_folder(tmp_path), tmp_path / "e.parquet", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "e.parquet"]


def test_a_disk_that_is_gone_ends_it_and_a_file_that_is_gone_does_not(tmp_path, encoder, monkeypatch):
    """All clips behind an unmounted disk were left out, and the rows before it were taken for all there are."""
    folder, read, out = tmp_path / "disk", embedder.read_clips, tmp_path / "e.parquet"
    for name in "abcd":
        write(folder / f"{name}.wav", tone(0.3))
    clips, lose = Manifest.from_folder(folder), lambda: folder.rename(tmp_path / "unmounted")

    def losing(batch, windows, num_workers):
        yield from read(batch[:1], windows, num_workers)
        lose()
        yield from read(batch[1:], windows, num_workers)

    monkeypatch.setattr(embedder, "read_clips", losing)
    with pytest.raises(DecarError, match=r"disk/a\.wav: was there a moment ago and is gone.*the disk unmounted\?"):
        Embedder(encoder).write(clips, out, progress=False)
    assert not out.exists()
    (tmp_path / "unmounted").rename(folder)
    lose = (folder / "c.wav").unlink
    made = Embedder(encoder).write(clips, out, progress=False)
    assert made.bad["path"].tolist() == ["c.wav"]
    assert made.table["path"].tolist() == ["a.wav", "b.wav", "d.wav"]
