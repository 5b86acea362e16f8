"""Frames of an MPEG audio stream (mp3, mp2): where they lie, and what the Xing header in the first one says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

BITRATES = {  # kbit/s by index, 1 to 14
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version bits
LAYER_1, LAYER_3 = 3, 1  # layer bits
SEARCH = 2**16  # bytes in which the first frame is looked for, at a time
XING_BYTES = 64  # of a frame: the Xing header lies within them
CONSECUTIVE = 3  # frames that follow one another are no chance


@dataclass(frozen=True)
class Frame:
    """Header of one frame.

    Attributes:
        size: Bytes, with the header.
        kind: Version, layer, rate (Hz) and whether it is mono: frames of one stream have the same.
    """

    size: int
    kind: tuple[int, int, int, bool]


@dataclass(frozen=True)
class Xing:
    """What the writer knew when all was written: frames of sound, and bytes from this frame on (0 = not said)."""

    frames: int
    size: int


def id3_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag that `head` begins with, 0 if it is none."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def parse(head: bytes) -> Frame | None:
    """The header of a frame, None if the four bytes are none (or one of free format, whose size it does not give)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 0 or index in (0, 15) or rate_index == 3:
        return None
    rate = RATES[version][rate_index]
    bitrate = 1000 * BITRATES[3 if version == 3 else 2, layer][index - 1]
    if layer == LAYER_1:
        size = 4 * (12 * bitrate // rate + padding)
    else:
        size = (72 if layer == LAYER_3 and version != 3 else 144) * bitrate // rate + padding
    return Frame(size, (version, layer, rate, head[3] >> 6 == 3))


def frame_at(file: BinaryIO, position: int) -> Frame | None:
    """The header at an offset."""
    file.seek(position)
    return parse(file.read(4))


def first_frame(file: BinaryIO, begin: int, end: int) -> int | None:
    """Offset of the first frame in `begin … end`: one that others of its kind follow, or the end."""
    while begin < end:
        file.seek(begin)
        data = file.read(min(SEARCH, end - begin))
        for match in re.finditer(rb"\xff[\xe0-\xff]", data):
            if _consistent(file, begin + match.start(), end):
                return begin + match.start()
        begin += max(1, len(data) - 1)
    return None


def _consistent(file: BinaryIO, position: int, end: int) -> bool:
    kind = None
    for _ in range(CONSECUTIVE):
        frame = frame_at(file, position)
        if frame is None or kind not in (None, frame.kind):
            return False
        kind, position = frame.kind, position + frame.size
        if position == end:
            return True
    return position <= end


def xing(file: BinaryIO, position: int) -> Xing | None:
    """The Xing (or Info) header in the frame at an offset, if it says how many frames there are."""
    file.seek(position)
    data = file.read(XING_BYTES)
    found = re.search(rb"(?:Xing|Info)\0\0\0(.)", data[:44], re.DOTALL)
    if not found or not found[1][0] & 1:
        return None
    frames, size = (int.from_bytes(data[at : at + 4], "big") for at in (found.end(), found.end() + 4))
    return Xing(frames, size if found[1][0] & 2 else 0)


def frames_end(file: BinaryIO, position: int, end: int, count: int | None) -> int:
    """Offset behind `count` frames from `position` on; None: behind all that belong to the same stream.

    The stream is over where frames of another kind follow, or a Xing header: two files, one after the other.
    """
    first, seen = frame_at(file, position), 0
    kind = first.kind if first else None
    while position < end and seen != count:
        frame = frame_at(file, position)
        if frame is None or frame.kind != kind:
            found = first_frame(file, position, end)
            if found is None:
                return end if count is not None else position
            after = frame_at(file, found)
            if count is None and (after is None or after.kind != kind):
                return found
            position, frame = found, after
        if count is None and seen and xing(file, position):
            return position
        seen += 1
        position += frame.size if frame else 1
    return min(position, end)
