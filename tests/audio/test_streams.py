"""A header that does not know how long its file is costs no sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from decar.audio import FrontEnd, Manifest
from decar.audio.clips import ClipEnd, Piece, Windows, read_clips
from decar.audio.decode import decode
from decar.audio.mpeg import parse
from decar.audio.store import LogMelStore
from decar.errors import AudioError
from tests.audio.headers import (
    RATE,
    SECONDS,
    encoded,
    flac_total,
    heard,
    kinds,
    ladder,
    put,
    sized,
    with_serial,
    without_xing,
)  # fmt: skip

NO_END = "cut short: its last Ogg page is not marked as the end"
TOLERANCE = 0.15  # s a stream: the delay of an mp3 encoder and its last frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


@pytest.fixture(scope="module")
def times(folder: Path) -> dict[str, int]:
    """Name of each file in the folder → how many times the ladder is in it."""
    made = kinds(folder)
    for name, (data, _) in made.items():
        (folder / name).write_bytes(data)
    return {name: count for name, (_, count) in made.items()}


def test_every_second_comes_out(folder: Path, times: dict[str, int]) -> None:
    wrong = {}
    for name, count in times.items():
        notes: list[str] = []
        wave = decode(folder / name, note=notes.append)
        close = abs(len(wave) / RATE - count * SECONDS) <= TOLERANCE * count
        said = [NO_END] if name.startswith("no end") else []
        if heard(wave) != list(range(SECONDS)) * count or notes != said or not close:
            wrong[name] = len(wave) / RATE, heard(wave), notes
    assert not wrong


def test_every_second_is_embedded_and_stored(folder: Path, times: dict[str, int], tmp_path: Path) -> None:
    manifest, frontend = Manifest.from_folder(folder), FrontEnd()
    store = LogMelStore.open_or_build(manifest, frontend, tmp_path, progress=False)
    assert sorted(manifest.table["path"]) == sorted(times)
    for i, name in enumerate(manifest.table["path"]):
        wanted = SECONDS * times[name]
        assert store.lengths[i] / 100 == pytest.approx(wanted, abs=TOLERANCE * times[name]), name
        *events, end = read_clips([(folder / name, 0.0, None)], Windows(None, None, frontend, 998), 1)
        assert isinstance(end, ClipEnd)
        assert not end.reason, name
        assert end.n_samples / RATE == pytest.approx(wanted, abs=TOLERANCE * times[name]), name
        pieces = sum(len(event.mel) for event in events if isinstance(event, Piece))
        assert pieces / 100 == pytest.approx(wanted, abs=0.03 * wanted / 9.98 + TOLERANCE * times[name]), name


@pytest.mark.parametrize("stretch", [(3.3, 2.5), (11.4, 1.3), (13.1, 4.0), (20.0, None)])
def test_a_stretch_is_a_piece_of_the_whole(
    folder: Path, times: dict[str, int], stretch: tuple[float, float | None]
) -> None:
    """Also across two streams; where rates differ the resampler starts at the stretch, so only its length is equal."""
    start, duration = stretch
    for name, count in times.items():
        if start >= count * SECONDS:
            with pytest.raises(AudioError, match="start is behind the end"):
                decode(folder / name, start=start, duration=duration)
            continue
        whole = decode(folder / name)
        end = len(whole) if duration is None else round((start + duration) * RATE)
        piece, wanted = decode(folder / name, start=start, duration=duration), whole[round(start * RATE) : end]
        if "rates" in name or "chained no end" in name:  # whose first stream lacks its last packet, 104 samples
            assert abs(len(piece) - len(wanted)) <= 104, name
        else:
            np.testing.assert_allclose(piece, wanted, atol=1e-6, err_msg=name)


def test_ordinary_files_are_read_as_libsndfile_reads_them(tmp_path: Path) -> None:
    for container, coding in (("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "OPUS"), ("AIFF", None)):
        (tmp_path / "a").write_bytes(encoded(tmp_path, container, coding))
        wanted, _ = soundfile.read(tmp_path / "a", dtype="float32")
        np.testing.assert_allclose(decode(tmp_path / "a"), wanted, atol=1e-6)


def test_what_follows_the_sound_is_no_sound(tmp_path: Path) -> None:
    """Chunks, with and without the padding of an odd one, junk, and a truly empty wav."""
    soundfile.write(tmp_path / "a.wav", ladder()[:20_001], RATE, subtype="PCM_U8")
    data = (tmp_path / "a.wav").read_bytes()[: 44 + 20_001]
    chunk = b"LIST" + (8).to_bytes(4, "little") + b"INFOabcd"
    for tail in (chunk, b"\0" + chunk, b"\0" + chunk + chunk, b"\0" + bytes(200)):
        (tmp_path / "a.wav").write_bytes(data + tail)
        assert len(decode(tmp_path / "a.wav")) == 20_001
    soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes() + chunk)
    assert len(decode(tmp_path / "a.wav")) == 0


def test_truncated_is_what_the_container_proves(tmp_path: Path) -> None:
    flac, wav = encoded(tmp_path, "FLAC"), encoded(tmp_path, "WAV")
    (tmp_path / "a").write_bytes(flac_total(flac, 20 * RATE))
    with pytest.raises(AudioError, match=r"truncated: header says 20.000 s, 12.000 s could be read"):
        decode(tmp_path / "a")
    (tmp_path / "a").write_bytes(flac[: len(flac) // 2] + flac)  # the first of two is cut
    with pytest.raises(AudioError, match=r"truncated: header says 12.000 s, \d.\d+ s could be read"):
        decode(tmp_path / "a")
    (tmp_path / "a").write_bytes(wav[:-RATE])
    notes: list[str] = []
    assert len(decode(tmp_path / "a", note=notes.append)) == (SECONDS - 0.5) * RATE
    assert notes == [f"cut short: {RATE} of {2 * SECONDS * RATE} bytes are missing"]
    assert len(decode(tmp_path / "a", duration=2.0, note=notes.append)) == 2 * RATE
    assert len(notes) == 1  # that stretch is whole


@pytest.mark.parametrize("container", ["AIFF", "AU", "CAF", "W64", "RF64"])
def test_no_container_is_read_short_without_a_word(tmp_path: Path, container: str) -> None:
    data = encoded(tmp_path, container)
    (tmp_path / "a").write_bytes(data)
    notes: list[str] = []
    assert len(decode(tmp_path / "a", note=notes.append)) == SECONDS * RATE
    assert not notes
    (tmp_path / "a").write_bytes(data[: len(data) // 2])
    assert 0.4 * SECONDS * RATE < len(decode(tmp_path / "a", note=notes.append)) < 0.6 * SECONDS * RATE
    assert [note.partition(":")[0] for note in notes] == ["cut short"]


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_its_end_is_not_read_without_a_word(tmp_path: Path, coding: str) -> None:
    """It has no length in its header: only a mark on its last page says that this is the end."""
    data = encoded(tmp_path, "OGG", coding)
    last = data.rfind(b"OggS\0")
    notes: list[str] = []
    for kept, wanted in (
        (data, []),
        (data[: len(data) // 2], ["cut short: its last Ogg page is not whole"]),
        (data[: last + 20], ["cut short: its last Ogg page is not whole"]),
        (data[:last], [NO_END]),
    ):
        (tmp_path / "a").write_bytes(kept)
        notes.clear()
        decode(tmp_path / "a", note=notes.append)
        assert notes == wanted
        decode(tmp_path / "a", duration=1.0, note=notes.append)
        assert notes == wanted  # that stretch is there
    (tmp_path / "a").write_bytes(with_serial(data, 1) + data[: len(data) // 2])  # the second of two is cut
    notes.clear()
    decode(tmp_path / "a", note=notes.append)
    assert notes == ["cut short: its last Ogg page is not whole"]  # once


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("seconds", [(3, 1), (1, 3), (3, 3, 1), (3, 1, 2)])
def test_ogg_streams_of_one_serial_number_and_other_lengths_are_refused(
    tmp_path: Path, coding: str, seconds: tuple[int, ...]
) -> None:
    """libsndfile takes the length of a stream from the last page of the file that has its number."""
    parts = []
    for length in seconds:
        soundfile.write(tmp_path / "part", ladder()[: length * RATE], RATE, format="OGG", subtype=coding)
        parts.append((tmp_path / "part").read_bytes())
    file = tmp_path / "a.ogg"
    file.write_bytes(b"".join(with_serial(part, i) for i, part in enumerate(parts)))
    assert len(decode(file)) == sum(seconds) * RATE
    file.write_bytes(b"".join(with_serial(part, 7) for part in parts))
    with pytest.raises(AudioError, match=r"Ogg streams of one serial number|truncated: header says 3\.000 s"):
        decode(file)
    with pytest.raises(AudioError, match=r"Ogg streams of one serial number|truncated: header says 3\.000 s"):
        decode(file, start=0.5, duration=2.0)
    if seconds[0] >= seconds[-1]:
        assert len(decode(file, duration=0.5)) == RATE // 2
    file.write_bytes(b"".join(with_serial(parts[0], 7) for _ in parts))
    assert len(decode(file)) == len(parts) * seconds[0] * RATE, "of one length: each is read in full"


@pytest.mark.parametrize(
    "tag", [b"ID3\3\0\0\0\0\x20\0", b"APETAGEX", b"\0LIST\xff\xff\0\0INFO", b"TAG", b"id3 \xff\xff\0\0"]
)
def test_a_tag_behind_the_sound_of_a_wav_is_not_sound(tmp_path: Path, tag: bytes) -> None:
    """Tags that are no chunk, or whose chunk is longer than the file."""
    (tmp_path / "a.wav").write_bytes(encoded(tmp_path, "WAV") + tag + b"\x55" * 4000)
    assert len(decode(tmp_path / "a.wav")) == SECONDS * RATE


def test_zeros_before_the_first_frame_of_a_bare_mp3(tmp_path: Path) -> None:
    bare = without_xing(encoded(tmp_path, "MP3"))
    (tmp_path / "a.mp3").write_bytes(bare)
    (tmp_path / "padded.mp3").write_bytes(bytes(500) + bare)
    np.testing.assert_array_equal(decode(tmp_path / "padded.mp3"), decode(tmp_path / "a.mp3"))


def test_a_wav_of_more_than_4_gib_is_not_read_short_without_a_word(tmp_path: Path) -> None:
    wav = sized(encoded(tmp_path, "WAV"), b"\xff" * 4)
    with open(tmp_path / "big.wav", "wb") as file:
        file.write(wav)
        file.truncate(5 * 2**30)  # a hole on the disk
    notes: list[str] = []
    with pytest.raises(AudioError, match="start is behind the end"):
        decode(tmp_path / "big.wav", start=140_000, duration=1.0, note=notes.append)
    assert heard(decode(tmp_path / "big.wav", start=5.0, duration=2.0)) == [5, 6]


def test_frame_headers_of_the_standard() -> None:
    """ISO 11172-3, 2.4.3.1: 144 · bitrate / rate bytes; half of it in layer III at the low rates."""
    mono, key = b"\xc0", (3, 1, 44_100, True)
    frame = parse(b"\xff\xfb\x90" + mono)
    assert frame is not None
    assert (frame.size, frame.kind) == (144 * 128_000 // 44_100, key)
    frame = parse(b"\xff\xfb\x92\x00")
    assert frame is not None
    assert (frame.size, frame.kind[3]) == (144 * 128_000 // 44_100 + 1, False)
    frame = parse(b"\xff\xf3\x88\x00")  # MPEG-2, 64 kbit/s, 16 kHz
    assert frame is not None
    assert frame.size == 72 * 64_000 // 16_000
    frame = parse(b"\xff\xff\x40\x00")  # layer I, 128 kbit/s
    assert frame is not None
    assert frame.size == 4 * (12 * 128_000 // 44_100)
    for none in (b"\xff\xf1\x50\x80", b"\xff\xfb\xf0\x00", b"\xff\xfb\x0c\x00", b"\xff\xe9\x90\x00", b"ID3\4", b"\xff"):
        assert parse(none) is None


@pytest.mark.parametrize("container", sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}))
def test_a_stretch_of_every_coding(tmp_path: Path, container: str) -> None:
    """libsndfile's seek fails for GSM 6.10, G.72x, NMS ADPCM, DWVW, and is not exact for mp3 and Opus."""
    wave, tried = ladder(8_000), 0
    for coding in soundfile.available_subtypes(container):
        if not soundfile.check_format(container, coding):
            continue
        try:
            soundfile.write(tmp_path / "a", wave, 8_000, format=container, subtype=coding)
        except soundfile.LibsndfileError:  # some are read only
            continue
        tried += 1
        with soundfile.SoundFile(tmp_path / "a") as sound:
            rate = sound.samplerate
        whole = decode(tmp_path / "a", sample_rate=rate)
        for first, count in ((1, 100), (rate, 500), (70_001, 9_999)):
            piece = decode(tmp_path / "a", start=first / rate, duration=count / rate, sample_rate=rate)
            np.testing.assert_allclose(piece, whole[first : first + count], atol=1e-6, err_msg=coding)
    assert tried


