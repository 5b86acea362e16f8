"""What CONTRIBUTING.md adds from outside the package: modules on the path, YAMLs in a folder of the user."""

import json
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from decar.corpora import find_corpus
from decar.errors import CorpusError
from tests.cli.helpers import decar, evaluate, train

__all__ = ["decar", "evaluate", "train"]

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", PAGE, re.M | re.S))
TINY = [
    "debug=fast",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "sampler.every_n_steps=2",
    "loader.batch_size=8",
    "encoder.hidden=8",
]


@pytest.fixture(autouse=True)
def _outside(tmp_path, monkeypatch):
    """The page's files, in the folder that the commands run in."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        if name.endswith(".py"):
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)


def words(text: str, **given: object) -> list[str]:
    """The arguments of the page's one command that holds `text`, with placeholders replaced."""
    (line,) = [line for line in re.findall(r"^(?:python|decar) .*$", PAGE, re.M) if text in line]
    for name, value in given.items():
        line = line.replace(name, str(value))
    return shlex.split(line)[1 if line.startswith("decar") else 2 :]


def labels(run: Path) -> set[int]:
    return set(pd.read_parquet(run / "clusters.parquet")["pseudo_label"])


def test_a_corpus_is_prepared_clustered_by_an_own_clusterer_and_judged(decar, train, evaluate, sound_folder, tmp_path):
    done = decar(*[str(sound_folder) if word == "/data/birds" else word for word in words("decar prepare my_corpus")])
    assert done.code == 0, done.err
    assert "python eval.py task=birds" in done.out

    run = tmp_path / "run"
    done = train(*words("clusterer=halves"), *words("data.name=birds"), *TINY, f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    assert labels(run) == {0, 1}

    cell = tmp_path / "cell"
    done = evaluate(*words("task=birds", RUN="logmel"), "protocol=knn", f"hydra.run.dir={cell}")
    assert done.code == 0, done.err
    result = json.loads((cell / "result.json").read_text())
    assert (result["task"], result["classes"]) == ("birds", ["high", "low", "noise"])


def test_a_task_is_one_yaml(evaluate, sound_folder, tmp_path):
    paths = sorted(sound_folder.rglob("*.wav"))
    table = pd.DataFrame({"path": map(str, paths), "dialect": [path.parent.name for path in paths]})
    table.to_csv(tmp_path / "labels.csv", index=False)
    done = evaluate(*words("task=dialect", RUN="logmel"), "protocol=knn", f"hydra.run.dir={tmp_path / 'cell'}")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "cell/result.json").read_text())["task"] == "dialect"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module.CORPUS", "cannot be imported"),
        ("my_corpus.NOTHING", "cannot be imported"),
        ("my_corpus.clips", "is a function, not a decar.corpora.Corpus"),
        ("birds", "there is no corpus 'birds'; there are birdsong, "),
    ],
)
def test_a_corpus_that_is_none_says_why(name, message):
    with pytest.raises(CorpusError, match=message):
        find_corpus(name)
