"""Values that no type in the configuration can check, and options without effect: refused before anything slow."""

import inspect
import logging
import re
from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from decar.cli.config import OUR_NETWORK, conf_dir, named_class, walk
from decar.cli.terminal import did_you_mean
from decar.errors import ConfigError, check_positive, check_whole, require

log = logging.getLogger(__name__)

WHOLE = {  # key: smallest sensible value
    "seed": 0,
    "k": 1,
    "loader.batch_size": 1,
    "loader.crop_frames": 1,
    "loader.num_workers": 0,
    "labels.dim": 1,
    "data.buffer": 1,
    "warmup_steps": 0,
    "sampler.every_n_steps": 1,
    "trainer.max_epochs": 1,
    "encoder.min_frames": 1,
    "encoder.max_frames": 1,
}
FLAGS = ["compile", "exact", "clusterer.superkmeans"]
POSITIVE = ["sampler.draws_per_clip", "optimizer.lr", "trainer.limit_train_batches", "stall_timeout"]
REFUSED = {  # option of Lightning's Trainer: its value when unset; why it is refused and what to give instead
    "trainer.max_steps": (-1, "a resume would train one batch too many: give trainer.max_epochs and, for the length of "
                              "an epoch, sampler.every_n_steps"),
    "trainer.overfit_batches": (0, "batches are drawn anew in every epoch, none stay to be overfitted: give fewer "
                                   "clips (data.where=…), or trainer.limit_train_batches"),
    "trainer.fast_dev_run": (False, "it leaves neither checkpoints nor metrics: give debug=fast"),
}  # fmt: skip
SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")  # keys that Hydra's instantiate reads
OURS = {  # arguments that train.py and eval.py pass themselves, over those of the configuration
    "projection": {"dim"},
    "optimizer": {"params"},
    "head_optimizer": {"params"},
    "loader": {"store", "seed", "min_frames", "max_frames"},
    "sampler": {"store", "seed", "min_frames", "max_frames"},
    "trainer": {"logger", "callbacks", "default_root_dir",
                # no validation, test or prediction loop is run
                "limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval",
                "check_val_every_n_epoch"},
}  # fmt: skip
ONLINE = "decar.pretrain.OnlineLabels"
EVERY_ENCODER = {"min_frames", "max_frames", "seed"}  # keys of `encoder` that are not arguments of the network
NAMED = ("", "data", "pretrain")  # nodes that may have keys only for other options to refer to


def check(cfg: DictConfig) -> None:
    """Refuse numbers that make no sense, keys that nothing reads, and options without effect beside the others.

    In a sweep an option may have its effect in other jobs only: there the last of the three is a warning.

    Raises:
        ConfigError: Names the option, what it is and what it may be.
    """
    for key, least in WHOLE.items():
        if (value := OmegaConf.select(cfg, key)) is not None:
            check_whole(key, value, least)
    for key in FLAGS:
        value = OmegaConf.select(cfg, key)
        require(value is None or isinstance(value, bool), f"{key}={value}: give true or false")
    for key in POSITIVE:
        if (value := OmegaConf.select(cfg, key)) is not None:
            check_positive(key, value)
    for key, (unset, why) in REFUSED.items():
        value = OmegaConf.select(cfg, key)
        require(value is None or value == unset, f"{key}={value} is not supported: {why}")
    least, most = (OmegaConf.select(cfg, f"encoder.{key}_frames") for key in ("min", "max"))
    require(
        least is None or most is None or least <= most,
        f"encoder.min_frames={least} (in training loader.crop_frames) is more than encoder.max_frames={most}: clips "
        f"would be embedded in shorter pieces than are trained on; pass encoder.max_frames={least} or more",
    )
    online = OmegaConf.select(cfg, "labels._target_") == ONLINE
    require(
        online or not OmegaConf.select(cfg, "data.stream"),
        "data.stream=true needs labels=online: other labels are clusters of all clips at once",
    )
    require(
        not online or OmegaConf.select(cfg, "labels.clusterer._target_") != "decar.clustering.PIC",
        "labels=online needs clusterer=kmeans: it compares each crop with centres, and PIC has none",
    )
    others = set(cfg.get("logger") or {}) - {"wandb"} if "bundle" in cfg else set()
    require(not others, f"logger={min(others, default='')}: eval.py logs to wandb only; result.json has all figures")
    _refuse_search(cfg)
    _refuse_unread(cfg)
    _refuse_idle(cfg)


