from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import decar
from decar.audio import decode
from decar.audio.decode import BLOCK_SECONDS
from decar.audio.samples import Power
from decar.errors import AudioError
from tests.audio.sounds import FORMATS, tone, write, write_bad_files

RATES = (8_000, 22_050, 44_100, 48_000)
CASES = [(ext, rate, ch) for ext in FORMATS for rate in RATES for ch in (1, 2) if ext != "opus" or rate % 8_000 == 0]


def level_at(wave: np.ndarray, hz: float, rate: int = 16_000) -> float:
    """Amplitude of one frequency, by projection."""
    return float(2 * np.abs(np.mean(wave * np.exp(-2j * np.pi * hz * np.arange(len(wave)) / rate))))


@pytest.mark.parametrize(("extension", "rate", "channels"), CASES)
def test_every_format_rate_and_channel_count(tmp_path: Path, extension: str, rate: int, channels: int) -> None:
    path = write(tmp_path / f"müsic & 音 {rate}.{extension}", tone(1.3, rate), rate, channels)
    wave = decode(path)
    assert wave.dtype == np.float32
    assert wave.shape == (20_800,)
    middle = wave[4_800:14_400]  # 264 whole periods, away from the edges
    assert level_at(middle, 440.0) == pytest.approx(0.5, abs=0.02)
    assert np.std(middle) == pytest.approx(0.5 / np.sqrt(2), abs=0.015)  # and nothing else beside it


def test_channels_are_averaged(tmp_path: Path) -> None:
    sides = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    soundfile.write(tmp_path / "s.wav", sides, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "s.wav"), np.full(800, 0.125, np.float32))


def stereo(path: Path, left: np.ndarray, right: np.ndarray) -> Path:
    soundfile.write(path, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    return path


def test_channels_that_cancel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opposite polarity: the mean would be silence. One channel is taken, and a line says so, once a file."""
    wave = tone(25.4).astype(np.float32)
    path = stereo(tmp_path / "o.wav", wave, -wave)
    np.testing.assert_array_equal(decode(path), wave)
    np.testing.assert_array_equal(decode(path, start=7.3, duration=11.1), wave[116_800 : 116_800 + 177_600])
    assert caplog.text.count(f"{path}: channels cancel: they are of opposite polarity") == 1
    quiet = 1e-3 * np.random.default_rng(0).normal(size=len(wave)).astype(np.float32)  # -51 dB of the tone
    notes: list[str] = []
    np.testing.assert_array_equal(decode(stereo(tmp_path / "o.wav", wave, quiet - wave), note=notes.append), wave)
    assert set(notes) == {"channels cancel: they are of opposite polarity, one of them is taken"}


def test_cancelling_is_decided_second_by_second(tmp_path: Path) -> None:
    """So that it depends neither on the blocks nor on the stretch."""
    wave = tone(13.0).astype(np.float32)
    right = np.concatenate([0.5 * wave[:64_000], -wave[64_000:]])
    path = stereo(tmp_path / "o.wav", wave, right)
    whole = decode(path, note=lambda text: None)
    np.testing.assert_allclose(whole[:64_000], 0.75 * wave[:64_000], atol=1e-7)
    np.testing.assert_array_equal(whole[64_000:], wave[64_000:])
    for start, duration in ((3.9, 0.05), (3.99, 0.3), (4.5, 6.2), (12.9, None)):
        piece = decode(path, start=start, duration=duration, note=lambda text: None)
        first = round(start * 16_000)
        np.testing.assert_array_equal(piece, whole[first : first + len(piece)])


def test_ordinary_channels_are_not_said_to_cancel(tmp_path: Path) -> None:
    """Silence, one silent channel, independent noise, and a mean 20 dB down."""
    rng, wave, notes = np.random.default_rng(1), tone(2.0), []
    for left, right in ((0 * wave, 0 * wave), (wave, 0 * wave), rng.normal(size=(2, 32_000)), (wave, -0.8 * wave)):
        got = decode(stereo(tmp_path / "o.wav", left, right), note=notes.append)
        np.testing.assert_allclose(got, (left + right) / 2, atol=1e-6)
    assert not notes


def test_of_channels_that_cancel_one_with_sound_is_taken(tmp_path: Path) -> None:
    wave = tone(1.5).astype(np.float32)
    soundfile.write(tmp_path / "o.wav", np.stack([0 * wave, wave, -wave], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "o.wav", note=lambda text: None), wave)


@pytest.mark.parametrize("rate", [44_100, 48_000, 8_000])
def test_blocks_resample_as_the_whole_does(tmp_path: Path, rate: int) -> None:
    rng = np.random.default_rng(1)
    wave = rng.normal(size=round((2.5 * BLOCK_SECONDS + 0.123) * rate)).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "n.wav", wave, rate, subtype="FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "n.wav"), soxr.resample(wave, rate, 16_000))


@pytest.mark.parametrize("extension", list(FORMATS))
def test_a_stretch_equals_the_same_piece_of_the_whole(tmp_path: Path, extension: str) -> None:
    """Also for mp3 at variable bit rate, where libsndfile's seek goes to a wrong place."""
    rng = np.random.default_rng(2)
    wave = tone(4.0) + rng.normal(size=64_000) * np.linspace(0, 0.1, 64_000)
    container, coding = FORMATS[extension]
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.99} if extension == "mp3" else {}
    soundfile.write(tmp_path / f"n.{extension}", wave, 16_000, format=container, subtype=coding, **options)
    all_of_it = decode(tmp_path / f"n.{extension}")
    stretch = decode(tmp_path / f"n.{extension}", start=2.5, duration=0.75)
    np.testing.assert_allclose(stretch, all_of_it[40_000:52_000], atol=1e-6)


