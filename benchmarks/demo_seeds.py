"""The README's figures: the default recipe, several seeds, judged frozen on eight bundled tasks under both protocols.

    python benchmarks/demo_seeds.py            # seeds 0, 1, 2
    python benchmarks/demo_seeds.py --seeds 0 1 2 3 4

Every seed pre-trains anew; its random encoder is the same network with the same seed before training. Prints the table
with mean and 95 % interval over seeds, and how long pre-training took.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

from recipe import BUNDLED

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> float:
    """Run a command of this repository with this interpreter; seconds it took."""
    print("$", " ".join(command), flush=True)
    began = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return time.monotonic() - began


def main() -> None:
    """Pre-train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo-seeds" / time.strftime("%Y-%m-%d_%H-%M-%S"))
    args = parser.parse_args()
    out = args.out.resolve()
    seconds = []
    for seed in args.seeds:
        folder = out / f"seed{seed}"
        seconds.append(run("train.py", f"seed={seed}", f"hydra.run.dir={folder / 'pretrain'}"))
        run(
            "eval.py", "-m", BUNDLED, "mode=frozen", "protocol=paper,search", f"seed={seed}",
            f"bundle=random,logmel,{folder / 'pretrain'}",
            f"hydra.sweep.dir={folder / 'frozen'}",
        )  # fmt: skip
    run("-m", "decar.cli.app", "table2", str(out), "--csv", str(out / "table2.csv"))
    times = ", ".join(f"{s:.0f}" for s in seconds)
    print(f"\npre-training took {times} s on {platform.processor() or platform.machine()}; all of it lies in {out}")


if __name__ == "__main__":
    main()
