"""Small things that many tests need: a store of synthetic log-mels, a folder of synthetic sounds, a small encoder."""

import multiprocessing
import os
import shutil
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"

from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import settings

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.models import Encoder, build_network
from decar.models.networks import seeded

torch.set_num_threads(1)

# Ctrl-C and hang-up are tested. A background job of a shell ignores them (`make test &`, nohup), and so would children.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

SMALL = "mobilenetv3_small_050"

# For children that tests kill: a fork has its imports already, which saves seconds.
FORK = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def make_encoder(
    name: str = "efficientnet_b0",
    pool: str = "max",
    frontend: FrontEnd | None = None,
    *,
    min_frames: int = 98,
    max_frames: int = 998,
    seed: int | None = None,
    **options: object,
) -> Encoder:
    """An encoder with one of decar's networks."""
    frontend = frontend or FrontEnd()
    with seeded(seed):
        network = build_network(name, pool, n_mels=frontend.n_mels, **options)
    return Encoder(network, frontend, min_frames=min_frames, max_frames=max_frames)


settings.register_profile("steady", derandomize=True, deadline=None)  # at home new examples are tried each time
if os.environ.get("CI"):
    settings.load_profile("steady")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what a test has logged of names that are not Unicode: pytest-xdist cannot send it."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room: where the true one is nearly full, fetched files are deleted after use."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**42, used=2**41, free=2**41))


@pytest.fixture
def make_store() -> Callable[..., LogMelStore]:
    """Builds a store in memory: clips of `lengths` frames, each of `n_kinds` kinds with a spectrum of its own."""

    def build(lengths: list[int], n_kinds: int = 4, seed: int = 0) -> LogMelStore:
        rng = np.random.default_rng(seed)
        spectra = rng.normal(-5, 3, (n_kinds, 64))
        frames = np.asarray(lengths, np.int64)
        mels = [rng.normal(spectra[i % n_kinds], 0.5, (n, 64)) for i, n in enumerate(lengths)]
        table = pd.DataFrame({"path": [f"clip{i}.wav" for i in range(len(lengths))]})
        offsets = np.cumsum(frames) - frames
        return LogMelStore(
            Manifest(table, Path("/nowhere")), FrontEnd(), np.concatenate(mels).astype(np.float16), offsets, frames,
            [""] * len(lengths), fingerprint=f"synthetic-{seed}-{len(lengths)}",
        )  # fmt: skip

    return build


@pytest.fixture
def sound_folder(tmp_path: Path) -> Path:
    """Twelve half-second sounds in a folder per class: low tones, high tones, noise."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    for i in range(12):
        kind = ("low", "high", "noise")[i % 3]
        tone = {
            "low": np.sin(2 * np.pi * 200 * time),
            "high": np.sin(2 * np.pi * 3000 * time),
            "noise": rng.normal(size=8000),
        }
        path = tmp_path / "sounds" / kind / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * tone[kind] + 0.01 * rng.normal(size=8000), 16000)
    return tmp_path / "sounds"


@pytest.fixture(scope="session")
def small_encoder() -> Encoder:
    return make_encoder(SMALL, seed=0)
