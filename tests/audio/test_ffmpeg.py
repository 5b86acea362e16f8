"""What libsndfile does not read goes through the program ffmpeg, or is refused with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import LogMelStore, Manifest
from decar.audio.decode import decode, decode_blocks, file_rate
from decar.audio.ffmpeg import INSTALL
from decar.errors import AudioError
from tests.audio.headers import RATE, SECONDS, heard, ladder

MP4 = b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(600)
REAL = shutil.which("ffmpeg")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a shell script in the place of ffmpeg: its lines come after those that write down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    sides = np.stack([ladder(), -0.5 * ladder()], axis=1)
    soundfile.write(folder / "out.au", sides, RATE, format="AU", subtype="FLOAT", endian="BIG")

    def make(*lines: str) -> Path:
        script = ["#!/bin/sh", f"cd {folder}", 'for word in "$@"; do echo "$word"; done > words', *lines]
        (folder / "ffmpeg").write_text("\n".join(script) + "\n")
        (folder / "ffmpeg").chmod(0o755)
        return folder

    return make


def m4a(folder: Path, name: str = "a.m4a") -> Path:
    (folder / name).write_bytes(MP4)
    return folder / name


def test_what_the_program_writes_is_read(tmp_path: Path, fake) -> None:
    folder = fake("cat out.au")
    file = m4a(tmp_path, "-safe; name.m4a")
    wave = decode(file)
    np.testing.assert_allclose(wave, 0.25 * ladder(), atol=1e-6)  # the mean of the channels
    np.testing.assert_array_equal(decode(file, start=3.25, duration=1.5), wave[52_000:76_000])
    words = (folder / "words").read_text().splitlines()
    assert words[words.index("-i") + 1] == f"file:{file}"
    assert words[words.index("-protocol_whitelist") + 1] == "file,pipe"
    assert "-nostdin" in words
    assert file_rate(file) == RATE
    with pytest.raises(AudioError, match=r"start is behind the end: start 12.500 s, the file has 12.000 s"):
        decode(file, start=12.5)


def test_its_failures_are_told(tmp_path: Path, fake) -> None:
    file = m4a(tmp_path)
    fake(f"echo 'first' >&2; echo 'file:{file}: Invalid data found' >&2; exit 1")
    with pytest.raises(AudioError, match=r"^not audio that ffmpeg can read \(Invalid data found\)$"):
        decode(file)
    fake("echo \"Stream map '0:a:0' matches no streams.\" >&2; exit 1")
    with pytest.raises(AudioError, match="no sound in it"):
        decode(file)
    fake("head -c 100000 out.au; echo 'broken' >&2; exit 1")
    with pytest.raises(AudioError, match=r"truncated: ffmpeg stopped \(broken\)"):
        decode(file)
    fake("cat out.au; echo '[mov @ 0x55d0] partial file' >&2")
    notes: list[str] = []
    assert len(decode(file, note=notes.append)) == SECONDS * RATE
    assert notes == ["cut short: ffmpeg reports [mov] partial file"]


def test_it_ends_with_the_stretch(tmp_path: Path, fake) -> None:
    folder = fake("echo $$ > pid; cat out.au; exec sleep 600")
    assert len(decode(m4a(tmp_path), duration=1.0)) == RATE
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    blocks = decode_blocks(m4a(tmp_path))
    next(blocks)
    blocks.close()  # the reader gives up
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_without_the_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=r"content is MPEG-4 .*, its name ends in \.wav; install the program ffmpeg"):
        decode(m4a(tmp_path, "really.wav"))
    (tmp_path / "a.wma").write_bytes(b"not known" + bytes(range(256)))
    with pytest.raises(AudioError, match=r"Format not recognised\); install the program ffmpeg"):
        decode(tmp_path / "a.wma")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\3\4" + bytes(99), "zip archive"),
        (b"<!DOCTYPE html><html>\xc3\xa4", "web page"),
        (b"#EXTM3U\nhttp://example.org/a.mp3\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"#EXTM3U\n#EXTINF:2,\xc3\xa9\nother.aac\n", "text"),
        (b"ffconcat version 1.0\n#\xff\nfile other.aac\n", "text"),
    ],
)
def test_what_is_no_sound_is_named_and_never_given_to_it(tmp_path: Path, fake, data: bytes, what: str) -> None:
    folder = fake("cat out.au")
    for name in ("a.wav", "a.mp3", "a.m4a"):
        (tmp_path / name).write_bytes(data)
        message = rf"not audio that .*\(Format not recognised\); its content is {what}.*name ends in \{name[1:]}"
        with pytest.raises(AudioError, match=message):
            decode(tmp_path / name)
    assert not (folder / "words").exists()


def test_a_wrong_ending_does_not_matter_to_libsndfile(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", ladder(), RATE)
    (tmp_path / "a.flac").rename(tmp_path / "a.wav")
    assert heard(decode(tmp_path / "a.wav")) == list(range(SECONDS))


@pytest.mark.skipif(REAL is None, reason="ffmpeg is not installed")
def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """A control character keeps it from being recognised as text."""
    soundfile.write(tmp_path / "in.wav", ladder(), RATE)
    made = [tmp_path / "in.wav", tmp_path / "other.aac"]
    subprocess.run([str(REAL), "-nostdin", "-v", "error", "-i", *made], check=True)
    for text in ("#EXTM3U\n#\1\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nother.aac\n#EXT-X-ENDLIST\n",
                 "ffconcat version 1.0\n#\1\nfile other.aac\n"):  # fmt: skip
        (tmp_path / "list.m4a").write_text(text)
        with pytest.raises(AudioError, match="not audio that ffmpeg can read"):
            decode(tmp_path / "list.m4a")


@pytest.mark.skipif(REAL is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.aac", "a.wma", "a.mkv", "m4a.wav"])
def test_the_real_program(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "in.wav", ladder(), RATE)
    made = tmp_path / ("made.m4a" if name == "m4a.wav" else name)
    subprocess.run([str(REAL), "-nostdin", "-v", "error", "-i", tmp_path / "in.wav", made], check=True)
    made.rename(tmp_path / name)
    wave = decode(tmp_path / name)
    assert heard(wave)[:SECONDS] == list(range(SECONDS))
    np.testing.assert_array_equal(decode(tmp_path / name, start=5.0, duration=2.0), wave[80_000:112_000])


def test_a_store_is_built_anew_once_the_program_is_there(tmp_path: Path, fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said that the program is to be installed, and said so for ever after."""
    folder = fake("cat out.au")
    m4a(tmp_path)
    soundfile.write(tmp_path / "b.wav", ladder(), RATE)
    clips = Manifest(pd.DataFrame({"path": ["a.m4a", "b.wav"]}), tmp_path)
    with_it = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    without = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    assert without.reasons[0].endswith(INSTALL)
    again = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    assert again.reasons == without.reasons
    monkeypatch.setenv("PATH", with_it)
    built = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    assert built.reasons == ["", ""]
    assert built.lengths[0] == built.lengths[1]
    calls = (folder / "words").stat().st_mtime_ns
    LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    assert (folder / "words").stat().st_mtime_ns == calls  # once
