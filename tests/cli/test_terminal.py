"""What reaches a terminal or a log has no control characters; a reader that goes away costs nothing but the reading."""

import logging
import os
import re
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.cli import terminal
from tests.downstream.helpers import make_result
from tests.neighbours.test_search import write as write_table

KIND, EVIL, BROKEN = "\x1b[2Jkind", "\x1b]0;evil\x07a.wav", "new\nline.wav"
SHOWN = ("\\x1b]0;evil\\x07a.wav", "new\\nline.wav")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def hostile(tmp_path):
    """A folder of files that cannot be read, with the names of an attacker."""
    folder = tmp_path / "sounds" / KIND
    folder.mkdir(parents=True)
    for name in (EVIL, BROKEN):
        (folder / name).write_text("no sound")
    os.close(os.open(os.fsencode(folder) + b"/\xff.wav", os.O_CREAT))
    return folder.parent


def check(text, *shown):
    assert not CONTROL.search(text), repr(CONTROL.search(text))
    for name in shown:
        assert name in text
    assert "line.wav" not in [line[:8] for line in text.splitlines()], "no name begins a line of its own"


def test_names_of_files_in_doctor_embed_train_and_eval(decar, train, evaluate, hostile, tmp_path):
    done = decar("doctor", str(hostile), "--out", "found.csv")
    assert done.code == 1
    check(done.out + done.err, *SHOWN, "\\udcff.wav (its name is not valid Unicode")
    assert set(pd.read_csv(tmp_path / "found.csv")["path"]) == {f"{KIND}/{EVIL}", f"{KIND}/{BROKEN}"}, (
        "files keep the true names"
    )
    done = decar("embed", str(hostile), "--bundle", "small")
    assert done.code == 2
    check(done.err, *SHOWN)
    assert set(pd.read_csv(tmp_path / "embeddings.parquet.bad.csv")["path"]) == {f"{KIND}/{EVIL}", f"{KIND}/{BROKEN}"}
    done = train("data=folder", f"data.root={hostile}", "k=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2
    check(done.err + done.out, *SHOWN)
    check((tmp_path / "run" / "train.log").read_text(), *SHOWN, "\\udcff.wav")
    done = evaluate("task=folder", f"task.path={hostile}", "bundle=logmel", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.code == 2
    check(done.err + done.out, r"one class only ('\x1b[2Jkind')")


def test_names_in_the_arguments_of_a_command_and_in_found_files(decar, tmp_path):
    table = str(write_table(tmp_path / "e.parquet", np.eye(3), [EVIL, BROKEN, "\u202ecod.wav"]))
    done = decar("search", EVIL, table, "-n", "2", "--csv", "f.csv", "--html", "f.html")
    assert done.code == 0, done.err
    check(done.out + done.err, *SHOWN, "\\u202ecod.wav")
    assert pd.read_csv(tmp_path / "f.csv")["path"].tolist() == [BROKEN, "\u202ecod.wav"]
    assert EVIL not in (tmp_path / "f.html").read_text()
    for words in (["search", "\udcff.wav", table], ["report", f"RUN{EVIL}"], ["table2", f"RUN{EVIL}"]):
        done = decar(*words)
        assert done.code == 2
        assert len(done.errors) == 1
        check(done.err)


def test_values_of_results_in_tables(decar, tmp_path):
    make_result(task=f"{EVIL}\nb", bundle=f"runs/{EVIL}", encoder="decar").write(tmp_path / "r" / "result.json")
    make_result(task="speaker", bundle="x\ny", encoder="random").write(tmp_path / "s" / "result.json")
    done = decar("table2", str(tmp_path), "--csv", "t.csv")
    assert done.code == 0, done.err
    check(done.out, f"| {SHOWN[0]}\\nb ", "not judged yet")
    assert f"{EVIL}\nb" in pd.read_csv(tmp_path / "t.csv")["task"].tolist()


def test_records_of_the_log_and_tracebacks(capsys):
    terminal.start_log(logging.INFO)
    try:
        raise ValueError(f"{EVIL}\x1b[2K")
    except ValueError as error:
        logging.getLogger("decar.x").warning("left out: %s", BROKEN, exc_info=True)
        terminal._print_traceback(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    check(told, SHOWN[0])
    assert told.startswith("left out: new\\nline.wav\nTraceback (most recent call last):\n  File")
    assert told.count("\nValueError: ") == 2


@pytest.fixture
def reader_gone(monkeypatch):
    """Standard output is a pipe that nobody reads; small blocks, so that the print itself fails."""

    def leave() -> None:
        read, write = os.pipe()
        os.close(read)
        monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w", buffering=1))

    return leave


def test_commands_end_as_ever_when_nobody_reads_on(reader_gone, decar, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "bad.wav").write_text("no sound")
    make_result(pretrained={"clusterer": "pic"}, encoder="decar").write(tmp_path / "r" / "result.json")
    table = str(write_table(tmp_path / "e.parquet", np.eye(6)))
    for code, out, words in (
        (1, "d.csv", ["doctor", str(tmp_path), "--out", "d.csv"]),
        (0, "2.csv", ["table2", "r", "--csv", "2.csv"]),
        (0, "3.csv", ["table3", "r", "--csv", "3.csv"]),
        (0, "s.csv", ["search", "0.wav", table, "-n", "5", "--csv", "s.csv", "--html", "s.html"]),
        (0, None, ["--help"]),
    ):
        reader_gone()
        done = decar(*words)
        assert (done.code, done.errors) == (code, []), words
        assert out is None or len(pd.read_csv(tmp_path / out)), words
    assert (tmp_path / "s.html").is_file()


def test_a_full_disk_behind_standard_output_is_an_error(decar, monkeypatch, tmp_path):
    make_result().write(tmp_path / "r" / "result.json")
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    done = decar("table2", "r", "--csv", "2.csv")
    assert done.code == 2
    assert done.errors == ["decar: error: standard output cannot be written (No space left on device)"]
    assert (tmp_path / "2.csv").is_file()


def test_another_broken_pipe_is_no_reader_who_has_left():
    with pytest.raises(BrokenPipeError), terminal.terminal():
        raise BrokenPipeError  # of a worker that has died, say: training must not end as if all were well


def test_a_character_that_the_locale_lacks_is_escaped(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", open(tmp_path / "out", "w", encoding="latin-1"))  # noqa: SIM115
    with terminal.terminal():
        terminal.say("80.0 ± 1, –")
    assert (tmp_path / "out").read_bytes() == b"80.0 \xb1 1, \\u2013\n"


def test_a_private_folder_is_one_line(decar, monkeypatch):
    def refuse(args):
        raise PermissionError(13, "Permission denied", "/private/x.wav")

    monkeypatch.setattr("decar.cli.data.doctor", refuse)
    done = decar("doctor", "/private/x.wav")
    assert (done.code, done.errors) == (2, ["decar: error: /private/x.wav: Permission denied"])
