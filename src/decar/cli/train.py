"""`python train.py`, `decar-train`: pre-train an encoder. Reads as a recipe: network, sounds, trainer, fit."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar import signals
from decar.cli.checks import check, idle_words, is_search
from decar.cli.config import build_encoder, content_of, job_name, length_of_stream, listed, own_network, take_over
from decar.cli.launch import PARENT, child_processes, end_with_parent, folder_lock, given_to_child, leads, process_group
from decar.cli.main import quiet, run_hydra
from decar.cli.runs import (
    FINISHED,
    clear,
    find_checkpoint,
    finished_twin,
    flat_options,
    is_of,
    left_open,
    lost_outputs,
    read_finished,
    refuse_finished,
    refuse_other_run,
    write_config,
    write_finished,
)
from decar.cli.terminal import complain, explain, start_log
from decar.cli.trainer import check_k, pick_open_options, trainer_options
from decar.errors import DecarError, PreemptedError, require
from decar.files import locked, write_csv
from decar.limits import Limits, set_limits
from decar.metrics import last_figures, read_rows

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from omegaconf import DictConfig
    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import Logger

    from decar.audio import LogMelStore
    from decar.audio.manifest import Identity
    from decar.pretrain import DecarModule, PretrainData

log = logging.getLogger(__name__)

OBJECTIVES = ("probe_accuracy", "nmi")  # what sweepers are given where objective=null: the first that there is
LONG_CLIP = 60  # s on average: from here on a clip holds more than one pseudo-label can name
BAR_RATE = 2  # drawings of the progress bar a second: Lightning's 100 take 4 % of two cores


def pretrain(cfg: DictConfig) -> float:
    """Pre-train as configured; returns what hyper-parameter sweepers compare, see `objective`."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from decar.pretrain.ranks import on_rank_zero, rank_zero_first

    check(cfg)
    take_over(cfg, HydraConfig.get().overrides.task)
    set_limits(Limits(**cfg.limits))
    OmegaConf.to_yaml(cfg, resolve=True)  # before anything slow: raises by name for what is not set
    opened = left_open(flat_options(cfg))
    output = Path(HydraConfig.get().runtime.output_dir)
    with ExitStack() as stack:
        trainer = stack.enter_context(process_group(cfg))
        signals.follow(leads())
        on_rank_zero(lambda: stack.enter_context(folder_lock(output, "hydra.run.dir")))
        if twin := on_rank_zero(lambda: find_twin(stack, cfg)):
            return objective(cfg, twin["metrics"])
        sounds = cache(partial(identity_of, cfg))
        done, checkpoint = on_rank_zero(lambda: find_earlier_run(cfg, output, trainer.world_size, sounds))
        if not done:
            found = on_rank_zero(sounds)  # one process looks at the files: with two million it takes long
            with rank_zero_first():
                clips = all_clips(cfg, found)
            done, text = on_rank_zero(lambda: prepare_run(cfg, clips, checkpoint, output, trainer.world_size))
        if done:
            log.info("%s: done already, nothing to do", output)
            return objective(cfg, done["metrics"])
        settled = OmegaConf.create(text)
        assert isinstance(settled, DictConfig)
        with child_processes(trainer, output / "config.yaml", checkpoint, found, cfg.stall_timeout):
            metrics = train(settled, output, checkpoint, clips, opened)
    log.info("the run lies in %s", output)
    log.info("judge it:  decar-eval -m 'task=glob(*)' mode=frozen bundle=%s", output)
    return objective(cfg, metrics)


