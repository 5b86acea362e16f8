"""Cost of clustering from 20,000 to two million clips: seconds by stage, peak memory, and what the labels are worth.

    python benchmarks/scale.py --out scale.json [--sizes 20000 200000] [--arms kmeans pic sampler store]

Vectors `(N, 512)` are drawn from a mixture of known kinds straight into a file, which each arm, in a process of its
own, opens as a memory map. Peak memory stands twice: `peak_rss_gb` is the kernel's `ru_maxrss`, in which pages of the
mapped file count as long as nobody else needs the room; `peak_anonymous_gb` is the most that the process has had of
its own (RssAnon, looked at every 50 ms), which is what a smaller machine must have.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rig import machine, versions

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.clustering import KMeans, Whitening, nmi
from decar.clustering.pic import PIC, affinity, climb, median_distance, merge_singletons, power_iteration
from decar.files import whole
from decar.pretrain import EpochLabels, PretrainData, UniformClusterSampler

SIZES = (20_000, 200_000, 2_000_000)
LARGEST = 2_000_000  # of the arms that need no vectors
KINDS, WIDTH, DIM, NOISE = 1024, 512, 128, 0.7
BLOCK = 50_000
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--folder", type=Path, help="where the vectors lie meanwhile (2 kB a clip)")
    parser.add_argument("--one", nargs=3, metavar=("ARM", "N", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        arm, n, folder = options.one
        save(options.out, measured(ARMS[arm], int(n), Path(folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for n in sorted(options.sizes):
            arms = [arm for arm in options.arms if arm in NEED_VECTORS]
            if arms:
                write_mixture(Path(temporary), n)
            rows += [summary(fresh(arm, n, Path(temporary))) for arm in arms]
        rows += [summary(fresh(arm, LARGEST, Path(temporary))) for arm in options.arms if arm not in NEED_VECTORS]
    fitted = {arm: exponent([r for r in rows if r["arm"] == arm]) for arm in options.arms if arm in NEED_VECTORS}
    print("cost grows as N to the power of", fitted)
    save(options.out, {"machine": machine(), "versions": versions(), "rows": rows, "exponents": fitted})


def write_mixture(folder: Path, n: int) -> None:
    """`x.npy` (n, 512) float32 and `kind.npy` (n,): kinds of unequal size, directions of unequal variance."""
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    basis *= np.exp(-np.arange(WIDTH, dtype=np.float32) / 96)[:, None]
    centres, share = rng.normal(size=(KINDS, WIDTH)).astype(np.float32), rng.dirichlet(np.full(KINDS, 2.0))
    kinds = rng.choice(KINDS, n, p=share)
    vectors = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n, WIDTH))
    for start in range(0, n, BLOCK):
        kind = kinds[start : start + BLOCK]
        noise = rng.standard_normal((len(kind), WIDTH), np.float32)
        vectors[start : start + BLOCK] = (centres[kind] + np.float32(NOISE) * noise) @ basis
    vectors.flush()
    np.save(folder / "kind.npy", kinds)


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """What was done since the last call was `name`."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def whitened(folder: Path, clock: Clock) -> "np.ndarray[Any, np.dtype[np.float32]]":
    vectors = np.load(folder / "x.npy", mmap_mode="r")
    clock.stage("open")
    whitening = Whitening.fit(vectors, DIM)
    clock.stage("learn whitening")
    points = whitening.unit(vectors)
    clock.stage("whiten")
    return points


def run_kmeans(n: int, folder: Path, clock: Clock) -> Row:
    points = whitened(folder, clock)
    found = KMeans(k=1024).fit_predict(points)
    clock.stage("k-means")
    return {"nmi": nmi(found.labels, np.load(folder / "kind.npy")), "n_clusters": found.n_clusters}


def run_pic(n: int, folder: Path, clock: Clock) -> Row:
    points = whitened(folder, clock)
    clusterer = PIC(sigma="auto")
    neighbours, squared = clusterer.search(points)
    clock.stage("search neighbours")
    labels, n_clusters = beyond_search(clusterer, neighbours, squared)
    clock.stage("graph to labels")
    kind = np.load(folder / "kind.npy")
    return {"nmi": nmi(labels, kind), "n_clusters": n_clusters, "exact": clusterer.is_exact(n)}


def beyond_search(clusterer: PIC, neighbours: Any, squared: Any) -> tuple[Any, int]:
    """All that PIC does once it has neighbours."""
    graph = affinity(neighbours, squared, median_distance(squared))
    labels = climb(graph, power_iteration(graph, clusterer.alpha, clusterer.n_iter))
    return merge_singletons(labels, neighbours)


def run_sampler(n: int, folder: Path, clock: Clock) -> Row:
    """An epoch's order and a swap of labels, with the data module on a store whose frames are a hole in a file."""
    rng = np.random.default_rng(0)
    labels = rng.integers(1024, size=(n, 2))
    store = hollow_store(n, folder)
    data = PretrainData(store)
    given = [EpochLabels(labels[:, h : h + 1], [1024], h) for h in (0, 1)]
    sampler = UniformClusterSampler(labels[:, 0])
    clock.stage("prepare")
    sampler.draw()
    clock.stage("sampler epoch")
    data.set_labels(given[0])
    clock.stage("first labels")
    data.set_labels(given[1])
    clock.stage("label swap")
    return {}


