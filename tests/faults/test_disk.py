"""A full disk: one line with the path, and what was good is still there.

Elsewhere: a full disk or a read-only cache while a store is written, tests/audio/test_build.py; bundles,
tests/models/test_bundle.py; a failed write of a checkpoint, tests/pretrain/test_callbacks.py. Here the limit is the
system's own, on the size of a file.
"""

import contextlib
import resource
import signal

import pandas as pd
import pytest
import torch

from decar.cli.terminal import explain
from decar.errors import DecarError
from decar.pretrain import AtomicCheckpointIO, ClusterLog, ResumableCSVLogger
from tests.pretrain.helpers import build, fit

LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5


@contextlib.contextmanager
def no_room(size):
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    writer, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    writer.save_checkpoint({"a": torch.ones(3)}, path)
    with no_room(50_000), pytest.raises(DecarError) as told:
        writer.save_checkpoint({"a": torch.zeros(100_000)}, path)
    assert str(path) in str(told.value)
    assert "larger than the disk or `ulimit -f` allows" in str(told.value)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_clusters_that_do_not_fit_leave_those_of_the_epochs_before(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    table = tmp_path / "clusters.parquet"

    class Full(ClusterLog):
        def on_train_epoch_end(self, trainer, pl_module):
            with no_room(10) if trainer.current_epoch else contextlib.nullcontext():
                super().on_train_epoch_end(trainer, pl_module)

    with pytest.raises(OSError) as told:  # noqa: PT011 - which kind depends on pyarrow
        fit(model, data, tmp_path / "run", callbacks=[Full(table)])
    line = explain(told.value, "train")
    assert line is not None
    assert "epoch_00001.parquet" in line
    assert pd.read_parquet(table)["epoch"].unique().tolist() == [0]
    assert [file.name for file in table.iterdir()] == ["epoch_00000.parquet"]


def test_metrics_that_do_not_fit_keep_the_rows_before(tmp_path):
    logger = ResumableCSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 9)
    before = (tmp_path / "metrics.csv").read_text()
    with no_room(len(before)), pytest.raises(DecarError, match=r"metrics\.csv: a row could not be written"):
        logger.log_metrics({"loss": 2.0}, 19)
    assert (tmp_path / "metrics.csv").read_text() == before
