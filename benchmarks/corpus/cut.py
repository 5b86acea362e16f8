"""A recording → clips of at most 10 s at 16 kHz, mono, levels as they are."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from decar.audio.clips import SILENCE_PEAK
from decar.audio.decode import SAMPLE_RATE, decode_blocks
from decar.errors import AudioError

Waveform = npt.NDArray[np.float32]
SUFFIXES = (".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3", ".aif", ".aiff", ".au", ".voc", ".g722")
LONGEST = 10 * SAMPLE_RATE  # samples of a clip
SHORTEST_TAIL = SAMPLE_RATE  # a shorter rest of a long recording is left out
SHORTEST = SAMPLE_RATE // 20  # a shorter sound is left out


def clips(path: Path, cap: float | None = None) -> Iterator[Waveform]:
    """The pieces of a recording, end to end, without silent ones; with `cap` (s) evenly spread ones, so many seconds.

    Raises:
        AudioError: The file cannot be decoded.
    """
    file = from_g722(path) if path.suffix == ".g722" else path
    keep = None
    if cap is not None:
        total = -(-_samples(file) // LONGEST)
        keep = spread(total, max(1, round(cap * SAMPLE_RATE / LONGEST)))
    for i, piece in enumerate(end_to_end(decode_blocks(file), LONGEST)):
        audible = len(piece) >= (SHORTEST_TAIL if i else SHORTEST) and np.abs(piece).max() > SILENCE_PEAK
        if audible and (keep is None or i in keep):
            yield piece


def end_to_end(blocks: Iterator[Waveform], size: int) -> Iterator[Waveform]:
    """Blocks of any length as pieces of `size` samples; the last one may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if len(rest):
        yield rest


def spread(total: int, wanted: int) -> set[int]:
    """`wanted` of the numbers below `total`, evenly spaced; all where there are no more."""
    if wanted >= total:
        return set(range(total))
    return {int((i + 0.5) * total / wanted) for i in range(wanted)}


def stored(piece: Waveform) -> npt.NDArray[np.int16]:
    """At 16 bits, as FLAC holds it."""
    return np.round(np.clip(piece, -1, 1) * 32767).astype(np.int16)


def save(piece: Waveform, path: Path) -> str:
    """Write a clip; returns the SHA-256 of its samples: equal for equal sounds."""
    samples = stored(piece)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return hashlib.sha256(samples.tobytes()).hexdigest()


def from_g722(path: Path) -> Path:
    """A headerless G.722 file (16 kHz, 64 kbit/s) as wav beside it.

    Raises:
        AudioError: ffmpeg is missing or refuses it.
    """
    wav = path.with_suffix(".wav")
    command = ["ffmpeg", "-v", "error", "-y", "-f", "g722", "-i", str(path), str(wav)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise AudioError("cannot run ffmpeg, install it") from error
    if done.returncode:
        raise AudioError(done.stderr.strip()[:200])
    return wav


def _samples(file: Path) -> int:
    """How long the file is at 16 kHz."""
    try:
        info = soundfile.info(str(file))
        return int(info.frames * SAMPLE_RATE / info.samplerate)
    except soundfile.LibsndfileError:  # what only ffmpeg reads
        return sum(map(len, decode_blocks(file)))
