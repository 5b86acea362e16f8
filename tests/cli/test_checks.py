"""An option that has no effect is refused by name; in a sweep, where other jobs may use it, it costs a warning."""

import logging

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from decar.cli.checks import check
from decar.cli.config import conf_dir
from decar.errors import ConfigError
from tests.cli.test_config import _resolvers, composed

__all__ = ["_resolvers"]  # an autouse fixture


def refused(root, *words):
    with pytest.raises(ConfigError) as error:
        check(composed(root, *words))
    return str(error.value)


class Own:
    """A label source, which may use the clusterer as it is."""

    def __init__(self, clusterer, dim):
        self.clusterers = [clusterer]


STREAM = ["data.stream=true", "labels=online"]
OWN = "labels.clusterer={_target_: decar.clustering.KMeans, k: 3}"


@pytest.mark.parametrize(
    ("root", "option", "near"),
    [
        ("train", "+foo=1", "--help"),
        ("train", "+sed=1", "did you mean seed"),
        ("train", "+experiment.foo=1", "--help"),
        ("train", "+loader.batchsize=3", "did you mean batch_size"),
        ("train", "+sampler.every_n_step=3", "did you mean every_n_steps"),
        ("train", "+trainer.max_epoch=3", "did you mean max_epochs"),
        ("train", "+trainer.limit_val_batches=3", "trainer.limit_val_batches"),
        ("train", "+trainer.logger=false", "trainer.logger"),
        ("train", "+encoder.strides=8", "did you mean stride"),
        ("train", "+frontend.mels=8", "did you mean n_mels"),
        ("train", "+projection.outs=8", "did you mean out"),
        ("train", "+optimizer.lrr=1", "did you mean lr"),
        ("train", "+optimizer.momentum=0.9", "optimizer.momentum"),
        ("train", "+head_optimizer.learn=1", "there is no option"),
        ("train", "+labels.network_form=1", "did you mean network_from"),
        ("train", "+labels.network.dims=1", "did you mean dim"),
        ("train", "+clusterer.n_iters=1", "did you mean n_iter"),
        ("train", "+data.root=/x", "data has buffer, label, manifest, name"),
        ("train", "+data.where=kind", "data has"),
        ("train", "+data.manifest.wher=kind", "did you mean where"),
        ("train", "+pretrain.feature=bank", "did you mean features"),
        ("train", "+callbacks.probe.pth=x", "did you mean path"),
        ("train", "+callbacks.bundle.foo=x", "callbacks.bundle has dim, facts, path"),
        ("train", "+callbacks.stop.patience=3", "callbacks.stop._target_"),
        ("train", "+callbacks.stopp.patience=3", "callbacks.stopp._target_"),
        ("train", "+callbacks.mine._target_=no.such.Callback", "cannot be imported"),
        ("eval", "+foo=1", "--help"),
        ("eval", "+bundel=x", "did you mean bundle"),
        ("eval", "+mode.crop_frames=3", "mode has name"),
        ("eval", "+task.labels=x", "did you mean label"),
        ("eval", "+protocol.max_epoch=3", "did you mean max_epochs"),
        ("eval", "+protocol.lr=3", "protocol has"),
        ("eval", "+protocol.refit=true", "protocol has"),
        ("train", "+loader.max_frames=300", "loader.max_frames"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(root, option, near):
    line = refused(root, option)
    found = option.lstrip("+").split("=")[0]
    assert near in line
    assert any(f"'{key}'" in line for key in (found, found.rpartition(".")[0])) or line.startswith("callbacks."), line


@pytest.mark.parametrize(
    "words",
    [
        ["+trainer.num_nodes=2"],
        ["+trainer.gradient_clip_val=1.0"],
        ["+optimizer.nesterov=true", "optimizer=sgd"],
        ["+callbacks.monitor={_target_: pytorch_lightning.callbacks.LearningRateMonitor, logging_interval: step}"],
        ["+callbacks.bundle.facts.site=north"],
        ["+rate=0.01", "optimizer.lr=${rate}"],
        ["callbacks.probe=null", "callbacks.dashboard=null"],
        ["sampler.draws_per_clip=2", "trainer.max_epochs=3", "budget=null"],
        ["labels=network", "pretrain.features=bank", "clusterer=pic", "clusterer.sigma=auto"],
        ["labels=online", "k=5", "labels.queue=50"],
        ["labels=online", "labels.first=null", "k=5", "n_init=3", "clusterer.n_iter=5"],
        ["data.stream=true", "labels=online", "data.buffer=50", "loader.num_workers=2"],
        ["callbacks.probe.path=/x.csv", "callbacks.probe.label=kind"],
        ["encoder.readout=[1]", "encoder.readout_bands=4"],
        ["labels=descriptors", "labels._target_=tests.cli.test_checks.Own", "~labels.descriptors", "+clusterer.seed=3"],
        ["logger=[csv,tensorboard]", "callbacks.dashboard.clips=2"],
        ["encoder=efficientnet_b0", "encoder.stride=8", "encoder.hidden=64"],
    ],
    ids=lambda words: words[0],
)
def test_what_has_an_effect_passes(words):
    check(composed("train", *words))


def test_a_bundle_takes_a_readout_and_the_statistics_of_log_mels_none():
    check(composed("eval", "bundle=small", "encoder.readout=[1,2]", "encoder.readout_bands=8"))
    with pytest.raises(ConfigError, match=r"encoder\.readout=\[1,2\] is not used"):
        check(composed("eval", "bundle=logmel", "encoder.readout=[1,2]"))


@pytest.mark.parametrize(
    ("root", "words", "parts"),
    [
        ("train", ["labels=network", "clusterer=pic", "k=5"], ["k=5 is not used", "PIC"]),
        ("train", ["labels=both", "clusterer=pic", "k=5"], ["k=5 is not used", "PIC"]),
        ("train", ["labels=both", "clusterer=pic", "n_init=5"], ["n_init=5 is not used", "PIC"]),
        ("train", ["labels=descriptors", OWN, "clusterer=pic"], ["clusterer=pic is not used", "labels=descriptors"]),
        ("train", ["labels=descriptors", OWN, "clusterer.n_iter=3"], ["clusterer.n_iter=3", "labels.clusterer"]),
        ("train", ["labels=descriptors", "pretrain.features=bank"], ["pretrain.features=bank", "labels=network"]),
        ("train", ["labels=online", "pretrain.features=bank"], ["pretrain.features=bank", "labels=online"]),
        ("train", ["+clusterer.seed=5"], ["clusterer.seed=5 is not used", "seed=N"]),
        ("train", ["labels=descriptors", OWN, "+labels.clusterer.seed=5"], ["labels.clusterer.seed=5", "seed=N"]),
        ("train", ["encoder.readout_bands=4"], ["encoder.readout_bands=4 is not used", "encoder.readout=[1,2]"]),
        ("train", [*STREAM, "loader.pin_memory=true"], ["loader.pin_memory=true", "threads"]),
        ("train", ["data.buffer=5"], ["data.buffer=5 is not used", "data.stream=true"]),
        ("train", [*STREAM, "data.segment=3"], ["data.segment=3 is not used", "start and duration"]),
        ("train", [*STREAM, "loader.timeout=9"], ["loader.timeout=9 is not used", "threads"]),
        ("train", ["sampler.draws_per_clip=2"], ["sampler.draws_per_clip=2", "pass trainer.max_epochs"]),
        ("train", ["experiment=paper", "sampler.draws_per_clip=2", "sampler.every_n_steps=9"], ["every_n_steps=9"]),
        ("train", ["callbacks.probe.label=kind"], ["callbacks.probe.label=kind", "callbacks.probe.path"]),
        ("train", ["callbacks.dashboard.clips=2"], ["callbacks.dashboard.clips=2", "logger=wandb"]),
        ("train", ["encoder=efficientnet_b0", "encoder.hidden=64"], ["encoder.hidden=64", "encoder.stride=8"]),
        ("train", ["encoder=efficientnet_b0", "encoder.widths=[8]"], ["encoder.widths=[8]", "encoder=conv"]),
        ("train", ["encoder=efficientnet_b0", "encoder.readout=[1]"], ["encoder.readout=[1]", "encoder=conv"]),
        ("eval", ["bundle=/run", "encoder=conv"], ["encoder=conv is not used", "bundle=/run"]),
        ("eval", ["bundle=logmel", "encoder.pool=max"], ["encoder.pool=max", "bundle=random"]),
        ("train", ["encoder.drop_path=0.2"], ["encoder.drop_path=0.2", "encoder.name=tf_efficientnet_b0"]),
        ("eval", ["protocol=paper", "protocol.refit=true", "task.shots=5"], ["protocol.refit=true", "task.shots=5"]),
        ("eval", ["precision=16-mixed"], ["precision=16-mixed", "mode=finetune"]),
        ("eval", ["protocol.max_epochs=3"], ["protocol.max_epochs=3", "mode=finetune"]),
        ("eval", ["mode=finetune", "protocol.strengths=[1]"], ["protocol.strengths", "mode=frozen"]),
        ("eval", ["task=speaker", "task.path=/x.csv"], ["task.path=/x.csv", "task=csv"]),
        ("eval", ["task=folder", "task.root=/x"], ["task.root=/x", "task=csv"]),
        ("eval", ["task=esc50", "task.split=mine"], ["task.split=mine", "task.fold=null"]),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_alone_and_said_in_a_sweep(root, words, parts, caplog):
    cfg = composed(root, *words)
    with pytest.raises(ConfigError) as error:
        check(cfg)
    line = str(error.value)
    assert all(part in line for part in parts), line
    OmegaConf.set_readonly(HydraConfig.instance().cfg.hydra, False)
    HydraConfig.instance().cfg.hydra.mode = RunMode.MULTIRUN
    with caplog.at_level(logging.WARNING):
        check(cfg)
    assert line in caplog.text


@pytest.mark.parametrize("words", [["loader.crop_frames=1500"], ["encoder.min_frames=999"]])
def test_a_shortest_clip_is_no_longer_than_a_piece(words):
    line = refused("train", *words)
    assert "is more than encoder.max_frames=" in line
    check(composed("train", *words, "encoder.max_frames=1500"))


@pytest.mark.parametrize("word", ["compile=reduce-overhead", "exact=1", "clusterer.superkmeans=yes"])
def test_a_switch_is_true_or_false(word):
    assert refused("train", word) == f"{word}: give true or false"


@pytest.mark.parametrize("labels", ["network", "descriptors", "both"])
def test_labels_that_cluster_all_clips_at_once_have_no_stream(labels):
    assert "data.stream=true needs labels=online" in refused("train", "data.stream=true", f"labels={labels}")


@pytest.mark.parametrize("words", [[], ["labels.first=null"], ["data.stream=true"]])
def test_pic_has_no_centres_to_compare_a_crop_with(words):
    line = refused("train", "labels=online", "clusterer=pic", *words)
    assert line.startswith("labels=online needs clusterer=kmeans: "), line


def test_the_arms_of_the_recipe_pass():
    for name in ("recipe_arms", "recipe_mini"):
        arms = OmegaConf.to_container(OmegaConf.load(conf_dir().parent / "benchmarks" / f"{name}.yaml"))
        for options in arms.values():
            check(composed("train", *(word for word in options if not word.startswith("benchmarks."))))
