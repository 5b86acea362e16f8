"""`python train.py`, `decar-train`: pre-train an encoder. Reads as a recipe: sounds, model, trainer, fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.main import require, run_hydra

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from omegaconf import DictConfig
    from pytorch_lightning.loggers import Logger

    from decar.audio import LogMelStore
    from decar.pretrain import DecarModule

log = logging.getLogger(__name__)


def pretrain(cfg: DictConfig) -> float:
    """Pre-train as configured; returns the last NMI, for hyper-parameter sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from decar.pretrain import PretrainData

    output = Path(HydraConfig.get().runtime.output_dir)
    (output / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    clips = usable_clips(cfg, output)
    checkpoint = find_checkpoint(cfg.resume, output)
    data = PretrainData(clips, **cfg.loader, **cfg.sampler, seed=cfg.seed)
    module = build_module(cfg, len(clips))
    loggers: list[Logger] = [instantiate(conf) for conf in (cfg.logger or {}).values()]
    callbacks = [instantiate(conf) for conf in cfg.callbacks.values() if conf]
    trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks, default_root_dir=str(output))
    try:
        for logger in loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    finally:
        close(loggers)
    log.info("the run lies in %s", output)
    log.info("judge it:  python eval.py -m 'task=glob(*)' mode=frozen bundle=%s", output)
    return float(trainer.callback_metrics.get("nmi", 0.0))


def usable_clips(cfg: DictConfig, output: Path) -> LogMelStore:
    """The store of all clips that can be learned from; the others are named in the log and in `bad_files.csv`."""
    from hydra.utils import instantiate

    from decar.audio import LogMelStore

    manifest = instantiate(cfg.data.manifest)
    store = LogMelStore.open_or_build(manifest, instantiate(cfg.frontend), cfg.cache_dir)
    bad = store.bad
    if len(bad):  # the store named them in the log
        bad.to_csv(output / "bad_files.csv", index=False)
        log.warning(
            "left out %d of %d clips, listed with reasons in %s", len(bad), len(store), output / "bad_files.csv"
        )
    clips = store.usable()
    log.info(
        "%d clips, %.1f minutes",
        len(clips),
        clips.lengths.sum() * clips.frontend.hop_length / clips.frontend.sample_rate / 60,
    )
    return clips


def build_module(cfg: DictConfig, n_clips: int) -> DecarModule:
    """The network with all that trains it, from its groups."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from decar.pretrain import DecarModule

    source = instantiate(cfg.labels, _convert_="all")
    for clusterer in source.clusterers:
        k = getattr(clusterer, "k", None)
        require(
            k is None or k <= n_clips,
            f"k={k} is larger than the number of usable clips ({n_clips}): "
            f"pass a smaller k, such as k={max(2, n_clips // 30)}",
        )
        if k is None and any(o.startswith("k=") for o in HydraConfig.get().overrides.task):
            log.info("clusterer=%s finds its own number of clusters: k is not used", type(clusterer).__name__)
    # partial: Hydra would turn a dataclass among the arguments into a config
    encoder = instantiate(cfg.encoder, _partial_=True)(frontend=instantiate(cfg.frontend))
    projection = instantiate(cfg.projection, dim=encoder.dim)
    return DecarModule(
        encoder,
        projection,
        source,
        instantiate(cfg.augment),
        instantiate(cfg.optimizer),
        head_optimizer=dict(cfg.head_optimizer),
        schedule=cfg.schedule,
        warmup_steps=cfg.warmup_steps,
        seed=cfg.seed,
    )


def find_checkpoint(resume: str | None, output: Path) -> str | None:
    """The checkpoint that `resume` means: `auto` the last of this run folder, if any; else a file or a run's folder."""
    if resume is None:
        return None
    if resume == "auto":
        last = output / "checkpoints" / "last.ckpt"
        log.info("going on from %s" if last.is_file() else "nothing to go on from in %s: starting anew", last)
        return str(last) if last.is_file() else None
    path = Path(resume)
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    require(path.is_file(), f"resume={resume}: there is no checkpoint {path}; give a .ckpt file, a run folder, or auto")
    return str(path)


def close(loggers: list[Any]) -> None:
    """End what a logger holds open: without it a sweep's second job logs into the first one's wandb run."""
    for logger in loggers:
        logger.finalize("success")
        finish = getattr(logger.experiment, "finish", None)
        if finish is not None:
            finish()


def main() -> None:
    """Entry point."""
    run_hydra(pretrain, "train")


if __name__ == "__main__":
    main()
