"""What is wrong with some audio, before hours are spent on it: each clip looked at alone, then beside the others.

An *error* leaves the clip out of training, or makes a score a lie; a *warning* is for the ear to judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.fft

from decar.audio.build import SILENT
from decar.audio.clips import SILENCE_PEAK, Job
from decar.audio.decode import TRUNCATION_TOLERANCE, decode_blocks, file_rate
from decar.audio.groups import group_columns, shared_sound
from decar.audio.logmel import FrontEnd
from decar.audio.manifest import Manifest
from decar.audio.parallel import in_order
from decar.audio.progress import progress_bar
from decar.audio.scan import SPLIT_NAMES
from decar.cores import cpu_count
from decar.errors import AudioError

ERRORS = ("unreadable", "empty", "silent", "too short", "same content across splits", "group across splits")
READ_ODDLY = ("beyond the end", "channels cancel", "cut short")
WARNINGS = (*READ_ODDLY, "beyond full scale", "clipped", "low rate", "too high", "duplicate")
FULL_SCALE = 0.999
BEYOND = 2.0  # times full scale: more than the overshoot of a lossy coding
CLIPPED_SHARE = 1e-3  # of all samples, at full scale beside another that is
TOO_HIGH_SHARE = 0.5  # of all power, above the highest mel band
COLUMNS = ["path", "start", "severity", "problem", "detail"]


@dataclass(frozen=True)
class ClipFacts:
    """What one clip is like.

    Attributes:
        problem: One of `ERRORS` or `WARNINGS`, "" for none.
        detail: The problem in words.
        content: SHA-256 of the waveform at 16 bits with its rate: equal for equal sound in lossless files of any kind;
            "" when there is none.
    """

    problem: str
    detail: str
    content: str


def examine(
    manifest: Manifest, frontend: FrontEnd | None = None, *, apart: Sequence[str] = (), progress: bool = True
) -> pd.DataFrame:
    """All that is wrong, a row a finding, in the order of the clips.

    Args:
        manifest: The clips; with a column `split` or `fold` leaks between splits are looked for too.
        frontend: Its rate and window say what is too low and too short; the paper's when None.
        apart: Columns of which no value may be in two splits; when empty those of the manifest that are called speaker,
            recording, source and the like.
        progress: Whether to show how far it is.

    Returns:
        Columns path, start (s), severity (error, warning), problem, detail.

    Raises:
        ManifestError: There is no such column as `apart` names.
    """
    spec = frontend or FrontEnd()
    facts: list[ClipFacts] = []
    with progress_bar("examining", len(manifest), enabled=progress) as advance:
        for found in in_order(lambda job: [examine_clip(job, spec)], manifest.jobs, cpu_count()):
            facts.append(found)
            advance(1)
    rows = [(i, fact.problem, fact.detail) for i, fact in enumerate(facts) if fact.problem]
    rows += _repeated(manifest, [fact.content for fact in facts])
    rows += _leaking(manifest, apart)
    paths, starts = manifest.table["path"].tolist(), [start for start, _ in manifest.stretches]
    table = [
        (paths[i], starts[i], "error" if problem in ERRORS else "warning", problem, detail)
        for i, problem, detail in sorted(rows, key=lambda row: row[0])
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def examine_clip(job: Job, spec: FrontEnd) -> ClipFacts:
    """One clip at its file's own rate, block by block."""
    file, start, duration = job
    notes: list[str] = []
    try:
        rate = file_rate(file)
        seen = _Seen(rate, spec.f_max)
        for block in decode_blocks(file, start=start, duration=duration, sample_rate=rate, note=notes.append):
            seen.add(block)
    except AudioError as error:
        return ClipFacts("empty" if str(error).startswith("empty") else "unreadable", str(error), "")
    if not seen.samples:
        return ClipFacts("empty", "no samples", "")
    seconds, least = seen.samples / rate, spec.win_length / spec.sample_rate
    if seconds < least:
        return ClipFacts("too short", f"{seconds:.3f} s, one window is {least:.3f} s", "")
    if seen.peak <= SILENCE_PEAK:
        return ClipFacts("silent", SILENT.partition(": ")[2], "")
    if duration is not None and seconds < duration - TRUNCATION_TOLERANCE:
        notes.append(f"beyond the end: {duration:.3f} s from {start:.3f} s on are wanted, {seconds:.3f} s are there")
    problem, detail = _oddity(seen, rate, spec, notes)
    return ClipFacts(problem, detail, seen.content.hexdigest())


