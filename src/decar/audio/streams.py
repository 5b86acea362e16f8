"""Where the sound of a file lies when its header does not know: links, and lengths that are wrong or missing.

libsndfile believes the length in a header and reads one stream a file. A file may hold more: an MP3 without a Xing
header (its length is a guess from the first frames), a WAV or CAF whose writer never came back to fill in the size, a
FLAC that is longer than its STREAMINFO says, several Ogg, FLAC, MP3 or WAV streams one after another ("chained").
`links` finds them, `View` shows each to libsndfile with a header that is right. An ordinary file costs a few reads.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Literal

from decar.audio.mpeg import first_frame, frames_end, id3_size, xing
from decar.errors import AudioError

CHUNK = 2**20
HEAD_BYTES = 64
ENDLESS = 2**40  # bytes: what a stream of unknown length claims, so that libmpg123 does not stop at a guess
STREAMING = 0x7FFF0000  # WAV sizes from here on mean "not known", as ffmpeg, sox and arecord write them into a pipe
CAF_UNKNOWN = 2**64 - 1
WAV_MOST = 2**32 - 1  # bytes of sound that libsndfile reads
TRAILING = 512  # bytes behind the data of a WAV that are padding or junk, not sound
# What writers append to a WAV. Their own length may be wrong: it does not make them sound.
TAGS = (b"LIST", b"id3 ", b"ID3", b"APETAGEX", b"TAG", b"bext", b"iXML", b"axml", b"_PMX", b"cue ", b"smpl", b"inst",
        b"fact", b"afsp", b"acid", b"JUNK", b"junk", b"PAD ", b"FLLR", b"umid")  # fmt: skip
UNKNOWN_SIZES = (0, 2**32 - 1, 2**64 - 1)  # of a header that was never filled in
ROUNDED = 8  # bytes by which a size may be rounded up (W64)
PADDING = 2**12  # bytes of zeros that may precede the first frame of an mp3
ID3V1 = 128  # bytes of a tag at the end of an mp3
FLAC_START = b"fLaC\0\0\0\x22"
FLAC_LEAST = 42  # bytes of its marker and STREAMINFO
FLAC_TAIL = 2**16  # bytes in which the last frame begins
OGG_START = b"OggS\0\x02"  # a first page
OGG_LAST = 4  # flag of a last page
OGG_PAGE = 2**16  # bytes; a page has 65,307 at most
UNSOUGHT = -1  # where the next link begins is looked for only when it is asked for


@dataclass(frozen=True)
class Link:
    """One stream of a file.

    Attributes:
        begin: Offset of its first byte.
        end: Offset behind its last byte; None: the end of the file.
        patch: An offset from `begin`, and the bytes to read there in place of the file's.
        endless: The length in samples is not known before all is read.
        note: What a user should know about it, "" for nothing.
    """

    begin: int = 0
    end: int | None = None
    patch: tuple[int, bytes] = (0, b"")
    endless: bool = False
    note: str = ""

    @property
    def plain(self) -> bool:
        """Whether libsndfile reads it right from the file itself."""
        return self.begin == 0 and self.end is None and not self.patch[1] and not self.endless


class View:
    """A link as a file of its own, for `soundfile.SoundFile`."""

    def __init__(self, file: BinaryIO, link: Link) -> None:
        self._file, self._link = file, link
        self._size = (file.seek(0, os.SEEK_END) if link.end is None else link.end) - link.begin
        self._claimed = ENDLESS if link.endless else self._size
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:
        """The bytes of the link; zeros at its claimed end, where libmpg123 looks for a tag."""
        start = self._position
        if start > self._size:
            count = max(0, min(len(buffer), self._claimed - start))
            buffer[:count] = bytes(count)
        else:
            self._file.seek(self._link.begin + start)
            data = bytearray(self._file.read(min(len(buffer), self._size - start)))
            for i, value in enumerate(self._link.patch[1], self._link.patch[0] - start):
                if 0 <= i < len(data):
                    data[i] = value
            count = len(data)
            buffer[:count] = data
        self._position += count
        return count

    def read(self, count: int) -> bytes:
        """As `readinto`; soundfile asks for both."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._position = offset + (0, self._position, self._claimed)[whence]
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position


