"""What is picked for options left open, and what is logged when own clusters are never made."""

import pytest
import torch
from omegaconf import OmegaConf

from decar.cli.trainer import pick_open_options
from decar.errors import ConfigError
from decar.pretrain.plan import parse_budget

LATE = "the network's own clusters are never made"


def settled(caplog, *, n_clips=45, max_epochs=None, checkpoint=None, k=None, budget=None, every=None, **labels):
    cfg = OmegaConf.create({
        "k": k, "budget": budget, "sampler": {"every_n_steps": every}, "trainer": {"max_epochs": max_epochs},
        "loader": {"batch_size": 64}, "labels": labels,
    })  # fmt: skip
    with caplog.at_level("INFO"):
        pick_open_options(cfg, n_clips, checkpoint)
    return cfg


@pytest.mark.parametrize(("n_clips", "epochs", "joins"), [(45, 2, 1), (991, 2, 1), (1_487, 2, 1), (1_991, 4, 2)])
def test_own_clusters_join_before_the_end(caplog, n_clips, epochs, joins):
    cfg = settled(caplog, n_clips=n_clips, network_from=None)
    assert (cfg.trainer.max_epochs, cfg.labels.network_from) == (epochs, joins)
    assert f"trainer.max_epochs={epochs}, labels.network_from={joins}" in caplog.text
    assert LATE not in caplog.text


@pytest.mark.parametrize(
    ("every", "seconds", "epochs", "passes"),
    [
        (155, None, 4, 20),
        (100, None, 6, 19),
        (1000, None, 2, 64),
        (100, 230, 2, 6),
        (10, 230, 20, 6),
        (500, 230, 1, 16),
    ],
)
def test_epochs_of_a_given_length_are_as_many_as_time_and_passes_allow(
    caplog, monkeypatch, every, seconds, epochs, passes
):
    """A step takes 1.15 s; 20 passes over 1,991 clips are 622 steps. One epoch is trained whatever the budget."""
    limit = {} if seconds is None else {"seconds": seconds, "step_seconds": 1.0}
    monkeypatch.setattr("decar.cli.trainer._time", lambda *_: limit)
    cfg = settled(caplog, n_clips=1_991, every=every, network_from=None, budget=seconds and f"{seconds}s")
    assert (cfg.sampler.every_n_steps, cfg.trainer.max_epochs) == (every, epochs)
    assert f"({passes} passes over 1991 clips" in caplog.text


def test_a_given_epoch_is_waited_for(caplog):
    cfg = settled(caplog, network_from=3)
    assert (cfg.trainer.max_epochs, cfg.labels.network_from) == (4, 3)
    assert LATE not in caplog.text


@pytest.mark.parametrize(("epochs", "joins"), [(2, 1), (50, 2), (-1, 2)])
def test_given_epochs_are_kept_and_own_clusters_join_within_them(caplog, epochs, joins):
    cfg = settled(caplog, max_epochs=epochs, k=8, network_from=None)
    assert (cfg.trainer.max_epochs, cfg.labels.network_from, cfg.k) == (epochs, joins, 8)
    assert cfg.sampler.every_n_steps is None
    assert LATE not in caplog.text


@pytest.mark.parametrize(("epochs", "joins"), [(1, None), (1, 1), (3, 3), (2, 5)])
def test_a_run_that_ends_before_own_clusters_join_is_named(caplog, epochs, joins):
    cfg = settled(caplog, max_epochs=epochs, k=8, network_from=joins)
    least = cfg.labels.network_from + 1
    assert f"they join in epoch {least} and the run has {epochs}; pass trainer.max_epochs={least}" in caplog.text


def test_a_budget_too_small_for_own_clusters_is_named(caplog, monkeypatch):
    monkeypatch.setattr("decar.cli.trainer._time", lambda *_: {"seconds": 1.0, "step_seconds": 1.0})
    settled(caplog, budget="1s", network_from=None)
    assert LATE in caplog.text
    assert "raise budget=1s" in caplog.text