class _Seen:
    """What is known of a waveform after the blocks so far.

    Attributes:
        samples: How many.
        peak: The largest absolute value.
        clipped: Samples at full scale beside another that is: single peaks are no clipping.
        power, high_power: Sum of the squared samples without their mean, and the part of it above `f_max` Hz.
        content: SHA-256 of the rate and the samples at 16 bits.
    """

    def __init__(self, rate: int, f_max: float) -> None:
        self.samples, self.peak, self.clipped = 0, 0.0, 0
        self.power, self.high_power = 0.0, 0.0
        self.rate, self.f_max = rate, f_max
        self.content = hashlib.sha256(f"{rate} ".encode())
        self._last = np.zeros(2, bool)  # whether the last two samples are at full scale

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """The samples that follow."""
        self.samples += len(block)
        level = np.abs(block)
        self.peak = max(self.peak, float(level.max(initial=0.0)))
        self.content.update(np.round(np.clip(block, -1, 1) * 32767).astype("<i2").tobytes())
        high = np.concatenate([self._last, level >= FULL_SCALE])
        pairs = high[1:-1] & (high[:-2] | high[2:])  # of all but the last sample, which the next block decides on
        self.clipped += int(pairs.sum())
        self._last = high[-2:]
        spectrum = np.square(np.abs(scipy.fft.rfft(block)[1:]))  # without the mean
        self.power += float(spectrum.sum())
        self.high_power += float(spectrum[int(self.f_max / self.rate * len(block)) :].sum())

    @property
    def clipped_share(self) -> float:
        """Part of the samples that is clipped."""
        return (self.clipped + int(self._last.all())) / self.samples

    @property
    def high_share(self) -> float:
        """Part of the power that is above `f_max`."""
        return self.high_power / max(self.power, 1e-12)


def _oddity(seen: _Seen, rate: int, spec: FrontEnd, notes: list[str]) -> tuple[str, str]:
    """The first of `WARNINGS` that holds for a clip that can be used, and its detail."""
    if notes:
        problem, _, detail = sorted(notes)[0].partition(": ")
        return problem, detail
    if seen.peak > BEYOND:
        return (
            "beyond full scale",
            f"the peak is {seen.peak:.4g}, full scale is 1: numbers of another scale stored as float?",
        )
    if seen.clipped_share > CLIPPED_SHARE:
        return "clipped", f"{seen.clipped_share:.1%} of the samples stand at full scale or above"
    if rate < spec.sample_rate:
        return "low rate", f"{rate} Hz: nothing above {rate // 2} Hz, the log-mel goes to {spec.f_max:.0f} Hz"
    if seen.high_share > TOO_HIGH_SHARE:
        return "too high", f"{seen.high_share:.0%} of its power is above {spec.f_max:.0f} Hz, where the log-mel ends"
    return "", ""


def _repeated(manifest: Manifest, contents: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Clips that sound exactly as an earlier one; in another split that is a leak, and so is a part of one."""
    paths, splits = manifest.table["path"].tolist(), _splits(manifest)
    shared = shared_sound(paths, manifest.stretches, splits)
    first: dict[str, int] = {}
    placed: dict[str, int] = {}  # the first that has a split
    for i, content in enumerate(contents):
        j = first.setdefault(content, i) if content else i
        k = placed.setdefault(content, i) if content and splits[i] else i
        if splits[k] != splits[i]:
            yield i, "same content across splits", f"as {paths[k]}; {splits[k]} and {splits[i]}"
        elif i in shared:
            yield i, "same content across splits", f"a part of it is in a clip of {shared[i]}; it is in {splits[i]}"
        elif j != i:
            yield i, "duplicate", f"as {paths[j]}"


def _leaking(manifest: Manifest, apart: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The first clip of each value of a grouping column that comes a second time in another split."""
    splits = _splits(manifest)
    for name in apart or group_columns(manifest.table.columns):
        home: dict[str, str] = {}
        named: set[str] = set()
        for i, value in enumerate(_texts(manifest.column(name))):
            usual = home.setdefault(value, splits[i]) if value and splits[i] else splits[i]
            if usual != splits[i] and value not in named:
                named.add(value)
                yield i, "group across splits", f"{name} {value} is in {usual} and in {splits[i]}"


def _splits(manifest: Manifest) -> list[str]:
    """The split or fold of each clip, splits by the names that tasks read them as; "" where there is none."""
    if "split" in manifest.table:
        return [SPLIT_NAMES.get(word.lower(), word) for word in _texts(manifest.table["split"])]
    return _texts(manifest.table["fold"]) if "fold" in manifest.table else [""] * len(manifest)


def _texts(column: pd.Series) -> list[str]:
    texts: list[str] = column.fillna("").astype(str).str.strip().tolist()
    return texts
