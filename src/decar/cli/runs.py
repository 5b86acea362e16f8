"""Folders of earlier runs: which checkpoint to go on from, with which options, and whether the job is done already.

A run folder may come from anybody, so its `config.yaml` is data: it is parsed without resolving `${…}`, and nothing in
it is instantiated. See docs/security.md.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from decar.digests import (
    DamagedError,
    check_lines,
    check_parquet,
    read_json,
    read_parquet,
    sealed_lines,
    unreadable,
    write_json,
)
from decar.errors import ConfigError, TrainingError, require
from decar.files import whole
from decar.metrics import JOURNAL

if TYPE_CHECKING:
    from decar.pretrain.checkpoint import Record

log = logging.getLogger(__name__)

MAX_BYTES = 1_000_000  # a config.yaml of ours has some 5 kB
MAX_DEPTH = 50

FINISHED = "finished.json"  # of a pre-training run that came to its end
# by the run itself, where they were left open
PICKED = ("k", "sampler.every_n_steps", "trainer.max_epochs", "labels.network_from")
# do not change what comes out of a run that came to its end; `beside` only serves to set `encoder`
ASIDE = ("resume", "beside", "devices", "progress", "report", "objective", "cache_dir", "stall_timeout",
         "trainer.enable_progress_bar", "trainer.max_time")  # fmt: skip
OF_DATA = ("${data.", "${oc.select:data.")  # an option that follows `data`
# or only says where a file lies, or how the folder is called
OF_FOLDER = ("${cache_dir}", "${hydra:runtime.output_dir}", "${basename:${hydra:runtime.output_dir}}")

WHICH = ("data.segment", "data.stream")  # say which clips there are; earlier versions had no such options
OLD_ENCODER = "decar.models.Encoder"  # named before networks had names; `DecarModule` compares what was built
# May change when a run goes on, but for TRAINING. `data` is compared by the sounds themselves.
FREE = ("resume", "exact", "compile", "progress", "report", "objective", "cache_dir", "stall_timeout", "budget", "data",
        "limits", "logger", "callbacks", "trainer", "loader.num_workers", "loader.persistent_workers",
        "loader.pin_memory", "loader.timeout")  # fmt: skip
TRAINING = ("callbacks.stop", "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
            "trainer.gradient_clip_algorithm", "trainer.limit_train_batches", *WHICH, "data.buffer")  # fmt: skip


def read_config(file: Path) -> dict[str, Any]:
    """Parse a found `config.yaml` into plain dictionaries, lists and scalars; `${…}` stays as text.

    Raises:
        ConfigError: It is missing, damaged, larger than `MAX_BYTES`, not YAML, no mapping, deeper than `MAX_DEPTH`, or
            uses aliases.
    """
    import yaml

    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{file}: larger than {MAX_BYTES:,} bytes, not the config.yaml of a run")
        check_lines(text)
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:  # both cost without bound when they are loaded
                what = "YAML aliases" if depth <= MAX_DEPTH else f"more than {MAX_DEPTH} levels"
                raise ConfigError(f"{file}: has {what}, which decar never writes; not the config.yaml of a run")
        found = OmegaConf.to_container(OmegaConf.create(text.decode("utf-8")), resolve=False)
    except ConfigError:
        raise
    except Exception as error:  # yaml and omegaconf each have kinds of their own
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: not a mapping; give the folder of a run of decar-train")
    if not found:
        raise ConfigError(f"{file}: cut short, it holds no options; copy it from a whole folder")
    return {str(key): value for key, value in found.items()}


def write_config(output: Path, text: str) -> None:
    """Write `config.yaml`, all options of a job, with its checksum."""
    with whole(output / "config.yaml") as part:
        part.write_text(sealed_lines(text), encoding="utf-8")


def read_before(checkpoint: Path) -> Record:
    """A checkpoint's record of its run; without one, its options are those in the `config.yaml` of its run folder."""
    from decar.pretrain.checkpoint import read_record

    record = read_record(checkpoint)
    return record if record.version else replace(record, options=_options_in(checkpoint.parents[1]))


def _options_in(folder: Path) -> dict[str, Any]:
    """The options in a folder's `config.yaml`; none where it is missing or, with a line in the log, damaged."""
    file = folder / "config.yaml"
    try:
        return dict(flat(read_config(file))) if file.exists() else {}
    except ConfigError as error:
        log.warning("%s", error)
        return {}


