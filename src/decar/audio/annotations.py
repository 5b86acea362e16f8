"""Labels of stretches of recordings, as Audacity and Raven open them beside the sound."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from decar.errors import DecarError, printable
from decar.files import whole

AUDACITY, RAVEN = "audacity", "raven"
OURS = ".decar"  # a file of these folders


def write_annotations(out: Path, table: pd.DataFrame, labels: list[str], highest: float) -> int:
    """A file a recording in `OUT/audacity` and `OUT/raven`; what was there from an earlier call goes, and nothing else.

    The files lie in the folders of their recordings, below the folder that all recordings share.

    Args:
        out: Folder.
        table: A row a stretch: `file` (absolute path), `start` and `duration` (s).
        labels: A label a row; a row with an empty one is left out.
        highest: Upper frequency (Hz) of Raven's boxes: what the encoder hears.

    Returns:
        How many recordings there are.

    Raises:
        OSError: A file cannot be written.
        DecarError: See `check_annotations`.
    """
    check_annotations(out)
    for folder in (out / AUDACITY, out / RAVEN):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / OURS).write_text("decar deletes this folder before it writes it anew.\n")
    rows = table.assign(label=[_one_field(label) for label in labels])
    homes = _homes(rows["file"].unique().tolist())
    for file, stretches in rows.groupby("file", sort=False):
        stretches = stretches[stretches["label"] != ""].sort_values("start", kind="stable")
        home = homes[str(file)]
        for name, suffix, lines in (
            (AUDACITY, ".txt", audacity(stretches)),
            (RAVEN, ".selections.txt", raven(stretches, highest)),
        ):
            target = out / name / f"{home}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole(target) as part:
                part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(homes)


def check_annotations(out: Path) -> None:
    """Raise a DecarError where there is such a folder of somebody else's: OUT may be the folder of the recordings."""
    for folder in (out / AUDACITY, out / RAVEN):
        if folder.exists() and not (folder / OURS).is_file():
            raise DecarError(f"{folder}: is not of an earlier call: rename it, or write the results to another folder")


def audacity(stretches: pd.DataFrame) -> Iterator[str]:
    """Lines of a label track: start, end (s), label, with tabs between. File > Import > Labels reads them."""
    for start, duration, label in stretches[["start", "duration", "label"]].itertuples(index=False):
        yield f"{start:.6f}\t{start + duration:.6f}\t{label}"


def raven(stretches: pd.DataFrame, highest: float) -> Iterator[str]:
    """Lines of a selection table of Raven Pro and Raven Lite."""
    yield ("Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation")
    places = stretches[["start", "duration", "label"]].itertuples(index=False)
    for number, (start, duration, label) in enumerate(places, start=1):
        yield f"{number}\tSpectrogram 1\t1\t{start:.6f}\t{start + duration:.6f}\t0.0\t{highest:.1f}\t{label}"


def _homes(files: list[str]) -> dict[str, Path]:
    """The path of each file below the folder that all of them share; on several drives, below all of it."""
    try:
        shared = os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # Windows: other drives
        return {file: Path(*Path(file).parts[1:]) for file in files}
    return {file: Path(os.path.relpath(file, shared)) for file in files}


def _one_field(label: str) -> str:
    """A label without what would end a field or a line."""
    return printable(label)
