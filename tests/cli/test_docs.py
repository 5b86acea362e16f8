"""What README and docs tell people to type is typed here, page by page and in that order. `make test-slow`."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import decar as package
from tests.cli.helpers import write_recordings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUNDLED = Path(package.__file__).parent / "data" / "mini"
PAGES = ("README.md", "docs/tutorial.md", "docs/cluster.md", "docs/classify.md", "docs/report.md", "docs/encoder.md")
ELSEWHERE = {  # a part of a command: why it is not run here
    "prepare esc50": "tests/corpora has a copy of its layout", "task=esc50": "the same", "audioset": "the same",
    "table1": "tests/cli/test_corpora.py", "table3": "tests/cli/test_done.py",
    "experiment=table2": "tests/cli/test_table2.py", "runs/table2": "the same", "push": "tests/models/test_hub.py",
    "experiment=paper": "tests/cli/test_train.py", "--to hoplite": "tests/report/test_tools.py",
    "s3://": "tests/cli/test_s3.py",
    "hf://datasets": "tests/audio/test_hf.py",
    "devices=": "tests/cli/test_ddp.py", "trainer=ddp": "the same", "hear21passt": "is not installed",
    "--dim 512": "tests/cli/test_embed.py: a run of so few clips has fewer directions",
    "runs/pretrain/A": "the sweep of README: tests/cli/test_sweep.py",
    "hydra/sweeper=optuna": "tests/cli/test_search.py",
}  # fmt: skip
FOLDERS = (
    "/path/to/sounds",
    "/path/to/recordings",
    "/path/to/new",
    "/path/to/more",
    "SOURCE",
    "recordings",
    "new_recordings",
)


def commands(page: str) -> list[str]:
    """The commands of a page that start decar."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(decar|python (train|eval)\.py) ", line)]


@pytest.fixture
def home(tmp_path, train, evaluate, monkeypatch):
    """A folder with all that the pages name: DIR, RUN, labels.csv and the rest."""
    folder = tmp_path / "DIR"
    write_recordings([folder / f"kind{i % 3}" / f"{i}.wav" for i in range(18)])
    table = pd.DataFrame(
        {"path": [f"kind{i % 3}/{i}.wav" for i in range(18)], "label": [f"kind{i % 3}" for i in range(18)]}
    )
    table["species"] = table["label"]
    table.to_csv(folder / "index.csv", index=False)
    (folder / "tasks").mkdir()
    split = np.array(["train", "valid", "test"])[np.arange(18) // 3 % 3]
    table.assign(split=split).to_csv(folder / "tasks" / "kinds.csv", index=False)
    for name in ("labels.csv", "clips.csv", "labelled.csv"):
        table.assign(path="DIR/" + table["path"], split=split).to_csv(tmp_path / name, index=False)
    for name in ("recording.wav", "night.wav", "one.wav"):
        shutil.copy(folder / "kind0" / "0.wav", tmp_path / name)
    (tmp_path / "sounds").symlink_to(BUNDLED)
    text = (ROOT / "docs" / "encoder.md").read_text(encoding="utf-8")
    for name, start in {"mymodule.py": "python", "myconf/encoder/mine.yaml": "yaml"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(re.search(rf"```{start}\n(.*?)```", text, re.S)[1])
    (tmp_path / "others.py").write_text(
        "import torch\n\n\nclass Spectrum(torch.nn.Module):\n    sample_rate = 16_000\n\n"
        "    def forward(self, waveform):\n        return torch.fft.rfft(waveform, 16_000)[:, :256].abs()\n\n\n"
        "def panns():\n    return Spectrum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    done = train("data=folder", "data.root=DIR", "debug=fast", "trainer=cpu", "hydra.run.dir=RUN", "report=true")
    assert done.code == 0, done.err
    assert evaluate("task=event", "mode=frozen", "bundle=RUN", "hydra.run.dir=runs/eval/event").code == 0

    def label_all(server, poll_interval=0.5):  # in place of a person with a browser
        names = np.array(server.data["clips"]["clusters"][-1]) % 2
        shown = slice(len(names))  # the clips of time lines stand behind them
        rows = pd.DataFrame({"path": map(str, server.clips.files[shown]), "label": [f"k{name}" for name in names]})
        stretches = pd.DataFrame(server.clips.stretches[shown], columns=["start", "duration"])
        labels = np.where(np.arange(len(rows)) % 5 == 0, "k9", rows["label"])
        pd.concat([rows.assign(label=labels), stretches], axis=1).to_csv(server.labels.file, index=False)

    monkeypatch.setattr("decar.report.serve.PageServer.serve_forever", label_all)
    return tmp_path


def words_of(command: str) -> list[str]:
    """The words of a command, with names for what the pages leave open, and no more work than needs be."""
    _, *words = shlex.split(command, comments=True)
    words = ["DIR" if word in FOLDERS else word for word in words]
    words = [re.sub(r"^data\.root=/path/to/sounds$", "data.root=DIR", word) for word in words]
    words = ["one.wav" if word == "/path/to/one.wav" else word.replace("runs/eval", "runs") for word in words]
    words = [re.sub(r"^task=(glob\(\*\)|speaker)", "task=event", word) for word in words]
    if words[0] == "train.py" and "encoder=mine" in words:
        words += ["trainer.max_epochs=2", "sampler.every_n_steps=2", "k=8", "report=false", "trainer=cpu"]
    elif words[0] == "train.py":
        words += ["debug=fast", "trainer=cpu"]
    if words[0] == "eval.py" and any("finetune" in word for word in words):
        words += ["protocol.max_epochs=1"]
    return words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_it_says(page, home, train, evaluate, decar):
    ran = 0
    for command in commands(page):
        if any(part in command for part in ELSEWHERE):
            continue
        words = words_of(command)
        if "hydra.run.dir=RUN" in words:  # the page makes it
            shutil.rmtree(home / "RUN", ignore_errors=True)
        start = {"train.py": train, "eval.py": evaluate}.get(words[0])
        outcome = start(*words[1:]) if start else decar(*words)
        assert outcome.code == 0, (command, outcome.err[-2000:])
        ran += 1
    assert ran >= 1


def test_what_is_not_run_is_still_there():
    """No part of ELSEWHERE outlives the command that it excuses."""
    everything = "\n".join(command for page in PAGES for command in commands(page))
    assert [part for part in ELSEWHERE if part not in everything] == []
