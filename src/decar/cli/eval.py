"""`python eval.py`, `decar-eval`: judge an encoder on a task, one cell of the paper's Table 2."""

from __future__ import annotations

import functools
import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from decar.cli.checks import check
from decar.cli.config import build_encoder, hydra_value, own_network, stand_beside
from decar.cli.launch import folder_lock
from decar.cli.main import SKIP, run_hydra
from decar.cli.runs import FINISHED, options_of_seeds, same_job, write_config
from decar.cli.trainer import TURN, gpus_in_turn, turn
from decar.digests import DamagedError, read_json, write_json
from decar.errors import DecarError, reason_of, require
from decar.files import locked, whole
from decar.limits import Limits, set_limits
from decar.metrics import JOURNAL

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from decar.audio import FrontEnd
    from decar.downstream import Result, TaskSpec
    from decar.downstream.task import Task
    from decar.models import Encoder

log = logging.getLogger(__name__)

JUDGED = "judged.json"  # beside result.json: hashes of what was judged
NO_BUNDLE = ("random", "logmel")


def evaluate(cfg: DictConfig) -> float | None:
    """Judge as configured and write `result.json`; returns the accuracy on test, None for a task that was skipped."""
    conf: Any = HydraConfig.get()
    choice = conf.runtime.choices.task
    check(cfg)
    set_limits(Limits(**cfg.limits))
    if not has_source(cfg, choice, skip=many_tasks(conf)):
        return None
    output = Path(conf.runtime.output_dir)
    with folder_lock(output, "hydra.run.dir"):
        return evaluate_into(output, cfg)


def evaluate_into(output: Path, cfg: DictConfig) -> float:
    """Judge into this folder, unless it holds the result already; returns the accuracy on test."""
    from decar.downstream import judge
    from decar.downstream.task import load_task
    from decar.models.bundle import exact_name

    device = device_of(cfg.accelerator, cfg.devices)
    obtain(cfg)
    if cfg.bundle == "random":
        stand_beside(cfg)
    frontend = instantiate(cfg.frontend)
    encoder = choose_encoder(cfg, frontend)
    fine = cfg.mode if cfg.mode.name == "finetune" else {"crop_frames": 98, "num_workers": 0}
    task = load_task(task_spec(cfg, crop_frames=fine["crop_frames"]))
    protocol = instantiate(cfg.protocol, _convert_="all")
    judged = what_is_judged(task, encoder, cfg.cache_dir)
    if revision := getattr(protocol, "revision", ""):
        judged["protocol"] = revision
    before = judged_before(cfg, output, judged) if cfg.resume == "auto" else None
    if before:
        log.info("%s: judged already, nothing to do", output)
        if cfg.get("logger"):  # where it may be new: a sweep's table goes where config.yaml says
            write_config(output, OmegaConf.to_yaml(cfg, resolve=True))
        return log_result(cfg, output, before).value
    for name in ("result.json", JUDGED, JOURNAL):  # of other options: config.yaml speaks for this job from here on
        (output / name).unlink(missing_ok=True)
    write_config(output, OmegaConf.to_yaml(cfg, resolve=True))
    trainer = {"accelerator": cfg.accelerator, "precision": cfg.precision, "enable_progress_bar": cfg.progress}
    if device.startswith("cuda:"):
        trainer["devices"] = [int(device.partition(":")[2])]
    result = judge(
        task,
        encoder,
        bundle=exact_name(str(cfg.bundle)),
        mode=cfg.mode.name,
        protocol=protocol,
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        frontend=frontend,
        device=device,
        num_workers=fine["num_workers"],
        trainer_kwargs=trainer,
        progress=cfg.progress,
        pretrained={} if cfg.bundle in NO_BUNDLE else facts_of(str(cfg.bundle)),
    )
    result.write(output / "result.json")
    with whole(output / JUDGED) as part:
        write_json(part, judged)
    log.info(
        "%s, %s, protocol %s, %s: %.1f %% on test (%.1f on validation; %d classes, %d clips to learn from), %.0f s",
        result.task, result.mode, result.protocol, result.bundle, 100 * result.value, 100 * result.valid_value,
        result.n_classes, result.n_train, result.seconds,
    )  # fmt: skip
    return log_result(cfg, output, result).value


