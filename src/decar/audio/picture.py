"""Log-mels as pictures and waveforms as sounds, in data URIs for self-contained pages and for dashboards."""

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from decar.audio.decode import SAMPLE_RATE, decode

RANGE = 9.0  # natural-log units below the loudest that have a colour of their own, some 39 dB
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


def image_uri(picture: NDArray[np.uint8], kind: str = "png", *, max_width: int | None = None, **options: int) -> str:
    """A picture `(H, W)` or `(H, W, 3)` as a data URI; wider ones are shrunk to `max_width`, `options` are Pillow's."""
    image = Image.fromarray(picture)
    if max_width and image.width > max_width:
        image = image.resize((max_width, image.height), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return data_uri(f"image/{kind}", file.getvalue())


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
