"""Every YAML is composed; the paper's numbers are the paper's; what is typed in the README exists."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from decar.cli.checks import check
from decar.cli.config import (
    build_encoder,
    cache_home,
    conf_dir,
    hydra_value,
    register_resolvers,
    take_over,
    wandb_offline,
)
from decar.cli.eval import choose_encoder
from decar.cli.main import replace_sweeper, same_command
from decar.clustering import PIC, KMeans
from decar.corpora import CORPORA
from decar.errors import BundleError, ConfigError
from decar.models import load_encoder

CONF = conf_dir()
GROUPS = {
    "train": ["data", "frontend", "encoder", "projection", "clusterer", "labels", "sampler", "augment", "optimizer",
              "trainer", "callbacks", "logger", "experiment", "debug"],
    "eval": ["frontend", "encoder", "task", "mode", "protocol", "experiment"],
}  # fmt: skip
OF_EVAL = ("table2", "table3")  # experiments
CHOICES = [
    (root, group, path.stem)
    for root, groups in GROUPS.items()
    for group in groups
    for path in sorted((CONF / group).glob("*.yaml"))
    if group != "experiment" or (path.stem in OF_EVAL) == (root == "eval")
]
NEEDED = {
    "folder": ["data.root=/sounds"],
    "csv": ["data.path=/a.csv"],
    "parquet": ["data.path=/a.parquet"],
    "bench": ["data.root=/b"],
    "corpus": ["data.name=librispeech"],
}


@pytest.fixture(autouse=True)
def _resolvers():
    register_resolvers()
    GlobalHydra.instance().clear()


def composed(root: str, *overrides: str) -> DictConfig:
    replace_sweeper(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(root, overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir = "/out"  # Hydra's own, at run time
    cfg.hydra.runtime.choices = {**cfg.hydra.runtime.choices}
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(cfg)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.mark.parametrize(("root", "group", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_choice_composes_and_resolves(root, group, choice):
    extra = NEEDED.get(choice, []) if group == "data" else []
    cfg = composed(root, f"{group}={choice}", *extra)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert OmegaConf.is_struct(cfg)
    check(cfg)


def test_no_key_shares_its_name_with_another_folder():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    for root, groups in GROUPS.items():
        keys = set(composed(root)) - set(groups)
        assert not (keys & folders), keys & folders


def test_the_papers_setting_is_in_full():
    cfg = composed("train", "experiment=paper")
    assert (cfg.k, cfg.loader.batch_size, cfg.trainer.max_epochs, cfg.callbacks.stop.patience) == (512, 64, 100, 10)
    assert (cfg.encoder.name, cfg.encoder.pool, cfg.projection.kind, cfg.projection.out) == (
        "efficientnet_b0", "max", "paper", 512,
    )  # fmt: skip
    clusterer, labels = cfg.clusterer, cfg.labels
    assert (clusterer.k, clusterer.n_iter, clusterer.n_init, labels.dim, len(labels.clusterers)) == (512, 20, 1, 128, 1)
    optimizer = cfg.optimizer
    assert (optimizer._target_, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        "torch.optim.SGD", 0.05, 0.9, 1e-5,
    )  # fmt: skip
    assert cfg.head_optimizer == {"momentum": 0.0}
    assert (cfg.schedule, cfg.sampler.draws_per_clip, cfg.loader.crop_frames) == ("constant", 1.0, None)
    assert (cfg.augment.released, cfg.encoder.drop_path) == (False, None), "as the paper, not its released code"
    assert (cfg.augment.n_freq_masks, cfg.augment.freq_width, cfg.augment.n_time_masks, cfg.augment.time_width) == (
        2,
        30,
        2,
        40,
    )
    front = cfg.frontend
    assert (front.n_fft, front.win_length, front.hop_length, front.n_mels, front.f_min, front.f_max) == (
        1024, 400, 160, 64, 60.0, 7800.0,
    )  # fmt: skip
    pic = composed("train", "experiment=paper", "clusterer=pic").clusterer
    assert (pic.n_neighbors, pic.sigma, pic.alpha, pic.n_iter) == (5, 0.2, 0.001, 200)


def test_the_papers_tables_have_its_protocol_and_readings():
    for name in ("table2", "table3"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("eval", overrides=[f"experiment={name}"], return_hydra_config=True)
        assert (cfg.protocol._target_, cfg.protocol.lr, cfg.protocol.batch_size, cfg.protocol.max_epochs) == (
            "decar.downstream.PaperProtocol", 1e-3, 64, 50,
        )  # fmt: skip
        assert cfg.protocol.refit is True
        tasks = cfg.hydra.sweeper.params.task.split(",")
        assert len(tasks) == 9
        for task in tasks:
            corpus = CORPORA[OmegaConf.load(CONF / "task" / f"{task}.yaml").corpus]
            assert corpus.paper is not None


def test_table2_can_take_the_best_epoch():
    cfg = composed("eval", "experiment=table2", "pretrain.encoders.decar=${pretrain.run}/best", "seed=3")
    assert (cfg.bundle, cfg.beside) == ("runs/table3/encoders/pic-seed3/best", "runs/table3/encoders/pic-seed3")
    assert composed("eval", "experiment=table2", "pretrain.encoder=random").bundle == "random"
    check(composed("eval", "experiment=table2", "mode=finetune"))


def test_k_reaches_kmeans_and_presets_do_not_leak_into_pic():
    assert composed("train", "experiment=paper", "k=33").labels.clusterers[0].k == 33
    both = composed("train", "k=33").labels
    assert both.first.clusterer.k == both.network.clusterers[0].k == 33
    assert "k" not in composed("train", "clusterer=pic", "k=33").labels.network.clusterers[0]


@pytest.mark.parametrize(
    "labels", [["labels=both", "labels.network_from=1"], ["labels=descriptors"], ["labels=network"]]
)
def test_the_clusterer_is_that_of_all_heads(labels):
    for option, expected in (("clusterer=pic", PIC), ("clusterer=kmeans", KMeans)):
        source = instantiate(composed("train", *labels, option, "k=3").labels, _convert_="all")
        assert {type(clusterer) for clusterer in source.clusterers} == {expected}


def test_several_loggers_at_once():
    cfg = composed("train", "logger=[csv,wandb,tensorboard]")
    assert set(cfg.logger) == {"csv", "wandb", "tensorboard"}


def test_what_yaml_names_can_be_built():
    cfg = composed("train", "logger=[csv,tensorboard]", "k=5", "labels.network_from=2")
    for node in (cfg.frontend, cfg.augment, cfg.clusterer, *cfg.logger.values(), *filter(None, cfg.callbacks.values())):
        instantiate(node)
    labels = instantiate(cfg.labels, _convert_="all")
    assert (len(labels.first.descriptors), len(labels.network.clusterers)) == (6, 1)
    assert [clusterer.k for clusterer in labels.clusterers] == [5, 5]
    assert instantiate(cfg.optimizer).keywords["lr"] > 0


def test_wandb_is_offline_unless_somebody_is_logged_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_offline()
    for host in (
        "api.wandb.ai",
        "api.forge.coreweave.com",
        "wandb.example.org:8080",
    ):  # wandb 0.31 logs in at the second
        (tmp_path / ".netrc").write_text(f"machine {host} login user password 0123\n")
        (tmp_path / ".netrc").chmod(0o600)
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
        assert not wandb_offline()
    monkeypatch.delenv("WANDB_BASE_URL")
    assert wandb_offline(), "of another server"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert not wandb_offline()


def test_the_cache_can_be_moved(monkeypatch):
    monkeypatch.setenv("DECAR_CACHE", "/elsewhere")
    assert cache_home() == "/elsewhere"
    monkeypatch.delenv("DECAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_home() == "/xdg/decar"


def test_the_tasks_are_eight_bundled_ones_your_own_and_the_corpora():
    tasks = {path.stem: OmegaConf.load(path) for path in (CONF / "task").glob("*.yaml")}
    corpora = {name: task.corpus for name, task in tasks.items() if "corpus" in task}
    assert len(set(tasks) - set(corpora) - {"csv", "folder", "table"}) == 8
    assert set(corpora.values()) == set(CORPORA) - {"audioset"}  # for pre-training only
    for name, corpus in corpora.items():
        assert tasks[name].name == name
        assert name.startswith(corpus)
    assert {CORPORA[corpus].label for corpus in corpora.values()} <= {tasks[name].label for name in corpora}


@pytest.mark.parametrize(
    "command",
    [
        command
        for page in ("README.md", "docs/tutorial.md", "docs/recipe.md")
        for command in re.findall(r"^python (?:train|eval)\.py .*$", (CONF.parent / page).read_text(), re.M)
    ],
)
def test_documented_commands_compose_and_each_option_has_an_effect(command):
    import shlex

    _, script, *words = shlex.split(command, comments=True)
    overrides = [re.sub(r"^([\w.]+)=glob\(\*\)$", r"\1=speaker", word) for word in words if word != "-m"]
    overrides = [re.sub(r"=range\((\d+),\d+\)$", r"=\1", word) for word in overrides]
    first = [re.sub(r"=([^,\[\]]+),.*", r"=\1", word) for word in overrides if not word.startswith("hydra.")]
    check(composed(script.removesuffix(".py"), *first))


def test_no_placeholder_is_left_in_what_people_read():
    for name in ("README.md", "CHANGELOG.md"):
        assert "@@" not in (CONF.parent / name).read_text()


ODD = [
    "/x/my (sounds)", "it's", "back\\slash", "end\\", "\\'", 'say "x"', "a,b", "a=b", "$HOME", "${seed}", "`x`", "null",
    "true", "1", "1.5", "[a]", "{a}", "é", "~/x", "!x", " x ", "", "a:b", "#", "a;b", "*", "50%", "../x", "./x",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD)
def test_any_text_comes_through_hydras_grammar_as_it_is(value):
    word = f"task.path={hydra_value(value)}"
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert composed("eval", word).task.path == value


def test_only_odd_text_is_quoted():
    assert hydra_value("runs/A-1/encoder.safetensors") == "runs/A-1/encoder.safetensors"
    assert hydra_value("/x/my (sounds)") == "'/x/my (sounds)'"


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["seed=1"], "hydra.run.dir=/out resume=auto"),
        (["hydra.run.dir=/mine", "seed=1", "resume=auto"], "resume=auto"),
    ],
)
def test_the_command_that_goes_on(monkeypatch, words, added):
    composed("train", *words)
    given = [word for word in words if word != "resume=auto"]
    assert same_command(["train.py", *words]) == " ".join(["python", "train.py", *given, added])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert same_command(["train.py", *words]) == f"the same torchrun or srun command with {added}"


def test_one_option_reads_out_a_bundle_and_untrained_weights_alike():
    for name in ("small", "random"):
        for options, dim in (([], 3072), (["encoder.readout=[1,2]"], 6144)):
            cfg = composed("eval", f"bundle={name}", *options)
            assert choose_encoder(cfg, instantiate(cfg.frontend)).dim == dim


def test_init_takes_over_network_and_log_mels_and_refuses_what_contradicts_them(tmp_path, caplog):
    small = load_encoder()
    cfg = composed("train", "init=small", "frontend.n_mels=32", "encoder.widths=[4]")
    take_over(cfg)
    made = build_encoder(cfg)
    assert made.settings() == small.settings()
    assert cfg.init_hash == small.hash()
    for word in ("encoder.widths=[4]", "frontend.n_mels=32", "encoder=efficientnet_b0", "+frontend=mine"):
        with pytest.raises(ConfigError, match=re.escape(f"{word}: init=small brings its own network")):
            take_over(composed("train", "init=small"), ["k=3", word])
    take_over(composed("train", "init=small"), ["encoder.widths=[32,64,64]", "frontend.n_mels=64", "encoder.seed=3"])
    with pytest.raises(ConfigError, match=r"init=hear:decar\.hear: only encoders of decar's own kind"):
        take_over(composed("train", "init='hear:decar.hear'"))
    with pytest.raises(BundleError, match="no such bundle"):
        take_over(composed("train", f"init={tmp_path}"))
    plain = composed("train")
    take_over(plain)
    assert plain == composed("train")