def links(file: BinaryIO) -> Iterator[Link]:
    """The streams of a file, in order; each is looked for when the one before it is over.

    Raises:
        OSError: The file cannot be read.
        AudioError: A stream of Ogg was read with the length of a later one, see `_check_serial`.
    """
    size = file.seek(0, os.SEEK_END)
    begin: int | None = 0
    while begin is not None and begin < size:
        link, begin = _link(file, begin, size)
        if link is None:
            return
        yield link
        if begin == UNSOUGHT:
            begin = _next(file, link)


def ogg_cut(file: BinaryIO) -> str:
    """What a user should know about the end of an Ogg file: its last page is not whole, or not marked as the last.

    No header says how long such a file is (RFC 3533, section 6). "" for nothing, and for other files.
    """
    if file.seek(0) or file.read(4) != b"OggS":
        return ""
    page = _last_page(file, file.seek(0, os.SEEK_END))
    if page[:4] != b"OggS" or len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "cut short: its last Ogg page is not whole"
    return "" if page[5] & OGG_LAST else "cut short: its last Ogg page is not marked as the end"


def _link(file: BinaryIO, begin: int, size: int) -> tuple[Link | None, int | None]:
    """The link that begins at an offset, None if none does, and where the next one may begin."""
    start = begin
    file.seek(begin)
    head = file.read(HEAD_BYTES)
    while tag := id3_size(head):
        start += tag
        file.seek(start)
        head = file.read(HEAD_BYTES)
    if head[:4] == b"OggS":
        return Link(begin), UNSOUGHT
    if head[:4] == b"fLaC":
        return _flac(file, begin, start, head, size)
    if head[:4] == b"RIFF":
        return _wav(file, begin, size)
    if head[:4] in (b".snd", b"RF64", b"FORM", b"riff"):
        return _sized(file, begin, head, size), None
    if head[:4] == b"caff":
        return _caf(file, begin, size), None
    if begin > 0 or start > 0 or head[:1] == b"\xff" or not any(head):
        padded = not any(head)
        frame = first_frame(file, _after_zeros(file, start) if padded else start, size)
        if frame is not None:  # a link begins behind the tags of the one before, and behind padding
            return _mpeg(file, frame if begin or padded else 0, frame, size)
    return (None if begin else Link()), None


def _after_zeros(file: BinaryIO, start: int) -> int:
    """Offset behind the zeros that a file begins with, as some recorders pad an mp3."""
    file.seek(start)
    data = file.read(PADDING)
    return start + len(data) - len(data.lstrip(b"\0"))


def _next(file: BinaryIO, link: Link) -> int | None:
    """The stream that follows an Ogg or FLAC stream, which is recognised by how it starts."""
    file.seek(link.begin)
    if file.read(4) != b"OggS":
        return _find(file, FLAC_START, link.begin + FLAC_LEAST)
    following = _next_ogg(file, link.begin)
    if following is not None:
        _check_serial(file, link.begin, following)
    return following


def _find(file: BinaryIO, pattern: bytes, begin: int) -> int | None:
    """Offset of the first occurrence from `begin` on, a chunk at a time."""
    file.seek(begin)
    kept = b""
    while data := file.read(CHUNK):
        at = (kept + data).find(pattern)
        if at >= 0:
            return begin - len(kept) + at
        begin += len(data)
        kept = (kept + data)[1 - len(pattern) :]
    return None


def _next_ogg(file: BinaryIO, begin: int) -> int | None:
    """The first page of the next link: a "beginning of stream" that comes after other pages."""
    while True:  # the first pages of all streams of a link stand together
        file.seek(begin)
        page = file.read(27 + 255)
        if page[:6] != OGG_START:
            return _find(file, OGG_START, begin)
        begin += 27 + page[26] + sum(page[27 : 27 + page[26]])


