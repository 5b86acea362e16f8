from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback

from decar.cli.config import conf_dir
from decar.clustering import KMeans
from decar.errors import ConfigError, TrainingError
from decar.models import Projection, embed_store, load_encoder, read_facts, save_bundle
from decar.models.bundle import read_directions
from decar.pretrain import (
    AtomicCheckpointIO,
    BestBundle,
    BundleExport,
    ClusterLog,
    DecarModule,
    EpochCheckpoint,
    StopOnNMI,
)
from decar.pretrain.checkpoint import is_finished
from tests.conftest import make_encoder
from tests.pretrain.helpers import SameClusters, SpyModule, build, fit

LENGTHS = [40, 64] * 20


def test_cluster_log_is_one_table_and_a_cut_part_does_not_hurt(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), clusterers=[KMeans(k=4), KMeans(k=2)])
    _, recorder = fit(model, data, tmp_path / "run", epochs=2, callbacks=[ClusterLog(tmp_path / "clusters.parquet")])
    (tmp_path / "clusters.parquet" / ".epoch_00009.parquet").write_bytes(b"PAR1 cut")
    table = pd.read_parquet(tmp_path / "clusters.parquet")
    assert len(table) == len(LENGTHS) * 2 * 2
    for (epoch, clustering), part in table.groupby(["epoch", "clustering"]):
        assert part["clip"].tolist() == data.store.manifest.table["path"].tolist()
        assert part["pseudo_label"].tolist() == recorder.labels[epoch][:, clustering].tolist()


def test_cluster_log_tells_clips_of_one_file_apart(make_store, tmp_path):
    store = make_store(LENGTHS)
    store.manifest.table["start"] = [float(i) for i in range(len(store))]
    model, data = build(store)
    fit(model, data, tmp_path / "run", epochs=1, callbacks=[ClusterLog(tmp_path / "clusters.parquet")])
    assert pd.read_parquet(tmp_path / "clusters.parquet")["start"].tolist() == list(range(len(store)))


class Weights(Callback):
    """The encoder's weights at the end of each epoch."""

    def __init__(self):
        self.of = {}

    def on_train_epoch_end(self, trainer, pl_module):
        network = pl_module.encoder.network.state_dict()
        self.of[trainer.current_epoch] = {key: value.clone() for key, value in network.items()}


@pytest.mark.parametrize("killed_after", [None, 1, 2, 3, 4])
def test_the_best_bundle_is_the_encoder_of_the_epoch_with_the_highest_nmi(make_store, tmp_path, killed_after):
    """Also where the run is killed after an epoch, its bundle written and its checkpoint not, and goes on."""

    def run(folder, epochs=6, **kwargs):
        model, data = build(make_store(LENGTHS), module=NamedNmi)
        model.encoder = make_encoder("conv", widths=(2, 2), hidden=4, seed=0, min_frames=32, max_frames=96)
        model.projection = Projection(model.encoder.dim, 8, seed=0)
        best, weights = BestBundle(tmp_path / "best" / "encoder.safetensors", {"data": "x"}), Weights()
        fit(model, data, folder, epochs=epochs, callbacks=[best, weights], **kwargs)
        return best, weights

    best, weights = run(tmp_path / "a")
    of = weights.of
    if killed_after is not None:
        (tmp_path / "best" / "encoder.safetensors").unlink()
        run(tmp_path / "b", epochs=killed_after + 1)
        before = next((tmp_path / "b").glob(f"epoch={killed_after - 1}-*.ckpt"))
        best, _ = run(tmp_path / "c", ckpt_path=before)
    assert best.best == max(NMI.values())
    found = load_encoder(tmp_path / "best" / "encoder.safetensors").network.state_dict()
    for key, value in found.items():
        assert torch.equal(value, of[3][key]), key
    assert not all(torch.equal(found[key], of[5][key]) for key in found)
    assert read_facts(tmp_path / "best") == {"data": "x", "clips": len(LENGTHS), "epoch": 3, "step": 40}


def test_the_best_bundle_of_a_folder_that_was_not_taken_along_is_no_measure_for_those_to_come(tmp_path):
    before = BestBundle(tmp_path / "a" / "best" / "encoder.safetensors")
    before.best = 0.9
    state = before.state_dict()
    here, elsewhere = BestBundle(before.path), BestBundle(tmp_path / "b" / "best" / "encoder.safetensors")
    for bundle, best in ((here, 0.9), (elsewhere, -1.0)):
        bundle.load_state_dict(state)
        assert bundle.best == best
    save_bundle(make_encoder("conv", widths=(2, 2), hidden=4), elsewhere.path)
    elsewhere.load_state_dict(state)
    assert elsewhere.best == 0.9, "the folder has moved"


