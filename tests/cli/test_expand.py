import pytest

from decar.cli.expand import expand_tasks
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
