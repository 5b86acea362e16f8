"""prepare → judge frozen → fine-tune → table, on a replica of each corpus; two commands and the table."""

import json

import pandas as pd
import pytest

from decar.corpora import CORPORA
from tests.conftest import SMALL
from tests.corpora.replicas import PARTIAL, REPLICAS, Sounds

FOLDS = {"esc50": "1,2", "urbansound8k": "10"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sounds():
    return Sounds()


def prepared(name, sounds, decar, tmp_path):
    REPLICAS[name](tmp_path / name, sounds)
    done = decar("prepare", name, str(tmp_path / name), *(["--allow-missing"] if name in PARTIAL else []))
    assert done.code == 0, done.err
    return done


@pytest.mark.parametrize("name", sorted(set(CORPORA) - {"audioset"}))
def test_two_commands_and_the_table(name, sounds, decar, evaluate, tmp_path):
    first = prepared(name, sounds, decar, tmp_path)
    assert f"python eval.py task={name}" in first.out
    cells = tmp_path / "cells"
    done = evaluate(
        "-m", f"task={name}", "mode=frozen,finetune", "protocol=paper", "protocol.max_epochs=1", "bundle=random",
        "encoder=mobilenetv3_small", f"encoder.name={SMALL}", "accelerator=cpu", f"hydra.sweep.dir={cells}",
        *([f"task.fold={FOLDS[name]}"] if name in FOLDS else []),
    )  # fmt: skip
    assert done.code == 0, done.err
    found = [json.loads(path.read_text()) for path in sorted(cells.rglob("result.json"))]
    assert len(found) == 2 * len(FOLDS.get(name, "1").split(","))
    assert {result["mode"] for result in found} == {"frozen", "finetune"}
    assert {result["metric"] for result in found} == {"mAP" if name == "fsd50k" else "accuracy"}
    for result in found:
        assert 0 <= result["value"] <= 1
        assert min(result["n_train"], result["n_valid"], result["n_test"]) > 0
    table = decar("table2", str(cells))
    assert table.code == 0, table.err
    assert f"| {name}" in table.out


def test_a_corpus_that_was_not_prepared_says_how(evaluate, train):
    for done in (evaluate("task=librispeech"), train("data=corpus", "data.name=librispeech")):
        assert done.code == 2
        assert len(done.errors) == 1
        assert "run `decar prepare librispeech ROOT` first" in done.errors[0]


def test_audioset_is_pretrained_on(sounds, decar, train, tmp_path):
    REPLICAS["audioset"](tmp_path / "audioset", sounds)
    done = decar("prepare", "audioset", str(tmp_path / "audioset"))
    assert done.code == 0, done.err
    assert "audio of 35 of 40 segments" in done.err
    run = train(
        "data=audioset", "data.where='list=unbalanced'", "debug=fast", "k=4", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert run.code == 0, run.err
    assert (tmp_path / "run" / "encoder.safetensors").is_file()


def test_table1_lists_what_is_prepared(sounds, decar, tmp_path):
    empty = decar("table1")
    assert (empty.code, len(empty.errors)) == (2, 1)
    prepared("esc50", sounds, decar, tmp_path)
    table = decar("table1", "--csv", str(tmp_path / "table1.csv"))
    assert table.code == 0, table.err
    assert "| esc50" in table.out
    assert "2,000" in (tmp_path / "table1.csv").read_text()


def test_an_unknown_corpus_lists_all(decar, tmp_path):
    done = decar("prepare", "libri", str(tmp_path))
    assert done.code == 2
    assert "there is no corpus 'libri'; there are birdsong, iemocap, librispeech, " in done.errors[0]


def test_the_doctor_tells_and_exits_by_severity(decar, sound_folder, tmp_path):
    well = decar("doctor", str(sound_folder))
    assert well.code == 0
    assert "12 clips, nothing wrong; hash of the list " in well.out
    (sound_folder / "low" / "zero.wav").write_bytes(b"")
    ill = decar("doctor", str(sound_folder), "--out", str(tmp_path / "found.csv"))
    assert ill.code == 1
    assert "error: low/zero.wav: empty: empty file (0 bytes)" in ill.out
    assert "13 clips, 1 empty;" in ill.out
    assert "low/zero.wav" in (tmp_path / "found.csv").read_text()
    decar("doctor", str(sound_folder), "--out", str(tmp_path / "found.parquet"))
    assert pd.read_parquet(tmp_path / "found.parquet").equals(pd.read_csv(tmp_path / "found.csv"))
    lost = decar("doctor", str(tmp_path / "nowhere.csv"))
    assert (lost.code, len(lost.errors)) == (2, 1)
