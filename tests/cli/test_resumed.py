"""Going on with a run: nothing of another run is overwritten or mixed in, and no figure is that of another question."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

import decar.cli.train as train_module
from decar.cli.runs import flat_options, read_finished, write_finished
from decar.digests import read_json
from decar.models import load_encoder, read_facts

WORDS = [
    "debug=fast", "trainer=cpu", "loader.batch_size=8", "k=2", "data=folder", "sampler.every_n_steps=2",
    "callbacks.bundle.dim=null",
]  # fmt: skip


@pytest.fixture
def run(train, sound_folder, tmp_path):
    """Train with these options in a folder, named from `tmp_path` on."""

    def call(folder, *words):
        given = {word.partition("=")[0] for word in words}
        usual = [word for word in [*WORDS, f"data.root={sound_folder}"] if word.partition("=")[0] not in given]
        return train(*usual, f"hydra.run.dir={tmp_path / folder}", *words)

    return call


def refused(outcome, *texts):
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    for text in texts:
        assert text in outcome.errors[0]


def test_a_checkpoint_of_another_folder_does_not_replace_a_run(run, tmp_path):
    assert run("a").code == 0
    assert run("b", "seed=1").code == 0
    made = [path for path in (tmp_path / "b").rglob("*") if path.is_file() and path.parent.name != ".hydra"]
    made.remove(tmp_path / "b" / "train.log")
    before = [path.read_bytes() for path in made]
    refused(run("b", f"resume={tmp_path / 'a'}", "trainer.max_epochs=3"), f"{tmp_path / 'b'} holds a run already")
    assert [path.read_bytes() for path in made] == before
    assert run("b", "seed=1", f"resume={tmp_path / 'b'}", "trainer.max_epochs=3").code == 0, "its own"


def test_leftovers_do_not_mix_with_the_run_of_a_checkpoint_of_another_folder(run, tmp_path):
    assert run("a").code == 0
    assert run("b", "seed=1").code == 0
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    (tmp_path / "b" / "finished.json").unlink()
    outcome = run("b", f"resume={tmp_path / 'a'}", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / "b" / "clusters.parquet").iterdir()) == ["epoch_00002.parquet"]
    epochs = [line.split(",")[0] for line in (tmp_path / "b" / "metrics.csv").read_text().splitlines()[1:]]
    assert set(epochs) == {"1", "2"}, "the last row of the checkpoint, and what came after"


def test_a_finished_run_without_checkpoints_is_not_trained_over(run, tmp_path):
    assert run("a").code == 0
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    weights = (tmp_path / "a" / "encoder.safetensors").read_bytes()
    refused(run("a"), "holds a run already")
    refused(run("a", "seed=1", "resume=auto"), f"{tmp_path / 'a'} holds a finished run", "seed: 0 there, 1 here")
    assert (tmp_path / "a" / "encoder.safetensors").read_bytes() == weights
    assert "done already" in run("a", "resume=auto").out
    (tmp_path / "a" / "encoder.safetensors").unlink()
    assert run("a", "resume=auto").code == 0, "what is lost is made again"
    assert (tmp_path / "a" / "encoder.safetensors").is_file()


@pytest.mark.slow  # the suite is long enough
def test_of_a_lost_last_checkpoint_the_one_before_serves(run, tmp_path):
    assert run("a").code == 0
    (tmp_path / "a" / "checkpoints" / "last.ckpt").unlink()
    refused(run("a"), "holds a run already")
    outcome = run("a", "resume=auto", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    assert "going on from the one before" in outcome.out
    assert read_json(tmp_path / "a" / "finished.json")["epochs"] == 3


def test_a_job_is_no_twin_of_one_with_another_value_for_what_is_left_open(train, sound_folder, tmp_path):
    """`pretrain.features` has no effect beside `labels=descriptors`; `sampler.every_n_steps` has."""
    words = [word for word in WORDS if not word.startswith("sampler")]
    outcome = train("-m", *words, f"data.root={sound_folder}", "labels=descriptors", "pretrain.features=bank,pass",
                    "sampler.every_n_steps=2,null", "trainer.max_epochs=1", "hydra.sweep.dir=s")  # fmt: skip
    assert outcome.code == 0, outcome.err
    folders = {path.parent.name.partition("every_n_steps=")[2][:1] for path in (tmp_path / "s").glob("*/finished.json")}
    assert folders == {"2", "n"}, "each is trained once"
    assert outcome.out.count("done already in") == 2


def finished(folder, **options):
    cfg = OmegaConf.create({"k": 4, "data": {"root": "a", "label": None, "stream": False, "buffer": 10}, **options})
    write_finished(folder, {"loss": 1.0}, 1, 1, {"options": flat_options(cfg), "content": "c", "n_clips": 1})
    return cfg


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({}, {"root": "moved"}, True),
        ({"label": "kind"}, {"label": "kind", "root": "moved"}, True),
        ({"label": "kind"}, {"label": "place"}, False),
        ({}, {"buffer": 20}, True),
        ({"stream": True}, {"stream": True, "buffer": 20}, False),
    ],
)
def test_what_of_the_data_makes_another_job(tmp_path, before, now, same):
    usual = {"root": "a", "label": None, "stream": False, "buffer": 10}
    finished(tmp_path, data={**usual, **before})
    cfg = OmegaConf.create({"k": 4, "data": {**usual, **before, **now}})
    assert (read_finished(cfg, tmp_path, "c") is not None) == same


def test_the_figure_of_one_label_is_not_given_for_another(run, tmp_path):
    assert run("a", "data.label=label").code == 0
    before = read_json(tmp_path / "a" / "finished.json")["metrics"]
    refused(
        run("a", "data.label=path", "resume=auto"), "data.label=path: this run is complete", "figures of label label"
    )
    assert run("a", "data.label=label", "resume=auto").code == 0
    assert read_json(tmp_path / "a" / "finished.json")["metrics"].items() <= before.items()


def test_figures_of_before_a_resume_are_not_those_of_the_end(run, tmp_path):
    """`metrics.csv` ends where another logger took over."""
    assert run("a").code == 0
    before = read_json(tmp_path / "a" / "finished.json")["metrics"]
    outcome = run("a", "trainer.max_epochs=3", "logger=tensorboard", "callbacks.dashboard=null", "resume=auto")
    assert outcome.code == 0, outcome.err
    after = read_json(tmp_path / "a" / "finished.json")["metrics"]
    assert after["loss_epoch"] != before["loss_epoch"]
    assert f"epoch 3/3: loss {after['loss_epoch']:.3f}" in outcome.out


@pytest.mark.slow  # the suite is long enough
def test_an_encoder_that_is_replaced_before_training_begins_is_refused(run, tmp_path, monkeypatch):
    """As that of a run that is still training, while the log-mels of this one are computed."""
    for folder, seed in (("a", 0), ("b", 1)):
        assert run(folder, f"seed={seed}").code == 0
    prepare = train_module.prepare_run

    def meanwhile(*args):
        shutil.copy(tmp_path / "b" / "encoder.safetensors", tmp_path / "a" / "encoder.safetensors")
        return prepare(*args)

    monkeypatch.setattr(train_module, "prepare_run", meanwhile)
    outcome = run("c", f"init={tmp_path / 'a'}", "trainer.max_epochs=1", "report=false")
    refused(outcome, f"init={tmp_path / 'a'}: this encoder was replaced meanwhile")


@pytest.mark.parametrize("epochs", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_lies_behind_an_earlier_checkpoint_of_a_run_is_not_part_of_what_goes_on_from_it(run, tmp_path, epochs):
    """`metrics.csv` loses its rows with the first new one; here, from the end of two epochs of four."""
    folder = tmp_path / "a"
    assert run("a").code == 0
    early = shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "early.ckpt")
    figures = read_json(folder / "finished.json")["metrics"]
    assert run("a", "trainer.max_epochs=4", "resume=auto").code == 0
    outcome = run("a", f"trainer.max_epochs={epochs}", f"resume={early}")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in sorted((folder / "clusters.parquet").iterdir())] == [
        f"epoch_{epoch:05d}.parquet" for epoch in range(epochs)
    ]
    facts = read_facts(folder)
    assert (facts["epoch"], facts["step"]) == (epochs - 1, 2 * epochs)
    assert load_encoder(folder).hash() == hash_of(
        folder, early if epochs == 2 else folder / "checkpoints" / "last.ckpt"
    )
    end = read_json(folder / "finished.json")
    assert (end["epochs"], end["metrics"].items() <= figures.items()) == (epochs, epochs == 2)


def hash_of(folder, checkpoint):
    """Of the encoder in a checkpoint."""
    encoder = load_encoder(folder)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "encoder.network."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    encoder.network.load_state_dict(weights)
    return encoder.hash()
