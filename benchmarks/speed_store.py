"""Computing log-mels against decoding alone on all cores, what a frozen probe and a command's start cost."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from rig import Line, alternate, line, seconds, times
from speed_train import SMALL, settings

from decar.audio import LogMel, LogMelStore, Manifest
from decar.audio.decode import decode
from decar.audio.logmel import waveform_to_frames
from decar.cli.config import build_encoder, bundled
from decar.cli.train import all_clips
from decar.cores import cpu_count
from decar.models import embed_store

ROOT = Path(__file__).resolve().parents[1]


def building(name: str, manifest: Manifest, runs: int) -> Line:
    """A store against a loop of decode and LogMel in one thread, divided by the cores."""
    log_mel, part = LogMel(), manifest.files[::4]

    def alone() -> None:
        for file in part:
            waveform_to_frames(log_mel, decode(file))

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            LogMelStore.open_or_build(manifest, cache_dir=folder, progress=False)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(a, b * len(manifest) / len(part) / cpu_count()) for a, b in alternate(ours, alone, runs)]
    finally:
        torch.set_num_threads(before)
    return line(
        f"log-mel store, {name}", pairs, target=">= 0.9",
        note=f"one-thread decode + LogMel, clip by clip, / {cpu_count()} cores / ours",
    )  # fmt: skip


def long_clips(folder: Path, n: int = 200) -> Manifest:
    """Ten seconds of noise each, as Ogg/Opus at 48 kHz."""
    rng = np.random.default_rng(0)
    for i in range(n):
        sound = rng.normal(0, 0.1, 480_000).astype(np.float32)
        soundfile.write(folder / f"{i:03d}.opus", sound, 48_000, format="OGG", subtype="OPUS")
    return Manifest.from_folder(folder)


def probes(runs: int) -> Line:
    """All eight bundled tasks judged frozen from an empty embedding cache, less the one pass that embeds them."""
    cfg = settings(*SMALL)
    store = all_clips(cfg).usable()
    passed = min(seconds(lambda: embed_store(build_encoder(cfg), store, progress=False)) for _ in range(2))
    beyond = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "logmel").symlink_to(Path(cfg.cache_dir).expanduser() / "logmel")
            words = ["-m", "task=glob(*)", "mode=frozen", "protocol=search", "bundle=random", f"cache_dir={folder}"]
            beyond.append(seconds(partial(run, "eval.py", *words, f"hydra.sweep.dir={folder}/out")) - passed)
    return times("eight frozen probes, protocol=search, beyond one pass (s)", beyond, note=f"the pass: {passed:.1f} s")


def run(*words: str) -> None:
    """A command of this repository."""
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


def measure(runs: int = 5) -> list[Line]:
    """All of them."""
    started = [seconds(lambda: run("train.py", "--cfg", "job")) for _ in range(runs)]
    with tempfile.TemporaryDirectory() as folder:
        long = building("10 s clips", long_clips(Path(folder)), runs)
    return [
        building("bundled sounds, 0.8 s each", Manifest.from_folder(bundled("audio")), runs),
        long,
        probes(min(runs, 3)),
        times("python train.py --cfg job (s)", started, target="<= 2"),
    ]
