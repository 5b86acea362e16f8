"""Clustering what training has seen: the bank holds each clip's latest vector, whatever is saved, resumed or shared."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from decar.clustering import KMeans, prepare
from decar.errors import ConfigError, TrainingError
from decar.pretrain import AtomicCheckpointIO, BothLabels, DescriptorLabels, NetworkLabels
from decar.pretrain import vectors as vectors_module
from decar.pretrain.checkpoint import last_good, readable
from decar.pretrain.vectors import FeatureBank
from tests.pretrain.helpers import SpyModule, build, fit
from tests.pretrain.test_loop import LENGTHS
from tests.pretrain.test_ranks import LENGTHS as ODD
from tests.pretrain.test_ranks import run


class Diary(SpyModule):
    """Writes down, in the plainest way, the latest `z` of every clip, and what each clustering was made of."""

    def training_step(self, batch, batch_idx):
        real = self.projection.forward

        def spy(embedding):
            made = real(embedding)
            for i, z in zip(batch[1].tolist(), made[1].detach().numpy(), strict=True):
                self.latest[i] = z.copy()
            return made

        self.projection.forward = spy
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del self.projection.forward


@pytest.fixture
def clustered(monkeypatch):
    """The vectors that each clustering was made of."""
    seen = []
    assign = NetworkLabels.assign

    def spy(self, z, situation):
        seen.append(z.gather().copy())
        return assign(self, z, situation)

    monkeypatch.setattr(NetworkLabels, "assign", spy)
    return seen


@pytest.fixture
def passes(monkeypatch):
    """How many passes over the set were made."""
    count = []
    real = vectors_module.run_pass
    monkeypatch.setattr(vectors_module, "run_pass", lambda *a, **k: count.append(1) or real(*a, **k))
    return count


def test_each_clustering_is_made_of_the_latest_vectors(make_store, tmp_path, clustered, passes):
    model, data = build(make_store(LENGTHS), module=Diary, features="bank", draws_per_clip=0.6)
    snapshots = []
    model.latest = {}
    began = model.on_train_epoch_start

    def start():
        began()
        if not snapshots:
            model.latest |= dict(enumerate(clustered[0]))
        snapshots.append([model.latest[i].copy() for i in range(len(LENGTHS))])

    model.on_train_epoch_start = start
    fit(model, data, tmp_path, epochs=3)
    assert len(passes) == 1
    assert len(clustered) == 3
    assert data.steps_per_epoch * data.batch_size < len(LENGTHS), "some clips must keep an older vector"
    for made, wanted in zip(clustered, snapshots, strict=True):
        np.testing.assert_array_equal(made, wanted)
    assert (clustered[0] != clustered[2]).any(axis=1).sum() > len(LENGTHS) // 2
    expected = KMeans(k=4, n_iter=5, seed=0).fit_predict(prepare(clustered[2], 4))
    assert expected.labels.shape == data.labels.labels[:, 0].shape


@pytest.mark.parametrize("steps", [3, 10], ids=["within an epoch", "at its end"])
def test_a_resumed_run_has_the_same_bank(make_store, tmp_path, passes, steps):
    store = make_store(LENGTHS)
    model, data = build(store, features="bank")
    _, whole = fit(model, data, tmp_path / "whole", epochs=4, every_n_steps=10 + steps)
    again, data = build(store, features="bank")
    done = 10 + steps
    _, rest = fit(again, data, tmp_path / "rest", epochs=4, ckpt_path=tmp_path / "whole" / f"epoch=1-step={done}.ckpt")
    assert rest.losses == whole.losses[done:]
    assert len(passes) == 1
    again.bank.merge()
    model.bank.merge()
    assert torch.equal(again.bank.state_dict()["rows"], model.bank.state_dict()["rows"])
    for epoch in rest.labels:
        np.testing.assert_array_equal(rest.labels[epoch], whole.labels[epoch])


LAST = "epoch=1-step=13.ckpt"


def saved(make_store, folder, **kwargs):
    """A bank's run with a checkpoint every three steps, of ten an epoch, as train.py writes them."""
    model, data = build(make_store(LENGTHS), features="bank")
    return fit(model, data, folder, epochs=2, every_n_steps=3, plugins=[AtomicCheckpointIO()], **kwargs)


