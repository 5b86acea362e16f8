"""File → mono waveform: libsndfile reads it, the channels are averaged, soxr resamples.

Read in blocks, so that an hour of stereo at 48 kHz never lies in memory as such. Whatever is wrong with a file is
told as an `AudioError` whose message is the reason alone, without the path: it goes into tables beside the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from decar.errors import AudioError

SAMPLE_RATE = 16_000
"""Hz, of every waveform in the project unless a front-end says otherwise."""

BLOCK_SECONDS = 10.0
# An mp3 may hold a few samples less than its header promises (encoder delay, last frame); less than this is not worth
# a word.
TRUNCATION_TOLERANCE = 0.1  # s

Waveform = npt.NDArray[np.float32]


class _Sound(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """A file that is read straight on.

    soundfile seeks after each read of a seekable file, to where it stands already. At variable bit rate an mp3 then
    goes on at a wrong place: libmpg123 looks places up in a coarse table.
    """

    def seekable(self) -> bool:
        return False


def decode(
    path: str | os.PathLike[str], *, start: float = 0.0, duration: float | None = None, sample_rate: int = SAMPLE_RATE
) -> Waveform:
    """One stretch of a file as a mono waveform; only the stretch is read.

    Args:
        path: a file in any format that libsndfile reads: wav, flac, ogg, opus, mp3 and more.
        start: s, where the stretch begins.
        duration: s, how long it is; None for all that is left. Where the file ends earlier, so does the waveform.
        sample_rate: Hz, of the result.

    Returns:
        (T,) float32. T is 0 for a file that holds no samples. Values are as stored, ±1 is full scale.

    Raises:
        AudioError: missing, empty, no audio, truncated, `start` behind the end, or NaN or infinity in it. A wav whose
            data end before its header says is read as far as it goes, since streaming writers leave such headers, and
            so is a cut ogg or opus, which has no length in its header.
    """
    pieces = list(decode_blocks(path, start=start, duration=duration, sample_rate=sample_rate))
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.float32), *pieces])


def decode_blocks(
    path: str | os.PathLike[str], *, start: float = 0.0, duration: float | None = None, sample_rate: int = SAMPLE_RATE
) -> Iterator[Waveform]:
    """As `decode`, block by block (some 10 s each): ten hours never lie in memory. Errors come where they are met."""
    file = Path(path)
    _check_file(file)
    try:
        # bytes, since libsndfile is given the name as the file system has it; Windows takes text
        with _Sound(os.fsencode(file) if os.name == "posix" else str(file)) as sound:
            blocks = _blocks(sound, start, duration)
            for block in (
                blocks if sound.samplerate == sample_rate else _resampled(blocks, sound.samplerate, sample_rate)
            ):
                if not np.isfinite(block).all():
                    raise AudioError("non-finite samples (NaN or infinity)")
                yield block
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"not audio that libsndfile can read ({_reason(error)})") from error


def _check_file(file: Path) -> None:
    """The faults that the file system knows of: libsndfile would only say "System error"."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise AudioError("file not found") from None
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
    if not file.is_file():  # a folder, or a pipe that would block for ever
        raise AudioError("not a file")
    if size == 0:
        raise AudioError("empty file (0 bytes)")
    if not os.access(file, os.R_OK):
        raise AudioError("cannot be opened (Permission denied)")


def _blocks(sound: soundfile.SoundFile, start: float, duration: float | None) -> Iterator[Waveform]:
    """The stretch, block by block, averaged over the channels, at the file's own rate."""
    rate = sound.samplerate
    first = round(start * rate)
    last = sound.frames if duration is None else min(sound.frames, first + round(duration * rate))
    if first > 0 and first >= sound.frames:
        raise AudioError(f"start is behind the end: start {start:.3f} s, the file has {sound.frames / rate:.3f} s")
    position = 0
    try:
        position = _go_to(sound, first)
        while position < last:
            block = sound.read(min(last - position, round(BLOCK_SECONDS * rate)), dtype="float32", always_2d=True)
            position += len(block)
            if len(block) == 0:
                break
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        if first > 0 and position == 0:
            raise AudioError(
                f"truncated: header says {sound.frames / rate:.3f} s, {start:.3f} s is not there"
            ) from error
        raise _truncated(sound, max(position, sound.tell())) from error
    if last - position > TRUNCATION_TOLERANCE * rate:
        raise _truncated(sound, position)


def _go_to(sound: soundfile.SoundFile, first: int) -> int:
    """Moves to sample `first` and returns where it got to.

    An mp3 is read up to there, not sought, for the reason told at `_Sound` (measured: errors as large as the signal, on
    half of the files tried).
    """
    if sound.format != "MP3":
        return int(sound.seek(first)) if first else 0
    position = 0
    while position < first:
        got = len(sound.read(min(first - position, round(BLOCK_SECONDS * sound.samplerate)), dtype="float32"))
        if got == 0:
            break
        position += got
    return position


def _truncated(sound: soundfile.SoundFile, position: int) -> AudioError:
    rate = sound.samplerate
    return AudioError(f"truncated: header says {sound.frames / rate:.3f} s, {position / rate:.3f} s could be read")


def _resampled(blocks: Iterator[Waveform], rate: int, sample_rate: int) -> Iterator[Waveform]:
    """Block by block as soxr does it at once (bit for bit, measured): the filter's state goes from block to block."""
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _reason(error: Exception) -> str:
    """What libsndfile says, without the path that soundfile puts before them."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