def facts_of(bundle: str) -> dict[str, Any]:
    """What is known of an encoder's pre-training: the facts in its bundle, and the options of its run."""
    from decar.models import read_facts

    facts = read_facts(bundle)
    return {**facts, "options": options_of_seeds(bundle)} if facts else {}  # none: an encoder that is not decar's


def log_result(cfg: DictConfig, output: Path, result: Result) -> Result:
    """Log a result to wandb, where that is chosen and not done; a failure is a line in the log."""
    if not cfg.get("logger"):
        return result
    from decar.cli.eval_wandb import is_logged, log_to_wandb

    try:
        options: Any = OmegaConf.to_container(cfg, resolve=True)
        if not is_logged(output):
            log_to_wandb(instantiate(cfg.logger.wandb), options, result)
    except Exception as error:  # wandb's client raises a dozen kinds
        again = "the same command with resume=auto tries again, without judging again"
        log.warning("%s: not logged to wandb (%s); %s", output, reason_of(error), again)
    return result


def obtain(cfg: DictConfig) -> None:
    """Run `train.py` with `pretrain.options` into `pretrain.run`, which leaves a finished run of these as it is.

    A run that was stopped goes on where it was; one of other options or sounds is refused by name. Of several jobs
    that want one encoder the first makes it, the others wait.

    Raises:
        ConfigError: The pre-training failed; what it said stands in its folder's train.log.
    """
    if cfg.get("pretrain"):
        _obtain(Path(cfg.pretrain.run).expanduser().absolute(), cfg.pretrain.options)