def test_a_stretch_at_the_end_of_a_vorbis_file(tmp_path: Path) -> None:
    """libsndfile's seek into the last page of a stream is off by what the end trims from that page (its issue 885)."""
    rng = np.random.default_rng(1)
    for n in (53_920, 61_234, 64_000):
        wave = tone(n / 16_000, level=0.15) + rng.normal(size=n) * 0.05
        soundfile.write(tmp_path / "n.ogg", wave, 16_000, format="OGG", subtype="VORBIS")
        all_of_it = decode(tmp_path / "n.ogg")
        for left in (20_000, 6_000, 3_000, 500, 20):
            stretch = decode(tmp_path / "n.ogg", start=(n - left) / 16_000)
            np.testing.assert_allclose(stretch, all_of_it[n - left :], atol=1e-6, err_msg=f"{left} of {n}")


def test_the_ending_raw_is_a_name_like_others(tmp_path: Path) -> None:
    """soundfile takes it for samples without a header, and raised a TypeError."""
    write(tmp_path / "a.wav", tone(1.0)).rename(tmp_path / "a.raw")
    assert len(decode(tmp_path / "a.raw")) == 16_000
    (tmp_path / "b.RAW").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(AudioError, match="Format not recognised"):
        decode(tmp_path / "b.RAW")


def test_a_long_mp3_has_no_seams_between_blocks(tmp_path: Path) -> None:
    """Variable bit rate: where soundfile's seek after each block goes wrong."""
    rng = np.random.default_rng(4)
    wave = tone(35.0) + rng.normal(size=35 * 16_000) * np.linspace(0, 0.1, 35 * 16_000)
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.99}
    soundfile.write(tmp_path / "long.mp3", wave, 16_000, format="MP3", **options)
    at_once, _ = soundfile.read(tmp_path / "long.mp3", dtype="float32")
    np.testing.assert_allclose(decode(tmp_path / "long.mp3"), at_once, atol=1e-6)


