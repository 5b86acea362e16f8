"""What comparing checksums adds to opening a store, a bundle and a checkpoint."""

import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from rig import Line, alternate, line
from scale import make_hollow
from torch import nn

from decar.audio import LogMelStore
from decar.models import Encoder, build_network, load_encoder, save_bundle
from decar.pretrain.checkpoint import AtomicCheckpointIO, readable

AT_MOST = "<= 1.1"
STORES = {"3.6 MB": 300, "32 MB": 2_600, "300 MB": 25_000}  # clips of a second each
CHEAP_RUNS = 6  # times as many runs of what takes milliseconds


def stores(runs: int) -> list[Line]:
    """Opening and reading stores that are checked, against ones without checksums."""
    return [x for size, n in STORES.items() for x in store(size, n, runs)]


def store(size: str, n: int, runs: int) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        both = [make_hollow(n, Path(folder) / name, digests=name == "checked") for name in ("checked", "plain")]

        def opened(which: int) -> LogMelStore:
            manifest, cache = both[which]
            return LogMelStore.open_or_build(manifest, cache_dir=cache, progress=False)

        def read(which: int, order: list[int]) -> None:
            clips = opened(which)
            for i in order:
                np.array(clips[i])

        shuffled = np.random.default_rng(0).permutation(n).tolist()
        opening = alternate(partial(opened, 0), partial(opened, 1), CHEAP_RUNS * runs)
        reading = alternate(partial(read, 0, shuffled), partial(read, 1, shuffled), runs)
    note = f"{n:,} clips; one without checksums"
    return [
        line(f"open a store of {size}", opening, speed=False, target=AT_MOST, note=note),
        line(f"open a store of {size} and read each clip once, shuffled", reading, speed=False, note=note),
    ]


def bundle(name: str, path: Path | None, runs: int) -> Line:
    """Loading an encoder, against the same without a look at the digest."""

    def unchecked() -> None:
        with mock.patch("decar.models.bundle._check_digest"):
            load_encoder(path)

    pairs = alternate(lambda: load_encoder(path), unchecked, CHEAP_RUNS * runs)
    return line(f"load the bundle {name}", pairs, speed=False, target=AT_MOST, note="without a look at its digest")


def checkpoint(runs: int) -> Line:
    """What a resume does before it trains, against Lightning's own way, which compares nothing."""
    network = nn.ModuleDict({f"layer{i}": nn.Linear(1000, 1000, bias=False) for i in range(10)})
    moments = {"exp_avg": torch.randn(1000, 1000), "exp_avg_sq": torch.rand(1000, 1000)}
    adam = {"state": {i: {name: x.clone() for name, x in moments.items()} for i in range(10)}, "param_groups": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        state = {"state_dict": network.state_dict(), "optimizer_states": [adam], "loops": {}}
        AtomicCheckpointIO().save_checkpoint(state, path)

        def restore(reader: TorchCheckpointIO) -> None:
            network.load_state_dict(reader.load_checkpoint(path)["state_dict"])

        def checked() -> None:
            readable(path)
            restore(AtomicCheckpointIO())

        pairs = alternate(checked, partial(restore, TorchCheckpointIO()), CHEAP_RUNS * runs)
    note = "120 MB, two thirds of them AdamW's; Lightning's own reader"
    return line("check a checkpoint and restore it", pairs, speed=False, target=AT_MOST, note=note)


def measure(runs: int = 5) -> list[Line]:
    """All of them."""
    with tempfile.TemporaryDirectory() as folder:
        large = save_bundle(Encoder(build_network("efficientnet_b0")), Path(folder) / "encoder.safetensors")
        bundles = [bundle("small (3 MB)", None, runs), bundle("of an EfficientNet-B0 (16 MB)", large, runs)]
    return [*stores(runs), *bundles, checkpoint(runs)]
