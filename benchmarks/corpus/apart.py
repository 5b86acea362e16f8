"""Whether clips of a set are recordings that another set keeps for evaluation, in whatever coding and however cut.

    python benchmarks/corpus/apart.py --root DIR --kept BENCH     # BENCH/index.csv: the clips with `pretrain` false

Prints the pairs of clips that share sound, for `excluded.csv`; ends with 1 when there are any. Each frame of 256 ms
gets 32 bits, the signs of the differences of band energies along time and frequency (Haitsma and Kalker, "A highly
robust audio fingerprinting system", ISMIR 2002). Two clips share sound when many of their frames differ by at most one
bit at one and the same lag.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.fft

from decar.audio import decode
from decar.errors import AudioError

WINDOW, HOP, RATE = 4096, 320, 16_000
EDGES = np.geomspace(300, 3000, 34) / RATE * WINDOW  # of 33 bands, in bins
LEAST_FRAMES, LEAST_SHARE = 4, 0.1  # of a clip, at one lag, to be the same sound
OFTEN = 200  # a fingerprint in more frames than these, as of silence or a held tone, says nothing
Bits = npt.NDArray[np.uint32]


def fingerprints(wave: npt.NDArray[np.float32]) -> Bits:
    """One number of 32 bits for each 20 ms of a clip (T,), 0 where it is silent."""
    padded = np.pad(wave, (WINDOW // 2, WINDOW // 2 + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    power = np.abs(scipy.fft.rfft(frames, axis=1)) ** 2
    energy = np.add.reduceat(power, EDGES.astype(int), axis=1)[:, :33]
    slope = np.diff(np.log(energy + 1e-9), axis=1)
    signs = np.diff(slope, axis=0) > 0
    bits = (signs * (1 << np.arange(32, dtype=np.uint64))).sum(axis=1).astype(np.uint32)
    return np.where(energy[1:].sum(axis=1) > 1e-4, bits, np.uint32(0))


def gathered(paths: Sequence[Path]) -> tuple[Bits, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Fingerprints of all clips, the clip of each, its place in the clip."""
    parts = []
    for path in paths:
        try:
            parts.append(fingerprints(decode(path)))
        except AudioError as error:
            raise SystemExit(f"{path}: {error}") from error
    lengths = [len(part) for part in parts]
    places = np.concatenate([np.arange(length) for length in lengths])
    return np.concatenate(parts), np.repeat(np.arange(len(paths)), lengths), places


def shared(ours: Sequence[Path], kept: Sequence[Path]) -> Iterator[tuple[int, int, int]]:
    """Pairs (clip of `ours`, clip of `kept`, matching frames) that share sound."""
    bits, clip, place = gathered(ours)
    their_bits, their_clip, their_place = gathered(kept)
    order = np.argsort(bits, kind="stable")
    ranked = bits[order]
    votes = []
    for flip in (np.uint32(0), *(np.uint32(1 << i) for i in range(32))):
        keys = their_bits ^ flip
        first, last = np.searchsorted(ranked, keys), np.searchsorted(ranked, keys, side="right")
        count = np.where((last - first <= OFTEN) & (their_bits != 0), last - first, 0)
        theirs = np.repeat(np.arange(len(keys)), count)
        mine = order[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())]
        votes.append(np.stack([clip[mine], their_clip[theirs], place[mine] - their_place[theirs]], axis=1))
    pairs, frames = np.unique(np.concatenate(votes), axis=0, return_counts=True)
    shorter = np.minimum(np.bincount(clip)[pairs[:, 0]], np.bincount(their_clip)[pairs[:, 1]])
    for i in np.flatnonzero(frames >= np.maximum(LEAST_FRAMES, LEAST_SHARE * shorter)):
        yield int(pairs[i, 0]), int(pairs[i, 1]), int(frames[i])


def main() -> None:
    """Print the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the set")
    parser.add_argument("--kept", type=Path, required=True, help="folder with index.csv, its column pretrain")
    args = parser.parse_args()
    ours = pd.read_csv(args.root / "index.csv")
    kept = pd.read_csv(args.kept / "index.csv", low_memory=False)
    kept = kept[~kept["pretrain"]].reset_index(drop=True)
    found = sorted(shared([args.root / p for p in ours["path"]], [args.kept / p for p in kept["path"]]))
    for mine, theirs, frames in found:
        row, other = ours.iloc[mine], kept.iloc[theirs]
        print(f"{frames} frames: {row['recording']} ({row['path']}) and {other['source_package']} {other['path']}")
    print(f"{len(ours)} clips, {len(kept)} kept ones: {len(found)} pairs share sound")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
