"""`python eval.py`, `decar-eval`: judge an encoder on a task, one cell of the paper's Table 2."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from decar.cli.main import require, run_hydra

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from omegaconf import DictConfig

    from decar.models import Encoder

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float | None:
    """Judge as configured and write `result.json`; returns the accuracy on test, None for a task that was skipped."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from decar.downstream import TaskSpec, judge

    conf: Any = HydraConfig.get()
    choice = conf.runtime.choices.task
    if cfg.task.path is None and conf.mode == RunMode.MULTIRUN:
        # task=glob(*) names the two tasks that need a source of the user's as well
        log.info("task=%s: skipped, it has no task.path", choice)
        return None
    require(
        cfg.task.path is not None,
        f"task={choice} needs a source: pass task.path=… (a table, or a folder with a folder per class)",
    )
    output = Path(conf.runtime.output_dir)
    (output / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    frontend = instantiate(cfg.frontend)
    options = {"num_workers": cfg.mode.num_workers} if cfg.mode.name == "finetune" else {}
    crop = {"crop_frames": cfg.mode.crop_frames} if cfg.mode.name == "finetune" else {}
    trainer = {key: cfg.trainer[key] for key in ("accelerator", "devices", "precision", "enable_progress_bar")}
    result = judge(
        TaskSpec(**cfg.task, **crop),
        choose_encoder(cfg),
        bundle=str(cfg.bundle),
        mode=cfg.mode.name,
        protocol=instantiate(cfg.protocol, _convert_="all"),
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        frontend=frontend,
        device=device_of(cfg.trainer.accelerator),
        trainer_kwargs=trainer,
        progress=cfg.trainer.enable_progress_bar,
        **options,
    )
    result.write(output / "result.json")
    log.info(
        "%s, %s, protocol %s, %s: %.1f %% on test (%.1f on validation; %d classes, %d clips to learn from), %.0f s",
        result.task, result.mode, result.protocol, result.bundle, 100 * result.value, 100 * result.valid_value,
        result.n_classes, result.n_train, result.seconds,
    )  # fmt: skip
    return result.value


def choose_encoder(cfg: DictConfig) -> Encoder | Literal["logmel"]:
    """What `bundle` means: untrained weights by seed, the log-mel statistics, or an encoder from a file."""
    from hydra.utils import instantiate

    from decar.models import load_encoder

    frontend = instantiate(cfg.frontend)
    if cfg.bundle == "logmel":
        return "logmel"
    if cfg.bundle == "random":
        # partial: Hydra would turn a dataclass among the arguments into a config
        encoder: Encoder = instantiate(cfg.encoder, _partial_=True)(frontend=frontend)
        return encoder.eval()
    return load_encoder(cfg.bundle, frontend=frontend)


def device_of(accelerator: str) -> str:
    """Where the embedding pass runs: on the GPU when Lightning would take one."""
    import torch

    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def main() -> None:
    """Entry point."""
    run_hydra(evaluate, "eval")


if __name__ == "__main__":
    main()
