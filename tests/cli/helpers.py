"""Run the commands in this process, as a shell would."""

import sys

import pytest


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
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
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