def run_store(n: int, folder: Path, clock: Clock) -> Row:
    """Open the index of a store of `n` clips, part of it, and random clips."""
    manifest, cache = make_hollow(n, folder)
    clock.stage("make the store (not counted)")
    before = anonymous_gb()
    store = LogMelStore.open_or_build(manifest, FrontEnd(), cache)
    clock.stage("open")
    grown = anonymous_gb() - before
    rng = np.random.default_rng(0)
    half = store.take(np.sort(rng.permutation(n)[: n // 2]))
    clock.stage("take half")
    for i in rng.integers(len(half), size=100_000):
        np.array(half[int(i)])
    clock.stage("100,000 random clips")
    return {"index_gb": grown, "clips": len(half)}


FRAMES = 98  # of each clip in a hollow store


def hollow_manifest(n: int, folder: Path) -> Manifest:
    return Manifest(pd.DataFrame({"path": [f"{i // 1000:04d}/clip_{i:08d}.wav" for i in range(n)]}), folder)


def hollow_store(n: int, folder: Path) -> LogMelStore:
    """A store in memory whose `n` clips all share one stretch of frames."""
    mel, lengths = np.zeros((FRAMES, 64), np.float16), np.full(n, FRAMES)
    return LogMelStore(hollow_manifest(n, folder), FrontEnd(), mel, 0 * lengths, lengths, [""] * n, "hollow")


def make_hollow(n: int, folder: Path, *, digests: bool = True) -> tuple[Manifest, Path]:
    """A finished store of `n` clips on disk; its frames are a hole in a file, which takes no room.

    Without digests it is as an earlier version wrote it.
    """
    from decar.audio.blocks import BLOCK_BYTES, BlockHasher
    from decar.audio.build import FORMAT, INDEX_FILE, MEL_FILE, META_FILE
    from decar.audio.store import _sha256
    from decar.digests import digest_of, sealed

    manifest, spec = hollow_manifest(n, folder), FrontEnd()
    fingerprint = _sha256(f"{FORMAT} {manifest.fingerprint()} {spec.hash()}")
    place = folder / "cache" / "logmel" / fingerprint
    place.mkdir(parents=True)
    frames = np.full(n, FRAMES)
    index = {"path": manifest.table["path"], "offset": np.cumsum(frames) - frames, "frames": frames}
    pd.DataFrame({**index, "status": "ok", "reason": ""}).to_parquet(place / INDEX_FILE)
    facts = {"format": FORMAT, "fingerprint": fingerprint, "frontend": spec.as_dict()}
    facts |= {"n_clips": n, "n_frames": FRAMES * n}
    size = FRAMES * n * spec.n_mels * 2
    with (place / MEL_FILE).open("wb") as file:
        file.truncate(size)
    if digests:
        whole, rest = BlockHasher(), BlockHasher()
        whole.update(bytes(BLOCK_BYTES))
        rest.update(bytes(size % BLOCK_BYTES))
        blocks = whole.hexdigest() * (size // BLOCK_BYTES) + rest.hexdigest()
        text = sealed({**facts, "blocks": blocks, "index": digest_of(place / INDEX_FILE)})
    else:
        text = json.dumps(facts)
    (place / META_FILE).write_text(text)
    return manifest, folder / "cache"


ARMS: dict[str, Callable[[int, Path, Clock], Row]] = {
    "kmeans": run_kmeans, "pic": run_pic, "sampler": run_sampler, "store": run_store,
}  # fmt: skip
NEED_VECTORS = {"kmeans", "pic"}


def measured(arm: Callable[[int, Path, Clock], Row], n: int, folder: Path) -> Row:
    """Run an arm in this process, and look at its memory meanwhile."""
    peak, over = [anonymous_gb()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], anonymous_gb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    clock = Clock()
    found = arm(n, folder, clock)
    over.set()
    watcher.join()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**found, "seconds": clock.seconds, "peak_rss_gb": rss, "peak_anonymous_gb": peak[0]}


def anonymous_gb() -> float:
    """What the process holds of its own, in GB (2³⁰ bytes); 0.0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("RssAnon")), 0.0)


def fresh(arm: str, n: int, folder: Path) -> Row:
    """The figures of an arm, from a process of its own."""
    out = folder / "figures.json"
    words = [sys.executable, __file__, "--out", str(out), "--one", arm, str(n), str(folder)]
    subprocess.run(words, check=True)
    row: Row = {"arm": arm, "n": n, **json.loads(out.read_text())}
    if arm in NEED_VECTORS:
        row["file_gb"] = (folder / "x.npy").stat().st_size / 2**30
        row["total_s"] = sum(row["seconds"].values())
    return row


def summary(row: Row) -> Row:
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row["seconds"].items())
    rest = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in ("seconds", "arm", "n")}
    print(f"{row['arm']} of {row['n']:,}: {stages}; {rest}", flush=True)
    return row


def exponent(rows: Sequence[Row]) -> float | None:
    """Slope of log seconds over log N; None with a single size."""
    if len({row["n"] for row in rows}) < 2:
        return None
    return float(np.polyfit(np.log([row["n"] for row in rows]), np.log([row["total_s"] for row in rows]), 1)[0])


def save(path: Path, figures: Row) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