def test_only_the_stretch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.wav", np.zeros(16_000 * 60))
    asked = []
    real = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        asked.append(frames)
        return real(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert len(decode(path, start=50.0, duration=1.0)) == 16_000
    assert sum(asked) == 16_000


def test_a_stretch_past_the_end_is_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    assert len(decode(path, start=0.75, duration=3.0)) == 4_000
    assert len(decode(path, duration=0.5, sample_rate=8_000)) == 4_000
    with pytest.raises(AudioError, match=r"start is behind the end: start 1.000 s, the file has 1.000 s"):
        decode(path, start=1.0)


def test_bad_files_tell_their_reason(tmp_path: Path) -> None:
    reasons = write_bad_files(tmp_path)
    for name in ("truncated.flac", "zero.wav", "text.wav"):
        with pytest.raises(AudioError) as caught:
            decode(tmp_path / name)
        assert str(caught.value).startswith(reasons[name])
        assert str(tmp_path) not in str(caught.value)
    assert len(decode(tmp_path / "three ms.wav")) == 48
    np.testing.assert_array_equal(decode(tmp_path / "silence.wav"), np.zeros(16_000, np.float32))


def test_the_truncation_is_measured(tmp_path: Path) -> None:
    write_bad_files(tmp_path)
    with pytest.raises(AudioError, match=r"header says 10\.000 s") as caught:
        decode(tmp_path / "truncated.flac")
    readable = float(str(caught.value).split(", ")[1].split(" s")[0])
    assert readable == pytest.approx(5.0, abs=0.4)
    assert len(decode(tmp_path / "truncated.flac", start=1.0, duration=2.0)) == 32_000  # what is whole is of use
    with pytest.raises(AudioError, match=r"truncated: header says 10.000 s, 8.000 s is not there"):
        decode(tmp_path / "truncated.flac", start=8.0, duration=1.0)


def test_a_cut_mp3_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", tone(3.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"truncated: header says 3\.000 s, 1\.\d+ s could be read"):
        decode(path)


@pytest.mark.parametrize("extension", ["ogg", "opus", "wav"])
def test_what_tells_no_length_is_read_as_far_as_it_goes(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"a.{extension}", tone(10.0))
    whole = decode(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    part = decode(path)
    assert 4 * 16_000 < len(part) < 9 * 16_000
    np.testing.assert_allclose(part[:48_000], whole[:48_000], atol=1e-6)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"^file not found$"):
        decode(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match=r"^not a file$"):
        decode(tmp_path)
    write(tmp_path / "a.wav", tone(0.1))
    with pytest.raises(AudioError, match="cannot be opened"):
        decode(tmp_path / "a.wav" / "b.wav")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", tone(0.1))

    def refused(*_: object) -> None:  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(AudioError, match=r"^cannot be opened \(Permission denied\)$"):
        decode(path)


def test_a_file_of_no_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert decode(tmp_path / "none.wav").shape == (0,)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 44_100)
    assert decode(tmp_path / "none.wav").shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_non_finite_samples(tmp_path: Path, value: float, rate: int) -> None:
    wave = tone(0.5, rate)
    wave[77] = value
    soundfile.write(tmp_path / "n.wav", wave, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match="non-finite"):
        decode(tmp_path / "n.wav")


def test_the_bundled_sounds_decode() -> None:
    mini = Path(str(decar.__file__)).parent / "data" / "mini" / "audio"
    files = sorted(mini.iterdir())[::100]
    assert len(files) >= 19
    for file in files:
        wave = decode(file)
        assert 1_000 < len(wave) < 16_000 * 30
        assert 1e-3 < np.abs(wave).max() < 2


@pytest.mark.parametrize(
    ("high", "low", "said"), [(0.5, 0.0, True), (0.5, 0.04, True), (0.5, 0.06, False), (1e-5, 0.0, False)]
)
def test_a_sound_that_is_lost_at_the_lower_rate_is_reported(tmp_path, high, low, said):
    """Of 40 kHz nothing is left at 16 kHz but the ringing of the filter, which is not silent."""
    t = np.arange(192_000) / 192_000
    wave = 0.1 + high * np.sin(2 * np.pi * 40_000 * t) + low * np.sin(2 * np.pi * 500 * t)
    soundfile.write(tmp_path / "bat.wav", wave, 192_000, subtype="FLOAT")
    notes: list[str] = []
    decode(tmp_path / "bat.wav", note=notes.append)
    share = 1 - low**2 / (high**2 + low**2)
    assert notes == ([f"too high: {share:.1%} of its power is above 8000 Hz, which is left out"] if said else [])


def test_power_is_the_variance_of_the_samples():
    wave = np.random.default_rng(0).normal(0.5, 0.1, 1_000).astype(np.float32)
    power = Power()
    for block in np.split(wave, [17, 300]):
        power.add(block)
    assert power.mean == pytest.approx(float(wave.var()), rel=1e-4)
    assert Power().mean == 0
