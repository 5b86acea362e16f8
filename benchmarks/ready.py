"""The encoder that comes with decar: train, round to float16, judge, and write the figures into its model card.

    python benchmarks/ready.py --root DIR            # make ready ROOT=DIR; DIR has index.csv and tasks/*.csv
    python benchmarks/ready.py --root DIR --run RUN  # from a run that is there already

Each step is left out where its result is there (`resume=auto`). Only clips under MIT, BSD, CC0, CC BY and CC BY-SA or
in the public domain are trained on.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from recipe import BUNDLED

from decar.audio import Manifest
from decar.downstream import to_markdown
from decar.downstream.results import Result, collect
from decar.models import load_encoder, read_facts, save_bundle
from decar.models.bundle import READY_FILE, read_directions

ROOT = Path(__file__).resolve().parents[1]
CARD = READY_FILE.with_name("MODEL_CARD.md")
LEFT_OUT = ("GPL-2", "GPL-2+", "GPL-2+ with exception", "GPL-3 or LGPL-3")  # licences whose clips are not trained on
ALLOWED = ("MIT", "BSD", "CC0", "CC-BY", "public-domain")  # how the licences of all clips have to begin
LIMIT_MB = 12


def run(words: Sequence[str]) -> None:
    """Run a command of this repository."""
    print("python", *words, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True)


def train(root: Path, folder: Path) -> None:
    """Pre-train, unless that is done."""
    if (folder / "finished.json").is_file():
        return
    clips = f"data.where='{where(root)}'"
    options = ["experiment=small", "budget=null", "data=bench", f"data.root={root}", clips, "data.label=kind", "seed=0"]
    run(["train.py", *options, f"hydra.run.dir={folder}", "resume=auto"])


def where(root: Path) -> str:
    """The condition on the clips of `index.csv` that are trained on; it names only licences that are in the table."""
    there = set(pd.read_csv(root / "index.csv", usecols=["license"])["license"])
    quoted = [f'"{name}"' if " or " in name else name for name in LEFT_OUT if name in there]
    return " and ".join(["pretrain", *(f"license!={name}" for name in quoted)])


def trained_on(root: Path) -> pd.DataFrame:
    """The table of the clips that are trained on; refused where one has another licence than those allowed."""
    table = Manifest.from_csv(root / "index.csv", where=where(root)).table
    foreign = sorted(set(table["license"][~table["license"].str.startswith(ALLOWED)]))
    if foreign:
        raise SystemExit(f"{root / 'index.csv'}: clips under {', '.join(foreign)} would be trained on: add to LEFT_OUT")
    return table


def halve(folder: Path, clips: pd.DataFrame) -> None:
    """The run's bundle in float16, with what is known of the training, to where the package has it."""
    facts = {
        **read_facts(folder), "name": "small", "clips": len(clips),
        "hours": round(float(clips["duration_s"].astype(float).sum()) / 3600, 2),
        "licenses": sorted(set(clips["license"])), "card": CARD.name,
    }  # fmt: skip
    save_bundle(load_encoder(folder), READY_FILE, facts, half=True, directions=read_directions(folder))
    size = READY_FILE.stat().st_size / 1e6
    if size > LIMIT_MB:
        raise SystemExit(f"{READY_FILE}: {size:.1f} MB, more than {LIMIT_MB}")
    print(f"{READY_FILE}: {size:.1f} MB, encoder hash {load_encoder().hash()}")


def judge(root: Path, folder: Path, out: Path, cache: list[str]) -> dict[str, pd.DataFrame]:
    """Accuracy in %, a row a task: of the folder's tasks and of the bundled ones, beside weights in float32."""
    sets = {"bench": ["task=table", f"task.root={root}", "task.name=*"], "bundled": [BUNDLED]}
    tables = {}
    for name, tasks in sets.items():
        for bundles in ("random,logmel,small", str(folder)):
            sweep = out / name / ("float32" if bundles == str(folder) else "sweep")
            words = ["eval.py", "-m", *tasks, f"bundle={bundles}", "protocol=search", *cache]
            run([*words, f"hydra.sweep.dir={sweep}", "resume=auto"])
        tables[name] = scores(collect([out / name]))
    return tables


def scores(results: Sequence[Result]) -> pd.DataFrame:
    """Test accuracy in %: a row a task and their mean, a column an encoder; the run's own weights as `float32`."""
    names = {"random": "random weights", "logmel": "log-mel statistics", "small": "small"}
    rows: dict[str, dict[str, float]] = {}
    for result in results:
        rows.setdefault(result.task, {})[names.get(result.bundle, "small, float32")] = 100 * result.value
    columns = [*names.values(), "small, float32"]
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index().reindex(columns=columns)
    frame.loc["mean"] = frame.mean()
    return frame.rename_axis("task")


def text(frame: pd.DataFrame) -> str:
    """As Markdown with one decimal."""
    return to_markdown(frame.map(lambda value: "–" if pd.isna(value) else f"{value:.1f}"))


def packages(clips: pd.DataFrame) -> str:
    """As Markdown: clips, minutes and kinds of each source package and licence."""
    groups = clips.assign(s=clips["duration_s"].astype(float)).groupby(["source_package", "license"])
    rows = [
        [package, license, len(g), f"{g['s'].sum() / 60:.1f}", ", ".join(sorted(set(g["kind"])))]
        for (package, license), g in groups
    ]
    table = pd.DataFrame(rows, columns=["source package", "licence", "clips", "minutes", "kinds"])
    return to_markdown(table.set_index("source package"))


def fill(card: str, parts: dict[str, str]) -> str:
    """The card with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced.

    Raises:
        SystemExit: The card has no such place.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if card.count(begin) != 1 or card.count(end) != 1:
            raise SystemExit(f"{CARD}: no place for {name}: {begin} … {end} is expected once")
        before, rest = card.split(begin)
        card = f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return card


def main() -> None:
    """Train, round, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="index.csv and tasks/*.csv")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "ready" / "run", help="the training's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ready", help="where results go")
    parser.add_argument("--cache-dir", help="for log-mels and embeddings")
    parser.add_argument("--only-bundle", action="store_true", help="do not judge")
    args = parser.parse_args()
    root, folder, out = args.root.resolve(), args.run.resolve(), args.out.resolve()
    clips = trained_on(root)
    train(root, folder)
    halve(folder, clips)
    if args.only_bundle:
        return
    tables = judge(root, folder, out, [f"cache_dir={args.cache_dir}"] if args.cache_dir else [])
    parts = {"PACKAGES": packages(clips), **{name.upper(): text(frame) for name, frame in tables.items()}}
    CARD.write_text(fill(CARD.read_text(), parts))
    print(*parts.values(), sep="\n\n")


if __name__ == "__main__":
    main()
