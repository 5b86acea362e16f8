"""What cosine says that two clips are the same sound: the bound of near duplicates on the page (docs/report.md).

    python benchmarks/duplicates.py [--bundle small] [--readout 1 2]

Every 25th bundled clip is made anew as Opus and MP3, and 12 dB softer, and embedded beside all bundled clips. For each
bound: how many of the copies are found, and how many pairs there are among the bundled clips and are of one kind.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from decar.audio import Manifest
from decar.embedder import Embedder
from decar.models import load_encoder
from decar.models.embed import half_standardised

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "src" / "decar" / "data" / "mini" / "metadata.csv"
EVERY = 25
OPUS_RATE = 48_000
SOFTER = 10 ** (-12 / 20)
BOUNDS = (0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99)


def copies(file: Path, folder: Path) -> list[Path]:
    """The sound as Opus, as MP3 and softer."""
    sound, rate = soundfile.read(file)
    made = [folder / f"{file.stem}.{end}" for end in ("opus.ogg", "mp3", "softer.wav")]
    at_opus_rate = soxr.resample(sound, rate, OPUS_RATE)
    soundfile.write(made[0], at_opus_rate, OPUS_RATE, format="OGG", subtype="OPUS")
    soundfile.write(made[1], sound, rate, format="MP3")
    soundfile.write(made[2], SOFTER * sound, rate)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--readout", type=int, nargs="*", default=[])
    args = parser.parse_args()
    embedder = Embedder(load_encoder(args.bundle, readout=args.readout))
    clips = Manifest.from_csv(INDEX, path_column="file")
    bundled = embedder.files(clips, progress=True)
    rows = np.arange(0, len(bundled.table), EVERY)
    with tempfile.TemporaryDirectory() as folder:
        made = [copies(file, Path(folder)) for file in clips.take(rows).files]
        anew = embedder.files([file for files in made for file in files]).vectors.reshape(len(rows), 3, -1)
    n = len(bundled.vectors)
    kinds = bundled.table["kind"].to_numpy()
    like = np.empty((len(rows), 3))
    for j in range(3):  # each copy stands where a set that has both would have it: one more row at a time
        unit = half_standardised(np.concatenate([bundled.vectors, anew[:, j]]))
        like[:, j] = (unit[rows] * unit[n:]).sum(axis=1)
    unit = half_standardised(bundled.vectors)
    cosines = np.triu(unit @ unit.T, 1)
    print("| bound | Opus | MP3 | 12 dB softer | pairs among the bundled clips | of one kind |")
    print("|---:|---:|---:|---:|---:|---:|")
    for bound in BOUNDS:
        first, second = np.nonzero(cosines >= bound)
        share = [f"{(like[:, j] >= bound).mean():.0%}" for j in range(3)]
        same = f"{(kinds[first] == kinds[second]).mean():.0%}" if len(first) else ""
        print(f"| {bound} | {' | '.join(share)} | {len(first)} | {same} |")


if __name__ == "__main__":
    main()
