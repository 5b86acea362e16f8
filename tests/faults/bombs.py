"""Small files that ask for much: headers that claim, codings that unfold, tables of equal rows.

`SOUNDS`, `HEAVY` and `TABLES` have, by the name of the file, a function that writes it and how the reason begins with
which it is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

HOUR = 3600
NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 10_000, np.int16).tobytes()
Write = Callable[[Path], None]


def claims(data: bytes) -> Write:
    """These bytes."""

    def write(file: Path) -> None:
        file.write_bytes(data)

    return write


def wav(rate: int, channels: int, data: bytes, *, tag: int = 1, bits: int = 16, more: bytes = b"") -> bytes:
    """A WAV of any claims."""
    align = channels * bits // 8 % 2**16
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits) + more
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def silent_flac(file: Path) -> None:
    """24 hours of silence in 5 MB."""
    with soundfile.SoundFile(file, "w", 16_000, 1, format="FLAC") as out:
        for _ in range(24 * 60):
            out.write(np.zeros(60 * 16_000, np.int16))


def flac_claiming(hours: float) -> Write:
    """Half a second whose header says hours; 0: it says nothing."""

    def write(file: Path) -> None:
        soundfile.write(file, np.frombuffer(NOISE, np.int16), 16_000, format="FLAC")
        data = file.read_bytes()
        fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | round(hours * HOUR * 16_000)
        file.write_bytes(data[:18] + fields.to_bytes(8, "big") + data[26:])

    return write


def chained_flac(file: Path) -> None:
    """Hundreds of short streams, and an end full of what looks like frames."""
    soundfile.write(file, np.zeros(1_000, np.int16), 16_000, format="FLAC")
    file.write_bytes(file.read_bytes() * 300 + b"\xff\xf8\x69\x18\x00\x00" * 10_000)


def mp4_claiming(file: Path) -> None:
    """A table of 2^32 - 1 samples, of 65535 channels."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", 8 + len(body)) + kind + body

    table = box(b"stsz", bytes(8), b"\xff\xff\xff\xff") + box(b"stts", bytes(4), b"\xff\xff\xff\xff")
    entry = box(b"mp4a", bytes(6), b"\0\1", bytes(8), struct.pack(">HHI", 65535, 16, 0), b"\xff\xff\0\0")
    media = box(b"minf", box(b"stbl", box(b"stsd", bytes(4), b"\0\0\0\1", entry), table))
    header = box(b"mdhd", bytes(12), b"\x7f\xff\xff\xff" * 2, bytes(4))
    kind = box(b"hdlr", bytes(8), b"soun", bytes(12))
    track = box(b"trak", box(b"tkhd", bytes(84)), box(b"mdia", header, kind, media))
    file.write_bytes(box(b"ftyp", b"isom", bytes(4)) + box(b"moov", box(b"mvhd", bytes(100)), track))


NOT = "not audio that "
AIFF = b"FORM\0\0\0\x60AIFFCOMM\0\0\0\x12\0\1\0\0\0\x10\0\x10"
CAF = b"caff\0\1\0\0desc" + struct.pack(">Qd", 32, 1e300) + b"lpcm" + struct.pack(">5I", 0, 2, 1, 2**20, 16)
GUID = struct.pack("<HHI", 22, 16, 4) + b"\xa5" * 16
SOUNDS: dict[str, tuple[Write, str]] = {
    "1 Hz.wav": (claims(wav(1, 1, NOISE)), "rate too low: 1 Hz, the limit min_rate is 200 Hz"),
    "0 Hz.wav": (claims(wav(0, 1, NOISE)), NOT),
    "1 GHz.wav": (claims(wav(10**9, 1, NOISE)), "rate too high: 1,000,000,000 Hz, the limit max_rate is 1,000,000 Hz"),
    "4 GHz.wav": (claims(wav(2**32 - 1, 2, NOISE)), NOT),
    "200 channels.wav": (claims(wav(16_000, 200, NOISE)), "too many channels: 200, the limit max_channels is 64"),
    "65535 channels.wav": (claims(wav(16_000, 65_535, NOISE * 20)), NOT),
    "odd tag.wav": (claims(wav(16_000, 1, NOISE, tag=0x4D4D)), NOT),
    "odd subformat.wav": (claims(wav(16_000, 1, NOISE, tag=0xFFFE, more=GUID)), NOT),
    "0 bits.wav": (claims(wav(16_000, 1, NOISE, bits=0)), NOT),
    "chunks.wav": (claims(b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 20_000), NOT),
    "many riffs.wav": (claims(b"RIFF\4\0\0\0WAVE" * 20_000), NOT),
    "rate.aiff": (claims(AIFF + b"\x7f\xfe" + b"\xff" * 8 + b"SSND" + bytes(60)), "rate too high: 67,108,864 Hz"),
    "channels.au": (claims(b".snd" + struct.pack(">5I", 24, 2**32 - 1, 3, 2**31 - 1, 2**31 - 1) + NOISE), NOT),
    "rate.caf": (claims(CAF + b"data" + struct.pack(">Q", 2**63) + NOISE), NOT),
    "id3.mp3": (claims(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + NOISE), NOT),
    "many id3.mp3": (claims(b"ID3\4\0\0\0\0\0\0" * 5_000), NOT),
    "syncs.mp3": (claims(b"\xff\xfb" * 100_000), NOT),
    "pages.ogg": (claims((b"OggS\0\2" + bytes(20) + b"\1\0") * 10_000), NOT),
    "says 24 h.flac": (flac_claiming(24), "too long: 24.00 h or more, the limit max_hours is 12 h"),
    "table.m4a": (mp4_claiming, NOT),
}
HEAVY: dict[str, tuple[Write, str]] = {  # that take seconds to write
    "24 h.flac": (silent_flac, "too long: 24.00 h or more, the limit max_hours is 12 h"),
}


def equal_rows(n: int, text: str) -> Write:
    """A Parquet file of one column."""

    def write(file: Path) -> None:
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([text]))
        pq.write_table(pa.table({"path": column}), file, compression="zstd")

    return write


def many_columns(file: Path) -> None:
    pq.write_table(pa.table({f"c{i}": pa.nulls(1, pa.int8()) for i in range(10_001)}), file)


def hole(file: Path) -> None:
    """64 GB of nothing behind a header."""
    file.write_bytes(b"path\n" * 2**14)
    os.truncate(file, 2**36)


LINE = "has a line of more than 1,048,576 bytes"
ROWS = r"has [\d,]+ rows or more, the limit max_rows is 5,000,000"
WIDE = "columns or more, 10,000 at most are read"
TABLES: dict[str, tuple[Write, str]] = {
    "20 M rows.parquet": (equal_rows(20_000_000, "a.wav"), ROWS),
    "long text.parquet": (equal_rows(4_000_000, "a.wav" * 200), "unfolds to 4,000,000,000 bytes"),
    "many columns.parquet": (many_columns, f"has 10,001 {WIDE}"),
    "endless line.csv": (claims(b"path\n" + b"a" * 2_000_000), LINE),
    "endless header.csv": (claims(b"a" * 2_000_000), LINE),
    "quote.csv": (claims(b'path\n"' + b"a" * 2_000_000), LINE),
    "hole.csv": (hole, LINE),
    "10 M columns.csv": (claims(b"," * 10_000_000), LINE),
    "500,000 columns.csv": (claims(b"path" + b"," * 500_000 + b"\na.wav\n"), WIDE),
    "20 M rows.csv": (claims(b"path\n" + b"a\n" * 20_000_000), ROWS),
    "20 M old lines.csv": (claims(b"path\r" + b"a\r" * 20_000_000), ROWS),
}