def _check_serial(file: BinaryIO, begin: int, end: int) -> None:
    """Refuse a stream of Ogg that ends before the file does, and has the serial number of the last one.

    libsndfile takes the length of a stream from the last page with its number, which no other stream may have (RFC
    3533, section 4). Where both are of one length nothing is read wrong.
    """
    file.seek(begin + 14)
    own = file.read(4)
    page, last = (_last_page(file, at) for at in (end, file.seek(0, os.SEEK_END)))
    if own == page[14:18] == last[14:18] and page[6:14] != last[6:14]:  # serial number, position of the last sample
        raise AudioError(
            "Ogg streams of one serial number follow one another in it, so their lengths are not known; save it anew"
        )


def _last_page(file: BinaryIO, end: int) -> bytes:
    """The last page of Ogg that begins before an offset, up to there; other bytes where none does."""
    file.seek(max(0, end - OGG_PAGE))
    data = file.read(min(end, OGG_PAGE))
    return data[data.rfind(b"OggS\0") :]


def _flac(file: BinaryIO, begin: int, start: int, head: bytes, size: int) -> tuple[Link, int | None]:
    """The link, and the next one where it had to be looked for.

    The number of samples in STREAMINFO may be 0 (not known) or too small; the number of the last frame tells.
    """
    fields = int.from_bytes(head[18:26], "big")
    total = fields % 2**36
    if total and _flac_last_sample(file, start + FLAC_LEAST, size, head) < total:
        return Link(begin), UNSOUGHT
    following = _find(file, FLAC_START, start + FLAC_LEAST)
    unknown = (start - begin + 18, (fields - total).to_bytes(8, "big")) if total else (0, b"")
    return Link(begin, following, unknown), following


def _flac_last_sample(file: BinaryIO, begin: int, size: int, head: bytes) -> int:
    """Number of the first sample of the last frame that begins behind `begin`; 0 if none is seen.

    A false sync makes a header disbelieved that was right, which costs time and changes nothing.
    """
    tail = max(0, size - FLAC_TAIL)
    file.seek(tail)
    smallest, largest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[10:12], "big")
    for at, number, counts_samples in reversed(_flac_frames(file.read(FLAC_TAIL))):
        if tail + at >= begin:
            return number if counts_samples or smallest != largest else number * largest
    return 0


@lru_cache(4)  # every stream of a chain looks at the same end of the file
def _flac_frames(data: bytes) -> list[tuple[int, int, bool]]:
    """Frame headers: offset, number, and whether that counts samples, not frames."""
    found = []
    for match in re.finditer(rb"\xff[\xf8\xf9]", data):
        header = data[match.start() : match.start() + 16]
        if len(header) < 6 or header[2] >> 4 == 0 or header[2] & 15 == 15 or header[3] & 1:
            continue
        number, length = _flac_number(header[4:])
        end = 4 + length + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
        if length and end < len(header) and _crc8(header[:end]) == header[end]:
            found.append((match.start(), number, bool(header[1] & 1)))
    return found


def _flac_number(data: bytes) -> tuple[int, int]:
    """A frame or sample number, coded as UTF-8 codes characters, and the bytes it takes; 0 bytes if it is none."""
    ones = 8 - (data[0] ^ 0xFF).bit_length()
    if ones == 0:
        return data[0], 1
    if ones == 1 or ones > 7 or len(data) < ones or any(byte >> 6 != 2 for byte in data[1:ones]):
        return 0, 0
    number = data[0] & (0x7F >> ones)
    for byte in data[1:ones]:
        number = number << 6 | byte & 0x3F
    return number, ones


