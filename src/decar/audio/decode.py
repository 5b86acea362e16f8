"""File → mono waveform: libsndfile reads it (ffmpeg where it cannot), the channels are averaged, soxr resamples.

Read in blocks, so that an hour of stereo at 48 kHz never lies in memory as such. A file that cannot be read raises
`AudioError`. Its message is the reason alone, without the path: it goes into tables beside the path.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from decar.audio import ffmpeg
from decar.audio.ffmpeg import FfmpegSound
from decar.audio.samples import CANCEL_NOTE, Power, mixed, too_high
from decar.audio.streams import Link, View, links, ogg_cut
from decar.errors import AudioError
from decar.limits import limits

log = logging.getLogger(__name__)

NOT_FOUND = "file not found"  # the reason of a clip whose file is missing

SAMPLE_RATE = 16_000
"""Hz, of every waveform in the project unless a front-end says otherwise."""

BLOCK_SECONDS = 10
BLOCK_SAMPLES = 2**22  # of all channels: what is in memory at once, but for a second at a high rate
# An mp3 may hold a few samples less than its header promises (encoder delay, last frame); less than this is not worth
# a word.
TRUNCATION_TOLERANCE = 0.1  # s
UNKNOWN = 2**48  # frames: what libsndfile says of a FLAC without a length is more
# Codings in which libsndfile's seek goes to a wrong place or fails (mp3: errors as large as the signal, on half of the
# files tried). Opus needs some sound before the place until its decoder has settled.
READ_UP_TO = ("MPEG_LAYER", "DWVW")
SETTLING = {"OPUS": 1}  # s
# A seek into the last page of a Vorbis stream is off by what the end of the stream trims from that page (libsndfile
# issue 885). A page holds up to 255 packets (RFC 3533, section 6), a packet up to half a block of 8,192 samples.
LAST_PAGE = {"VORBIS": 255 * 4096}  # samples

Waveform = npt.NDArray[np.float32]
Note = Callable[[str], None]


class _Sound(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """A link of a file, read straight on.

    soundfile seeks after each read of a seekable file, to where it stands already. At variable bit rate an mp3 then
    goes on at a wrong place: libmpg123 looks places up in a coarse table.
    """

    def __init__(self, file: Path, link: Link) -> None:
        named = link.plain and file.suffix.lower() != ".raw"  # by which soundfile would expect samples without a header
        self._opened = None if named else open(file, "rb")  # noqa: SIM115  # closed by `close`
        # bytes, since libsndfile is given the name as the file system has it; Windows takes text
        name = os.fsencode(file) if os.name == "posix" else str(file)
        try:
            super().__init__(View(self._opened, link) if self._opened else name)
        except BaseException:
            if self._opened:
                self._opened.close()
            raise
        self._fault: Exception | None = None
        self._position = 0
        self.note = link.note
        self.length = None if link.endless or self.frames >= UNKNOWN else int(self.frames)

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        super().close()
        if self._opened:
            self._opened.close()

    def read_block(self, frames: int) -> Waveform:
        """(n, channels), n < `frames` only at the end. What precedes a fault is returned, then the fault is raised."""
        if self._fault:
            raise self._fault
        block = np.empty((frames, self.channels), np.float32)
        try:
            block = np.asarray(self.read(frames, out=block), np.float32)
        except soundfile.LibsndfileError as error:
            after = self.tell()
            # the last packet of an Opus stream without an end flag fails
            if not (self.format == "OGG" and self.frames - after < TRUNCATION_TOLERANCE * self.samplerate):
                self._fault = error
            block = block[: max(0, after - self._position)]
        self._position += len(block)
        return block

    def seek_to(self, first: int) -> int:
        """Moves to sample `first` and returns where it got to: by reading where a seek is not exact."""
        if first and self.length is not None and super().seekable() and not self.subtype.startswith(READ_UP_TO):
            place = first - self.samplerate * SETTLING.get(self.subtype, 0)
            place = min(place, self.length - LAST_PAGE.get(self.subtype, 0))
            self._position = int(self.seek(max(0, place)))
        while self._position < first:
            if len(self.read_block(min(first - self._position, block_frames(self.samplerate, self.channels)))) == 0:
                break
        return self._position


def block_frames(rate: int, channels: int) -> int:
    """Whole seconds of samples a channel that are read at once."""
    return rate * max(1, min(BLOCK_SECONDS, BLOCK_SAMPLES // (rate * channels)))


def decode(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    note: Note | None = None,
) -> Waveform:
    """One stretch of a file as a mono waveform; only the stretch is read.

    The channels are averaged. In each second of the file in which they cancel (their mean has less than a thousandth of
    their power), the first one that is not silent is taken.

    Args:
        path: a file in any format that libsndfile reads: wav, flac, ogg, opus, mp3 and more; where the program ffmpeg
            is installed also m4a, wma, amr, the sound of mp4 and others.
        start: s, where the stretch begins.
        duration: s, how long it is; None for all that is left. Where the file ends earlier, so does the waveform.
        sample_rate: Hz, of the result.
        note: is called with what is odd about the file though it is read ("channels cancel: …", "cut short: …",
            "too high: …"); None logs it as a warning, once a file.

    Returns:
        (T,) float32. T is 0 for a file that holds no samples. Values are as stored, ±1 is full scale. Streams that
        follow one another in the file follow one another here, each at its own rate.

    Raises:
        AudioError: missing, empty, no audio, truncated, `start` behind the end, NaN or infinity in it, or beyond the
            `limits`. A wav whose data end before its header says is read as far as it goes, with a note, and so is a
            cut ogg or opus, which has no length in its header.
    """
    pieces = list(decode_blocks(path, start=start, duration=duration, sample_rate=sample_rate, note=note))
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.float32), *pieces])


def decode_blocks(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    note: Note | None = None,
) -> Iterator[Waveform]:
    """As `decode`, block by block (some 10 s each): ten hours never lie in memory. Errors come where they are met."""
    file = Path(path)
    _check_file(file)
    say = note or (lambda text: _warn(str(file), text))
    n_samples, known = 0, limits()
    try:
        for rate, blocks in _parts(file, start, duration, say):
            for block in blocks if rate == sample_rate else _resampled(blocks, rate, sample_rate, say):
                n_samples += len(block)
                known.check_seconds(n_samples / sample_rate)
                if not np.isfinite(block).all():
                    raise AudioError("non-finite samples (NaN or infinity)")
                yield block
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"not audio that libsndfile can read ({_reason(error)})") from error


def file_rate(path: str | os.PathLike[str]) -> int:
    """Rate (Hz) at which the sound of a file begins.

    Raises:
        AudioError: as of `decode`.
    """
    file = Path(path)
    _check_file(file)
    try:
        with closing(_sounds(file, lambda text: None)) as sounds:
            return next(sounds).samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"not audio that libsndfile can read ({_reason(error)})") from error


@lru_cache(4096)  # a recording of ten hours is read in thousands of stretches
def _warn(file: str, text: str) -> None:
    log.warning("%s: %s", file, text)


def _check_file(file: Path) -> None:
    """The faults that the file system knows of: libsndfile would only say "System error"."""
    try:
        found = os.stat(file)
    except (FileNotFoundError, ValueError):  # no file has a name with a null byte
        raise AudioError(NOT_FOUND) from None
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):  # a folder, or a pipe that would block for ever
        raise AudioError("not a file")
    if found.st_size == 0:
        raise AudioError("empty file (0 bytes)")


def _sounds(file: Path, say: Note) -> Generator[_Sound | FfmpegSound, None, None]:
    """The streams of a file, opened one after the other."""
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below
    except PermissionError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
    with opened:
        for i, link in enumerate(links(opened)):
            try:
                sound: _Sound | FfmpegSound = _Sound(file, link)
            except soundfile.LibsndfileError as error:
                if i:
                    say(f"cut short: its stream {i + 1} cannot be read ({_reason(error)})")
                    return
                sound = _through_ffmpeg(file, error)
                sound.note = link.note
            with closing(sound):
                limits().check_sound(int(sound.samplerate), int(sound.channels))
                yield sound
            if isinstance(sound, FfmpegSound):
                return
        if cut := ogg_cut(opened):
            say(cut)


def _through_ffmpeg(file: Path, error: Exception) -> FfmpegSound:
    """What libsndfile cannot read.

    Raises:
        AudioError: ffmpeg is not installed, or cannot read it either; or it is something else than sound.
    """
    kind, readable = ffmpeg.kind(file)
    suffix = file.suffix.lower()
    named = f"; its content is {kind}, its name ends in {suffix or 'nothing'}" if kind else ""
    if readable and ffmpeg.available():
        return FfmpegSound(file)
    cure = f"; {ffmpeg.INSTALL}" if readable else ""
    raise AudioError(f"not audio that libsndfile can read ({_reason(error)}){named}{cure}") from error


def _parts(file: Path, start: float, duration: float | None, say: Note) -> Iterator[tuple[int, Iterator[Waveform]]]:
    """The rate and the blocks of each stream that has a part in the stretch."""
    begun, left, reached = 0.0, duration, False
    with closing(_sounds(file, say)) as sounds:
        for sound in sounds:
            rate = int(sound.samplerate)
            first = 0 if reached else max(0, round((start - begun) * rate))
            if first and sound.length is not None and first >= sound.length:
                begun += sound.length / rate
                continue
            part = _Part(sound, first, None if left is None else first + round(left * rate), say)
            yield rate, part.blocks()
            reached = reached or part.position > first or first == 0
            begun += part.position / rate
            if left is not None:
                left -= max(0, part.position - first) / rate
                if round(left * rate) <= 0:
                    return
    if not reached:
        raise AudioError(f"start is behind the end: start {start:.3f} s, the file has {begun:.3f} s")


class _Part:
    """Samples `first` up to `last` (None: all that are left) of a stream, in one channel, at its own rate.

    Attributes:
        position: The sample up to which it is read.
    """

    def __init__(self, sound: _Sound | FfmpegSound, first: int, last: int | None, say: Note) -> None:
        self.sound, self.first, self.position, self.say = sound, first, 0, say
        ends = [end for end in (last, sound.length) if end is not None]
        self.last = min(ends) if ends else None
        if self.last is not None and sound.length is not None:  # otherwise it is counted as it is read
            limits().check_seconds((self.last - first) / int(sound.samplerate))

    def blocks(self) -> Iterator[Waveform]:
        sound, rate = self.sound, int(self.sound.samplerate)
        # whole seconds of the stream, so that it does not depend on the stretch in which of them channels cancel
        grid = rate if sound.channels > 1 else 1
        try:
            at = sound.seek_to(self.first // grid * grid)
            self.position = max(self.position, min(at, self.first))
            while at >= self.first // grid * grid and (self.last is None or at < self.last):
                size = block_frames(rate, int(sound.channels))
                if self.last is not None:
                    size = min(size, -(-self.last // grid) * grid - at)
                block = sound.read_block(size)
                if len(block) == 0:
                    break
                mono = block[:, 0] if block.shape[1] == 1 else self._mixed(block)
                piece = mono[max(0, self.first - at) : None if self.last is None else self.last - at]
                at += len(block)
                self.position = at if self.last is None else min(at, self.last)
                if len(piece):
                    yield piece
        except soundfile.LibsndfileError as error:
            if self.first > 0 and self.position == 0:
                raise AudioError(f"truncated: {self._header()}, {self.first / rate:.3f} s is not there") from error
            raise self._truncated() from error
        if sound.length is not None and (self.last or 0) - self.position > TRUNCATION_TOLERANCE * rate:
            raise self._truncated()
        if sound.note and (self.last is None or self.last == sound.length):
            self.say(sound.note)

    def _mixed(self, block: npt.NDArray[np.float32]) -> Waveform:
        """Mix the channels of a block to one `(n,)`; report where they cancel."""
        mono, cancelled = mixed(block, int(self.sound.samplerate))
        if cancelled:
            self.say(CANCEL_NOTE)
        return mono

    def _header(self) -> str:
        length = self.sound.length
        return "no length in the header" if length is None else f"header says {length / self.sound.samplerate:.3f} s"

    def _truncated(self) -> AudioError:
        return AudioError(f"truncated: {self._header()}, {self.position / self.sound.samplerate:.3f} s could be read")


def _resampled(blocks: Iterator[Waveform], rate: int, sample_rate: int, say: Note) -> Iterator[Waveform]:
    """Block by block as soxr does it at once (bit for bit, measured): the filter's state goes from block to block."""
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    before, after = Power(), Power()
    for block in blocks:
        yield after.add(stream.resample_chunk(np.ascontiguousarray(before.add(block))))
    yield after.add(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    if lost := too_high(before, after, sample_rate):
        say(lost)


def _reason(error: Exception) -> str:
    """What libsndfile says, without the path that soundfile puts before them."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    if "possibly a pipe?" in text:  # of a text whose name ends in .mp3; the file is there, `_check_file` has seen it
        return "Format not recognised"
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
