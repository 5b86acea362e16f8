"""When and where a recording was made: what recorders write is read, and nothing is guessed."""

import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import LogMelStore, Manifest
from decar.audio.recorded import recorded, with_clock
from decar.embedder import Embedder
from tests.conftest import make_encoder

UTC = timezone.utc


@pytest.mark.parametrize(
    ("name", "time", "site"),
    [
        ("SITE_20240512_053000.wav", datetime(2024, 5, 12, 5, 30), "SITE"),
        ("20240512_053000.WAV", datetime(2024, 5, 12, 5, 30), ""),
        ("S4A01234_20190630_200000_left.flac", datetime(2019, 6, 30, 20), "S4A01234"),
        ("north-ridge-20240512T053000.mp3", datetime(2024, 5, 12, 5, 30), "north-ridge"),
        ("2024-05-12 05-30-00.ogg", datetime(2024, 5, 12, 5, 30), ""),
        ("pond_2024-05-12_05.30.59.wav", datetime(2024, 5, 12, 5, 30, 59), "pond"),
        ("20240512053000.wav", datetime(2024, 5, 12, 5, 30), ""),
        ("5CB8F1A2.WAV", datetime(2019, 4, 18, 21, 52, 34, tzinfo=UTC), ""),
        ("SITE_20241350_053000.wav", None, ""), ("SITE_20240512_256000.wav", None, ""), ("clip 12.wav", None, ""),
        ("60000000.WAV", None, ""), ("123456789012345.wav", None, ""), ("00001234_000000.wav", None, ""),
        ("effe_000480e8.opus", None, ""), ("20240512.wav", None, ""), ("12345678_123456.wav", None, ""),
    ],
)  # fmt: skip
def test_names(name, time, site):
    assert recorded([name]) == ([time], [site])


def test_hexadecimal_names_are_times_only_where_all_of_them_can_be():
    assert recorded(["5CB8F1A2.WAV", "FFB8F1A2.WAV"])[0] == [None, None], "these are random numbers"
    assert all(recorded(["5CB8F1A2.WAV", "5CB8F1B0.WAV", "noise.wav"])[0][:2])


def test_folders_are_sites_where_names_have_none():
    files = [
        "/r/pond/20240512_053000.wav",
        "/r/hill/20240512_053000.wav",
        "/r/hill/A_20240512_053000.wav",
        "/r/x/y.wav",
    ]
    assert recorded(files)[1] == ["pond", "hill", "A", ""]
    assert recorded(files[:1])[1] == [""], "one folder of all is no site"


def wav(path: Path, *chunks: tuple[bytes, bytes]) -> str:
    soundfile.write(path, np.zeros(1600), 16_000)
    extra = b"".join(struct.pack("<4sI", name, len(text)) + text + b"\0" * (len(text) % 2) for name, text in chunks)
    content = path.read_bytes() + extra
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert len(soundfile.read(path)[0]) == 1600
    return str(path)


def info(comment: str) -> tuple[bytes, bytes]:
    text = comment.encode() + b"\0" * (2 - len(comment) % 2)
    return b"LIST", b"INFOICMT" + struct.pack("<I", len(text)) + text


GUANO = (b"guan", "GUANO|Version: 1.0\nTimestamp: 2017-03-10T20:45:10-05:00\nSite: ü\n".encode())
BEXT = (b"bext", b"\0" * 320 + b"2018-07-0106:07:08" + b"\0" * 300)


