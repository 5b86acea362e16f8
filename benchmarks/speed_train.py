"""The pass and the step through the real Lightning path, against the bare network on ready tensors.

The floor of the pass is the encoder's forward in `torch.inference_mode`; that of the step is forward, backward and SGD
on one ready batch. Both use the same weights, memory format, threads and precision as ours, in turn with it, within one
`trainer.fit`: loader, crops, augmentation, projection, heads, hooks, logging and progress bar are all in ours.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import Line, alternate, line, seconds
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio.crops import as_input, padded_frames, stack
from decar.cli.config import conf_dir
from decar.cli.train import BAR_RATE, all_clips, build_module
from decar.models import Encoder
from decar.models.embed import batches_by_length, evaluating
from decar.pretrain import DecarModule, PretrainData, ResumableCSVLogger, StepBar
from decar.pretrain.vectors import embed_dataset

PAPER = ["experiment=paper", "loader.crop_frames=98", "k=64"]  # crops, to compare with figures of before
SMALL = [
    "experiment=small", "budget=null", "k=64", "sampler.every_n_steps=155", "trainer.max_epochs=4",
    "labels.network_from=2",
]  # fmt: skip
TEN_SECONDS = 998  # frames
NOTE = "bare forward / ours"


def settings(*words: str) -> DictConfig:
    """The configuration that `python train.py WORDS` would have."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(words))


def noise_store(n_clips: int, frames: int, folder: Path) -> LogMelStore:
    """Clips of one length, read from disk like any: what is in them does not matter for speed."""
    spec = FrontEnd()
    mel = np.memmap(folder / "mel.f16", np.float16, "w+", shape=(n_clips * frames, spec.n_mels))
    mel[:] = np.random.default_rng(0).normal(-4, 2, mel.shape).astype(np.float16)
    manifest = Manifest(pd.DataFrame({"path": [f"{i}.wav" for i in range(n_clips)]}), folder)
    lengths = np.full(n_clips, frames, np.int64)
    return LogMelStore(manifest, spec, mel, np.arange(n_clips) * frames, lengths, [""] * n_clips, f"noise{n_clips}")


class Compare(Callback):
    """Times the pass before training, then blocks of steps, each in turn with the bare network.

    Args:
        store: For the pass.
        runs: Pairs of each.
        block: Steps at a time; 0: no steps, only the pass.
        whole: Whether the bare step has `g`, a head and the run's own optimizer too, or is the encoder with SGD.
    """

    def __init__(self, store: LogMelStore, runs: int, block: int, whole: bool = False) -> None:
        self.store, self.runs, self.block, self.whole = store, runs, block, whole
        self._device = torch.device("cpu")
        self.passes: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self._bare: Callable[[], None] = lambda: None
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass."""
        assert isinstance(pl_module, DecarModule)
        encoder, module, self._device = pl_module.encoder, pl_module, trainer.strategy.root_device

        def ours() -> None:
            embed_dataset(trainer, module, encoder, self.store, dim=module.projection.out, batch_size=64).gather()

        self.passes = alternate(ours, bare_pass(encoder, self.store, self._device), self.runs)
        self._bare = bare_step(module, self.block, self._device, self.whole)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The steps: from the end of one bare block to the beginning of the next, all that happens is ours."""
        if not self.block:
            trainer.should_stop = True
        elif (batch_idx + 1) % self.block == 0:
            settled(self._device)
            ours, reference = time.perf_counter() - self._began, seconds(self._bare)
            if self._began:
                self.steps.append((ours / self.block, reference / self.block))
            trainer.should_stop = len(self.steps) == self.runs
            self._began = time.perf_counter()


