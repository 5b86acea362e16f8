"""Collective operations between forked processes (gloo), and means that go into checkpoints."""

import multiprocessing
import pickle
import socket
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed, nn

from decar.audio import LogMelStore, Manifest, blocks
from decar.errors import ClusteringError
from decar.pretrain import Vectors, ranks, vectors
from decar.pretrain.ranks import EpochMeans, gather_rows, max_over_ranks, on_rank_zero, rank_zero_first
from decar.pretrain.vectors import embed_dataset
from tests.pretrain.helpers import TinyEncoder


def meet(rank, size, port, folder, play):
    torch.set_num_threads(1)
    where = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": size}
    distributed.init_process_group("gloo", **where, timeout=timedelta(seconds=30))
    try:
        found = play(rank, size)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()  # no rank breaks the connection: each must learn of a failure by itself


def together(play, folder, size=3):
    """What `play(rank, size)` returns or raises on each rank. Forked ranks need not import torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=meet, args=(rank, size, port, folder, play)) for rank in range(size)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(20)
    hung = [job for job in jobs if job.is_alive()]
    for job in hung:
        job.kill()
    assert not hung, "a rank waits for one that has failed"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def refuse(error):
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [(ClusteringError("all points are equal"), "all points are equal"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_failure_on_rank_0_is_raised_on_all(tmp_path, error, line):
    own, *others = together(lambda rank, size: on_rank_zero(lambda: refuse(error)), tmp_path)
    assert own == f"{type(error).__name__}: {error}"
    assert others == [f"TrainingError: rank 0 failed: {line}"] * 2


CPU_TRAINER = SimpleNamespace(
    precision_plugin=SimpleNamespace(forward_context=nullcontext),
    strategy=SimpleNamespace(root_device=torch.device("cpu")),
)


class FailsOn(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.rank, self.norm = rank, nn.BatchNorm2d(1)

    def forward(self, x):
        if self.rank == distributed.get_rank():
            raise ClusteringError("out of memory")
        return x.mean(dim=(1, 3))


def test_a_failure_of_another_rank_in_the_pass_is_raised_on_all(make_store, tmp_path):
    store, encoder = make_store([40, 20] * 6), TinyEncoder()

    def play(rank, size):
        z = embed_dataset(CPU_TRAINER, FailsOn(1), encoder, store, dim=64, batch_size=2)
        return on_rank_zero(lambda: len(z.gather()))

    found = together(play, tmp_path)
    assert found[1] == "ClusteringError: out of memory"
    assert found[0] == found[2] == "TrainingError: rank 1 failed: out of memory"


def test_a_failure_in_labelling_or_in_reading_what_rank_0_wrote_is_raised_on_all(tmp_path):
    def label(rank, size):
        return Vectors(np.zeros((2, 1), np.float32), np.arange(2) * size + rank).map(
            lambda rows: refuse(ClusteringError("no")) if rank == 2 else rows
        )

    def read(rank, size):
        with rank_zero_first():
            return (tmp_path / "file").read_text() if rank else write()

    def write():
        return (tmp_path / "file").write_text("there")

    assert together(label, tmp_path) == ["TrainingError: rank 2 failed: no"] * 2 + ["ClusteringError: no"]
    assert together(read, tmp_path) == [5, "there", "there"], "the others read after rank 0 has written"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_come_to_their_places_in_blocks(monkeypatch, tmp_path, size):
    """Rank 0 has none of the rows, the last rank most of them."""
    monkeypatch.setattr(ranks, "_BLOCK", 4)
    rng = np.random.default_rng(0)
    rows, shuffled = rng.standard_normal((23, 5)).astype(np.float32), rng.permutation(23)
    owner = np.where(np.arange(23) < 17, size - 1, min(1, size - 1))
    lengths = []
    monkeypatch.setattr(ranks, "_gather", lambda *args, real=ranks._gather: lengths.extend(args[1]) or real(*args))

    def play(rank, size):
        mine = shuffled[owner[shuffled] == rank]
        some = np.arange(3, 20, 2)
        z = Vectors(rows[mine], mine)
        labels = z.map(lambda vectors: (vectors[:, :2] > 0).astype(np.int64))
        return z.gather(), z.gather(some), labels, max_over_ranks(rank, -rank), max([0, *lengths])

    (first, *others) = together(play, tmp_path, size) if size > 1 else [play(0, 1)]
    assert np.array_equal(first[0], rows)
    assert np.array_equal(first[1], rows[3:20:2])
    assert np.array_equal(first[2], (rows[:, :2] > 0).astype(np.int64))
    assert first[2].dtype == np.int64
    assert first[3] == [size - 1, 0]
    assert first[4] == (4 if size > 1 else 0)
    for other in others:
        assert [part.shape for part in other[:3]] == [(0, 5), (0, 5), (0, 2)]


def test_rows_in_order_are_not_copied_in_a_single_process():
    rows = np.arange(6.0).reshape(3, 2)
    assert gather_rows(rows, np.arange(3)) is rows


def test_means_of_all_steps_and_then_anew():
    means = EpochMeans("a", "b")
    for a, b in ((1.0, 4.0), (2.0, 5.0), (6.0, 0.0)):
        means.add(torch.tensor(a), torch.tensor(b))
    assert {name: float(value) for name, value in means.take().items()} == {"a": 3.0, "b": 3.0}
    means.add(torch.tensor(7.0), torch.tensor(8.0))
    assert {name: float(value) for name, value in means.take().items()} == {"a": 7.0, "b": 8.0}


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_going_on_from_a_checkpoint_gives_the_same_bits(cut):
    torch.manual_seed(0)
    values = torch.rand(5)
    whole, first, second = (EpochMeans("a") for _ in range(3))
    for value in values:
        whole.add(value)
    for value in values[:cut]:
        first.add(value)
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add(value)
    assert torch.equal(whole.take()["a"], second.take()["a"])


def test_another_number_of_processes_takes_the_mean():
    means = EpochMeans("a")
    means.load_state_dict({"sums": torch.tensor([[2.0], [4.0]]), "steps": 2})
    means.add(torch.tensor(3.0))
    assert float(means.take()["a"]) == 2.0


def test_ranks_share_what_their_passes_have_compared(sound_folder, tmp_path, monkeypatch):
    """Each reads half of the store in the pass; a crop from the other half must not read its block again."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**10)
    monkeypatch.setattr("decar.audio.store.CHECKED_AT_OPEN", 0)
    sounds = Manifest.from_folder(sound_folder)
    store = LogMelStore.open_or_build(sounds, cache_dir=tmp_path / "cache", progress=False)
    assert len(store.blocks) > 20
    encoder = TinyEncoder()

    def play(rank, size):
        mine = pickle.loads(pickle.dumps(store))  # forked processes share one list, ranks have their own
        read = []
        compare = mine.blocks._compare
        mine.blocks._compare = lambda number: read.append(number) or compare(number)
        embed_dataset(CPU_TRAINER, FailsOn(None), encoder, mine, dim=64, batch_size=2)
        in_pass = len(read)
        for i in range(len(mine)):
            mine[i]
        return in_pass, len(read) - in_pass

    (first, after), (second, later) = together(play, tmp_path, 2)
    assert after == later == 0
    assert max(first, second) < 0.8 * len(store.blocks)
    assert first + second >= len(store.blocks)


def test_ranks_on_other_machines_compare_for_themselves(sound_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("decar.audio.store.CHECKED_AT_OPEN", 0)
    store = LogMelStore.open_or_build(Manifest.from_folder(sound_folder), cache_dir=tmp_path / "cache", progress=False)
    there = ("elsewhere", *store.blocks.file_id()[1:])
    monkeypatch.setattr(vectors, "gather_values", lambda own: [own, (there, b"\1" * len(own[1]))])
    vectors._share_checks(store.blocks)
    assert store.blocks.checked == b"\0" * len(store.blocks)
