"""Judging through the command line, from the bundle of a real run to the table."""

import json

import numpy as np
import pandas as pd
import pytest

from decar.models import save_bundle
from tests.conftest import SMALL, make_encoder


@pytest.fixture
def bundle(tmp_path):
    return save_bundle(make_encoder(SMALL, seed=5), tmp_path / "run" / "encoder.safetensors")


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


def test_from_a_folder_per_class_to_the_table(evaluate, decar, sound_folder, bundle, tmp_path):
    sweep = tmp_path / "cells"
    common = ["task=folder", f"task.path={sound_folder}", "accelerator=cpu"]
    frozen = evaluate(
        "-m",
        *common,
        f"encoder.name={SMALL}",
        f"bundle=random,logmel,{bundle.parent}",
        "protocol=paper,search",
        f"hydra.sweep.dir={sweep}",
    )
    assert frozen.code == 0, frozen.err
    tuned = evaluate(
        *common, "mode=finetune", "protocol=paper", "protocol.max_epochs=2", f"bundle={bundle}",
        f"hydra.run.dir={tmp_path / 'cells' / 'tuned'}",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    found = results(sweep)
    for result in found:  # a sweep ends with its table
        assert result["mode"] == "finetune" or f"{100 * result['value']:.1f} |" in frozen.out.split("Accuracy on")[1]
    assert len(found) == 7
    assert {(r["encoder"], r["mode"], r["protocol"]) for r in found} == {
        ("random", "frozen", "paper"), ("random", "frozen", "search"), ("logmel", "frozen", "paper"),
        ("logmel", "frozen", "search"), ("decar", "frozen", "paper"), ("decar", "frozen", "search"),
        ("decar", "finetune", "paper"),
    }  # fmt: skip
    for result in found:
        confusion = np.array(result["confusion"])
        assert result["value"] == pytest.approx(np.trace(confusion) / confusion.sum())
        assert confusion.sum() == result["n_test"]
    table = decar("table2", str(sweep), "--csv", str(tmp_path / "table.csv"))
    assert table.code == 0, table.err
    for result in found:
        assert f"{100 * result['value']:.1f}" in table.out
    assert "not judged yet; `python eval.py task=" in table.out  # the empty cells
    assert len(pd.read_csv(tmp_path / "table.csv")) >= 1


def test_the_same_seed_gives_the_same_cell(evaluate, sound_folder, bundle, tmp_path):
    for name in ("a", "b"):
        for mode in ("frozen", "finetune"):
            outcome = evaluate(
                "task=folder", f"task.path={sound_folder}", f"bundle={bundle}", f"mode={mode}", "protocol=paper",
                "protocol.max_epochs=2", "accelerator=cpu", f"hydra.run.dir={tmp_path / name / mode}",
            )  # fmt: skip
            assert outcome.code == 0, outcome.err
    for one, other in zip(results(tmp_path / "a"), results(tmp_path / "b"), strict=True):
        for result in (one, other):
            del result["seconds"], result["xxh3"]  # the digest is of the seconds too
        assert one == other


def test_your_own_csv(evaluate, sound_folder, tmp_path):
    files = sorted(path.relative_to(sound_folder) for path in sound_folder.rglob("*.wav"))
    table = pd.DataFrame({"where": files, "what": [path.parent.name for path in files]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    outcome = evaluate(
        "task=csv", f"task.path={tmp_path / 'mine.csv'}", f"task.root={sound_folder}", "task.path_column=where",
        "task.label=what", "task.split=null", "bundle=logmel", f"hydra.run.dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    [result] = results(tmp_path / "out")
    assert result["task"] == "what"
    assert result["classes"] == ["high", "low", "noise"]
    assert result["value"] == 1.0  # three kinds of sound that the mean spectrum tells apart


def test_glob_takes_the_eight_bundled_tasks(evaluate, decar, tmp_path):
    outcome = evaluate("-m", "task=glob(*)", "mode=frozen", "bundle=logmel", "protocol=paper", "protocol.max_epochs=1",
                       f"hydra.sweep.dir={tmp_path / 'cells'}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "cells")
    assert len(found) == 8
    assert len({r["task"] for r in found}) == 8
    assert "| mandarin_tone " in decar("table2", str(tmp_path / "cells")).out


def test_a_folder_of_tables_is_judged_in_one_sweep_over_one_store(evaluate, decar, sound_folder, tmp_path):
    paths = sorted(str(path.relative_to(sound_folder)) for path in sound_folder.rglob("*.wav"))
    pd.DataFrame({"path": paths}).to_csv(sound_folder / "index.csv", index=False)
    (sound_folder / "tasks").mkdir()
    for name, step in (("one", 1), ("two", 2)):
        labels = [str(i // step % 2) for i in range(len(paths))]
        split = [("train", "train", "valid", "test")[i % 8 // 2] for i in range(len(paths))]
        table = pd.DataFrame({"path": paths, "label": labels, "split": split})
        table.to_csv(sound_folder / "tasks" / f"{name}.csv", index=False)
    sweep = tmp_path / "cells"
    outcome = evaluate(
        "-m", "task=table", f"task.root={sound_folder}", "task.name=*", "bundle=random,logmel", "protocol=search",
        "encoder.widths=[2,3]", "encoder.stride=4", "encoder.hidden=8", "accelerator=cpu", f"hydra.sweep.dir={sweep}",
        f"cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert sorted((r["task"], r["encoder"]) for r in results(sweep)) == [
        ("one", "logmel"), ("one", "random"), ("two", "logmel"), ("two", "random"),
    ]  # fmt: skip
    assert len(list((tmp_path / "cache" / "logmel").glob("*/meta.json"))) == 1
    assert len(list((tmp_path / "cache" / "embeddings").glob("*.npy"))) == 2
    assert "| one " in decar("table2", str(sweep)).out
