"""A training set of 22.7 hours, 15.8 of them real, from freely licensed sounds in Debian, PyPI and npm packages.

    apt-get update
    apt-get install -y --no-install-recommends ffmpeg fluidsynth espeak-ng flite csound npm    # Debian 12
    python benchmarks/corpus/build.py --out DIR
    python benchmarks/corpus/build.py --out DIR --only naev-data ufoai-music --hours 3

`sources.csv` says what is taken of which package under which licence, `excluded.csv` what is kept for evaluation (both:
`table.py`). DIR gets

- `clips/PACKAGE/NUMBER.flac`: 16 kHz, mono, 16 bits, 0.05 to 10 s, levels as they are;
- `index.csv`, a row a clip with the columns of `data=bench` (path, duration_s, kind, license, source_package,
  pretrain) and source, version, real, recording, `hours`. Sorted by `hours`, each source gives the same share of its
  recordings to every beginning of the table: `data.where='pretrain and hours<=3'` is a set of three hours;
- `ATTRIBUTION.md`.

A package is fetched by name, unpacked without being installed, cut, and put in place whole. One that is there is not
built again. One that has vanished, or whose licence file is not the one that was read, is left out with a line. Of
clips with equal samples one is kept. `apart.py` tells whether any clip is a recording that a bench keeps.

To train on the set and to judge on tasks that lie elsewhere, give it their folders: `ln -s /TASKS/tasks /TASKS/audio
DIR`. Then DIR is `--root` of `recipe.py` and `ready.py`; docs/recipe.md has the command of the scaling curve.
"""

import argparse
import csv
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count, groupby
from pathlib import Path

import numpy as np
import pandas as pd
from cut import SUFFIXES, Waveform, clips, save
from fetch import UnavailableError, digest, fetch, unpack
from render import RENDERERS, tool_version
from table import Source, attribution_page, is_excluded, read_sources

from decar.audio.decode import SAMPLE_RATE
from decar.errors import AudioError

SEED = 0
COLUMNS = [
    "path", "source", "source_package", "version", "license", "kind", "real", "duration_s", "recording", "pretrain",
    "content",
]  # fmt: skip
Sound = tuple[str, Waveform]  # the recording's name, one clip of it
Line = list[object]  # of part.csv


