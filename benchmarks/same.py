"""Show that a change keeps every number: digests of small seeded runs, written by one version and compared by another.

    git switch main && python benchmarks/same.py --out before.json
    git switch mine && python benchmarks/same.py --against before.json

Four arms, CPU only, minutes in all: the default recipe, the paper's setting with PIC, two processes, and `decar embed`
of the bundled sounds. Digests are of values, not of files: the weights' tensors, pseudo-labels, metrics, embeddings.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
FAST = ["debug=fast", "trainer.max_epochs=3", "trainer.accelerator=cpu", "seed=1"]
RUNS = {
    "recipe": FAST,
    "paper, PIC": [
        "experiment=paper", "trainer.accelerator=cpu", "seed=1", "trainer.max_epochs=2", "clusterer=pic",
        "loader.crop_frames=24", "encoder.name=mobilenetv3_small_050", "clusterer.sigma=auto", "report=false",
    ],
    "two processes": [*FAST, "trainer=ddp", "trainer.devices=2"],
}  # fmt: skip


def digest(*arrays: object) -> str:
    """Of values in their order, 16 hex digits."""
    hashed = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        hashed.update(f"{values.dtype}{values.shape}".encode())
        hashed.update(values.tobytes() if values.dtype != object else json.dumps(values.tolist(), default=str).encode())
    return hashed.hexdigest()[:16]


def call(*words: str) -> None:
    """Run a command of the checkout; its log is shown where it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def run(folder: Path, options: list[str]) -> dict[str, str]:
    """Digests of a pre-training run."""
    call("train.py", *options, f"hydra.run.dir={folder}/run", f"cache_dir={folder}/cache")
    state = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    parts = sorted((folder / "run/clusters.parquet").glob("*.parquet"))
    metrics = pd.read_csv(folder / "run/metrics.csv")
    return {
        "weights": digest(*(state[key].numpy() for key in sorted(state))),
        "labels": digest(*(table[column].to_numpy() for table in map(pd.read_parquet, parts) for column in table)),
        "metrics": digest(metrics.columns.to_numpy(object), *(metrics[column] for column in metrics)),
    }


def embed(folder: Path) -> dict[str, str]:
    """Digest of the bundled sounds' embeddings."""
    out = folder / "bundled.parquet"
    call("-m", "decar.cli.app", "embed", "src/decar/data/mini/audio", "--out", str(out))
    table = pd.read_parquet(out)
    return {"embeddings": digest(table["path"].to_numpy(object), np.stack(list(table["embedding"])))}


def main() -> None:
    """Compute, write or compare; exit status 1 where a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the digests to this file")
    parser.add_argument("--against", type=Path, help="compare with the digests of this file")
    arms: dict[str, Callable[[Path], dict[str, str]]] = {
        **{name: lambda folder, options=options: run(folder, options) for name, options in RUNS.items()},  # type: ignore[misc]
        "embed": embed,
    }
    parser.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms))
    args = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="decar-same-") as root:
        for i, name in enumerate(args.arms):
            found |= {f"{name}: {what}": value for what, value in arms[name](Path(root) / str(i)).items()}
    before = json.loads(args.against.read_text()) if args.against else {}
    for name, value in found.items():
        print(f"{name:30} {value} {'' if name not in before else 'same' if before[name] == value else 'DIFFERS'}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(int(any(before.get(name, value) != value for name, value in found.items())))


if __name__ == "__main__":
    main()
