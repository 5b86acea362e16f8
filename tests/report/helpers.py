"""A run's folder without a run: what training leaves, written by hand."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio.recorded import with_clock
from decar.clustering import Placed
from decar.embedder import Embedder
from decar.models import save_bundle
from decar.report import RunFiles, write_cluster_page
from tests.conftest import make_encoder

EVIL = "<script>alert(1)<\\u2215script>\"'&.wav"  # a slash cannot be in a file name
N = 24


def sounds_in(folder: Path, n: int = N) -> Manifest:
    """Tones of three kinds; the first file's name is an attack, and so is a label."""
    names = [f"clip {i}.wav" for i in range(n)]
    names[0] = EVIL
    rng, time = np.random.default_rng(0), np.arange(8000) / 16000
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        tone = np.sin(2 * np.pi * (200, 900, 3000)[i % 3] * time)
        soundfile.write(folder / name, 0.2 * tone + 0.01 * rng.normal(size=8000), 16000)
    kinds = ["low", "</script><img src=x onerror=alert(2)>", "high"]
    return Manifest(pd.DataFrame({"path": names, "kind": [kinds[i % 3] for i in range(n)]}), folder)


def write_clusters(run: Path, clips: pd.DataFrame, labels: np.ndarray) -> None:
    """`labels` (epochs, H, N), -1 in the first place of a row: this clustering has not begun."""
    (run / "clusters.parquet").mkdir(parents=True)
    for epoch, rows in enumerate(labels):
        parts = [
            pd.DataFrame({"clip": clips["path"], "epoch": epoch, "clustering": h, "pseudo_label": row})
            for h, row in enumerate(rows)
            if row[0] >= 0
        ]
        pd.concat(parts, ignore_index=True).to_parquet(run / "clusters.parquet" / f"epoch_{epoch:05d}.parquet")


def write_metrics(run: Path, epochs: int) -> None:
    with open(run / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "loss_step", "loss_epoch", "nmi", "n_clusters"])
        writer.writeheader()
        for epoch in range(epochs):
            writer.writerow({"epoch": epoch, "step": 10 * epoch + 5, "loss_step": 2.0 - epoch})
            row = {"epoch": epoch, "step": 10 * epoch + 9, "loss_epoch": 1.5 - epoch, "nmi": 0.5 * epoch}
            writer.writerow({**row, "n_clusters": 3})


def small_run(tmp_path: Path, encoder, *, epochs: int = 2) -> RunFiles:
    """Everything there: sounds, clusters, metrics, bundle, two clusterings."""
    run = tmp_path / "run"
    run.mkdir()
    store = LogMelStore.open_or_build(sounds_in(tmp_path / "sounds"), cache_dir=tmp_path / "cache", progress=False)
    first, second = np.arange(N) % 3, np.arange(N) % 4
    write_clusters(run, store.manifest.table, np.array([[first, (second + e) % 4] for e in range(epochs)]))
    write_metrics(run, epochs)
    save_bundle(encoder, run / "encoder.safetensors")
    return RunFiles(run, {"k": 3, "encoder": {"name": "small"}}, store, label="kind")


def field_page(folder: Path, names: tuple[str, str] = ("a.wav", "<b>.wav"), **options) -> Path:
    """A page of clusters without a run: two recordings of 20 s, a tone that rises every 5 s."""
    folder.mkdir(exist_ok=True)
    time = np.arange(5 * 16_000) / 16_000
    tones = [0.3 * np.sin(2 * np.pi * pitch * time) for pitch in (200, 700, 1500, 3000)]
    for name in names:
        soundfile.write(folder / name, np.concatenate(tones), 16_000)
    made = Embedder(make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg"), segment="auto").files(
        Manifest.from_folder(folder)
    )
    clusters = np.array([0, 1, 2, -1] * 2) * (not options.get("suggested"))
    placed = Placed(clusters, np.zeros(8, np.float32), np.arange(8, dtype=np.float32))
    table = with_clock(made.table, [folder / path for path in made.table["path"]])
    return write_cluster_page(
        folder / "report.html", Manifest(table, folder), made.vectors, placed, frontend=FrontEnd(), title="field",
        options={"k": "auto"}, **options,
    )  # fmt: skip