def _crc8(data: bytes) -> int:
    """Of a FLAC frame header: polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def _wav(file: BinaryIO, begin: int, size: int) -> tuple[Link, int | None]:
    """The link, and where another RIFF file follows it.

    The size of the data is believed where other chunks, or the end of the file, follow. Else it is one that was never
    filled in, or one of more than 4 GiB.
    """
    found = _chunk(file, begin + 12, size, "little", 4)
    if found is None:
        return Link(begin), None
    data, length = found
    if size - data > WAV_MOST:
        return Link(
            begin, note=f"cut short: of a wav 4 GiB are read, this has {size - data} bytes; save it as w64"
        ), None
    missing = data + length - size
    if missing >= 0:
        cut = "" if missing <= 1 or length >= STREAMING else f"cut short: {missing} of {length} bytes are missing"
        return Link(begin, note=cut), None
    following = _after_chunks(file, data + length + length % 2, size)
    if following is None and length % 2:  # some writers forget the byte that pads a chunk
        following = _after_chunks(file, data + length, size)
    if following is not None and following < size:
        return Link(begin, following), following
    if following is not None or (length and (-missing < TRAILING or _tagged(file, data + length))):
        return Link(begin), None
    return Link(begin, None, (data - 4 - begin, b"\xff\xff\xff\xff")), None


def _tagged(file: BinaryIO, position: int) -> bool:
    """Whether a tag begins at an offset, or after a byte of padding."""
    file.seek(position)
    head = file.read(1 + max(map(len, TAGS)))
    return head.startswith(TAGS) or head[1:].startswith(TAGS)


def _chunk(
    file: BinaryIO, position: int, size: int, order: Literal["little", "big"], width: int
) -> tuple[int, int] | None:
    """Where the chunk `data` has its first byte, and the length that it says."""
    while position + 4 + width <= size:
        file.seek(position)
        head = file.read(4 + width)
        length = int.from_bytes(head[4:], order)
        position += 4 + width
        if head[:4] == b"data":
            return position, length
        position += length + (length % 2 if order == "little" else 0)
    return None


def _after_chunks(file: BinaryIO, position: int, size: int) -> int | None:
    """Walks whole chunks from an offset: where they end, at another RIFF file or the end; None if there are none."""
    while position + 8 <= size:
        file.seek(position)
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            return position
        length = int.from_bytes(head[4:8], "little")
        position += 8 + length + length % 2
        if not re.fullmatch(rb"[A-Za-z_][A-Za-z0-9_ \-]{3}", head[:4]) or position > size + 1:
            return None
    return size


def _sized(file: BinaryIO, begin: int, head: bytes, size: int) -> Link:
    """An AU, AIFF, RF64 or W64 file: one that is cut, or an AU or RF64 whose writer never filled in the size."""
    if head[:4] == b".snd":
        offset, length = (int.from_bytes(head[at : at + 4], "big") for at in (4, 8))
        if length == 0:
            return Link(begin, None, (8, b"\xff\xff\xff\xff"))
        return Link(begin, note=_cut(begin + offset, length, size))
    if head[:4] == b"FORM":
        return Link(begin, note=_cut(begin + 8, int.from_bytes(head[4:8], "big"), size))
    if head[:4] == b"riff":
        return Link(begin, note=_cut(begin, int.from_bytes(head[16:24], "little"), size))
    found = _chunk(file, begin + 12, size, "little", 4)
    if found is None or head[12:16] != b"ds64":
        return Link(begin)
    length = int.from_bytes(head[28:36], "little")
    if length not in UNKNOWN_SIZES:
        return Link(begin, note=_cut(found[0], length, size))
    return Link(begin, None, (28, (size - found[0]).to_bytes(8, "little")))


def _cut(position: int, length: int, size: int) -> str:
    """The note of a file in which `length` bytes are said to begin at `position`; "" if they are all there."""
    missing = position + length - size
    known = length not in UNKNOWN_SIZES
    return f"cut short: {missing} of {length} bytes are missing" if known and missing >= ROUNDED else ""


def _caf(file: BinaryIO, begin: int, size: int) -> Link:
    """CAF allows a size of -1, "to the end". libsndfile calls that malformed, and a cut file too."""
    found = _chunk(file, begin + 8, size, "big", 8)
    if found is None or (found[1] != CAF_UNKNOWN and not _cut(*found, size)):
        return Link(begin)
    patch = (found[0] - 8 - begin, (size - found[0]).to_bytes(8, "big"))
    return Link(begin, None, patch, note=_cut(*found, size))


def _mpeg(file: BinaryIO, begin: int, frame: int, size: int) -> tuple[Link, int | None]:
    """The link, and where the next one may begin. Without a Xing header the number of frames is not known."""
    known = xing(file, frame)
    if known is None:
        end = frames_end(file, frame, size, None)
        return Link(begin, end if end < size else None, endless=True), end
    if known.size and frame + known.size >= size - ID3V1:
        return Link(begin), None
    end = frames_end(file, frame, size, 1 + known.frames)
    return (Link(begin), None) if end >= size else (Link(begin, end), end)
