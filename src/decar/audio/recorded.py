"""When and where a recording was made, from what recorders write; nothing is guessed.

In this order: GUANO metadata (chunk `guan` of a WAV), the comment of an AudioMoth, the name of the file
(`SITE_20240512_053000.wav`, and the hexadecimal seconds of old AudioMoths, `5CB8F1A2.WAV`), and the origination time of
a Broadcast Wave (chunk `bext`, EBU Tech 3285). Times are those of the recorder's clock.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

AT, SITE = "recorded_at", "site"
MOST_BYTES = 2**16  # of a chunk of metadata
MOST_CHUNKS = 100
YEARS = range(1990, 2100)
FIRST_MOTH, LAST_MOTH = (datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() for year in (2016, 2036))

_DIGITS = re.compile(r"(?<!\d)(\d{4})(\d\d)(\d\d)[_T -]?(\d\d)(\d\d)(\d\d)(?!\d)")
_DASHED = re.compile(r"(?<!\d)(\d{4})-(\d\d)-(\d\d)[_T -](\d\d)[-.:h]?(\d\d)[-.:m]?(\d\d)(?!\d)")
_HEX = re.compile(r"[0-9A-F]{8}")
_COMMENT = re.compile(
    r"Recorded at (\d\d):(\d\d):(\d\d)(?:\.\d+)? (\d\d)/(\d\d)/(\d{4})"
    r"(?: \(UTC([+-]\d{1,2})?(?::(\d\d))?\))? by AudioMoth"
)
_GUANO = re.compile(r"^Timestamp:\s*(\S+(?: \S+)?)\s*$", re.M)


def with_clock(table: pd.DataFrame, files: Sequence[str | Path]) -> pd.DataFrame:
    """A table of clips with columns `recorded_at` (ISO 8601, when the clip begins) and `site`, where they are known.

    A column that is there already is kept; `later` has made one of parts from one of recordings. Where the time of no
    file is known, the table stays as it is.

    Args:
        table: `N` clips, with `start` in seconds where they are stretches.
        files: The file of each.
    """
    paths = [os.fspath(file) for file in files]
    places = {path: i for i, path in enumerate(dict.fromkeys(paths))}
    times, sites = recorded([*places])
    if not any(times):
        return table
    starts = table["start"].fillna(0.0) if "start" in table else pd.Series(0.0, table.index)
    rows = [places[path] for path in paths]
    begun = [_text(times[row], float(start)) for row, start in zip(rows, starts, strict=True)]
    found = {AT: begun, SITE: [sites[row] for row in rows]}
    return table.assign(**{name: values for name, values in found.items() if name not in table and any(values)})


def later(texts: pd.Series, seconds: npt.NDArray[np.float64]) -> pd.Series:
    """When parts of clips begin, from when the clips do; what is no ISO 8601 date with a time stays as it is.

    Args:
        texts: `N`, of a column `recorded_at` of the user's.
        seconds: `(N,)` from the beginning of each clip to that of its part.
    """
    return pd.Series([_later(str(text), start) for text, start in zip(texts, seconds, strict=True)], texts.index)


def _later(text: str, seconds: float) -> str:
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00")) + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return text
    return time.isoformat(" " if text[10:11] == " " else "T", "seconds") if seconds and len(text) > 10 else text


def recorded(files: Sequence[str]) -> tuple[list[datetime | None], list[str]]:
    """When each file was recorded, None where it does not say; and its site, "" where that is not known.

    The site is what stands before the time in the name of a file, else the name of its folder.
    """
    stems = [Path(file).stem for file in files]
    hexes = [stem for stem in stems if _HEX.fullmatch(stem) and not stem.isdecimal()]
    # names of eight hexadecimal digits that are not all times are other numbers
    moths = bool(hexes) and all(FIRST_MOTH <= int(stem, 16) < LAST_MOTH for stem in hexes)
    times, sites = list[datetime | None](), list[str]()
    folders = {os.path.dirname(file) for file in files}
    for file, stem in zip(files, stems, strict=True):
        chunks, (named, before) = _metadata(file), _from_name(stem, moths)
        time = (
            _from_guano(chunks.get(b"guan", b""))
            or _from_comment(chunks.get(b"LIST", b""))
            or named
            or _from_bext(chunks.get(b"bext", b""))
        )
        folder = os.path.basename(os.path.dirname(file)) if len(folders) > 1 else ""
        times.append(time)
        sites.append((before or folder) if time else "")
    return times, sites


def _text(time: datetime | None, start: float) -> str:
    return (time + timedelta(seconds=start)).isoformat(timespec="seconds") if time else ""


def _from_name(stem: str, moths: bool) -> tuple[datetime | None, str]:
    """The time in a name, and what stands before it."""
    for pattern in (_DIGITS, _DASHED):
        if match := pattern.search(stem):
            time = _valid(*map(int, match.groups()))
            if time:
                return time, stem[: match.start()].strip(" _-.")
    if moths and _HEX.fullmatch(stem):
        return datetime.fromtimestamp(int(stem, 16), timezone.utc), ""
    return None, ""


def _valid(*numbers: int, zone: timezone | None = None) -> datetime | None:
    """Year, month, day, hour, minute, second as a time, if there is such a one."""
    try:
        return datetime(*numbers, tzinfo=zone) if numbers[0] in YEARS else None  # type: ignore[misc, arg-type]
    except ValueError:
        return None


def _metadata(file: str) -> dict[bytes, bytes]:
    """The chunks of a WAV that hold metadata; none where it cannot be read, which whoever reads the sound reports."""
    try:
        return dict(_chunks(file))
    except (OSError, struct.error):
        return {}


def _chunks(file: str) -> Iterator[tuple[bytes, bytes]]:
    """Those chunks of a WAV that hold metadata."""
    if not file.lower().endswith((".wav", ".wave")):
        return
    with open(file, "rb") as opened:
        head = opened.read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return
        for _ in range(MOST_CHUNKS):
            head = opened.read(8)
            if len(head) < 8:
                return
            name, size = struct.unpack("<4sI", head)
            content = opened.read(min(size, MOST_BYTES)) if name in (b"guan", b"LIST", b"bext") else b""
            if content:
                yield name, content
            opened.seek(size - len(content) + size % 2, os.SEEK_CUR)


def _from_guano(content: bytes) -> datetime | None:
    match = _GUANO.search(content.decode("utf-8", "replace").replace("\r", ""))
    if not match:
        return None
    text = re.sub(r"\.\d+", "", match[1]).replace("Z", "+00:00")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.year in YEARS else None


def _from_comment(content: bytes) -> datetime | None:
    match = _COMMENT.search(content.decode("latin-1"))
    if not match:
        return None
    hour, minute, second, day, month, year = map(int, match.groups()[:6])
    sign = -1 if (match[7] or "").startswith("-") else 1
    offset = timedelta(hours=int(match[7] or 0), minutes=sign * int(match[8] or 0))
    if abs(offset) >= timedelta(days=1):
        return None
    return _valid(year, month, day, hour, minute, second, zone=timezone(offset) if "(UTC" in match[0] else None)


def _from_bext(content: bytes) -> datetime | None:
    match = re.fullmatch(rb"(\d{4})\D(\d\d)\D(\d\d)(\d\d)\D(\d\d)\D(\d\d)", content[320:338])
    return _valid(*map(int, match.groups())) if match else None
