"""Files whose headers do not know how long they are, made by hand from whole ones.

Each second of the sound is a tone of its own, so that a test can say which seconds came out.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
SECONDS = 12


def _crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ 0x104C11DB7) if crc & 0x80000000 else crc << 1
    return crc


CRC = [_crc_of(byte) for byte in range(256)]  # of an Ogg page


def ladder(rate: int = RATE, seconds: int = SECONDS) -> np.ndarray:
    """(T,) a tone a second; noise in the first four makes a variable bit rate high there, and a guess from it short."""
    time = np.arange(seconds * rate) / rate
    wave = 0.25 * np.sin(2 * np.pi * (300.0 + 170.0 * np.floor(time)) * time)
    loud = 4 * rate
    wave[:loud] += 0.2 * np.random.default_rng(0).normal(size=loud).clip(-3, 3)
    return wave


def heard(wave: np.ndarray) -> list[int]:
    """For each second of a waveform at 16 kHz, which second of the ladder it is; -1 for none."""
    time = np.arange(int(0.7 * RATE)) / RATE
    tones = np.exp(-2j * np.pi * np.outer(300.0 + 170.0 * np.arange(SECONDS), time))
    found = []
    for second in range(round(len(wave) / RATE)):
        piece = wave[int((second + 0.2) * RATE) :][: len(time)]
        level = 2 * np.abs(tones[:, : len(piece)] @ piece) / len(time)
        found.append(int(level.argmax()) if level.max() > 0.12 else -1)
    return found


def encoded(folder: Path, container: str, coding: str | None = None, rate: int = RATE, channels: int = 1) -> bytes:
    """The ladder in a format of libsndfile."""
    file = folder / "made"
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.3} if container == "MP3" else {}
    wave = np.stack([ladder(rate)] * channels, axis=1)
    soundfile.write(file, wave, rate, format=container, subtype=coding, **options)
    data = file.read_bytes()
    file.unlink()
    return data


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def without_xing(mp3: bytes) -> bytes:
    """The mp3 without its first frame, in which the encoder says how many follow."""
    assert b"Xing" in mp3[:100]
    return mp3[mp3.index(mp3[:2], 100) :]


def tagged(mp3: bytes) -> bytes:
    """ID3v2 in front; APE and ID3v1 behind."""
    id3 = b"ID3\4\0\0\0\0\2\0" + bytes(256)
    ape = b"APETAGEX" + struct.pack("<III", 2000, 32, 0) + bytes(8)
    return id3 + mp3 + ape + b"TAG" + bytes(125)


def flac_total(flac: bytes, samples: int) -> bytes:
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36 | samples
    return put(flac, 18, fields.to_bytes(8, "big"))


def no_end_flag(ogg: bytes) -> bytes:
    """The last page without its "end of stream", and its checksum made anew."""
    at = ogg.rindex(b"OggS")
    page = bytearray(ogg[at:])
    page[5] &= ~4
    return ogg[:at] + checked(page)


def with_serial(ogg: bytes, serial: int) -> bytes:
    """All pages with another serial number."""
    made, at = b"", 0
    while at < len(ogg):
        size = 27 + ogg[at + 26] + sum(ogg[at + 27 : at + 27 + ogg[at + 26]])
        made += checked(bytearray(put(ogg[at : at + size], 14, serial.to_bytes(4, "little"))))
        at += size
    return made


def checked(page: bytearray) -> bytes:
    """A page of Ogg with its checksum made anew."""
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc = crc << 8 & 0xFFFFFFFF ^ CRC[crc >> 24 ^ byte]
    page[22:26] = crc.to_bytes(4, "little")
    return bytes(page)


def sized(data: bytes, size: bytes) -> bytes:
    """Another size in the chunk `data`."""
    return put(data, data.index(b"data") + 4, size)


def kinds(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Name → the file, and how many times the ladder is in it."""
    wav, flac, mp3 = (encoded(folder, container) for container in ("WAV", "FLAC", "MP3"))
    ogg, opus = encoded(folder, "OGG", "VORBIS"), encoded(folder, "OGG", "OPUS")
    rf64, au, caf = (encoded(folder, container, "PCM_16") for container in ("RF64", "AU", "CAF"))
    fast = {"flac": encoded(folder, "FLAC", None, 44_100, 2), "ogg": encoded(folder, "OGG", "VORBIS", 44_100, 2)}
    fast_opus, fast_mp3 = encoded(folder, "OGG", "OPUS", 48_000, 2), encoded(folder, "MP3", None, 44_100, 2)
    bare = without_xing(mp3)
    return {
        "bare.mp3": (bare, 1),
        "bare and tagged.mp3": (tagged(bare), 1),
        "tagged.mp3": (tagged(mp3), 1),
        "chained.mp3": (mp3 + mp3, 2),
        "chained and tagged.mp3": (tagged(mp3) + tagged(mp3), 2),
        "chained bare.mp3": (bare + bare, 2),
        "chained, one bare.mp3": (mp3 + bare + mp3, 3),
        "chained rates.mp3": (bare + without_xing(fast_mp3) + mp3, 3),
        "piped.flac": (flac_total(flac, 0), 1),
        "too short.flac": (flac_total(flac, 4 * RATE), 1),
        "chained.flac": (flac + flac, 2),
        "chained piped.flac": (flac_total(flac, 0) + flac, 2),
        "chained rates.flac": (flac + fast["flac"], 2),
        "no end.ogg": (no_end_flag(ogg), 1),
        "no end.opus": (no_end_flag(opus), 1),
        "chained.ogg": (ogg + ogg, 2),
        "chained.opus": (opus + opus, 2),
        "chained no end.opus": (no_end_flag(opus) + opus, 2),
        "chained rates.ogg": (ogg + fast["ogg"], 2),
        "chained rates.opus": (opus + fast_opus, 2),
        "piped.wav": (put(sized(wav, b"\xff" * 4), 4, b"\xff" * 4), 1),
        "size 0.wav": (sized(wav, bytes(4)), 1),
        "sizes 0.wav": (put(sized(wav, bytes(4)), 4, bytes(4)), 1),
        "too short.wav": (sized(wav, (8 * RATE).to_bytes(4, "little")), 1),
        "chained.wav": (wav + wav, 2),
        "size 0.rf64": (put(rf64, 28, bytes(8)), 1),
        "size 0.au": (put(au, 8, bytes(4)), 1),
        "piped.caf": (sized(caf, b"\xff" * 8), 1),
    }