@pytest.mark.parametrize(
    ("source", "stop", "said"),
    [
        ("DescriptorLabels", {"patience": 10}, True),
        ("DescriptorLabels", None, False),
        ("NetworkLabels", {"patience": 10}, False),
    ],
)
def test_labels_that_are_made_once_have_no_nmi_to_stop_by(caplog, source, stop, said):
    cfg = OmegaConf.create({
        "k": 8, "budget": None, "sampler": {"every_n_steps": None}, "trainer": {"max_epochs": 9},
        "loader": {"batch_size": 64}, "labels": {"_target_": f"decar.pretrain.{source}"}, "callbacks": {"stop": stop},
    })  # fmt: skip
    pick_open_options(cfg, 100, None)
    assert ("callbacks.stop never ends this run" in caplog.text) == said


def test_labels_that_nothing_joins_need_one_stage(caplog):
    cfg = settled(caplog, dim=128)
    assert (cfg.trainer.max_epochs, "network_from" in cfg.labels) == (1, False)
    assert LATE not in caplog.text


def test_a_resumed_run_keeps_its_epochs(caplog, tmp_path):
    (tmp_path / "config.yaml").write_text(
        "{k: 4, sampler: {every_n_steps: 9}, trainer: {max_epochs: 3}, labels: {network_from: 2}}"
    )
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({}, checkpoint)  # of an earlier version: it keeps no options
    cfg = settled(caplog, checkpoint=str(checkpoint), network_from=None)
    assert (cfg.k, cfg.sampler.every_n_steps, cfg.trainer.max_epochs, cfg.labels.network_from) == (4, 9, 3, 2)
    assert "as when this run began" in caplog.text


def checkpoint_of(path, *, epochs, within=False, **options):
    """A checkpoint with `epochs` whole epochs behind it, and one begun where `within`."""
    loop = {
        "epoch_progress": {"current": {"processed": epochs}},
        "epoch_loop.batch_progress": {"is_last_batch": not within},
    }
    run = {"options": options, "content": "", "n_clips": 45, "version": "1", "processes": 1}
    torch.save({"run": run, "loops": {"fit_loop": loop}}, path)
    return str(path)


PICKS = {"k": 4, "sampler.every_n_steps": 10, "trainer.max_epochs": 1, "labels.network_from": 1, "budget": "10s"}


@pytest.mark.parametrize(
    ("budget", "begun", "within", "epochs"),
    [("10s", 1, False, 1), ("45s", 1, False, 3), ("2h", 1, False, 4), ("45s", 3, True, 4), ("5s", 0, True, 1)],
)
def test_another_budget_is_for_the_whole_run(caplog, tmp_path, monkeypatch, budget, begun, within, epochs):
    """A step takes 1.15 s, an epoch has 10; 45 clips are good for 42 steps, in four whole epochs."""
    monkeypatch.setattr(
        "decar.cli.trainer._time", lambda cfg, _: {"seconds": parse_budget(cfg.budget), "step_seconds": 1.0}
    )
    path = checkpoint_of(tmp_path / "last.ckpt", epochs=begun, within=within, **PICKS)
    cfg = settled(caplog, checkpoint=path, budget=budget, network_from=None)
    assert (cfg.trainer.max_epochs, cfg.sampler.every_n_steps, cfg.k, cfg.labels.network_from) == (epochs, 10, 4, 1)
    assert (f"budget={budget}, 10s before: {epochs} epochs of 10 steps in all" in caplog.text) == (budget != "10s")
    assert ("for more pass budget=null trainer.max_epochs=N" in caplog.text) == (
        budget != "10s" and epochs == begun + within
    )


def test_given_epochs_leave_the_length_of_an_epoch_as_it_was_picked(caplog, tmp_path):
    path = checkpoint_of(tmp_path / "last.ckpt", epochs=1, **PICKS)
    cfg = settled(caplog, checkpoint=path, max_epochs=5, network_from=None)
    assert (cfg.trainer.max_epochs, cfg.sampler.every_n_steps) == (5, 10)
    assert "training on: trainer.max_epochs=5, 1 before; 1 epochs are begun" in caplog.text


def test_an_end_that_is_behind_a_run_is_refused(caplog, tmp_path):
    path = checkpoint_of(tmp_path / "last.ckpt", epochs=3, **PICKS)
    with pytest.raises(ConfigError, match=r"trainer.max_epochs=2: 3 epochs of this run are begun"):
        settled(caplog, checkpoint=path, max_epochs=2, network_from=None)
