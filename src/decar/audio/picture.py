"""Log-mels to look at and sounds to click on, as data URIs for pages that are one file, and for dashboards."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from decar.audio.decode import SAMPLE_RATE, decode

RANGE = 9.0  # natural-log units below the loudest that are told apart, some 39 dB
_STOPS = np.array([[0, 0, 4], [60, 15, 110], [150, 40, 110], [230, 90, 50], [252, 180, 60], [252, 255, 200]])


def spectrogram(logmel: NDArray[np.floating], max_frames: int = 400) -> NDArray[np.uint8]:
    """A log-mel `(F, M)` as a picture `(M, min(F, max_frames), 3)`: low bands below, loud is bright.

    Longer ones are squeezed by taking the loudest of neighbouring frames.
    """
    mel = np.asarray(logmel, np.float32)
    if len(mel) > max_frames:
        edges = np.linspace(0, len(mel), max_frames, endpoint=False).astype(int)
        mel = np.maximum.reduceat(mel, edges, axis=0)
    top = float(mel.max()) if mel.size else 0.0
    level = np.clip((mel.T[::-1] - top) / RANGE + 1, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(level.astype(int), len(_STOPS) - 2)
    part = (level - low)[..., None]
    return np.asarray(_STOPS[low] * (1 - part) + _STOPS[low + 1] * part).round().astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture `(H, W, 3)` as a PNG file."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)  # 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_uri(picture: NDArray[np.uint8]) -> str:
    """The same as a data URI."""
    return data_uri("image/png", png(picture))


def opus_uri(waveform: NDArray[np.float32], sample_rate: int = SAMPLE_RATE, compression: float | None = None) -> str:
    """A mono waveform `(T,)` as an Ogg Opus data URI; `sample_rate` (Hz) is one that Opus has, as 16000.

    libsndfile makes `compression`, 0 to 1, a rate of (1 - compression) * 250 + 6 kbit/s; None is its own choice.
    """
    file = io.BytesIO()
    soundfile.write(
        file, np.clip(waveform, -1, 1), sample_rate, format="OGG", subtype="OPUS", compression_level=compression
    )
    return data_uri("audio/ogg", file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """A file of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def waveform_of(file: Path, start: float, duration: float | None, max_seconds: float = 20.0) -> NDArray[np.float32]:
    """The first `max_seconds` of a clip at 16 kHz.

    Raises:
        AudioError: As of `decode`.
    """
    return decode(file, start=start, duration=min(duration or max_seconds, max_seconds))
