"""Damage to bundles and checkpoints is noticed, and a run goes on from the checkpoint before a damaged one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.damage import KINDS, damage
from decar.errors import BundleError
from decar.models import load_encoder, save_bundle
from decar.pretrain.checkpoint import AtomicCheckpointIO, damage_of, previous_of
from tests.conftest import SMALL, make_encoder

N = [pytest.param(10), pytest.param(67, marks=pytest.mark.slow)]  # of each of three kinds: some 200


def state(seed: int) -> dict[str, object]:
    """Something like a checkpoint."""
    torch.manual_seed(seed)
    weights = {f"layer{i}.weight": torch.randn(16, 17) for i in range(20)}
    return {"state_dict": weights, "epoch": seed, "optimizer_states": [{"lr": 0.1}], "loops": {"done": [1, 2]}}


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict) and found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
        )
    return found == wanted


@pytest.mark.parametrize("n", N)
def test_no_damage_to_a_checkpoint_changes_what_is_loaded(tmp_path: Path, n: int) -> None:
    whole, file, rng, noticed = tmp_path / "whole.ckpt", tmp_path / "last.ckpt", np.random.default_rng(n), 0
    AtomicCheckpointIO().save_checkpoint(state(0), whole)
    assert not damage_of(whole)
    for kind in KINDS * n:
        shutil.copy(whole, file)
        done = damage(file, rng, kind)
        if damage_of(file):
            noticed += 1
            continue
        try:  # bytes between the records hold nothing
            found = torch.load(file, weights_only=True)
        except Exception:
            continue  # is told by `readable`
        assert same(found, state(0)), done
    assert noticed > 2 * n


@pytest.mark.parametrize("n", N)
def test_every_damage_to_a_bundle_is_refused(tmp_path: Path, n: int) -> None:
    whole, file, rng = tmp_path / "whole.safetensors", tmp_path / "encoder.safetensors", np.random.default_rng(n)
    save_bundle(make_encoder(SMALL, seed=0), whole)
    for kind in KINDS * n:
        shutil.copy(whole, file)
        done = damage(file, rng, kind)
        with pytest.raises(BundleError, match=r"encoder\.safetensors"):
            raise AssertionError(f"{done}: loaded {load_encoder(file).hash()}")


def test_the_bundle_that_comes_with_decar_is_covered(tmp_path: Path) -> None:
    from decar.models.bundle import READY_FILE

    file = tmp_path / "small.safetensors"
    data = bytearray(READY_FILE.read_bytes())
    data[-len(data) // 10 :] = bytes(len(data[-len(data) // 10 :]))  # the last tenth is zero: it loaded, cosine .64
    file.write_bytes(data)
    with pytest.raises(BundleError, match="its digest differs"):
        load_encoder(file)


def test_a_damaged_checkpoint_does_not_replace_a_good_one(tmp_path: Path) -> None:
    writer, last = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for epoch in range(3):
        writer.save_checkpoint(state(epoch), last)
    assert torch.load(previous_of(last), weights_only=True)["epoch"] == 1
    damage(last, np.random.default_rng(0), "cut tail")
    writer.save_checkpoint(state(3), last)
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert torch.load(previous_of(last), weights_only=True)["epoch"] == 1
    writer.save_checkpoint(state(0), tmp_path / "best.ckpt")
    writer.save_checkpoint(state(1), tmp_path / "best.ckpt")
    assert not previous_of(tmp_path / "best.ckpt").exists()


def test_what_was_loaded_from_a_checkpoint_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    moments = {"state": {0: {"exp_avg": torch.randn(300, 300)}}}
    saved = {"state_dict": {"w": torch.randn(300, 300)}, "optimizer_states": [moments], "means": [torch.ones(9)]}
    AtomicCheckpointIO().save_checkpoint(saved, path)
    found = AtomicCheckpointIO().load_checkpoint(path)
    weights = found.pop("state_dict")["w"].clone()  # what the network's `load_state_dict` does
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(weights, saved["state_dict"]["w"])
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], moments["state"][0]["exp_avg"])
    assert torch.equal(found["means"][0], torch.ones(9))