@pytest.mark.parametrize(
    ("name", "chunks", "time"),
    [
        ("a.wav", [GUANO], datetime(2017, 3, 10, 20, 45, 10, tzinfo=timezone(timedelta(hours=-5)))),
        ("a.wav", [(b"junk", b"x" * 7), BEXT], datetime(2018, 7, 1, 6, 7, 8)),
        ("a.wav", [info("Recorded at 19:17:30 10/04/2019 (UTC) by AudioMoth 247AA5015E")],
         datetime(2019, 4, 10, 19, 17, 30, tzinfo=UTC)),
        ("a.wav", [info("Recorded at 19:17:30.500 10/04/2019 (UTC-3:30) by AudioMoth 247AA5015E at medium gain")],
         datetime(2019, 4, 10, 19, 17, 30, tzinfo=timezone(-timedelta(hours=3, minutes=30)))),
        ("a.wav", [info("Recorded at 19:17:30 31/02/2019 (UTC) by AudioMoth")], None),
        ("a.wav", [info("Recorded at 19:17:30 10/04/2019 (UTC+99) by AudioMoth")], None),
        ("a.wav", [(b"guan", b"Timestamp: 9999-12-31T23:59:59\n")], None),  # a second later is no time
        ("a.wav", [info("mixed at 19:17:30 10/04/2019")], None),
        ("a.wav", [(b"guan", b"Timestamp: yesterday")], None), ("a.wav", [(b"bext", b"\0" * 400)], None),
        ("20240512_053000.wav", [BEXT], datetime(2024, 5, 12, 5, 30)),  # bext may be a studio's
        ("20240512_053000.wav", [BEXT, GUANO], datetime(2017, 3, 10, 20, 45, 10, tzinfo=timezone(timedelta(hours=-5)))),
    ],
)  # fmt: skip
def test_metadata(tmp_path, name, chunks, time):
    assert recorded([wav(tmp_path / name, *chunks)])[0] == [time]


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\xff\xff\xff\xffWAVEdata\xff\xff\xff\xff", b"x" * 99]
)
def test_what_is_no_wav_has_no_time(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    assert recorded([str(tmp_path / "a.wav"), str(tmp_path / "missing.wav")]) == ([None, None], ["", ""])


def test_parts_of_recordings_begin_later_than_they(tmp_path):
    """A column of the user's says when a recording begins; all its segments had that time."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=16 * 16_000) * 0.1, 16_000)
    at = ["2024-05-12T23:59:58", "2024-05-12 23:59:58", "2024-05-12T23:59:58+02:00", "2024-05-12", "dawn", ""]
    clips = Manifest(pd.DataFrame({"path": ["a.wav"] * 6, "start": 0.0, "recorded_at": at}), tmp_path)
    wanted = [
        ["2024-05-12T23:59:58", "2024-05-13T00:00:03", "2024-05-13T00:00:08"],
        ["2024-05-12 23:59:58", "2024-05-13 00:00:03", "2024-05-13 00:00:08"],
        ["2024-05-12T23:59:58+02:00", "2024-05-13T00:00:03+02:00", "2024-05-13T00:00:08+02:00"],
        ["2024-05-12"] * 3, ["dawn"] * 3, [""] * 3,
    ]  # fmt: skip
    encoder = make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg")
    made = Embedder(encoder, segment=5.0).files(clips)
    assert made.table["recorded_at"].tolist() == [text for texts in wanted for text in texts]
    assert made.table["start"].tolist() == [0, 5, 10] * 6
    store = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False).segmented(5.0)
    assert store.manifest.table["recorded_at"].tolist() == [text for texts in wanted for text in texts]
    assert Embedder(encoder, segment="none").files(clips).table["recorded_at"].tolist() == at


def test_each_segment_has_its_own_time_and_a_column_of_the_user_stays(tmp_path):
    table = pd.DataFrame({"path": ["a", "a", "b"], "start": [0.0, 3595.0, np.nan]})
    files = [tmp_path / "A_20240512_235900.flac"] * 2 + [tmp_path / "b.flac"]
    found = with_clock(table, files)
    assert found["recorded_at"].tolist() == ["2024-05-12T23:59:00", "2024-05-13T00:58:55", ""]
    assert found["site"].tolist() == ["A", "A", ""]
    kept = with_clock(table.assign(site="mine"), files)
    assert kept["site"].tolist() == ["mine"] * 3
    assert with_clock(table, ["x.wav"] * 3) is table