def options_of_seeds(bundle: str) -> dict[str, Any]:
    """The options that all seeds of one training have, by the `config.yaml` in the run of a bundle; none without one.

    Left out are `k`, which the bundle holds and PIC does not read, and what does not change how a network is trained:
    places, devices, loaders. The number of epochs counts unless a budget gave it: it then follows from the machine.
    """
    from decar.models.bundle import bundle_file

    folder = bundle_file(bundle).absolute().parent
    options = _options_in(folder.parent if folder.name == "best" else folder)
    if options.get("frontend._target_") != "decar.audio.FrontEnd":  # none, or of another program
        return {}
    shared = (*TRAINING, "budget", "data.where", *(() if options.get("budget") else ("trainer.max_epochs",)))
    free = (*FREE, "k", "init")
    return {
        key: value
        for key, value in options.items()
        if (below(key, shared) or not below(key, free)) and not key.endswith((".gpu", "seed"))
    }


def refuse_other_run(cfg: DictConfig, checkpoint: Path, content: str, n_clips: int, processes: int = 1) -> None:
    """Refuse to go on from a checkpoint of other options or sounds (`Identity.content`), or of other joint BatchNorm.

    A checkpoint of an earlier version, which has no record of its run, costs a log line.

    Raises:
        TrainingError: Names each option with its value there and here, or says that the sounds differ.
    """
    import decar

    before = read_before(checkpoint)
    if not before.version:
        log.warning(
            "%s does not say which options and sounds it was made with: make sure they are the same", checkpoint
        )
        return
    other = changed_options(before.options, cfg, same_version=before.version == decar.__version__)
    joint = _joint_batchnorm(before.options, before.processes), _joint_batchnorm(flat_options(cfg), processes)
    if before.processes and joint[0] != joint[1]:
        other["trainer.sync_batchnorm (one process: always)"] = joint
    if other:
        found = "; ".join(f"{key}: {was} there, {now} here" for key, (was, now) in other.items())
        raise TrainingError(
            f"cannot go on from {checkpoint}, it was made otherwise ({found}): give the options it was made with, or "
            "start anew in another hydra.run.dir"
        )
    if before.content and before.content != content:
        here = f"here {n_clips}" if n_clips != before.n_clips else "as many here, with other content or order"
        raise TrainingError(
            f"cannot go on from {checkpoint}, it belongs to other sounds ({before.n_clips} clips, {here}): give the "
            "sounds it was made with, or start anew in another hydra.run.dir"
        )


def changed_options(
    before: dict[str, Any], cfg: DictConfig, *, same_version: bool = True
) -> dict[str, tuple[object, object]]:
    """Options that may not change and did: value before and now. One that follows another is not named beside it."""
    now = flat_options(cfg)
    if before.get("encoder._target_") == OLD_ENCODER:
        before = {**before, **{key: now.get(key) for key in ("encoder._target_", "encoder.n_mels")}}
    raw = dict(flat(OmegaConf.to_container(cfg)))
    picked = set(left_open(now))
    if "k" in picked:
        picked |= {key for key in now if key.endswith(".k")}
    if not now.get("data.stream"):
        picked.add("data.buffer")
    other = {}
    for key in sorted((before.keys() | now.keys()) - picked):
        free = below(key, FREE) and not below(key, TRAINING)
        unknown = key not in before and not same_version  # an option that a later version has brought
        if not free and not unknown and not key.endswith(".gpu") and _unset(before.get(key)) != _unset(now.get(key)):
            other[key] = (before.get(key), now.get(key))
    return _named(other, raw)


def _named(other: dict[str, tuple[object, object]], raw: dict[str, Any]) -> dict[str, tuple[object, object]]:
    """Those of some options that do not follow another one; all where each does."""
    return {key: pair for key, pair in other.items() if not str(raw.get(key)).startswith("${")} or other


def _joint_batchnorm(options: dict[str, Any], processes: int) -> bool:
    """Whether BatchNorm is computed over the whole batch."""
    return processes == 1 or bool(options.get("trainer.sync_batchnorm"))


def flat_options(cfg: DictConfig) -> dict[str, Any]:
    """All options, resolved, by dotted key."""
    return dict(flat(OmegaConf.to_container(cfg, resolve=True)))


