"""The page of a run: made at the run's end, and by `decar report`."""

import json
import re
import signal
from pathlib import Path

import pytest
import yaml

import decar.report
from decar.errors import PreemptedError
from decar.pretrain.logger import ResumableCSVLogger
from decar.report.serve import PageServer
from tests.report.helpers import field_page
from tests.report.test_page import data_of

FAST = ["debug=fast", "report=true", "trainer.accelerator=cpu", "data=folder"]


@pytest.fixture
def run(train, sound_folder, tmp_path):
    folder = tmp_path / "run"
    outcome = train(*FAST, "k=3", f"data.root={sound_folder}", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder


def test_a_run_makes_its_page_and_report_makes_the_same_later(run, decar, evaluate, tmp_path, sound_folder):
    log = (run / "train.log").read_text()
    assert "look at it:" in log
    data = data_of((run / "report.html").read_text(encoding="utf-8"))
    assert set(data["notes"]) == {"results"}
    assert data["summary"]["trained"] is not None, "train.log says how long the epochs took"
    assert data["n_clips"] == data["n_sounds"] == 12
    assert data["labels"] == ["label"]
    assert data["config"]["data"]["root"] == str(sound_folder)
    assert "debug=fast" in data["environment"]["command"]
    assert len(data["clusterings"][0]["flows"]) == 1

    outcome = evaluate(
        "task=folder", f"task.path={sound_folder}", f"bundle={run}", f"hydra.run.dir={tmp_path / 'judged'}"
    )
    assert outcome.code == 0, outcome.err
    outcome = decar("report", str(run), "--out", str(tmp_path / "page.html"), "--downstream", str(tmp_path / "judged"))
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(r".*page.html: \d+\.\d MB; open it in a browser\n", outcome.out)
    again = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert again["notes"] == {}
    assert [row["encoder"] for row in again["results"]] == ["this encoder"]
    for page in (data, again):  # an Ogg stream has a random number
        page["clips"]["sounds"] = {i: [len(a), *rest] for i, (a, *rest) in page["clips"]["sounds"].items()}
    for part in ("curves", "clusterings", "clips", "explorer", "environment"):
        assert again[part] == data[part], part


def test_a_page_that_cannot_be_made_costs_one_line_and_not_the_run(train, sound_folder, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no\nmore ink")

    monkeypatch.setattr(decar.report, "write_report", broken)
    run = tmp_path / "run"
    assert train(*FAST, "k=3", f"data.root={sound_folder}", f"hydra.run.dir={run}").code == 0
    lines = [line for line in (run / "train.log").read_text().splitlines() if "report.html" in line]
    assert len(lines) == 1
    assert "RuntimeError: no more ink" in lines[0]
    assert (run / "finished.json").is_file()
    assert not (run / "report.html").exists()


def test_a_run_is_finished_once_its_loggers_have_written_all(train, sound_folder, tmp_path, monkeypatch):
    """Else what a kill had kept from them would be lost: a finished run is not opened again."""
    run = tmp_path / "run"
    words = ["debug=fast", "trainer.accelerator=cpu", "data=folder", "report=false", "resume=auto", "k=3"]
    words += [f"data.root={sound_folder}", f"hydra.run.dir={run}"]

    class Session:
        def __init__(self):
            self.reached = False

        def finish(self):
            assert not (run / "finished.json").exists()
            if not self.reached:
                raise ConnectionError("no answer")

    session = Session()
    monkeypatch.setattr(ResumableCSVLogger, "experiment", session, raising=False)
    with pytest.raises(ConnectionError):
        train(*words)
    assert not (run / "finished.json").exists()
    session.reached = True
    assert train(*words).code == 0
    assert (run / "finished.json").is_file()


def test_false_leaves_it_out(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    assert train(*FAST, "k=3", "report=false", f"data.root={sound_folder}", f"hydra.run.dir={run}").code == 0
    assert not (run / "report.html").exists()


def test_a_run_whose_sounds_have_moved_still_has_a_page(run, decar, sound_folder, tmp_path):
    sound_folder.rename(tmp_path / "elsewhere")
    assert decar("report", str(run)).code == 0
    data = data_of((run / "report.html").read_text(encoding="utf-8"))
    assert "does not exist" in data["notes"]["map"]
    assert data["curves"]
    assert data["clusterings"]


def test_mistakes_are_told_in_a_line(run, decar, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for args, says in [
        ([str(tmp_path)], "no config.yaml in there"),
        ([str(run), "--downstream", "/nowhere"], "--downstream /nowhere: no such folder"),
        ([str(run), "--out", str(run / "config.yaml" / "x.html")], "could not be written"),
    ]:
        outcome = decar("report", *args)
        assert outcome.code == 2, args
        assert len(outcome.errors) == 1
        assert says in outcome.errors[0]
    config["data"]["manifest"] = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    (run / "config.yaml").write_text(json.dumps(config))
    outcome = decar("report", str(run))
    assert outcome.code == 2
    assert "_target_='os.mkdir': a found configuration is never run" in outcome.errors[0]
    assert not Path(tmp_path / "ran").exists()


def test_the_server_names_labels_of_sounds_that_the_page_does_not_show(decar, tmp_path, monkeypatch):
    def stop(self):
        raise PreemptedError(signal.SIGINT)

    monkeypatch.setattr(PageServer, "serve_forever", stop)
    page = field_page(tmp_path / "sounds")
    labels = page.parent / "labels.csv"
    labels.write_text(f"path,label\n{page.parent}/a.wav,low\n/else/b.wav,high\n/else/c.wav,\n")
    outcome = decar("page", str(page), "--serve")
    assert "1 labels in there are of sounds that the page does not show, such as /else/b.wav" in outcome.out
    labels.write_text(f"path,label\n{page.parent}/a.wav,low\n")
    assert "does not show" not in decar("page", str(page), "--serve").out
