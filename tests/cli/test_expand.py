import sys

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from decar.cli.config import conf_dir
from decar.cli.eval import many_tasks
from decar.cli.main import expand_tasks
from decar.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in ("pitch", "speaker", "percussion"):
        (tmp_path / "tasks" / f"{name}.csv").touch()
    (tmp_path / "tasks" / "notes.txt").touch()
    return tmp_path


def test_a_pattern_becomes_the_names_that_fit_it(root):
    words = ["-m", "task=table", f"task.root={root}", "task.name=*", "seed=1"]
    assert expand_tasks(words) == [*words[:3], "task.name=percussion,pitch,speaker", "seed=1"]
    assert expand_tasks([*words[:3], "task.name=p*"])[3] == "task.name=percussion,pitch"


@pytest.mark.parametrize("words", [[], ["task=glob(*)"], ["task.name=a,b", "task.root=/x"], ["task.name=*"]])
def test_everything_else_stays(words):
    assert expand_tasks(words) == words


def test_what_cannot_be_expanded_says_why(root):
    with pytest.raises(ConfigError, match=r"task\.name=x\*: no such table in .*tasks"):
        expand_tasks(["-m", f"task.root={root}", "task.name=x*"])
    with pytest.raises(ConfigError, match=r"means 3 tasks: add -m"):
        expand_tasks([f"task.root={root}", "task.name=*"])


@pytest.mark.parametrize(("word", "skips"), [("task=glob(*)", True), ("task=kind,event", False)])
def test_a_job_in_another_process_knows_that_the_sweep_is_over_all_tasks(monkeypatch, word, skips):
    """As submitit's worker composes its job: from the sweep's configuration, with a command line of its own."""
    typed = [argument for argument in expand_tasks(["-m", word, "mode=frozen"]) if argument != "-m"]
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        sweep = loader.load_configuration("eval", [*typed, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
        job = loader.load_sweep_config(sweep, ["task=esc50", "mode=frozen"])
    assert many_tasks(job.hydra) is skips
    assert not [option for option in job.hydra.overrides.task if "SKIP" in option]