def _refuse_search(cfg: DictConfig) -> None:
    """Refuse a search by Optuna that would look for the worst, or for what is best where nothing is learned."""
    sweeper = _sweeper()
    if not is_search() or "objective" not in cfg:
        return
    wanted = "minimize" if str(cfg.objective).startswith("loss") else "maximize"
    given = getattr(sweeper.direction, "name", sweeper.direction)
    require(
        given == wanted,
        f"objective={cfg.objective} with hydra.sweeper.direction={given}: pass hydra.sweeper.direction={wanted}",
    )
    labelled = any(OmegaConf.select(cfg, key) is not None for key in ("data.label", "callbacks.probe.path"))
    require(
        cfg.objective != "nmi" and (cfg.objective is not None or labelled),
        f"objective={cfg.objective} is the NMI of consecutive clusterings, which is highest where nothing is learned: "
        "pass objective=embedding_rank, or labelled sounds (callbacks.probe.path=FILE, data.label=COLUMN)",
    )


def is_search() -> bool:
    """Whether this is a job of a search by Optuna."""
    return str(_sweeper().get("_target_")).endswith("OptunaSweeper")


def _sweeper() -> Any:
    return HydraConfig.get().sweeper if HydraConfig.initialized() else {}


def _refuse_unread(cfg: DictConfig) -> None:
    """Refuse a key that no constructor takes, no code reads and no other option refers to."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    words = set(re.findall(r"\.*[A-Za-z_][\w.]*", " ".join(_interpolations(raw))))
    for path, node, known in _read_nodes(raw):
        for key in node:
            full = f"{path}.{key}".lstrip(".")
            named = any(f"{word}.".startswith((f"{full}.", f".{key}.")) for word in words)
            if key in known or key in SPECIAL or (named and path in NAMED):
                continue
            near = did_you_mean(str(key), sorted(known))
            near = near or (f" ({path} has {', '.join(sorted(known))})" if path and len(known) <= 12 else "")
            raise ConfigError(f"there is no option {full!r}{near}; nothing reads it. --help lists all options")


def _interpolations(tree: Any) -> list[str]:
    """All strings with `${…}` in a configuration."""
    return [value for _, value in walk(tree) if isinstance(value, str) and "${" in value]


def _read_nodes(raw: dict[Any, Any]) -> Iterator[tuple[str, dict[Any, Any], set[str]]]:
    """Each node whose keys are known: its dotted path, itself, and the keys that are read."""
    yield "", raw, _top_keys(raw)
    for path, keys in _keys_by_name(raw).items():
        if isinstance(raw.get(path), dict):
            yield path, raw[path], keys
    for path, node in _targets(raw):
        taken = _parameters(path, node["_target_"])
        if taken is not None:
            yield path, node, (taken | EVERY_ENCODER if path == "encoder" else taken) - OURS.get(path, set())
    for group in ("callbacks", "logger"):
        for name, node in (raw.get(group) or {}).items():
            require(
                not node or (isinstance(node, dict) and "_target_" in node),
                f"{group}.{name}={node} has no _target_, so nothing is built from it: it is misspelt, or null in "
                f"this setting; give {group}.{name}._target_ too, or leave it out",
            )


def _command(raw: dict[Any, Any]) -> str:
    return "eval" if "bundle" in raw else "train"


def _top_keys(raw: dict[Any, Any]) -> set[str]:
    """The options and groups of `train.yaml` or `eval.yaml`."""
    primary = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{_command(raw)}.yaml"))
    assert isinstance(primary, dict)
    groups = {
        str(name) for entry in primary.pop("defaults") if isinstance(entry, dict) for name in entry if " " not in name
    }
    return {*map(str, primary), *groups, "head_optimizer"} - {"hydra", "experiment", "debug"}


def _keys_by_name(raw: dict[Any, Any]) -> dict[str, set[str]]:
    """Keys of the nodes that are read by name, not handed to a constructor of their own."""
    limits = _parameters("limits", "decar.limits.Limits") or set()
    if _command(raw) == "eval":
        mode = raw.get("mode") or {}
        fine = {"crop_frames", "num_workers"} if isinstance(mode, dict) and mode.get("name") == "finetune" else set()
        task = _parameters("task", "decar.downstream.TaskSpec") or set()
        return {
            "mode": {"name", *fine},
            "limits": limits,
            "pretrain": {"options", "run"},
            "task": (task | {"corpus"}) - {"crop_frames"},
        }
    crops = _parameters("loader", "decar.pretrain.PretrainData") or set()
    found = {
        "data": {"name", "label", "manifest", "segment", "stream", "buffer"},
        "limits": limits,
        "pretrain": {"features"},
    }
    found |= {group: crops - OURS[group] for group in ("loader", "sampler")}
    optimizer: Any = raw.get("optimizer")
    heads = _parameters("optimizer", optimizer["_target_"]) if _is_target(optimizer) else None
    return found if heads is None else {**found, "head_optimizer": heads - OURS["head_optimizer"]}


def _targets(tree: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """All nodes with a `_target_` in an unresolved configuration, with their dotted paths."""
    return ((at, node) for at, node in walk(tree) if _is_target(node))


def _is_target(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node


def _parameters(path: str, target: Any) -> set[str] | None:
    """Names of the arguments that a constructor takes; None: any, or nobody knows.

    Raises:
        ConfigError: There is no such class or function.
    """
    found = named_class(target, f"{path}._target_=")
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # written in C
        return None
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


READOUT = ("encoder.readout", "encoder.readout_bands")


def _refuse_idle(cfg: DictConfig) -> None:
    """Refuse what was given on the command line and changes nothing beside the other options; null is no such."""
    for word, why in idle_words(cfg).items():
        line = f"{word.lstrip('+')} is not used: {why}"
        require(HydraConfig.get().mode == RunMode.MULTIRUN, line)
        log.warning("%s", line)


def idle_words(cfg: DictConfig) -> dict[str, str]:
    """The options of the command line that change nothing beside the others, as typed, and why."""
    if not HydraConfig.initialized():
        return {}
    conf: Any = HydraConfig.get()
    idle = (_idle_in_eval if "bundle" in cfg else _idle_in_training)(cfg)
    found = {}
    for word in conf.overrides.task:
        key, _, value = word.lstrip("+").partition("=")
        why = next((why for option, why in idle.items() if f"{key}.".startswith(f"{option}.")), None)
        read_out = key in READOUT and cfg.get("bundle") not in (None, "random", "logmel")
        if why is not None and value not in ("", "null") and not read_out:
            found[word] = why  # a readout has no weights: any bundle with such a trunk can be read out so
    return found


def _idle_in_training(cfg: DictConfig) -> dict[str, str]:
    """Options of train.py without effect in this setting, and why."""
    idle = _idle_of_encoder(cfg) | _idle_of_labels(cfg)
    every = OmegaConf.select(cfg, "sampler.every_n_steps")
    if every is not None:
        idle["sampler.draws_per_clip"] = (
            f"sampler.every_n_steps={every} counts instead; pass one of the two, the other null"
        )
    elif OmegaConf.select(cfg, "trainer.max_epochs") is None:
        idle["sampler.draws_per_clip"] = (
            "trainer.max_epochs=null picks sampler.every_n_steps from the number of clips; pass trainer.max_epochs too"
        )
    if OmegaConf.select(cfg, "data.stream"):
        idle["data.segment"] = (
            "data.stream=true takes one stretch of up to 10 s of each recording a pass; for more of it list stretches "
            "(columns start and duration, data=csv)"
        )
        for key in ("persistent_workers", "timeout", "pin_memory"):
            idle[f"loader.{key}"] = "data.stream=true reads in threads"
    else:
        idle["data.buffer"] = "without data.stream=true clips are drawn from all"
    if OmegaConf.select(cfg, "callbacks.probe.path") is None:
        idle["callbacks.probe"] = "there is no probe without callbacks.probe.path=FILE"
    if not {"wandb", "tensorboard"} & set(cfg.get("logger") or {}):
        idle["callbacks.dashboard"] = "there is no dashboard without logger=wandb or logger=tensorboard"
    return idle


def _idle_of_labels(cfg: DictConfig) -> dict[str, str]:
    raw, idle = OmegaConf.to_container(cfg, resolve=False), {}
    assert isinstance(raw, dict)
    labels = f"labels={HydraConfig.get().runtime.choices.get('labels')}"
    found = list(_clusterers(raw))
    names = " and ".join(sorted({str(node["_target_"]).rpartition(".")[2] for node in found}))
    for key in ("k", "n_init"):
        if not any(f"${{{key}}}" in _interpolations(node.get(key)) for node in found):
            why = f"{labels} clusters with {names}, which takes no {key} from here"
            idle[key] = f"{why}; leave {key} out, or pass clusterer=kmeans"
    if str(raw["labels"].get("_target_")).startswith("decar."):
        for key in ("clusterer", "labels.clusterer"):
            idle[f"{key}.seed"] = "the seed of each clustering follows from the run's and the epoch; pass seed=N"
    if "${clusterer}" not in _interpolations(raw["labels"]):
        idle["clusterer"] = f"{labels} has a clusterer of its own; pass labels.clusterer.…, or labels=network or both"
    if str(raw["labels"].get("_target_")) in (ONLINE, "decar.pretrain.DescriptorLabels"):
        idle["pretrain.features"] = f"{labels} clusters no vectors of the network; pass labels=network or labels=both"
    return idle


def _clusterers(raw: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
    """The clusterers of an unresolved `labels`."""
    for path, value in walk(raw["labels"], "labels"):
        if "clusterer" in path and _is_target(value):
            yield value
        elif value == "${clusterer}":
            yield from (node for _, node in _targets(raw.get("clusterer")))


def _idle_of_encoder(cfg: DictConfig) -> dict[str, str]:
    encoder, idle = cfg.get("encoder") or {}, {}
    if encoder.get("_target_") != OUR_NETWORK:
        return {}
    if encoder.get("name") == "conv":
        idle["encoder.drop_path"] = "encoder.name=conv has no residual blocks; pass encoder.name=tf_efficientnet_b0"
        if not encoder.get("readout"):
            idle["encoder.readout_bands"] = "there is no readout; pass encoder.readout=[1,2] too"
        return idle
    for key in ("widths", "readout", "readout_bands"):
        idle[f"encoder.{key}"] = f"encoder.name={encoder.get('name')} takes no {key}; pass encoder=conv"
    if encoder.get("stride") is None:
        whole = f"encoder.name={encoder.get('name')} is taken whole (encoder.stride=null) and has no such MLP"
        for key in ("hidden", "dropout", "local"):
            idle[f"encoder.{key}"] = f"{whole}; pass encoder.stride=8, or encoder=conv"
    return idle


def _idle_in_eval(cfg: DictConfig) -> dict[str, str]:
    """Options of eval.py without effect in this setting, and why."""
    idle = _idle_of_encoder(cfg)
    if cfg.bundle not in ("random", None) and cfg.encoder.get("_target_") == OUR_NETWORK:
        idle["encoder"] = f"the network comes from bundle={cfg.bundle}; leave it out, or pass bundle=random"
    elif cfg.bundle == "random" and cfg.beside and cfg.encoder.get("_target_") == OUR_NETWORK:
        idle["encoder"] = f"the network comes from beside={cfg.beside}; leave one of the two out"
    if cfg.bundle != "random" and HydraConfig.get().mode != RunMode.MULTIRUN:  # sweeps give it to all jobs
        idle["beside"] = "it says which network bundle=random has"
    frozen = OmegaConf.select(cfg, "mode.name") == "frozen"
    if frozen:
        idle["precision"] = "it is of fine-tuning; pass mode=finetune"
    search = str(OmegaConf.select(cfg, "protocol._target_")).endswith("SearchProtocol")
    for key in ("learning_rates", "batch_size", "max_epochs") if search and frozen else ():
        idle[f"protocol.{key}"] = "protocol=search uses it for fine-tuning only; pass mode=finetune, or protocol=paper"
    if search and not frozen:
        idle["protocol.strengths"] = "protocol=search uses it for frozen embeddings only; pass mode=frozen"
    idle["logger.wandb.log_model"] = "it is of train.py, whose bundle becomes an artifact"
    if OmegaConf.select(cfg, "task.shots") is not None:
        idle["protocol.refit"] = f"task.shots={cfg.task.shots}: of few shots, validation clips are not learned from"
    return idle | _idle_of_task(cfg)


def _idle_of_task(cfg: DictConfig) -> dict[str, str]:
    idle: dict[str, str] = {}
    fold = OmegaConf.select(cfg, "task.fold")
    choice = HydraConfig.get().runtime.choices.get("task")
    if fold is not None:
        idle["task.split"] = f"task.fold={fold} counts instead; pass task.fold=null too"
    if choice == "folder":
        for key in ("root", "path_column"):
            idle[f"task.{key}"] = "task=folder has no table; pass task=csv"
    file = conf_dir() / "task" / f"{choice}.yaml"
    own = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    if isinstance(own, dict) and str(own.get("path")).startswith("${bundled:"):
        for key in ("path", "root", "path_column", "corpus"):
            idle[f"task.{key}"] = (
                f"task={choice} is one of the bundled tasks; for clips of yours pass task=csv or task=folder"
            )
    return idle
