"""Values that no type in the configuration can check: looked at before anything slow begins."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from decar.errors import ConfigError

WHOLE = {  # key: smallest sensible value
    "seed": 0,
    "k": 1,
    "loader.batch_size": 1,
    "loader.crop_frames": 1,
    "loader.num_workers": 0,
    "labels.dim": 1,
    "warmup_steps": 0,
    "trainer.max_epochs": 1,
    "encoder.min_frames": 1,
    "mode.crop_frames": 1,
    "mode.num_workers": 0,
}
POSITIVE = ["sampler.draws_per_clip", "optimizer.lr"]


def check(cfg: DictConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: Names the option, what it is and what it may be.
    """
    for key, least in WHOLE.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not _is_number(value) or value != int(value) or value < least):
            raise ConfigError(f"{key}={value}: give a whole number, {least} or more")
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if value is not None and (not _is_number(value) or not 0 < value < float("inf")):
            raise ConfigError(f"{key}={value}: give a number above 0")


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
