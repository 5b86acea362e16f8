"""Small files that ask for much: headers that claim, codings that unfold, tables of equal rows.

`SOUNDS` and `TABLES` map a name to a function that writes the file; `python -m tests.faults.bombs DOOR FILE` takes one
through a door of decar in a process of its own and prints what came of it, its seconds and the memory it took.
"""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

HOUR = 3600


def wav(rate: int, channels: int, data: bytes, *, tag: int = 1, bits: int = 16, more: bytes = b"") -> bytes:
    """A WAV of any claims."""
    align = channels * bits // 8 % 2**16
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits) + more
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 10_000, np.int16).tobytes()


def silent(container: str, hours: float, rate: int = 16_000, coding: str | None = None) -> Callable[[Path], None]:
    """Hours of silence, coded."""

    def write(file: Path) -> None:
        with soundfile.SoundFile(file, "w", rate, 1, coding, format=container) as out:
            for _ in range(round(hours * HOUR / 60)):
                out.write(np.zeros(60 * rate, np.int16))

    return write


def claims(data: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data) and None


def flac_claiming(hours: float) -> Callable[[Path], None]:
    """Half a second whose header says hours; None there: it says nothing."""

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


def ffmpeg_silence(hours: float) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        source = f"anullsrc=r=8000:cl=mono:d={hours * HOUR}"
        command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-c:a", "aac", "-b:a", "1k", str(file)]
        subprocess.run(command, check=True, capture_output=True)

    return write


def mp4_claiming(file: Path) -> None:
    """A table of samples of 2^32 - 1 entries."""

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


SOUNDS: dict[str, Callable[[Path], None]] = {
    "1 Hz.wav": claims(wav(1, 1, NOISE)),
    "0 Hz.wav": claims(wav(0, 1, NOISE)),
    "1 GHz.wav": claims(wav(10**9, 1, NOISE)),
    "4 GHz.wav": claims(wav(2**32 - 1, 2, NOISE)),
    "200 channels.wav": claims(wav(16_000, 200, NOISE)),
    "65535 channels.wav": claims(wav(16_000, 65_535, NOISE * 20)),
    "65535 channels of 8 bits.wav": claims(wav(16_000, 65_535, NOISE * 20, bits=8)),
    "odd tag.wav": claims(wav(16_000, 1, NOISE, tag=0x4D4D)),
    "odd subformat.wav": claims(wav(16_000, 1, NOISE, tag=0xFFFE, more=struct.pack("<HHI", 22, 16, 4) + b"\xa5" * 16)),
    "0 bits.wav": claims(wav(16_000, 1, NOISE, bits=0)),
    "255 bits.wav": claims(wav(16_000, 1, NOISE, bits=255)),
    "adpcm.wav": claims(wav(16_000, 1, NOISE, tag=2, bits=4, more=struct.pack("<HHH", 32, 65_535, 65_535) + bytes(28))),
    "chunks.wav": claims(b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 100_000),
    "chunks without end.wav": claims(b"RIFF\xff\xff\xff\xffWAVE" + b"junk\xff\xff\xff\xff" * 1_000),
    "many riffs.wav": claims((b"RIFF\4\0\0\0WAVE") * 50_000),
    "rate.aiff": claims(
        b"FORM\0\0\0\x60AIFFCOMM\0\0\0\x12\0\1\0\0\0\x10\0\x10" + b"\x7f\xfe" + b"\xff" * 8 + b"SSND" + bytes(60)
    ),
    "channels.au": claims(b".snd" + struct.pack(">IIIII", 24, 2**32 - 1, 3, 2**31 - 1, 2**31 - 1) + NOISE),
    "rate.caf": claims(
        b"caff\0\1\0\0desc" + struct.pack(">Q", 32) + struct.pack(">d", 1e300) + b"lpcm"
        + struct.pack(">IIIII", 0, 2, 1, 2**20, 16) + b"data" + struct.pack(">Q", 2**63) + NOISE
    ),
    "id3.mp3": claims(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + NOISE),
    "many id3.mp3": claims(b"ID3\4\0\0\0\0\0\0" * 200_000),
    "syncs.mp3": claims(b"\xff\xfb" * 500_000),
    "frames.mp3": claims(b"\xff\xfb\x10\xc4" * 250_000),
    "pages.ogg": claims((b"OggS\0\2" + bytes(20) + b"\1\0") * 30_000),
    "says 24 h.flac": flac_claiming(24),
    "says nothing.flac": flac_claiming(0),
    "chained.flac": chained_flac,
    "table.m4a": mp4_claiming,
}  # fmt: skip
HEAVY: dict[str, Callable[[Path], None]] = {  # that take seconds to write
    "24 h.flac": silent("FLAC", 24),
    "24 h.opus": silent("OGG", 24, 8_000, "OPUS"),
    "24 h.mp3": silent("MP3", 24, 8_000, "MPEG_LAYER_III"),
    "24 h.m4a": ffmpeg_silence(24),
}


def equal_rows(n: int, text: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([text]))
        pq.write_table(pa.table({"path": column}), file, compression="zstd")

    return write


def long_list(file: Path) -> None:
    """A row with a list of 2^28 zeros."""
    values = pa.nulls(0, pa.float64())
    values = pa.array(np.zeros(2**24))
    lists = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    pq.write_table(pa.table({"path": ["a.wav"], "embedding": lists}), file, compression="zstd")


TABLES: dict[str, Callable[[Path], None]] = {
    "20 M rows.parquet": equal_rows(20_000_000, "a.wav"),
    "long text.parquet": equal_rows(4_000_000, "a.wav" * 200),
    "many columns.parquet": lambda file: pq.write_table(
        pa.table({f"c{i}": pa.nulls(1, pa.int8()) for i in range(12_000)}), file
    ),
    "endless line.csv": claims(b"path\n" + b"a" * 50_000_000),
    "endless header.csv": claims(b"a" * 50_000_000),
    "quote.csv": claims(b'path\n"' + b"a" * 50_000_000),
    "zeros.csv": lambda file: (file.touch(), __import__("os").truncate(file, 2**36)) and None,
    "10 M columns.csv": claims(b"," * 10_000_000),
    "500,000 columns.csv": claims(b"path" + b"," * 500_000 + b"\na.wav\n"),
    "20 M rows.csv": claims(b"path\n" + b"a\n" * 20_000_000),
    "20 M old lines.csv": claims(b"path\r" + b"a\r" * 20_000_000),
}


def memory() -> float:
    """MB, the most that this process has had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(door: str, name: str) -> None:
    """Prints seconds, MB over the baseline, and the reason."""
    from tests.faults.doors import DOORS

    enter = DOORS[door]()
    before, begin = memory(), time.perf_counter()
    reason = enter(Path(name))
    print(f"{time.perf_counter() - begin:.2f}\t{memory() - before:.0f}\t{reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