NMI = {1: 0.4, 2: 0.2, 3: 0.7, 4: 0.7, 5: 0.6}  # none in the first epoch; the first of equals counts


class NamedNmi(SpyModule):
    """Labels whose NMI is a given one."""

    def ensure_labels(self):
        super().ensure_labels()
        labels, epoch = self.data.labels, self.current_epoch
        health = {key: value for key, value in labels.health.items() if key != "nmi"}
        self.data.labels = replace(labels, health=health | ({"nmi": NMI[epoch]} if epoch in NMI else {}))


@pytest.mark.parametrize("case", ["same folder", "moved", "moved without it"])
def test_the_best_checkpoint_is_not_replaced_by_a_worse_one_after_a_resume(make_store, tmp_path, case):
    """Where only the checkpoint to go on from was taken along, the best of the epochs to come is kept."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        named = compose("train", ["callbacks=paper"]).callbacks
    order = [name for name in named if name in ("last", "best")]  # of the configuration

    def run(folder, **kwargs):
        options = {"enable_version_counter": False, "save_on_train_epoch_end": True, "dirpath": folder}
        savers = {
            "last": EpochCheckpoint(filename="last", **options),
            "best": EpochCheckpoint(filename="best", monitor="nmi", mode="max", **options),
        }
        model, data = build(make_store(LENGTHS), module=NamedNmi)
        fit(model, data, tmp_path / "others", callbacks=[savers[name] for name in order], **kwargs)
        return savers["best"]

    run(tmp_path / "a", epochs=4)
    folder = tmp_path / "a" if case == "same folder" else (tmp_path / "a").rename(tmp_path / "b")
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 3
    if case == "moved without it":
        (folder / "best.ckpt").unlink()
    best = run(folder, epochs=6, ckpt_path=folder / "last.ckpt")
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == (4 if case == "moved without it" else 3)
    assert best.best_model_path == str(folder / "best.ckpt")


def fit_with_bundle(make_store, folder, dim, epochs=2, **kwargs):
    encoder = make_encoder("conv", "catavgmax", widths=(4, 8), hidden=8, readout=[1], seed=0, min_frames=32)
    model, data = build(make_store(LENGTHS), encoder=encoder)
    export = BundleExport(folder / "encoder.safetensors", {"data": "x"}, dim=dim)
    fit(model, data, folder / "run", epochs=epochs, callbacks=[export], **kwargs)
    return model, data.store, export.path


def test_the_bundle_of_a_finished_run_has_the_principal_directions_of_its_clips(make_store, tmp_path):
    model, store, bundle = fit_with_bundle(make_store, tmp_path, dim=6)
    vectors = embed_store(load_encoder(bundle), store, progress=False)
    exact = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)[2][:6]
    found = read_directions(bundle).numpy()
    np.testing.assert_allclose(np.abs((found * exact).sum(1)), 1, atol=1e-3)
    facts = read_facts(bundle)
    assert (facts["data"], facts["clips"], facts["directions"]) == ("x", len(LENGTHS), 6)
    assert load_encoder(bundle).hash() == model.encoder.hash()


def test_directions_are_learned_once_and_again_where_the_bundle_is_lost(make_store, tmp_path, monkeypatch):
    passes = []
    real = DecarModule.embed_store
    monkeypatch.setattr(DecarModule, "embed_store", lambda *given: passes.append(1) or real(*given))
    _, _, bundle = fit_with_bundle(make_store, tmp_path, dim=6)
    before, (last, *_) = bundle.read_bytes(), sorted((tmp_path / "run").glob("epoch=1*.ckpt"))
    fit_with_bundle(make_store, tmp_path, dim=6, ckpt_path=last)
    assert (len(passes), bundle.read_bytes()) == (1, before)
    bundle.unlink()
    fit_with_bundle(make_store, tmp_path, dim=6, ckpt_path=last)
    assert (len(passes), read_directions(bundle).shape[0]) == (2, 6)
    for dim, n_passes in ((4, 3), (500, 4), (400, 4), (None, 4)):  # more than there are clips is all that there are
        fit_with_bundle(make_store, tmp_path, dim=dim, ckpt_path=last)
        assert (len(passes), read_directions(bundle).shape[0]) == (n_passes, 4 if dim == 4 else len(LENGTHS))


def test_the_last_pass_runs_where_the_trainer_s_device_is(make_store, tmp_path, monkeypatch):
    """Lightning moves the module to the CPU before `on_fit_end`; the clips of the pass go to the device of training."""
    away, cpu, to = [False], SpyModule.cpu, torch.nn.Module.to

    def leave(self):
        away[0] = True
        return cpu(self)

    def come(self, *args, **kwargs):
        away[0] = False
        return to(self, *args, **kwargs)

    def refuse(*_):
        assert not away[0], "weights on the CPU, clips on the GPU"

    monkeypatch.setattr(SpyModule, "cpu", leave)
    monkeypatch.setattr(torch.nn.Module, "to", come)
    with torch.nn.modules.module.register_module_forward_pre_hook(refuse):
        fit_with_bundle(make_store, tmp_path, 6)
    assert away == [False], "it was away, and came back"
    assert read_directions(tmp_path / "encoder.safetensors").shape[0] == 6


def test_without_a_number_no_pass_is_made_and_none_is_stored(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr(DecarModule, "embed_store", None)
    assert read_directions(fit_with_bundle(make_store, tmp_path, dim=None)[2]) is None
    with pytest.raises(ConfigError, match=r"callbacks\.bundle\.dim=0"):
        BundleExport(tmp_path / "encoder.safetensors", dim=0)


def test_after_a_resume_the_patience_asked_for_now_counts():
    old, new = StopOnNMI(patience=1), StopOnNMI(patience=10)
    old.wait_count, old.best_score = 1, torch.tensor(0.7)
    new.load_state_dict(old.state_dict())
    assert (new.patience, new.wait_count, float(new.best_score)) == (10, 1, pytest.approx(0.7))


def test_a_run_that_was_stopped_and_is_resumed_does_not_train_on(make_store, tmp_path):
    def run(folder, **kwargs):
        model, data = build(make_store(LENGTHS), clusterers=[SameClusters()])
        saver = EpochCheckpoint(tmp_path, "last", enable_version_counter=False)
        return fit(model, data, folder, epochs=9, callbacks=[StopOnNMI(patience=2), saver], **kwargs)[0]

    first = run(tmp_path / "a")
    assert (first.current_epoch, is_finished(first)) == (4, True)
    again = run(tmp_path / "b", ckpt_path=tmp_path / "last.ckpt")
    assert (again.current_epoch, is_finished(again)) == (4, True), "killed before it could say that it was finished"
    assert again.global_step == first.global_step


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"a": torch.ones(2)}, path)
    real = torch.save

    def full(obj, file):
        real(obj, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space.*the disk is full, make room.*resume=auto"):
        writer.save_checkpoint({"a": torch.zeros(2)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class Poison(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            with torch.no_grad():
                pl_module.projection.layers[0].weight.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    with pytest.raises(
        TrainingError,
        match=r"nan at epoch 2, in a batch of .* and 5 more clips: pass a lower learning rate \(optimizer.lr, now 0.05",
    ):
        fit(model, data, tmp_path, epochs=3, callbacks=[Poison()])
    [kept] = tmp_path.glob("*.ckpt")
    weights = torch.load(kept, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_checkpoint_of_another_recipe_or_of_other_sounds_is_refused(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1)
    [checkpoint] = tmp_path.glob("*.ckpt")
    other, data = build(make_store(LENGTHS), optimizer=torch.optim.AdamW, head_optimizer={})
    with pytest.raises(TrainingError, match="optimizer: SGD there, AdamW here"):
        fit(other, data, tmp_path / "other", ckpt_path=checkpoint)
    other, data = build(make_store(LENGTHS), seed=1)
    with pytest.raises(TrainingError, match="seed: 0 there, 1 here"):
        fit(other, data, tmp_path / "seed", ckpt_path=checkpoint)
    other, data = build(make_store(LENGTHS), draws_per_clip=3.0)
    with pytest.raises(TrainingError, match=r"epochs of 10 steps, here they have 15: give the loader\.batch_size"):
        fit(other, data, tmp_path / "steps", ckpt_path=checkpoint)
    same, elsewhere = build(make_store([50] * 10))
    with pytest.raises(TrainingError, match=r"other sounds \(40 clips, here 10\)"):
        fit(same, elsewhere, tmp_path / "elsewhere", ckpt_path=checkpoint)
