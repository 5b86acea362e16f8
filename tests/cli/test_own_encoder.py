"""A user's own encoder: one class and one YAML, both outside the package."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from decar.errors import BundleError
from decar.models import load_encoder, read_facts

PAGE = (Path(__file__).parents[2] / "docs" / "encoder.md").read_text()
CLASS, YAML = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.S)[1] for kind in ("python", "yaml"))
MARK = 'import pathlib\npathlib.Path(__file__).with_name("imported").touch()\n'


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The words that select it."""
    (tmp_path / "mymodule.py").write_text(CLASS + MARK)
    (tmp_path / "conf" / "encoder").mkdir(parents=True)
    (tmp_path / "conf" / "encoder" / "mine.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    return ["--config-dir", str(tmp_path / "conf"), "encoder=mine", "encoder.width=6"]


def test_a_class_and_a_yaml_are_an_encoder(mine, train, evaluate, decar, sound_folder, tmp_path):
    run, cells = tmp_path / "run", tmp_path / "cells"
    done = train(
        *mine, "experiment=paper", "trainer=cpu", "trainer.max_epochs=1", "k=3", "loader.batch_size=8",
        "data=folder", f"data.root={sound_folder}", f"hydra.run.dir={run}", "seed=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "which is not decar" not in (run / "report.html").read_text()
    task = ["task=folder", f"task.path={sound_folder}", "accelerator=cpu", f"hydra.sweep.dir={cells}"]
    done = evaluate("-m", *mine, *task, f"bundle={run},random,small", "protocol=knn")
    assert done.code == 0, done.err
    results = [json.loads(file.read_text()) for file in cells.rglob("result.json")]
    found = {result["bundle"]: result for result in results}
    assert found[str(run)]["network"] == found["random"]["network"] == "mymodule.MyNetwork (bands=64, width=6)"
    assert found["small"]["network"].startswith("conv ")

    import mymodule

    encoder = load_encoder(run, network=mymodule.MyNetwork)
    assert encoder.hash() == found[str(run)]["encoder_hash"] != found["random"]["encoder_hash"]
    assert encoder.dim == 6
    assert read_facts(run)["epoch"] == 0
    wave = 0.1 * torch.randn(1, 16_000)
    with torch.no_grad():
        mel = encoder.logmel(wave).half().float()
        expected = encoder.network.conv(mel[:, None]).amax((2, 3))
    torch.testing.assert_close(encoder.embed(wave), expected)

    out = tmp_path / "e.parquet"
    done = decar("embed", str(sound_folder), "--bundle", str(run), "--out", str(out), "--network", "mymodule.MyNetwork")
    assert done.code == 0, done.err
    assert out.is_file()


def test_a_bundle_never_imports_what_it_names(mine, train, evaluate, decar, sound_folder, tmp_path):
    run = tmp_path / "run"
    train(
        *mine, "experiment=paper", "trainer=cpu", "trainer.max_epochs=1", "k=3", "loader.batch_size=8", "report=false",
        "data=folder", f"data.root={sound_folder}", f"hydra.run.dir={run}",
    )  # fmt: skip
    (tmp_path / "imported").unlink()
    del sys.modules["mymodule"]
    named = r"its network is 'mymodule\.MyNetwork', which is not decar's.* name it yourself: .*network=CLASS"
    with pytest.raises(BundleError, match=named):
        load_encoder(run)
    for done in (
        evaluate("task=folder", f"task.path={sound_folder}", f"bundle={run}", f"hydra.run.dir={tmp_path / 'cell'}"),
        decar("embed", str(sound_folder), "--bundle", str(run), "--out", str(tmp_path / "e.parquet")),
    ):
        assert done.code == 2
        assert "encoder=ITS_YAML" in done.errors[-1]
    assert not (tmp_path / "imported").exists()
