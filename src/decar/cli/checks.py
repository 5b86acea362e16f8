"""Values that no type in the configuration can check: looked at before anything slow begins."""

from omegaconf import DictConfig, OmegaConf

from decar.errors import ConfigError, check_positive, check_whole

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
}
POSITIVE = ["sampler.draws_per_clip", "optimizer.lr", "trainer.limit_train_batches"]
REFUSED = {  # option of Lightning's Trainer: its value when unset; why it is refused and what to give instead
    "trainer.max_steps": (-1, "a resume would train one batch too many: give trainer.max_epochs and, for the length of "
                              "an epoch, sampler.every_n_steps"),
    "trainer.overfit_batches": (0, "batches are drawn anew in every epoch, none stay to be overfitted: give fewer "
                                   "clips (data.where=…), or trainer.limit_train_batches"),
    "trainer.fast_dev_run": (False, "it leaves neither checkpoints nor metrics: give debug=fast"),
}  # fmt: skip


def check(cfg: DictConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: Names the option, what it is and what it may be.
    """
    for key, least in WHOLE.items():
        value = OmegaConf.select(cfg, key)
        if value is not None:
            check_whole(key, value, least)
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if value is not None:
            check_positive(key, value)
    for key, (unset, why) in REFUSED.items():
        value = OmegaConf.select(cfg, key)
        require(value is None or value == unset, f"{key}={value} is not supported: {why}")


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
