"""What libsndfile does not read (m4a, aac, wma, amr, the sound of a video) goes through the program ffmpeg."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from decar.errors import AudioError

PROGRAM = "ffmpeg"
INSTALL = "install the program ffmpeg (apt install ffmpeg, brew install ffmpeg), or convert it to flac"
SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".aac", ".ac3", ".dts", ".amr", ".awb", ".wma", ".wmv"),
    *(".asf", ".webm", ".weba", ".mkv", ".mka", ".avi", ".flv", ".mpg", ".mpeg", ".ape", ".wv", ".tta", ".spx", ".mpc"),
)
# Containers that hold sound themselves. Without this list ffmpeg would open the files that a playlist names, if the
# playlist does not look like text.
FORMATS = (
    "aac,ac3,eac3,loas,dts,dtshd,amr,amrnb,amrwb,asf,avi,flv,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,ape,wv,"
    "tta,ogg,mpc,mpc8,mp3,flac,wav,w64,aiff,au,caf"
)
MOST_MEMORY = 2**28  # bytes of one allocation of the program: a header can claim any size
BEFORE = (
    "-nostdin",
    "-v",
    "error",
    "-max_alloc",
    str(MOST_MEMORY),
    "-protocol_whitelist",
    "file,pipe",
    "-format_whitelist",
    FORMATS,
    "-i",
)
AFTER = (
    "-map",
    "0:a:0",
    "-c:a",
    "pcm_f32be",
    "-f",
    "au",
    "-",
)  # the first sound stream; the header tells rate, channels
# The first bytes of a file, and what it is; (offset, bytes)
AUDIO_KINDS = (
    (4, b"ftyp", "MPEG-4 or QuickTime (m4a, mp4, mov, 3gp)"),
    (4, b"moov", "QuickTime (mov)"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM (mkv, webm)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media (wma, wmv)"),
    (0, b"#!AMR", "AMR"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"\x0bw", "AC-3"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\0\0\x01\xba", "MPEG video"),
    (0, b"OggS", "Ogg (Speex, or another coding)"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"TTA1", "True Audio"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"ID3", "MPEG audio or AAC"),
    (0, b"RIFF", "RIFF (wav with a rare coding, avi)"),
    (0, b"caff", "Core Audio with a rare coding"),
    (0, b"FORM", "AIFF with a rare coding"),
)
OTHER_KINDS = (
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"%PDF", "PDF"),
    (0, b"\x89PNG", "PNG image"),
    (0, b"\xff\xd8\xff", "JPEG image"),
    (0, b"GIF8", "GIF image"),
    (0, b"version https://git-lfs", "Git LFS pointer: run `git lfs pull`"),
)
AU_HEADER = 24  # bytes of the header that ffmpeg writes, at least
LINE_BYTES = 4_000  # of what ffmpeg reports, in which the last line is
TEXT = bytes({*range(32, 256)} - {127}) + b"\t\r\n"  # no control characters; of any encoding with bytes like ASCII's


def available() -> bool:
    """Whether the program is installed."""
    return shutil.which(PROGRAM) is not None


def would_help(reasons: Iterable[str]) -> bool:
    """Whether one of the reasons why clips cannot be used was that the program is missing, and it is there now."""
    return any(reason.endswith(INSTALL) for reason in reasons) and available()


def kind(file: Path) -> tuple[str, bool]:
    """What the first bytes of a file say that it is, "" if they say nothing, and whether ffmpeg may read it.

    Text never goes to ffmpeg: a playlist would make it open other files.
    """
    with open(file, "rb") as opened:
        head = opened.read(512)
    for table, readable in ((AUDIO_KINDS, True), (OTHER_KINDS, False)):
        for offset, magic, name in table:
            if head[offset : offset + len(magic)] == magic:
                return name, readable
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "web page (HTML or XML)", False
    if not head.translate(None, TEXT):
        return "text", False
    return "", file.suffix.lower() in SUFFIXES


class FfmpegSound:
    """The first sound stream of a file, read straight on; frames are not known before all is read.

    Attributes:
        samplerate: Hz.
        channels: How many.

    Raises:
        AudioError: ffmpeg does not read the file; the message is its last line.
    """

    length: int | None = None
    note = ""

    def __init__(self, file: Path) -> None:
        self._name = f"file:{os.path.abspath(file)}"
        command: list[str | bytes] = [PROGRAM, *BEFORE, os.fsencode(self._name), *AFTER]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`; a pipe could fill and block
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors)
        header = self._bytes(AU_HEADER)
        if len(header) < AU_HEADER or header[:4] != b".snd":
            self._process.wait()
            reason = self._last_line() or "no sound in it"
            self.close()
            if "matches no streams" in reason or "ignore this" in reason:
                raise AudioError("no sound in it: ffmpeg finds no audio stream")
            raise AudioError(f"not audio that ffmpeg can read ({reason})")
        offset, _, _, self.samplerate, self.channels = (
            int.from_bytes(header[i : i + 4], "big") for i in range(4, 24, 4)
        )
        self._bytes(offset - AU_HEADER)

    def read_block(self, frames: int) -> npt.NDArray[np.float32]:
        """(n, channels), n < `frames` only at the end.

        Raises:
            AudioError: ffmpeg gave up before the end.
        """
        data = self._bytes(4 * self.channels * frames)
        whole = len(data) // (4 * self.channels)
        if whole < frames:
            status = self._process.wait()
            line = self._last_line()
            if status:
                raise AudioError(f"truncated: ffmpeg stopped ({line or f'exit status {status}'})")
            if line:
                self.note = f"cut short: ffmpeg reports {line}"
        samples = np.frombuffer(data, ">f4", whole * self.channels)
        return samples.astype(np.float32).reshape(whole, self.channels)

    def seek_to(self, first: int) -> int:
        """Reads up to sample `first`; returns where it got to. ffmpeg's own seek is exact in some containers only."""
        position = 0
        while position < first and (got := len(self.read_block(min(first - position, self.samplerate)))):
            position += got
        return position

    def close(self) -> None:
        """Ends the program, which may not be through."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _bytes(self, count: int) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.read(count)

    def _last_line(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - LINE_BYTES))
        text = self._errors.read().decode("utf-8", "replace")
        lines = [" ".join(line.split()) for line in text.replace(f"{self._name}: ", "").splitlines() if line.strip()]
        return re.sub(r" @ 0x[0-9a-f]+", "", lines[-1]) if lines else ""
