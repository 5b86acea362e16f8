"""Computing log-mels against decoding alone on all cores, what a frozen probe costs, and how fast a command starts."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from rig import Line, alternate, cores, line, seconds, times
from speed_train import SMALL, settings

from decar.audio import LogMel, LogMelStore, Manifest
from decar.audio.decode import decode
from decar.audio.logmel import waveform_to_frames
from decar.cli.config import bundled
from decar.cli.train import all_clips, build_encoder
from decar.models.encode import encode_store

ROOT = Path(__file__).resolve().parents[1]


def building(runs: int) -> Line:
    """A store of the bundled sounds, against a loop of decode and LogMel in one thread, divided by the cores."""
    manifest, log_mel = Manifest.from_folder(bundled("audio")), LogMel()
    part = manifest.files[::4]

    def alone() -> None:
        for file in part:
            waveform_to_frames(log_mel, decode(file))

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            LogMelStore.open_or_build(manifest, cache_dir=folder, progress=False)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(a, b * len(manifest) / len(part) / cores()) for a, b in alternate(ours, alone, runs)]
    finally:
        torch.set_num_threads(before)
    return line(
        "log-mel store, bundled sounds", pairs, target=">= 0.9",
        note=f"one-thread decode + LogMel / {cores()} cores / ours",
    )  # fmt: skip


def probes(runs: int) -> Line:
    """All eight bundled tasks judged frozen from an empty embedding cache, less the one pass that embeds them."""
    cfg = settings(*SMALL)
    store = all_clips(cfg).usable()
    passed = min(seconds(lambda: encode_store(build_encoder(cfg), store, progress=False)) for _ in range(2))
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
    """All three."""
    started = [seconds(lambda: run("train.py", "--cfg", "job")) for _ in range(runs)]
    return [
        building(runs),
        probes(min(runs, 3)),
        times("python train.py --cfg job (s)", started, target="<= 2"),
    ]