def find_twin(stack: ExitStack, cfg: DictConfig) -> dict[str, Any] | None:
    """The figures of a finished job of this sweep that differs from this one only in options without effect.

    So PIC is not trained once for each `k`. Jobs of the same kind that run side by side do so one after the other: the
    lock is held until this job has ended.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    conf: Any = HydraConfig.get()
    idle = idle_words(cfg)
    if conf.mode != RunMode.MULTIRUN or not idle:
        return None
    sweep, name = Path(conf.sweep.dir), job_name(word for word in conf.overrides.task if word not in idle)
    stack.enter_context(locked(sweep / f".{name}.lock", wait=math.inf))
    content = content_of(cfg, identity_of(cfg).content)
    twin = finished_twin(cfg, sweep, content, [word.lstrip("+").partition("=")[0] for word in idle])
    if twin is None:
        return None
    log.info("done already in %s, from which only %s differs, which is not used", twin[0], " ".join(idle))
    return twin[1]


def find_earlier_run(
    cfg: DictConfig, output: Path, processes: int, identity: Callable[[], Identity]
) -> tuple[dict[str, Any] | None, str | None]:
    """The figures of this very job if it is finished, and the checkpoint to resume from.

    Raises:
        TrainingError: The checkpoint, or a finished run without one, was made with other options or sounds.
    """
    checkpoint, done = find_checkpoint(cfg.resume, output), None
    if cfg.resume is not None and (checkpoint is not None or (output / FINISHED).is_file()):
        sounds = identity()
        content = content_of(cfg, sounds.content)
        if checkpoint is not None:
            refuse_other_run(cfg, Path(checkpoint), content, sounds.n_clips, processes)
        done = complete(cfg, output, content, checkpoint)
        if not done and checkpoint is None:
            refuse_finished(cfg, output, content)
    if not done and (checkpoint is None or not is_of(checkpoint, output)):
        clear(output)
    return done, checkpoint


def complete(cfg: DictConfig, output: Path, content: str, checkpoint: str | None) -> dict[str, Any] | None:
    """The last figures of the very same job when it has come to its end and nothing has to be made again.

    Where a file is lost that the checkpoint can give, the run counts as unfinished: it trains no epoch, and its end
    makes the file. Without a checkpoint it is trained anew for the encoder alone.
    """
    done = read_finished(cfg, output, content) if cfg.resume == "auto" else None
    lost = lost_outputs(cfg, output, done["epochs"]) if done else {}
    again = checkpoint is not None or output / "encoder.safetensors" in lost
    how = "making it again" if again else "there is no checkpoint to make it from"
    for path, reason in lost.items():
        log.warning("%s: %s; %s", path, reason, how)
    if lost and again:
        (output / FINISHED).unlink()
        return None
    return done


def prepare_run(
    cfg: DictConfig, store: LogMelStore, checkpoint: str | None, output: Path, processes: int
) -> tuple[dict[str, Any] | None, str]:
    """The figures of a run whose budget affords no further epoch, and all options as YAML, none left open.

    If there is something to train, the options are also written to `config.yaml`.
    """
    from omegaconf import OmegaConf

    log_clips(store, output)
    n_clips = length_of_stream(cfg) if cfg.data.get("stream") else len(store.usable())
    pick_open_options(cfg, n_clips, checkpoint, processes)
    check_k(cfg, len(store.usable()))
    text = OmegaConf.to_yaml(cfg, resolve=True)
    done = complete(cfg, output, store.content, checkpoint)
    if not done:
        (output / FINISHED).unlink(missing_ok=True)
        write_config(output, text)
    return done, text


def train(
    cfg: DictConfig, output: Path, checkpoint: str | None, store: LogMelStore, opened: Sequence[str] = ()
) -> dict[str, float]:
    """Train in each process of a job, with no option left open; returns the last value of each metric.

    Args:
        cfg: All options.
        output: The run's folder.
        checkpoint: To resume from.
        store: All clips.
        opened: The options that were picked; the first process writes them down.
    """
    from hydra.utils import instantiate

    from decar.pretrain import StepBar
    from decar.pretrain.checkpoint import RunRecord, TimeLimit, is_finished
    from decar.pretrain.liveness import training

    clips = store.usable()
    module = build_module(cfg, clips)
    data = build_data(cfg, clips, module)
    callbacks = [instantiate(conf) for conf in (cfg.get("callbacks") or {}).values() if conf]
    record = RunRecord(flat_options(cfg), store.content, len(store), opened)
    callbacks.append(record)
    if cfg.trainer.enable_progress_bar:
        callbacks.append(StepBar(refresh_rate=BAR_RATE))
    options = trainer_options(cfg)
    if max_time := options.pop("max_time", None):
        callbacks.insert(0, TimeLimit(max_time))  # before those that save
    with open_loggers(cfg) as loggers:
        trainer = instantiate(options, logger=loggers, callbacks=callbacks, default_root_dir=str(output))
        with training():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        metrics = last_metrics(output, trainer)
    if trainer.is_global_zero:  # loggers have written all: a run that is finished is not opened again for that
        if is_finished(trainer):
            write_finished(output, metrics, trainer.current_epoch, trainer.global_step, record.record)
        else:
            log.warning(
                "stopped in epoch %d of %d: the same command with hydra.run.dir=%s resume=auto goes on",
                trainer.current_epoch, trainer.max_epochs, output,
            )  # fmt: skip
        if signals.asked():  # in the last step
            raise signals.stop(signals.asked())
        if cfg.report:
            on = trainer.strategy.root_device
            report_run(cfg, output, clips, str(on) if on.type == "cuda" else "cpu")
    return metrics


def report_run(cfg: Any, output: Path, store: LogMelStore, device: str) -> None:
    """Make the page of the run that has just ended; whatever fails is one line in the log and fails nothing."""
    try:
        from omegaconf import OmegaConf

        from decar.report import RunFiles, write_environment, write_report

        write_environment(output)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        label = OmegaConf.select(cfg, "data.label")
        source = RunFiles(output, config, store, label=label, seed=cfg.seed, network=own_network(cfg))
        log.info("look at it:  %s", write_report(source, device=device, progress=False))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("no report.html (%s); the run is whole: try `decar report %s`", reason, output)


def last_metrics(output: Path, trainer: Trainer) -> dict[str, float]:
    """The last value of each metric, from `metrics.csv`, which has those before a resume too, and of the trainer.

    The file ends with the latest figures, but where this part of the run is logged elsewhere.
    """
    from decar.pretrain import ResumableCSVLogger

    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    rows = last_figures(read_rows(output / "metrics.csv"))
    complete = any(isinstance(logger, ResumableCSVLogger) for logger in trainer.loggers)
    return found | rows if complete else rows | found


def objective(cfg: DictConfig, metrics: dict[str, float]) -> float:
    """The metric `objective` names; else the online probe's accuracy, else the NMI, else NaN: nothing to compare by.

    Raises:
        ConfigError: The run has no metric of that name, or has a search by Optuna compare by the NMI.
    """
    name = cfg.objective or next((name for name in OBJECTIVES if name in metrics), None)
    require(
        cfg.objective is not None or name == OBJECTIVES[0] or not is_search(),
        f"objective=null: the run has no {OBJECTIVES[0]} (are there clips of two labels?), and the NMI, which is "
        "highest where nothing is learned, is not searched by: pass objective=embedding_rank, or other labelled sounds",
    )
    if name is None:
        return math.nan
    require(name in metrics, f"objective={name}: the run has no such metric; it has {', '.join(sorted(metrics))}")
    return metrics[name]


def build_module(cfg: DictConfig, clips: LogMelStore) -> DecarModule:
    """The encoder with all that trains it, from its groups."""
    from hydra.utils import instantiate

    from decar.audio.descriptors import input_statistics
    from decar.models import load_encoder
    from decar.pretrain import DecarModule

    encoder = build_encoder(cfg)
    normalise = getattr(encoder.network, "set_input_statistics", None)
    if cfg.init:  # the statistics of what it was trained on are among its weights
        begun = load_encoder(cfg.init, network=own_network(cfg))
        require(
            cfg.init_hash in (None, begun.hash()),
            f"init={cfg.init}: this encoder was replaced meanwhile, as a run that is still training does: start again, "
            "from a copy of the file",
        )
        encoder.network.load_state_dict(begun.weights())
    elif normalise:
        normalise(*input_statistics(clips))
    source = instantiate(cfg.labels, _convert_="all")
    return DecarModule(
        encoder,
        instantiate(cfg.projection, dim=encoder.objective_dim),
        source.for_stream(clips, cfg.seed) if cfg.data.get("stream") else source,
        instantiate(cfg.augment),
        instantiate(cfg.optimizer),
        head_optimizer=dict(cfg.head_optimizer),
        schedule=cfg.schedule,
        warmup_steps=cfg.warmup_steps,
        features=cfg.pretrain.features,
        compiled=cfg.compile,
        seed=cfg.seed,
    )


def build_data(cfg: DictConfig, clips: LogMelStore, module: DecarModule) -> PretrainData:
    """Batches of all clips, or with `data.stream` of a stream of which `clips` are a sample."""
    from hydra.utils import instantiate

    from decar.pretrain import OnlineLabels, PretrainData, StreamData

    encoder, source = module.encoder, module.source
    frames = {"min_frames": encoder.min_frames, "max_frames": encoder.max_frames}
    options = {**cfg.loader, **cfg.sampler, **frames, "seed": cfg.seed}
    if not cfg.data.get("stream"):
        return PretrainData(clips, **options)
    label = getattr(source.first, "label", None) if isinstance(source, OnlineLabels) else None
    return StreamData(instantiate(cfg.data.manifest), clips, buffer=cfg.data.buffer, label=label, **options)


def identity_of(cfg: DictConfig) -> Identity:
    """Which sounds the clips are, or the sample of a stream: looks at every file once."""
    return listed(cfg).identity(cfg.cache_dir)


def all_clips(cfg: DictConfig, identity: Identity | None = None) -> LogMelStore:
    """The log-mels of all clips, or of the sample of a stream, computed when they are not there.

    Args:
        cfg: All options.
        identity: Of the sounds, where another process of the job has looked at the files; None: looked at here.
    """
    from hydra.utils import instantiate

    from decar.audio import LogMelStore
    from decar.audio.clips import as_segment

    set_limits(Limits(**cfg.limits))  # a further process of the job comes here first
    segment = as_segment(cfg.data.get("segment"), "data.segment")
    store = LogMelStore.open_or_build(listed(cfg), instantiate(cfg.frontend), cfg.cache_dir, identity=identity)
    store.content = content_of(cfg, store.content)
    return store if cfg.data.get("stream") else store.segmented(segment)


def log_clips(store: LogMelStore, output: Path) -> None:
    """Log the amount of sound; list unusable clips in `bad_files.csv`."""
    bad, clips = store.bad, store.usable()
    if len(bad):  # the store named them in the log
        write_csv(bad, output / "bad_files.csv")
        log.warning("left out %d of %d clips, listed with reasons in bad_files.csv", len(bad), len(store))
    seconds = float(clips.seconds.sum())
    recordings = clips.manifest.table["path"].nunique()
    if recordings < len(clips):
        log.info("%d recordings, %.1f minutes: %d clips", recordings, seconds / 60, len(clips))
    else:
        log.info("%d clips, %.1f minutes", len(clips), seconds / 60)
    if seconds > LONG_CLIP * len(clips):
        log.warning(
            "a clip lasts %.0f s on average, and has one pseudo-label: data.segment=auto cuts long ones into segments "
            "of 5 s", seconds / len(clips),
        )  # fmt: skip


@contextmanager
def open_loggers(cfg: DictConfig) -> Iterator[list[Logger]]:
    """The loggers of a run, closed whatever happens: else a sweep's second job logs into the first one's wandb run."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    loggers: list[Any] = []
    try:
        for conf in (cfg.get("logger") or {}).values() if leads() else ():
            loggers.append(instantiate(conf))
            loggers[-1].log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        yield loggers
    finally:
        for logger in loggers:
            finish = getattr(getattr(logger, "experiment", None), "finish", None)
            if finish is not None:
                finish()


def main() -> None:
    """Entry point."""
    run_hydra(pretrain, "train")


def child() -> None:
    """Train in a further process of a job; exit with 2 on a user's error."""
    from decar.pretrain.liveness import heartbeat, peers_named

    quiet()
    start_log(logging.ERROR)
    end_with_parent()
    cfg, output, checkpoint, size, sounds = given_to_child()
    rank = int(os.environ["LOCAL_RANK"])
    try:
        # Ctrl-C goes to all processes: rank 0 decides when the job stops
        with signals.stoppable(leads=False), peers_named(), heartbeat(rank, size, cfg.stall_timeout):
            train(cfg, output, checkpoint, all_clips(cfg, sounds))
    except PreemptedError as error:
        sys.exit(error.status)
    except Exception as error:
        line = explain(error, "train")
        if line is None:
            raise
        complain(f"process {rank}: {line}")
        sys.exit(error.status if isinstance(error, DecarError) else DecarError.status)


if __name__ == "__main__":
    child() if PARENT in os.environ else main()
