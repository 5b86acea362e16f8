"""Run the commands in this process, as a shell would."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("decar: error:")]


def run(main, capfd, monkeypatch, tmp_path, *args: str) -> Outcome:
    """Call an entry point with these arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *args])
    code, level = 0, logging.getLogger().level
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        logging.getLogger().setLevel(level)  # commands set it for their process; tests after this one read logs too
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


@pytest.fixture
def train(capfd, monkeypatch, tmp_path):
    from decar.cli.train import main

    return lambda *args: run(main, capfd, monkeypatch, tmp_path, *args)


@pytest.fixture
def evaluate(capfd, monkeypatch, tmp_path):
    from decar.cli.eval import main

    return lambda *args: run(main, capfd, monkeypatch, tmp_path, *args)


@pytest.fixture
def decar(capfd, monkeypatch, tmp_path):
    from decar.cli.app import main

    return lambda *args: run(main, capfd, monkeypatch, tmp_path, *args)


def write_recordings(files: list[Path]) -> None:
    """Recordings of 20 s: four kinds of stretches of 5 s each, in another order every time."""
    rate, rng = 16_000, np.random.default_rng(0)
    time = np.arange(5 * rate) / rate
    kinds = [
        0.3 * np.sin(2 * np.pi * 300 * time), 0.3 * np.sin(2 * np.pi * 2500 * time),
        0.1 * rng.normal(size=len(time)), 0.3 * np.sin(2 * np.pi * 800 * time) * (np.sin(2 * np.pi * 6 * time) > 0),
    ]  # fmt: skip
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        wave = np.concatenate([kinds[(i + j) % 4] for j in range(4)])
        soundfile.write(file, wave + 0.005 * rng.normal(size=len(wave)), rate)