def build_package(rows: list[Source], out: Path) -> None:
    """Fetch one package and put its clips in place.

    Raises:
        UnavailableError: It cannot be had, or its licence file is another one.
    """
    name = folder_name(rows[0].package)
    with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as temporary:
        unpacked, part = Path(temporary) / "files", Path(temporary) / "clips"
        part.mkdir()
        made = rows[0].source == "made"
        version = tool_version(rows[0].package) if made else unpacked_version(rows, unpacked)
        numbers = count()
        lines = [line for row in rows for line in cut_row(row, version, unpacked, part, numbers)]
        if not lines:
            raise UnavailableError("no file that is to be taken is in it")
        with (part / "part.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([COLUMNS, *lines])
        target = out / "clips" / name
        target.parent.mkdir(exist_ok=True)
        os.replace(part, target)


def unpacked_version(rows: list[Source], folder: Path) -> str:
    """Fetch and unpack what the rows take; returns the version.

    Raises:
        UnavailableError: As `build_package`.
    """
    first = rows[0]
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive, version = fetch(first.source, first.package, first.version, Path(temporary))
        unpack(archive, folder, lambda name: is_wanted(rows, name))
    stated = {row.stated: row.digest for row in rows}
    for path, expected in stated.items():
        if not (folder / path).is_file() or digest(folder / path) != expected:
            raise UnavailableError(f"{path} is not the licence text of {first.version} that was read: read it again")
    if version != first.version:
        print(f"{first.package}: {version} instead of {first.version}, with the same licence text")
    return version


def is_wanted(rows: Iterable[Source], name: str) -> bool:
    """Whether a member of the package is unpacked: taken, an archive with something to take, or the licence."""
    for row in rows:
        if name == row.stated or row.takes_from(name) or (row.takes(name) and not is_excluded(row.package, name)):
            return True
    return False


def cut_row(row: Source, version: str, unpacked: Path, part: Path, numbers: Iterator[int]) -> Iterator[Line]:
    """Write the clips of a row of the table; a line of the index for each."""
    limit, seconds = float(row.options.get("limit", "inf")), 0.0
    for recording, piece in sounds(row, unpacked):
        file = f"{next(numbers):05d}.flac"
        content = save(piece, part / file)
        seconds += len(piece) / SAMPLE_RATE
        yield [
            f"clips/{folder_name(row.package)}/{file}", row.source, row.package, version, row.licence, row.kind,
            row.real, round(len(piece) / SAMPLE_RATE, 3), f"{row.package}/{recording}", True, content,
        ]  # fmt: skip
        if seconds >= limit:
            return


def sounds(row: Source, unpacked: Path) -> Iterator[Sound]:
    """The clips of a row, in an order drawn by the names."""
    if "render" in row.options:
        yield from RENDERERS[row.options["render"]](unpacked)
        return
    cap = float(row.options["cap"]) if "cap" in row.options else None
    files = [(path.relative_to(unpacked).as_posix().replace("!/", "!"), path) for path in unpacked.rglob("*")]
    taken = [(name, path) for name, path in files if path.suffix.lower() in SUFFIXES and row.takes(name)]
    for name, path in sorted(taken, key=lambda item: drawn(item[0])):
        try:
            for piece in clips(path, cap):
                yield name, piece
        except AudioError as error:
            print(f"{row.package}: {name}: {error}")


def drawn(name: str) -> str:
    """A key that sorts names in random order, the same each time."""
    return hashlib.sha256(f"{SEED} {name}".encode()).hexdigest()


def folder_name(package: str) -> str:
    """A package's name without the signs of npm's scopes."""
    return package.replace("@", "").replace("/", "_")


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The clips with `hours`: how long the set is up to and with this recording, each source evenly spread over it."""
    table = table.assign(key=table["recording"].map(drawn)).sort_values(["source_package", "key", "path"])
    seconds = table.groupby(["source_package", "key", "recording"], sort=False)["duration_s"].sum().reset_index()
    of_source = seconds.groupby("source_package")["duration_s"]
    seconds["place"] = (of_source.cumsum() - seconds["duration_s"] / 2) / of_source.transform("sum")
    seconds = seconds.sort_values(["place", "key"])
    hours = dict(zip(seconds["recording"], seconds["duration_s"].cumsum() / 3600, strict=True))
    return table.assign(hours=table["recording"].map(hours).round(4)).sort_values(["hours", "path"]).drop(columns="key")


def compose(out: Path, rows: list[Source], hours: float) -> pd.DataFrame:
    """Write index.csv and ATTRIBUTION.md of all packages that are in place; returns the index."""
    there = [out / "clips" / folder_name(package) / "part.csv" for package in dict.fromkeys(r.package for r in rows)]
    table = pd.concat([pd.read_csv(path, dtype={"version": str}) for path in there if path.is_file()])
    kept = [
        is_excluded(package, recording.removeprefix(f"{package}/"))
        for package, recording in zip(table["source_package"], table["recording"], strict=True)
    ]
    table = table[~np.array(kept)]  # parts that were built before the row of excluded.csv
    once = in_order(table.drop_duplicates("content").drop(columns="content"))
    print(f"{len(table) - len(once)} clips of {len(table)} occur twice and are left out once")
    once = once[once["hours"] <= hours]
    once.to_csv(out / "index.csv", index=False)
    used = [row for row in rows if row.package in set(once["source_package"])]
    (out / "ATTRIBUTION.md").write_text(attribution_page(used), encoding="utf-8")
    return once


def summary(table: pd.DataFrame) -> str:
    """Hours by licence and by kind, and how much is synthetic."""
    parts = []
    for column in ("license", "kind"):
        frame = table.pivot_table("duration_s", column, "real", "sum", fill_value=0.0, margins=True, margins_name="all")
        parts.append((frame / 3600).round(2).to_string())
    share = table.loc[table["real"] == "synthetic", "duration_s"].sum() / max(table["duration_s"].sum(), 1e-9)
    return "\n\n".join([*parts, f"{len(table)} clips, {share:.1%} of the time synthetic (a third at most is meant)"])


def main() -> None:
    """Build what is missing, then write the index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the set")
    parser.add_argument("--hours", type=float, default=float("inf"), help="so many hours of it in index.csv")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="build these packages only")
    args = parser.parse_args()
    rows = read_sources()
    unknown = set(args.only or ()) - {row.package for row in rows}
    if unknown:
        raise SystemExit(f"--only: no {', '.join(sorted(unknown))} in sources.csv")
    args.out.mkdir(parents=True, exist_ok=True)
    for leftover in args.out.glob(".building-*"):
        shutil.rmtree(leftover)
    for package, group in groupby(sorted(rows, key=lambda row: row.package), key=lambda row: row.package):
        if (args.only and package not in args.only) or (args.out / "clips" / folder_name(package)).is_dir():
            continue
        try:
            build_package(list(group), args.out)
            print(f"{package}: done", flush=True)
        except UnavailableError as error:
            print(f"{package}: left out: {error}", flush=True)
    table = compose(args.out, rows, args.hours)
    print(summary(table))


if __name__ == "__main__":
    main()
