"""Do the network's own clusters mean anything on a small set? The default recipe on 45, 150 and 470 bundled clips.

    python benchmarks/small_sets.py --seeds 0 1 2      # 2.5 minutes a run on one thread

Each run trains on as many clips of each of the five kinds. Printed is the adjusted mutual information (AMI) with the
kinds: of the network's clusters in the last epoch, and of K-Means, with the same k, on the whitened vectors of the
bundled encoder `small`, which has been trained on such sounds. What is finished is not run again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from decar.audio import LogMelStore, Manifest
from decar.clustering import KMeans, prepare
from decar.models import embed_store, load_encoder

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "src" / "decar" / "data" / "mini"
OWN_DIM = 64  # conf/labels/both.yaml, network.dim


def subset(n: int, seed: int, out: Path) -> Path:
    """A table of `n` clips, each kind equally often (music has 70 clips: others fill up)."""
    clips = pd.read_csv(MINI / "metadata.csv")[["file", "kind"]]
    clips["file"] = [str(MINI / file) for file in clips["file"]]
    chosen = pd.concat([
        rows.sample(min(n // 5, len(rows)), random_state=seed) for _, rows in clips.groupby("kind")
    ])  # fmt: skip
    rest = clips.drop(chosen.index)
    more = rest[rest["kind"] != "music"].sample(n - len(chosen), random_state=seed)
    path = out / f"clips{n}-{seed}.csv"
    pd.concat([chosen, more]).sort_index().to_csv(path, index=False)
    return path


def train(clips: Path, seed: int, run: Path, cache: Path) -> None:
    """Train with the recipe's defaults, unless that is done."""
    options = [
        "data=csv", f"data.path={clips}", "data.path_column=file", f"seed={seed}", "report=false", "resume=auto",
        f"cache_dir={cache}", f"hydra.run.dir={run}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "train.py", *options], cwd=ROOT, check=True)


def own_clusters(run: Path, clips: Path) -> "tuple[np.ndarray, np.ndarray]":
    """Kinds and the network's clusters of the last epoch, clip by clip."""
    clusters = pd.read_parquet(run / "clusters.parquet")
    last = clusters[clusters["epoch"] == clusters["epoch"].max()]
    own = last[last["clustering"] == 6]  # after those of six descriptors
    if own.empty:
        raise SystemExit(f"{run}: no clusters of the network's own vectors were made")
    kinds = pd.read_csv(clips).set_index("file")["kind"]
    return kinds.loc[own["clip"]].to_numpy(), own["pseudo_label"].to_numpy()


def reference(clips: Path, k: int, seed: int, cache: Path) -> float:
    """AMI of K-Means on the whitened vectors of `small`."""
    store = LogMelStore.open_or_build(Manifest.from_csv(clips, path_column="file"), cache_dir=cache).usable()
    found = KMeans(k, seed=seed, n_init="auto").fit_predict(
        prepare(embed_store(load_encoder(), store, progress=False), OWN_DIM)
    )
    return float(adjusted_mutual_info_score(store.manifest.column("kind"), found.labels))


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[45, 150, 470])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "small-sets")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in args.seeds:
        for n in args.sizes:
            clips, run = subset(n, seed, out), out / f"n{n}-seed{seed}"
            train(clips, seed, run, out)
            kinds, own = own_clusters(run, clips)
            k = int(own.max()) + 1
            ami = adjusted_mutual_info_score(kinds, own)
            found.append({"n": n, "seed": seed, "k": k, "own": ami, "small": reference(clips, k, seed, out)})
    print(pd.DataFrame(found).sort_values(["n", "seed"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
