"""Log-mels that are damaged during a training: it stops and says so, and its end is that of an undamaged run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

import decar as decar_package
from benchmarks.damage import damage
from tests.cli.helpers import Outcome, train
from tests.cli.test_train import FAST

__all__ = ["train"]

ROOT = Path(__file__).parents[2]


class Harm(Callback):
    """Damages a file at the end of the first epoch; or kills the process in the second one."""

    def __init__(self, file: str, kind: str | None) -> None:
        self.file, self.kind = Path(file), kind

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kind and trainer.current_epoch == 0:
            damage(self.file, np.random.default_rng(0), self.kind)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if not self.kind and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def trained(train, sound_folder: Path, tmp_path: Path):
    """A finished run, what its command was but for the folder, and the file of its log-mels."""
    cache = tmp_path / "cache"
    words = [*FAST, "data=folder", f"data.root={sound_folder}", f"cache_dir={cache}", "trainer.max_epochs=3"]
    assert train(*words, f"hydra.run.dir={tmp_path / 'whole'}").code == 0
    (file,) = cache.glob("logmel/*/mel.f16")
    return words, file


def harmed(file: Path, kind: str | None) -> list[str]:
    kind = f"'{kind}'" if kind else "null"
    return [f"+callbacks.harm={{_target_: {__name__}.Harm, file: '{file}', kind: {kind}}}"]


def assert_same_end(outcome: Outcome, tmp_path: Path) -> None:
    assert outcome.code == 0, outcome.err
    log = (tmp_path / "cut" / "train.log").read_text()
    assert "is damaged (mel.f16" in log
    assert "building it anew" in log
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    assert decar_package.load_encoder(whole).hash() == decar_package.load_encoder(cut).hash()
    for part in sorted((whole / "clusters.parquet").iterdir()):
        assert part.read_bytes() == (cut / "clusters.parquet" / part.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["zeros", "flipped bit"])
def test_damage_between_epochs_stops_the_run_and_resume_repeats_the_undamaged_one(
    kind: str, workers: int, train, trained, tmp_path: Path
) -> None:
    words, file = trained
    words = [*words, f"loader.num_workers={workers}", f"hydra.run.dir={tmp_path / 'cut'}"]
    outcome = train(*words, *harmed(file, kind))
    assert outcome.code == 2
    (line,) = outcome.errors
    assert f"{file} is damaged (block 1 of 1: its checksum is wrong; " in line
    assert "run the command again, train.py with resume=auto" in line
    assert_same_end(train(*words, "resume=auto"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zeros", "flipped bit", "cut tail"])
def test_damage_between_kill_and_resume_is_mended(kind: str, train, trained, tmp_path: Path) -> None:
    words, file = trained
    words = [*words, f"hydra.run.dir={tmp_path / 'cut'}"]
    command = [sys.executable, str(ROOT / "train.py"), *words, *harmed(file, None)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    damage(file, np.random.default_rng(0), kind)
    assert_same_end(train(*words, "resume=auto"), tmp_path)