def side_files(folder):
    return {file.name: file.stat().st_size for file in (folder / "bank").iterdir()}


def test_checkpoints_do_not_hold_the_vectors(make_store, tmp_path):
    saved(make_store, tmp_path)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == 6
    held = {path: torch.load(path, weights_only=True)["bank"] for path in checkpoints}
    names = {name for bank in held.values() for name in tree_leaves(bank)}
    assert names == side_files(tmp_path).keys(), "in place of the tensors"
    by_step = {int(path.stem.rpartition("=")[2]): bank for path, bank in held.items()}
    assert by_step[3]["rows"] == by_step[6]["rows"] == by_step[9]["rows"], "the rows of the epoch's clustering"
    assert by_step[9]["newer"][:2] == by_step[6]["newer"], "what was written is not written again"
    sizes = side_files(tmp_path)
    assert all(sizes[rows] < 3 * 8 * 8 * 4 + 200 for _, rows in by_step[9]["newer"]), "three steps of 8 crops, 8 wide"
    rows = {bank["rows"] for bank in held.values()}
    assert len(rows) == 2, "once an epoch"


def test_side_files_that_no_checkpoint_names_are_deleted(make_store, tmp_path):
    saved(make_store, tmp_path)
    before = side_files(tmp_path)
    (tmp_path / "epoch=0-step=3.ckpt").unlink()
    (tmp_path / "epoch=0-step=6.ckpt").unlink()
    (tmp_path / "epoch=0-step=9.ckpt").unlink()
    AtomicCheckpointIO().save_checkpoint({"bank": {"rows": torch.zeros(2, 2)}}, tmp_path / "x.ckpt")
    gone = before.keys() - side_files(tmp_path).keys()
    assert len(gone) == 1 + 2 * 3
    damage = tmp_path / LAST.replace("13", "12")
    damage.write_bytes(damage.read_bytes()[:100])
    left = side_files(tmp_path)
    AtomicCheckpointIO().save_checkpoint({"bank": {"rows": torch.ones(2, 2)}}, tmp_path / "x.ckpt")
    assert left.keys() < side_files(tmp_path).keys(), "nothing is deleted beside a checkpoint that cannot be read"