def below(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether an option is one of these, or below one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _unset(value: object) -> object:
    """False and a missing option mean the same as null."""
    return None if value is False else value


def left_open(options: dict[str, Any]) -> list[str]:
    """Options of `PICKED` that are there and null."""
    return [key for key in PICKED if key in options and options[key] is None]


def same_job(cfg: DictConfig, output: Path, aside: Iterable[str] = ()) -> bool:
    """Whether `output/config.yaml` is of a job that was asked for the same as this one, the options `aside` apart."""
    return _same(cfg, _options_in(output), idle=aside)


def _same(cfg: DictConfig, before: dict[str, Any], *, same_sounds: bool = False, idle: Iterable[str] = ()) -> bool:
    """Whether a job with these options would make what the one with the options `before` has made."""
    return bool(before) and not _differing(cfg, before, same_sounds=same_sounds, idle=idle)


def _differing(
    cfg: DictConfig, before: dict[str, Any], *, same_sounds: bool = False, idle: Iterable[str] = ()
) -> dict[str, tuple[object, object]]:
    """The options in which another job than the one with the options `before` is asked for: before and now.

    An option that is left open now equals what was picked for it, and `budget` only serves to pick. Where the sounds
    are known to be the same, their place does not matter; the label that figures are of does. Options in `idle` have no
    effect beside the others.
    """
    now, raw = flat_options(cfg), dict(flat(OmegaConf.to_container(cfg)))
    if before and "exact" in now:
        before = {"exact": True, **before}  # of an earlier version, which had no such option
    aside = [*ASIDE, *left_open(now), *idle, *(["data"] if same_sounds else [])]
    if "trainer.max_epochs" in now and now["trainer.max_epochs"] is not None:
        aside.append("budget")
    follows = OF_FOLDER + (OF_DATA if same_sounds else ()) + tuple(f"${{{option}}}" for option in idle)
    keys = {key for key in before.keys() | now.keys() if not str(raw.get(key)).startswith(follows)}
    if "k" in aside:  # what refers to it was picked with it
        keys = {key for key in keys if not key.endswith(".k")}
    counts = (*WHICH, "data.label", *(["data.buffer"] if now.get("data.stream") else []))
    keys = {key for key in keys if key in counts or not below(key, tuple(aside))}
    return {
        key: (before.get(key), now.get(key)) for key in sorted(keys) if _unset(before.get(key)) != _unset(now.get(key))
    }


def write_finished(output: Path, metrics: dict[str, float], epochs: int, steps: int, run: dict[str, Any]) -> None:
    """Mark a run as finished, with its last figures and `run`, the record in its checkpoints."""
    with whole(output / FINISHED) as part:
        write_json(part, {"metrics": metrics, "epochs": epochs, "steps": steps, "run": run})


def read_finished(cfg: DictConfig, output: Path, content: str, idle: Iterable[str] = ()) -> dict[str, Any] | None:
    """The last figures of the run in this folder; None when it was another one, is unfinished or damaged.

    Args:
        cfg: What is asked for now.
        output: The folder.
        content: `Identity.content` of the sounds now.
        idle: Options without effect, in which the run may differ.
    """
    found = _finished(output)
    run = found.get("run", {})
    if not found or (run["content"] and run["content"] != content):
        return None
    return found if _same(cfg, run["options"], same_sounds=bool(run["content"]), idle=tuple(idle)) else None


def _finished(output: Path) -> dict[str, Any]:
    """What `write_finished` has written; empty where that is missing, damaged, or of a version that kept less."""
    file = output / FINISHED
    try:
        found = read_json(file) if file.is_file() else {}
    except (OSError, DamagedError) as error:
        log.warning("%s is damaged (%s): going on from the last checkpoint", file, error)
        return {}
    return found if {"metrics", "epochs", "run"} <= found.keys() else {}


def refuse_finished(cfg: DictConfig, output: Path, content: str) -> None:
    """Refuse to train over a finished run of another job that has no checkpoint to go on from.

    Args:
        cfg: What is asked for now.
        output: The folder.
        content: `Identity.content` of the sounds now.

    Raises:
        TrainingError: Names each option with its value there and here, or says that the sounds differ.
    """
    from decar.models import read_facts

    if not (output / FINISHED).is_file() or unreadable(output / "encoder.safetensors", read_facts):
        return
    run = _finished(output).get("run", {"content": "", "options": {}})
    other = _differing(cfg, run["options"], same_sounds=bool(run["content"]))
    named = _named(other, dict(flat(OmegaConf.to_container(cfg)))) if run["options"] else {}
    why = "; ".join(f"{key}: {was} there, {now} here" for key, (was, now) in named.items())
    why = "other sounds" if run["content"] and run["content"] != content else why or "with which options is not known"
    raise TrainingError(
        f"{output} holds a finished run that was made otherwise ({why}), and no checkpoint to go on from: give what it "
        "was made with, or another hydra.run.dir"
    )


def finished_twin(
    cfg: DictConfig, sweep: Path, content: str, idle: Iterable[str]
) -> tuple[Path, dict[str, Any]] | None:
    """The folder and last figures of a job of this sweep that is finished and differs only in options without effect.

    Args:
        cfg: What is asked for now.
        sweep: The folder of the sweep.
        content: `Identity.content` of the sounds now.
        idle: Options without effect.
    """
    from decar.models import read_facts

    opened = set(left_open(flat_options(cfg)))
    for file in sorted(sweep.glob(f"*/{FINISHED}")):
        folder = file.parent
        done = read_finished(cfg, folder, content, idle)
        picked = done["run"].get("open", ()) if done else ()  # there, where another value may have been given
        if done and opened <= set(picked) and not unreadable(folder / "encoder.safetensors", read_facts):
            return folder, done
    return None


def lost_outputs(cfg: DictConfig, output: Path, epochs: int) -> dict[Path, str]:
    """What a finished run should have and has not, and the reason, as far as its last checkpoint can give it again.

    Earlier epochs of `clusters.parquet` are in no checkpoint; the log names those that are lost.

    Args:
        cfg: What is asked for now.
        output: The folder.
        epochs: That the run has trained.
    """
    from decar.models import read_facts
    from decar.pretrain.callbacks import part_of

    callbacks, lost = cfg.get("callbacks") or {}, {}
    if callbacks.get("bundle"):
        lost[output / "encoder.safetensors"] = unreadable(output / "encoder.safetensors", read_facts)
    if callbacks.get("clusters") and epochs:
        *earlier, last = (part_of(output / "clusters.parquet", epoch) for epoch in range(epochs))
        lost[last] = unreadable(last, read_parquet)
        for part in earlier:
            if reason := unreadable(part, check_parquet):
                log.warning("%s: %s, and no checkpoint holds this epoch", part, reason)
    if cfg.get("report"):
        lost[output / "report.html"] = unreadable(output / "report.html", lambda path: None)
    return {path: reason for path, reason in lost.items() if reason}


def flat(tree: Any, prefix: str = "") -> list[tuple[str, object]]:
    """All values of a configuration by their dotted keys; a list counts as one value, but for the tables in it."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in flat(value, f"{prefix}{key}.")]
    if isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        return [pair for i, entry in enumerate(tree) for pair in flat(entry, f"{prefix}{i}.")]
    return [(prefix.removesuffix("."), tree)]


def find_checkpoint(resume: str | None, output: Path) -> str | None:
    """The checkpoint that `resume` means: `auto` the last of this run folder, if any; else a file or a run's folder."""
    from decar.pretrain.checkpoint import last_good, previous_of, readable

    last = output / "checkpoints" / "last.ckpt"
    saved, ended = last.is_file() or previous_of(last).is_file(), (output / FINISHED).is_file()
    held = f"{output} holds a run already: pass resume=auto to go on, or another hydra.run.dir"
    if resume is None:
        require(not saved and not ended, held)
        return None
    if resume == "auto":
        named = any(o.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in HydraConfig.get().overrides.hydra)
        require(named, "resume=auto needs hydra.run.dir=RUN, the folder of the run to go on with")
        if saved or not ended:
            log.info("going on from %s" if saved else "nothing to go on from in %s: starting anew", last)
        return last_good(last) if saved else None
    path = Path(resume)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    require(path.is_file(), f"resume={resume}: there is no checkpoint {path}; give a .ckpt file, a run folder, or auto")
    require(is_of(path, output) or (not saved and not ended), held)
    return readable(path)


def is_of(checkpoint: str | Path, output: Path) -> bool:
    """Whether a checkpoint lies in a run's folder."""
    return output.resolve() in Path(checkpoint).resolve().parents


def clear(output: Path) -> None:
    """Delete leftovers of a run that was killed before its first checkpoint: they would mix with those of this run."""
    for name in (
        FINISHED, "metrics.csv", ".metrics.sealed", "bad_files.csv", "report.html", "environment.json", "clusters.csv",
        "clusters.npz", "best/encoder.safetensors", JOURNAL,
    ):  # fmt: skip
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "clusters.parquet", ignore_errors=True)
