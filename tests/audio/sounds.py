"""Sounds that the tests of this room make for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

# extension → (libsndfile's name of the container, of the coding inside)
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """(T,) float64 sine."""
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, wave: np.ndarray, rate: int = 16_000, channels: int = 1) -> Path:
    """Writes a wave, the same on every channel, in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container, coding = FORMATS[path.suffix[1:].lower()]
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, format=container, subtype=coding)
    return path


def write_bad_files(folder: Path) -> dict[str, str]:
    """One file of each kind of trouble; returns name → how the reason begins."""
    rng = np.random.default_rng(0)
    whole = write(folder / "whole.flac", rng.normal(size=160_000) * 0.1)
    data = whole.read_bytes()
    whole.unlink()
    (folder / "truncated.flac").write_bytes(data[: len(data) // 2])
    (folder / "zero.wav").touch()
    (folder / "text.wav").write_text("this is a text and no sound\n" * 40)
    write(folder / "three ms.wav", tone(0.003))
    write(folder / "silence.wav", np.zeros(16_000))
    return {
        "truncated.flac": "truncated: header says 10.000 s, ",
        "zero.wav": "empty file (0 bytes)",
        "text.wav": "not audio that libsndfile can read (",
        "three ms.wav": "too short: 0.003 s, one window is 0.025 s",
        "silence.wav": "silent: no sample above 1e-4",
    }