@pytest.mark.parametrize("step", [6, 15])
def test_a_run_resumed_from_side_files_is_exact(make_store, tmp_path, step):
    model, whole = saved(make_store, tmp_path / "whole")
    again, data = build(make_store(LENGTHS), features="bank")
    epoch = step // 10
    _, rest = fit(
        again, data, tmp_path / "rest", epochs=2, plugins=[AtomicCheckpointIO()],
        ckpt_path=tmp_path / "whole" / f"epoch={epoch}-step={step}.ckpt",
    )  # fmt: skip
    assert rest.losses == whole.losses[step:]
    expected = model.lightning_module.bank.state_dict()["rows"]
    assert torch.equal(again.bank.state_dict()["rows"], expected)


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_lost_or_damaged_side_file_is_one_line(make_store, tmp_path, harm):
    saved(make_store, tmp_path)
    last, previous = (tmp_path / f"epoch=1-step={step}.ckpt" for step in (18, 15))
    last.rename(tmp_path / "last.ckpt")
    previous.rename(tmp_path / "last.previous.ckpt")
    name = torch.load(tmp_path / "last.ckpt", weights_only=True)["bank"]["newer"][-1][1]
    file = tmp_path / "bank" / name
    if harm == "lost":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[200] ^= 1
        file.write_bytes(data)
    reason = "is missing" if harm == "lost" else r"is damaged \(its checksum is wrong\)"
    with pytest.raises(ConfigError, match=rf"last\.ckpt: not a readable checkpoint \(bank/{name}, .* {reason}\)"):
        readable(tmp_path / "last.ckpt")
    assert last_good(tmp_path / "last.ckpt") == str(tmp_path / "last.previous.ckpt")
    with pytest.raises(TrainingError, match=f"bank/{name}, which holds its vectors, {reason}: resume from"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_arrays_of_equal_bytes_are_not_one_file_and_an_exchanged_file_is_noticed(tmp_path):
    bank = {"rows": torch.zeros(2, 2), "newer": [[torch.zeros(2, dtype=torch.int64), torch.zeros(1, 4)]]}
    AtomicCheckpointIO().save_checkpoint({"bank": bank}, tmp_path / "last.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)["bank"]
    for value, expected in zip(tree_leaves(found), tree_leaves(bank), strict=True):
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    first, second, _ = sorted((tmp_path / "bank").iterdir())
    first.write_bytes(second.read_bytes())
    with pytest.raises(TrainingError, match=r"is damaged \(it is another file\)"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)


def test_a_run_that_began_with_passes_can_go_on_with_a_bank(make_store, tmp_path, passes):
    store = make_store(LENGTHS)
    model, data = build(store)
    fit(model, data, tmp_path / "whole", epochs=2)
    again, data = build(store, features="bank")
    fit(again, data, tmp_path / "rest", epochs=4, ckpt_path=tmp_path / "whole" / "epoch=1-step=20.ckpt")
    assert len(passes) == 2 + 1


def test_the_bank_begins_when_the_network_is_first_clustered(make_store, tmp_path, clustered, passes):
    """Descriptors need no vectors; what is seen while they are alone is not kept."""
    first = DescriptorLabels(KMeans(k=3), ("spectrum",), dim=4)
    source = BothLabels(first, NetworkLabels([KMeans(k=5)], dim=4), network_from=2)
    model, data = build(make_store(LENGTHS), features="bank", source=source)
    fit(model, data, tmp_path, epochs=4)
    assert len(passes) == 1
    assert len(clustered) == 2
    assert (clustered[0] != clustered[1]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_share_one_bank(make_store, tmp_path, size):
    store = make_store(ODD)
    ranks = run(size, store, tmp_path / "run", features="bank")
    seen = np.concatenate([rank["embedded"] for rank in ranks])
    np.testing.assert_array_equal(np.bincount(seen, minlength=len(ODD)), 1)
    for rank in ranks[1:]:
        for mine, first in zip(rank["epochs"], ranks[0]["epochs"], strict=True):
            np.testing.assert_array_equal(mine["labels"], first["labels"])
            for key, value in mine["state"].items():
                assert torch.equal(value, first["state"][key]), key


def test_two_processes_keep_what_one_does(make_store, tmp_path):
    """Nothing but the number of processes changed: the clusters of every epoch are the same."""
    one, two = (run(n, make_store(ODD), tmp_path / str(n), sync=True, features="bank") for n in (1, 2))
    for mine, theirs in zip(one[0]["epochs"], two[0]["epochs"], strict=True):
        np.testing.assert_array_equal(mine["labels"], theirs["labels"])
    np.testing.assert_allclose(one[0]["bank"], two[0]["bank"], rtol=1e-3, atol=1e-5)


def test_the_later_of_two_vectors_stays_however_often_it_is_merged():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((5, 3)).astype(np.float32)
    often, once = FeatureBank(3), FeatureBank(3)
    expected = first.copy()
    for bank in (often, once):
        bank.fill(first.copy())
    for _ in range(70):
        index, vectors = rng.integers(5, size=4), rng.standard_normal((4, 3)).astype(np.float32)
        for i, row in zip(index, vectors, strict=True):
            expected[i] = row
        for bank in (often, once):
            bank.add(torch.from_numpy(index), torch.from_numpy(vectors))
        often.merge()
    for bank in (often, once):
        np.testing.assert_array_equal(bank.vectors().rows, expected)


def test_what_comes_before_the_first_pass_is_not_kept():
    bank = FeatureBank(1)
    bank.add(torch.tensor([0]), torch.tensor([[7.0]]))
    assert bank.state_dict() == {}
    bank.fill(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(bank.vectors().rows, np.zeros((2, 1)))


def test_only_pass_and_bank(make_store):
    with pytest.raises(ConfigError, match=r"pretrain\.features=memory: choose one of pass, bank"):
        build(make_store(LENGTHS), features="memory")


def test_a_bank_changes_nothing_in_the_first_epoch(make_store, tmp_path):
    losses = []
    for features in ("pass", "bank"):
        model, data = build(make_store(LENGTHS), features=features)
        _, recorder = fit(model, data, tmp_path / features, epochs=2)
        losses.append(recorder.losses)
    assert losses[0][:10] == losses[1][:10]
    assert losses[0][10:] != losses[1][10:]