def test_the_whole_of_a_bare_mp3_is_that_of_the_one_with_a_header(tmp_path: Path) -> None:
    mp3 = encoded(tmp_path, "MP3")
    (tmp_path / "a.mp3").write_bytes(mp3)
    (tmp_path / "bare.mp3").write_bytes(without_xing(mp3))
    whole, bare = decode(tmp_path / "a.mp3"), decode(tmp_path / "bare.mp3")
    delay = int(np.argmax(np.correlate(bare[: RATE * 2], whole[: RATE // 2], "valid")))
    assert 0 < delay < 0.1 * RATE  # what the header says is to be dropped is the encoder's delay
    np.testing.assert_allclose(bare[delay + 2_000 : delay + len(whole) - 2_000], whole[2_000:-2_000], atol=1e-4)


def test_a_damaged_xing_header_costs_nothing(tmp_path: Path) -> None:
    """Its count of frames is that of a file which was longer or shorter."""
    mp3 = encoded(tmp_path, "MP3")
    at = mp3.index(b"Xing") + 8
    count = int.from_bytes(mp3[at : at + 4], "big")
    (tmp_path / "a.mp3").write_bytes(put(put(mp3, at, (count // 3).to_bytes(4, "big")), at + 4, bytes(4)))
    assert heard(decode(tmp_path / "a.mp3"))[-1] == SECONDS - 1
    (tmp_path / "a.mp3").write_bytes(put(mp3, at, (2 * count).to_bytes(4, "big")))
    with pytest.raises(AudioError, match=r"truncated: header says 2\d"):
        decode(tmp_path / "a.mp3")
