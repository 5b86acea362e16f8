"""How many whitened dimensions should be clustered? K-Means against the known kinds of sound, by N and dimensions.

    python benchmarks/whitening.py                          # bundled sounds, N = 30 to 1,991: a minute
    python benchmarks/whitening.py --root DIR --sizes 2000 5000 10000     # a folder with index.csv (column kind)
    python benchmarks/whitening.py --plot docs/whitening.png                       # and draw it

Each draw takes N clips at random. Six descriptors, and 512 random projections of the embeddings of `small` and of an
untrained network (what `g` makes of them before training), are whitened to a given number of dimensions, the networks'
scaled to length 1 as in training, and clustered by K-Means with the k that `k=null` picks. The figure is the adjusted
mutual information (AMI) with `kind`: 0 is chance, 1 equality. `rule` is what `decar.clustering.affordable_dim` keeps of
the dimensions that conf/labels asks for. Features are cached in --out.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.metrics import adjusted_mutual_info_score

from decar.audio import LogMelStore, Manifest
from decar.audio.descriptors import DESCRIPTORS, describe, input_statistics
from decar.clustering import KMeans, Whitening, affordable_dim, l2_normalize
from decar.models import Encoder, build_network, embed_store, load_encoder
from decar.models.networks import seeded
from decar.pretrain.plan import clusters_for

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "src" / "decar" / "data" / "mini" / "metadata.csv"
DIMS = (2, 4, 8, 16, 32, 48, 64, 128)
ASKED = dict.fromkeys(DESCRIPTORS, 48) | {"small": 64, "untrained": 64}  # conf/labels/both.yaml

Floats = NDArray[np.float32]


def features(root: Path | None, out: Path) -> dict[str, NDArray[np.generic]]:
    """`kind` `(N,)` and, by name, vectors `(N, P)` of all clips of a set; computed once."""
    cache = out / f"{root.resolve().name if root else 'mini'}.npz"
    if not cache.is_file():
        if root is None:
            clips = Manifest.from_csv(MINI, path_column="file")
        else:
            clips = Manifest.from_csv(root / "index.csv", where="pretrain")
        store = LogMelStore.open_or_build(clips, cache_dir=out).usable()
        plain = OmegaConf.load(ROOT / "conf" / "encoder" / "conv.yaml")
        with seeded(0):
            network: Any = build_network("conv", plain.pool, stride=plain.stride, local=plain.local)
        network.set_input_statistics(*input_statistics(store))
        untrained = Encoder(network)
        made = {"kind": np.asarray(store.manifest.column("kind"), str), **describe(store, list(DESCRIPTORS))}
        for name, encoder in (("small", load_encoder()), ("untrained", untrained)):
            made[name] = projected(embed_store(encoder, store))
        np.savez(cache, **cast(Any, made))  # numpy's types take the names for its own options
    return dict(np.load(cache))


def projected(x: Floats) -> Floats:
    """512 random linear combinations of embeddings `(N, D)`, as the untrained `g` makes them."""
    weights = np.random.default_rng(0).normal(size=(x.shape[1], 512)) / np.sqrt(x.shape[1])
    made: Floats = (x - x.mean(axis=0)) @ weights.astype(np.float32)
    return made


def rows(data: dict[str, NDArray[np.generic]], n: int, draw: int) -> Iterator[dict[str, object]]:
    """The AMI of each vector at each number of dimensions, for one draw of `n` clips."""
    kind = data["kind"]
    chosen = np.sort(np.random.default_rng(draw).choice(len(kind), n, replace=False))
    clusterer = KMeans(clusters_for(n), seed=draw)
    for name, asked in ASKED.items():
        white = Whitening.fit_exactly(data[name][chosen], max(DIMS))(data[name][chosen])
        kept = affordable_dim(n, asked)
        for label, dim in [*((str(d), d) for d in DIMS if d <= min(n, white.shape[1])), ("rule", kept)]:
            points = white[:, :dim] if name in DESCRIPTORS else l2_normalize(white[:, :dim])
            ami = adjusted_mutual_info_score(kind[chosen], clusterer.fit_predict(points).labels)
            what = "descriptors" if name in DESCRIPTORS else name
            yield {"n": n, "vectors": what, "dim": label, "kept": dim, "draw": draw, "ami": ami}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Mean AMI over draws (and descriptors): a row for each N and vector, a column for each number of dimensions."""
    order = [*map(str, DIMS), "rule"]
    return found.groupby(["n", "vectors", "dim"])["ami"].mean().unstack("dim")[order]


def draw_curves(found: pd.DataFrame, out: Path) -> None:
    """AMI by number of dimensions, a panel for each kind of vector and a curve for each N; the rule is a filled dot."""
    names = ["descriptors", "small", "untrained"]
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
    for name, axes in zip(names, panels, strict=True):
        part = found[found["vectors"] == name]
        for place, (n, lines) in enumerate(part.groupby("n")):
            colour = plt.get_cmap("viridis")(place / max(1, part["n"].nunique() - 1))
            forced, rule = lines[lines["dim"] != "rule"], lines[lines["dim"] == "rule"]
            axes.plot(forced.groupby("kept")["ami"].mean(), color=colour, label=f"N = {n:,}")
            axes.plot(rule["kept"].mean(), rule["ami"].mean(), "o", color=colour)
        axes.set(title=name, xscale="log", xlabel="whitened dimensions (dot: the rule)")
        axes.set_xticks(DIMS, [str(d) for d in DIMS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("AMI of clusters with kinds of sound")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(out)
    plt.close(figure)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a folder with index.csv (default: the bundled sounds)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 45, 100, 150, 300, 470, 1000, 1991])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="a .png or .svg")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "whitening")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = features(args.root, args.out)
    most = len(data["kind"])
    found = pd.DataFrame(
        [row for n in args.sizes for draw in range(args.draws) for row in rows(data, min(n, most), draw)]
    )
    print(table(found).round(2).to_string())
    if args.plot:
        draw_curves(found, args.plot)
        print(f"written to {args.plot}")


if __name__ == "__main__":
    main()
