"""Recordings as a recorder in the field makes them, from labelled clips over noise; how well clusters find the kinds.

    python benchmarks/field.py make --root DIR --out FIELD         # 300 recordings, 12 of them 10 minutes long
    decar cluster FIELD --out CLUSTERS
    python benchmarks/field.py judge --out FIELD --clusters CLUSTERS/clusters.csv

and how well a classifier finds them in other recordings, made of other clips, once somebody has labelled some segments:

    python benchmarks/field.py make --root DIR --out KNOWN --half 0
    python benchmarks/field.py make --root DIR --out NEW --half 1 --seed 1
    decar suggest KNOWN -n 60 --out first.csv                       # typical segments
    python benchmarks/field.py label --out KNOWN --table first.csv  # in place of a person
    decar fit first.csv                                             # and again: suggest --classifier, label, fit
    decar predict NEW --classifier classifier.safetensors
    python benchmarks/field.py score --out NEW --table predictions.csv

`name`, in place of suggest and label, names each cluster by the commonest kind of the five segments nearest to its
middle and labels all of its segments so, as the page of the clusters does:

    python benchmarks/field.py name --out KNOWN --clusters CLUSTERS/clusters.csv --table labels.csv

DIR holds index.csv (path, and the columns of KINDS) and the clips. Each of six sites has its own noise; a recording has
bouts of one kind of sound, clip after clip, with pauses between. A segment is of the kind that fills at least a third
of it, or else background. What is printed is the adjusted mutual information (AMI) of clusters and kinds, with
background as a kind and without it, and for comparison of K-Means with other k on the same embeddings.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score, average_precision_score

from decar.audio.decode import decode
from decar.clustering import KMeans, Whitening
from decar.neighbours.index import EmbeddingTable

RATE = 16_000
RECORDINGS, LONG = 300, 12
HEARD = 5  # segments of a cluster that a person listens to before naming it
KINDS = {  # column, and its values
    "event": (
        "animal", "scream", "creature_voice", "impact_arrow", "footstep", "strum_up", "ambient_water", "ambient_rain",
        "lumbering_tree", "mining_stone", "weapon_swordhit",
    ),
    "drum_class": ("tom", "crash"),
    "instrument_family": ("flute", "brass", "organ"),
    "language": ("fr", "ru"),
}  # fmt: skip

Wave = NDArray[np.float32]


def clips_of(root: Path, half: int | None) -> dict[str, list[Path]]:
    """The files of each kind; every other one if a half is asked for."""
    index = pd.read_csv(root / "index.csv", dtype=str)
    return {
        kind: [root / path for path in index.loc[index[column] == kind, "path"]][half :: 1 if half is None else 2]
        for column, kinds in KINDS.items()
        for kind in kinds
    }


def noise(n: int, tilt: float, level: float, rng: np.random.Generator) -> Wave:
    """`n` samples with a power spectrum that falls as f^-tilt, at `level` dB of full scale."""
    spectrum = np.fft.rfft(rng.normal(size=n))
    spectrum /= np.maximum(np.arange(len(spectrum)), n * 30 / RATE) ** (tilt / 2)
    wave = np.fft.irfft(spectrum, n)
    scaled: Wave = (wave * 10 ** (level / 20) / wave.std()).astype(np.float32)
    return scaled


def recording(
    seconds: float, files: dict[str, list[Path]], kinds: list[str], site: int, rng: np.random.Generator
) -> tuple[Wave, list[tuple[float, float, str]]]:
    """A recording, and start, end (s) and kind of its bouts."""
    wave = noise(round(seconds * RATE), tilt=0.4 + 0.3 * site, level=-50 + 2 * site, rng=rng)
    bouts, at = [], rng.uniform(0, 8)
    while at < seconds - 3:
        kind, end = str(rng.choice(kinds)), min(at + rng.uniform(4, 15), seconds)
        place, level = at, 10 ** (rng.uniform(-32, -18) / 20)
        while place < end - 0.3:
            clip = decode(files[kind][rng.integers(len(files[kind]))], sample_rate=RATE)
            first = round(place * RATE)
            clip = clip[: round(end * RATE) - first]
            wave[first : first + len(clip)] += clip * (level / max(float(clip.std()), 1e-4))
            place += len(clip) / RATE + rng.uniform(0, 0.4)
        bouts.append((at, end, kind))
        at = end + rng.uniform(2, 12)
    return np.clip(wave, -1, 1), bouts


def make(root: Path, out: Path, seed: int, half: int | None) -> None:
    """Write the recordings, and `truth.csv` beside their folder."""
    rng, files = np.random.default_rng(seed), clips_of(root, half)
    names, rows = list(files), []
    for i in range(RECORDINGS):
        site, seconds = i % 6, 600.0 if i % (RECORDINGS // LONG) == 0 else float(rng.uniform(30, 60))
        kinds = [str(kind) for kind in rng.choice(names, 6, replace=False)]
        name = f"area{site // 2}/site{site}/SITE{site}_202405{1 + i // 24:02d}_{i % 24:02d}0000.flac"
        wave, bouts = recording(seconds, files, kinds, site, rng)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out / name, wave, RATE)
        rows += [(name, *bout) for bout in bouts]
    truth = pd.DataFrame(rows, columns=["path", "start", "end", "kind"])
    truth.to_csv(out.with_name(f"{out.name}-truth.csv"), index=False)


def kinds_of(table: pd.DataFrame, truth: pd.DataFrame) -> NDArray[np.str_]:
    """The kind of each segment."""
    bouts = {path: rows[["start", "end", "kind"]].to_numpy() for path, rows in truth.groupby("path")}
    found = []
    for path, start, duration in table[["path", "start", "duration"]].itertuples(index=False):
        share: dict[str, float] = {}
        for first, last, kind in bouts.get(path, ()):
            share[kind] = share.get(kind, 0.0) + max(0.0, min(last, start + duration) - max(first, start))
        best = max(share, key=share.__getitem__, default="")
        found.append(best if best and share[best] >= duration / 3 else "background")
    return np.array(found)


def judge(out: Path, clusters: Path) -> None:
    """Print the AMI."""
    table = pd.read_csv(clusters)
    kinds = kinds_of(table, pd.read_csv(out.with_name(f"{out.name}-truth.csv")))
    heard = kinds != "background"

    def ami(labels: NDArray[np.int64]) -> str:
        both = (adjusted_mutual_info_score(kinds, labels), adjusted_mutual_info_score(kinds[heard], labels[heard]))
        return "AMI {:.3f}, without background {:.3f}".format(*both)

    labels = table["cluster"].to_numpy()
    print(f"{len(table)} segments, {heard.mean():.0%} with a sound; {len(np.unique(labels))} clusters: {ami(labels)}")
    found = EmbeddingTable.open(clusters.with_name("embeddings.parquet"))
    vectors = found.take(np.arange(len(found)))
    unit = Whitening.fit(vectors).unit(vectors)
    for k in (4, 8, 16, 32, 64, 128):
        print(f"k={k}: {ami(KMeans(k, n_init='auto').fit_predict(unit).labels)}")


def label(out: Path, file: Path) -> None:
    """Give each segment of a table its kind, as a person would; "background" is a label like the others."""
    table, truth = pd.read_csv(file), pd.read_csv(out.with_name(f"{out.name}-truth.csv"))
    kinds = kinds_of(relative(table, out), truth)
    table.assign(label=kinds).to_csv(file, index=False)
    print(f"{len(table)} segments labelled: {dict(zip(*np.unique(kinds, return_counts=True), strict=True))}")


def name(out: Path, clusters: Path, file: Path) -> None:
    """Label all segments by the names of their clusters, and write `file`."""
    table = pd.read_csv(clusters)
    kinds = kinds_of(table, pd.read_csv(out.with_name(f"{out.name}-truth.csv")))
    names = {}
    for cluster, rows in table.groupby("cluster"):
        near = rows.sort_values("distance").index[:HEARD]
        names[cluster] = pd.Series(kinds[near]).value_counts().index[0]
    labels = table["cluster"].map(names)
    paths = [str((out / path).resolve()) for path in table["path"]]
    table[["start", "duration"]].assign(path=paths, label=labels, by="cluster").to_csv(file, index=False)
    right = np.mean(labels == kinds)
    print(f"{len(names)} clusters, {len(set(names.values()))} names; {right:.0%} of the labels are right")


def relative(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """With paths as the truth has them."""
    return table.assign(
        path=[os.path.relpath(path, out.resolve()) if os.path.isabs(path) else path for path in table["path"]]
    )


def score(out: Path, file: Path) -> None:
    """Print F1, precision and recall of each kind over the segments."""
    table = relative(pd.read_csv(file, keep_default_na=False), out)
    truth = kinds_of(table, pd.read_csv(out.with_name(f"{out.name}-truth.csv")))
    given = [set(cell.split(",")) for cell in table["label"]]
    rows = {}
    for kind in np.unique(truth):
        if kind == "background":
            continue
        has, said = truth == kind, np.array([kind in words for words in given])
        hits = int((has & said).sum())
        scores = table[f"score_{kind}"] if f"score_{kind}" in table else np.zeros(len(table))
        rows[kind] = {
            "segments": int(has.sum()), "precision": hits / max(said.sum(), 1), "recall": hits / has.sum(),
            "F1": 2 * hits / max(has.sum() + said.sum(), 1), "average precision": average_precision_score(has, scores),
        }  # fmt: skip
    found = pd.DataFrame.from_dict(rows, orient="index")
    print(found.round(3).to_string(), "\n\nmean", found.drop(columns="segments").mean().round(3).to_dict())


def main() -> None:
    """Make, judge, label, name or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "judge", "label", "name", "score"))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clusters", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", type=int, choices=(0, 1))
    args = parser.parse_args()
    if args.what == "make":
        make(args.root, args.out, args.seed, args.half)
    elif args.what == "judge":
        judge(args.out, args.clusters)
    elif args.what == "name":
        name(args.out, args.clusters, args.table)
    else:
        (label if args.what == "label" else score)(args.out, args.table)


if __name__ == "__main__":
    main()