@functools.cache  # the jobs of a sweep share their encoders: it takes seconds to see that one is there
def _obtain(folder: Path, options: str) -> None:
    """Run `train.py` in a process of its own: nothing of a training leaks into the judging."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{folder}.lock", wait=math.inf):
        log.info("pre-training %s, unless that is done", folder)
        words = [*shlex.split(options), f"hydra.run.dir={hydra_value(str(folder))}", "resume=auto"]
        same_gpu = {**os.environ, **({} if (number := turn()) is None else {TURN: str(number)})}
        command = [sys.executable, "-m", "decar.cli.train", *words]
        code = subprocess.run(command, env=same_gpu, check=False).returncode
        finished = (folder / FINISHED).is_file()
    require(code == 0, f"pre-training {folder} failed (exit status {code}); see above, or train.log in there")
    require(finished, f"pre-training {folder} was cut short (trainer.max_time?): give the same command again to go on")


def has_source(cfg: DictConfig, choice: str, *, skip: bool) -> bool:
    """Whether the task's clips are known: given, or those of a corpus that `decar prepare` was run on.

    Args:
        cfg: Gets path and root of the corpus.
        choice: Name of the task.
        skip: Whether an unknown source is a line in the log.

    Raises:
        ConfigError: They are not known and the task is not to be skipped, or lack a column of the task.
    """
    from decar.audio.columns import no_column
    from decar.corpora import load_prepared

    corpus = cfg.task.corpus
    if corpus and cfg.task.path is None and (prepared := load_prepared(cfg.cache_dir, corpus)):
        cfg.task.path, cfg.task.root = str(prepared.file), str(prepared.root)
        columns = prepared.manifest.table.columns
        lost = next((name for name in (cfg.task.label, cfg.task.split) if name and name not in columns), None)
        again = f"run `decar prepare {corpus} {prepared.root}` again if an earlier version made this list of clips"
        require(lost is None, f"task={choice}: {prepared.file} has {no_column(columns, str(lost))}; {again}")
    cure = f"run `decar prepare {corpus} ROOT` first" if corpus else "pass task.path=…, a table or a folder of classes"
    if cfg.task.path is None and skip:
        log.info("task=%s: skipped, it has no source: %s", choice, cure)
    require(skip or cfg.task.path is not None, f"task={choice} has no source: {cure}")
    return cfg.task.path is not None


def many_tasks(conf: Any) -> bool:
    """Whether this job is of a sweep over all tasks there are, or all of a table: what cannot be judged is skipped.

    `task=glob(*)` names the tasks that need a source of the user's, and corpora that are not here, as well. The job may
    run in another process (submitit), which does not have the command line that was typed.
    """
    named = SKIP in conf.job.env_set or "task" in (conf.sweeper.get("params") or {})
    return conf.mode == RunMode.MULTIRUN and named


def what_is_judged(task: Task, encoder: Encoder | Literal["logmel"], cache_dir: str) -> dict[str, str]:
    """Hashes of what a result depends on beside the options: the encoder, the sounds, their labels and splits."""
    from decar.downstream.evaluate import encoder_hash

    return {
        "encoder": encoder_hash(encoder),
        "sounds": task.source.fingerprint(cache_dir),
        "labels and splits": task.hash(),
    }


def judged_before(cfg: DictConfig, output: Path, judged: dict[str, str]) -> Result | None:
    """The result in this folder, if it has the same options and judged the same.

    Otherwise a log line says what differs or is damaged.
    """
    from decar.downstream import Result

    path, hashes = output / "result.json", output / JUDGED
    if not path.is_file() or not same_job(cfg, output, aside=("logger",)):
        return None
    try:
        before = read_json(hashes) if hashes.is_file() else {}
        other = [name for name, value in judged.items() if before.get(name) != value]
        if not other:
            return Result.read(path)
        log.info("%s holds a result of other %s: judging again", output, " and ".join(other))
    except DamagedError as error:
        log.warning("%s is damaged (%s): judging again", hashes, error)
    except DecarError as error:
        log.warning("judging again: %s", error)
    return None


def task_spec(cfg: DictConfig, **more: Any) -> TaskSpec:
    """The task as configured."""
    from decar.downstream import TaskSpec

    given = {str(key): value for key, value in cfg.task.items() if key != "corpus"}
    fold = given.pop("fold", None)
    return TaskSpec(**given, fold=None if fold is None else str(fold), **more)


def choose_encoder(cfg: DictConfig, frontend: FrontEnd) -> Encoder | Literal["logmel"]:
    """What `bundle` means: untrained weights by seed, the log-mel statistics, or an encoder from a file."""
    from decar.models import load_encoder

    require(bool(cfg.bundle), "bundle is not set: give a run, an encoder.safetensors, small, random or logmel")
    if cfg.bundle == "logmel":
        return "logmel"
    if cfg.bundle == "random":
        return build_encoder(cfg).eval()
    readout = list(cfg.encoder.get("readout") or ())
    bands = cfg.encoder.get("readout_bands", 0)  # not used without a readout
    return load_encoder(cfg.bundle, readout=readout, readout_bands=bands, frontend=frontend, network=own_network(cfg))


def device_of(accelerator: str, devices: int | Sequence[int] = 1) -> str:
    """Where the embedding pass runs: on the GPU when Lightning would take one.

    Args:
        accelerator: `auto`, `cpu` or `gpu`.
        devices: 1, or a list of the one GPU to take. Jobs of a parallel sweep take turns with 1.

    Raises:
        ConfigError: There is no such GPU, or something else is asked for.
    """
    import torch

    named = [*devices] if isinstance(devices, Sequence) else gpus_in_turn(devices, accelerator)
    one = devices == 1 or (named is not None and len(named) == 1 and isinstance(named[0], int))
    require(one, f"devices={devices}: a task is judged on one device; give 1, or the number of a GPU as in [0]")
    require(accelerator in ("auto", "cpu", "gpu"), f"accelerator={accelerator}: choose auto, cpu or gpu")
    seen = torch.cuda.is_available()
    require(accelerator != "gpu" or seen, "accelerator=gpu: torch sees no GPU here; use accelerator=cpu")
    if not seen or accelerator == "cpu":
        return "cpu"
    there = torch.cuda.device_count()
    require(not named or 0 <= named[0] < there, f"devices={devices}: torch sees {there} GPUs here, the first is [0]")
    return f"cuda:{named[0]}" if named else "cuda"


def main() -> None:
    """Entry point."""
    run_hydra(evaluate, "eval")


if __name__ == "__main__":
    main()
