"""Draw the table that benchmarks/recipe.py wrote: a line an arm, before and after training, with the interval.

python benchmarks/plot_recipe.py runs/recipe/mini docs/recipe-mini.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

LOGMEL = "log-mel statistics"


def draw(table: pd.DataFrame, title: str, out: Path) -> None:
    """The arms, best first: mean test accuracy trained (filled), untrained (hollow), log-mel statistics (dashed)."""
    rows = table.set_index("arm")
    test, half = ({str(arm): 100 * float(x) for arm, x in rows[name].items()} for name in ("test", "test_interval"))
    arms = sorted((arm for arm in test if f"{arm}, untrained" in test), key=lambda arm: test[arm])
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.35 * len(arms)), layout="constrained")
    for place, arm in enumerate(arms):
        for row, fill, shift in ((f"{arm}, untrained", "white", -0.12), (arm, "C0", 0.12)):
            axes.errorbar(test[row], place + shift, xerr=half[row], fmt="o", color="C0", mfc=fill, capsize=3)
    axes.axvline(test[LOGMEL], color="C1", linestyle="--", label=LOGMEL)
    axes.plot([], [], "o", color="C0", mfc="white", label="untrained")
    axes.plot([], [], "o", color="C0", label="trained")
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel("mean test accuracy over the tasks, %, frozen, protocol=search")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    """Read, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with recipe.csv")
    parser.add_argument("out", type=Path, help="a .png, .svg or .pdf")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    file = args.folder / "recipe.csv"
    if not file.is_file():
        parser.error(f"{file} does not exist: run benchmarks/recipe.py --out {args.folder.parent} first")
    draw(pd.read_csv(file), args.title, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