def settled(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_pass(encoder: Encoder, store: LogMelStore, device: torch.device) -> Callable[[], None]:
    """The encoder alone on the batches of a pass, as tensors that are ready on the device."""
    batches = batches_by_length(store, np.arange(len(store)), encoder, 64)
    sizes = {"min_frames": encoder.min_frames, "max_frames": encoder.max_frames}
    ready = []
    for batch in batches:
        frames = padded_frames(int(store.lengths[batch[0]]), **sizes)
        clips = stack([store[int(i)] for i in batch], frames)
        ready.append(as_input(*clips, encoder.frontend.silence).to(device))

    def forward() -> None:
        with evaluating(encoder), torch.inference_mode():
            for clips in ready:
                encoder.network(clips)
        settled(device)

    return forward


def bare_step(module: DecarModule, n: int, device: torch.device, whole: bool) -> Callable[[], None]:
    """`n` steps of copies on one batch of 64 crops of a second: the encoder with SGD, or all that learns as it does."""
    twin = copy.deepcopy(module.encoder.network).train()
    crops: Tensor = torch.randn(64, 1, module.encoder.frontend.n_mels, 98, device=device) * 2 - 4
    if whole:
        heads = copy.deepcopy(module.heads)
        heads.reset([64] * 6, seed=0)
        twin, targets = nn.Sequential(twin, copy.deepcopy(module.projection).train()), torch.zeros(64).long().to(device)
        optimizer = module.make_optimizer([{"params": [*twin.parameters(), *heads.parameters()]}])

        def loss() -> Tensor:
            return torch.stack([functional.cross_entropy(scores, targets) for scores in heads(twin(crops)[0])]).sum()
    else:
        optimizer = torch.optim.SGD(twin.parameters(), 1e-4, 0.9, weight_decay=1e-5)

        def loss() -> Tensor:
            out: Tensor = twin(crops)
            return out.square().mean()

    def step() -> None:
        for _ in range(n):
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        settled(device)

    return step


@contextmanager
def trained(
    cfg: DictConfig, *callbacks: Callback, store: LogMelStore | None = None, device: str = "cpu"
) -> Iterator[Trainer]:
    """Fit as configured, with the CSV log, the progress bar and these callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        clips = store or all_clips(cfg).usable()
        data = PretrainData(clips, **cfg.loader, **cfg.sampler, seed=0)
        trainer = Trainer(
            max_epochs=cfg.trainer.max_epochs, accelerator=device, devices=1, use_distributed_sampler=False,
            enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, log_every_n_steps=10,
            logger=ResumableCSVLogger(folder), callbacks=[*callbacks, StepBar(refresh_rate=BAR_RATE)],
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(build_module(cfg, clips), datamodule=data)
        yield trainer


def measure(runs: int = 5, device: str = "cpu") -> list[Line]:
    """Pass and step, the paper's network and the recipe's."""
    lines = []
    for name, words, block in (("EfficientNet-B0", PAPER, 4), ("recipe's network", SMALL, 20)):
        paper = words is PAPER
        cfg = settings(*words, "trainer.max_epochs=100")
        compare = Compare(all_clips(cfg).usable(), runs, block, whole=not paper)
        with trained(cfg, compare, device=device):
            bare = "forward + backward + SGD" if paper else "forward + backward + AdamW, g and six heads in it,"
            lines += [
                line(
                    f"pass, bundled sounds, {name}", compare.passes, target=_target(paper), note="bare forward / ours"
                ),
                line(f"step, {name}", compare.steps, target=_target(paper), note=f"bare {bare} / ours"),
            ]
        with tempfile.TemporaryDirectory() as folder:
            long = noise_store(48 if paper else 256, TEN_SECONDS, Path(folder))
            compare = Compare(long, runs, 0)
            with trained(settings(*words, "k=8", "trainer.max_epochs=1"), compare, store=long, device=device):
                lines.append(line(f"pass, 10 s clips, {name}", compare.passes, target=_target(paper), note=NOTE))
    return lines


def _target(paper: bool) -> str:
    """Asked for of the paper's network; the recipe's is ten times cheaper, and what is around it weighs more."""
    return ">= 0.95" if paper else ""
