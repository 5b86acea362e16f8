"""What embedding 1,000 hours costs: in one process with one core, and on Ray clusters of nodes with a core each.

    python benchmarks/machines.py                             # one process
    python benchmarks/machines.py --nodes 1 2 --clips 720     # and clusters of one and of two nodes, on this machine

Clips are noise in 16-bit wav at 16 kHz. Every arm embeds a few clips first, so that starting processes and importing
torch do not count, and the best of `--runs` is printed. CPU time is that of the process, which other work on the
machine changes little; wall time is only worth something on a machine that does nothing else. Nodes on one machine
share its caches and its memory: two machines lose less.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from rig import machine

from decar.audio import Manifest
from decar.embedder import Embedder
from decar.embedder.engines import RayEngine

RATE, WARM = 16_000, 8
OBJECTS = 10**8  # bytes of a node's object store


def write_clips(folder: Path, n: int, seconds: float) -> Manifest:
    """`n` clips of noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        soundfile.write(folder / f"{i:06}.wav", 0.1 * rng.standard_normal(round(seconds * RATE)), RATE, "PCM_16")
    return Manifest.from_folder(folder)


@contextmanager
def ray_nodes(n: int) -> Iterator[RayEngine]:
    """An engine on a cluster of a head and `n` nodes with a core each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(n):
        cluster.add_node(num_cpus=1, object_store_memory=OBJECTS)
    try:
        yield RayEngine(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure(clips: Manifest, bundle: str, engine: RayEngine | None, out: Path, runs: int) -> tuple[float, float]:
    """Seconds of the clock, and of this process's CPU time; the least of several runs."""
    embedder = Embedder(bundle, num_workers=1, engine=engine)
    found = []
    embedder.write(clips.take(np.arange(WARM)), out, progress=False)
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        embedder.write(clips, out, progress=False)
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=360)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sounds = Path(folder) / "sounds"
        sounds.mkdir()
        clips = write_clips(sounds, args.clips, args.seconds)
        hours = args.clips * args.seconds / 3600
        print(f"{machine()}; {args.clips} clips of {args.seconds:g} s, {args.bundle}\n")
        print("| | s | h of wall time for 1,000 h | core-hours of CPU time for 1,000 h |\n|---|---:|---:|---:|")
        wall, cpu = measure(clips, args.bundle, None, Path(folder) / "out.parquet", args.runs)
        print(f"| one process | {wall:.1f} | {wall / 3.6 / hours:.2f} | {cpu / 3.6 / hours:.2f} |", flush=True)
        for n in args.nodes:
            with ray_nodes(n) as engine:
                wall, _ = measure(clips, args.bundle, engine, Path(folder) / "out.parquet", args.runs)
            print(f"| Ray, nodes: {n} | {wall:.1f} | {wall / 3.6 / hours:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
