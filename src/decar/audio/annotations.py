"""Labels of stretches of recordings, as Audacity and Raven open them beside the sound."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import xxhash

from decar.errors import DecarError, printable
from decar.files import whole

AUDACITY, RAVEN = "audacity", "raven"
OURS = ".decar"  # a file of these folders: the line below, then name and digest of each file
DELETED = "decar deletes this folder before it writes it anew, unless a file in it has been changed.\n"


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
        (folder / OURS).write_text(DELETED)  # of a call that is killed
    written: dict[str, list[str]] = {AUDACITY: [], RAVEN: []}
    rows = table.assign(label=[_one_field(label) for label in labels])
    homes = _homes(rows["file"].unique().tolist())
    for file, stretches in rows.groupby("file", sort=False):
        stretches = stretches[stretches["label"] != ""].sort_values("start", kind="stable")
        home = homes[str(file)]
        for name, suffix, lines in (
            (AUDACITY, ".txt", audacity(stretches)),
            (RAVEN, ".selections.txt", raven(stretches, highest)),
        ):
            target, text = out / name / f"{home}{suffix}", "".join(f"{line}\n" for line in lines).encode()
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole(target) as part:
                part.write_bytes(text)
            written[name].append(json.dumps([f"{home}{suffix}", xxhash.xxh3_64_hexdigest(text)]))
    for name, digests in written.items():
        with whole(out / name / OURS) as part:
            part.write_text("\n".join([DELETED.rstrip(), *digests, ""]))
    return len(homes)


def check_annotations(out: Path) -> None:
    """Raise a DecarError where such a folder is somebody else's, or holds the work of somebody.

    OUT may be the folder of the recordings, and labels are corrected in Audacity and Raven.
    """
    for folder in (out / AUDACITY, out / RAVEN):
        if folder.exists() and not (folder / OURS).is_file():
            raise DecarError(f"{folder}: is not of an earlier call: rename it, or write the results to another folder")
        changed = _changed(folder) if folder.exists() else None
        if changed is not None:
            raise DecarError(
                f"{changed}: has been changed since decar wrote it, and would be deleted: move it, or write the "
                "results to another folder"
            )


def _changed(folder: Path) -> Path | None:
    """The first file that is not as `write_annotations` left it, but for hidden ones; None where it was killed."""
    try:
        lines = [json.loads(line) for line in (folder / OURS).read_text().splitlines()[1:]]
        known = {str(name): digest for name, digest in lines}
    except (OSError, ValueError, TypeError):
        return folder / OURS
    for file in sorted(folder.rglob("*")) if known else ():
        if file.is_file() and not file.name.startswith("."):
            digest = known.get(file.relative_to(folder).as_posix())
            if digest != xxhash.xxh3_64_hexdigest(file.read_bytes()):
                return file
    return None


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
