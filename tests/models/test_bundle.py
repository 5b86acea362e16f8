import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import decar
from decar.audio import FrontEnd
from decar.errors import BundleError
from decar.models import Encoder, load_encoder, read_facts, save_bundle
from decar.models.bundle import READY_FILE
from decar.models.networks import seeded
from tests.conftest import SMALL, make_encoder


@pytest.fixture
def bundle(tmp_path):
    return save_bundle(
        make_encoder(SMALL, pool="avg", seed=3), tmp_path / "encoder.safetensors", {"data": "mini", "epoch": 2}
    )


def test_what_is_loaded_embeds_as_what_was_saved(bundle):
    original, loaded = make_encoder(SMALL, pool="avg", seed=3).eval(), decar.load_encoder(bundle)
    wave = 0.1 * torch.randn(2, 12000)
    assert not loaded.training
    assert loaded.hash() == original.hash()
    assert torch.equal(loaded.embed(wave), original.embed(wave))
    assert read_facts(bundle) == {"data": "mini", "epoch": 2}


def test_a_run_folder_will_do(bundle):
    assert load_encoder(bundle.parent).hash() == load_encoder(bundle).hash()


def test_another_front_end_is_refused_with_the_cure(bundle):
    with pytest.raises(BundleError, match=r"n_mels=64; asked for n_mels=80\): pass frontend\.n_mels=64"):
        load_encoder(bundle, frontend=FrontEnd(n_mels=80))
    load_encoder(bundle, frontend=FrontEnd())


def test_missing_file_and_foreign_files_get_one_line(tmp_path, bundle):
    with pytest.raises(BundleError, match="no such bundle"):
        load_encoder(tmp_path / "nothing")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(BundleError, match="not a readable bundle"):
        load_encoder(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BundleError, match="without a decar header"):
        load_encoder(tmp_path / "foreign.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(bundle.read_bytes()[:-1000])
    with pytest.raises(BundleError, match="copied whole"):
        load_encoder(cut)


def rewrite(bundle, change):
    from safetensors import safe_open

    with safe_open(bundle, framework="pt") as file:
        header = json.loads(file.metadata()["decar"])
    weights = load_file(bundle)
    header.pop("digest")  # as in bundles of earlier versions, and in those that somebody made up
    change(header, weights)
    save_file(weights, bundle, metadata={"decar": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w: w.pop("bn1.weight"), "do not fit"),
        (lambda h, w: w.update({"bn1.weight": torch.zeros(3)}), "do not fit"),
        (lambda h, w: h["encoder"].update(name="no_such_net"), "does not describe an encoder"),
        (lambda h, w: h["encoder"].update(surprise=1), "does not describe an encoder"),
        (lambda h, w: h.pop("encoder"), "does not describe an encoder"),
        (lambda h, w: h.update(format=99), "another format"),
    ],
)
def test_a_damaged_bundle_gets_one_clear_line(bundle, change, message):
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_encoder(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


def test_a_failed_write_leaves_the_old_bundle_and_no_litter(bundle, monkeypatch):
    before = bundle.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(BundleError, match="the disk is full, make room"):
        save_bundle(make_encoder(SMALL, seed=0), bundle)
    assert bundle.read_bytes() == before
    assert os.listdir(bundle.parent) == [bundle.name]


@pytest.mark.parametrize(
    "change", [{"hidden": 10**6}, {"widths": [4, 10**6, 10**6]}, {"min_frames": 10**9}, {"frontend": {"n_fft": 10**10}}]
)
def test_sizes_that_the_weights_do_not_bear_out_are_refused_before_they_are_made(tmp_path, change):
    """A header of some bytes could else ask for terabytes."""
    file = save_bundle(make_encoder("conv", widths=[4, 4, 8], hidden=16, seed=0), tmp_path / "encoder.safetensors")
    with safe_open(file, framework="pt") as old:
        header = json.loads(old.metadata()["decar"])
    weights = load_file(file)
    header.pop("digest")
    settings = header["encoder"]
    for key, value in change.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    save_file(weights, file, metadata={"decar": json.dumps(header)})
    with pytest.raises(BundleError, match=r"the weights do not fit conv \(|\(ValueError: .*(min_frames|n_fft)"):
        load_encoder(file)


def test_a_network_is_built_without_memory_until_its_weights_are_seen(bundle, monkeypatch):
    """420 bytes that name regnety_2560 took 6.2 GB."""
    devices = []
    real = timm.create_model

    def create(name, **options):
        devices.append(torch.zeros(0).device.type)
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    rewrite(bundle, lambda header, weights: header["encoder"].update(name="regnety_2560"))
    with pytest.raises(BundleError, match="do not fit regnety_2560"):
        load_encoder(bundle)
    assert devices == ["meta"]


@pytest.mark.parametrize("name", ["hf-hub:somebody/resnet18", "hf_hub:a/b", "local-dir:/tmp", "timm/resnet18"])
def test_no_name_of_a_network_fetches_anything(bundle, monkeypatch, name):
    def connect(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    rewrite(bundle, lambda header, weights: header["encoder"].update(name=name))
    with pytest.raises(BundleError, match=r"does not describe an encoder .*timm knows no such network"):
        load_encoder(bundle)


def test_weights_that_are_not_finite_are_refused(bundle):
    rewrite(bundle, lambda header, weights: weights["bn1.weight"].__setitem__(0, float("nan")))
    with pytest.raises(BundleError, match=r"weights that are not finite \(bn1.weight\)"):
        load_encoder(bundle)


def test_a_bundle_without_a_digest_still_loads_and_says_so(bundle, caplog):
    before = load_encoder(bundle).hash()
    rewrite(bundle, lambda header, weights: None)
    with caplog.at_level("INFO"):
        assert load_encoder(bundle).hash() == before
    assert "written without a digest" in caplog.text


def test_the_bundle_that_comes_with_decar_is_covered(tmp_path):
    content = bytearray(READY_FILE.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (tmp_path / "half.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"half\.safetensors: damaged, its digest differs"):
        load_encoder(tmp_path / "half.safetensors")
    assert load_encoder().hash().startswith("bbb9558c57f1")


def test_a_network_with_tensors_of_its_own_is_loaded_with_them(tmp_path):
    """Buffers that no bundle holds have no values on the meta device."""
    encoder = make_encoder("resnetblur18", seed=1).eval()
    loaded = load_encoder(save_bundle(encoder, tmp_path / "encoder.safetensors"))
    clip = torch.randn(1, 1, 64, 98)
    assert torch.equal(loaded(clip), encoder(clip))


OLD = Path(__file__).parent / "old"


@pytest.mark.parametrize(
    ("file", "encoder_hash", "dim", "start"),
    [
        (READY_FILE, "bbb9558c57f1047acb12ae82b33521936ee6c59d3805966492800bee8c5b2eaf", 3072, [0, 0, 0, 0]),
        (
            OLD / "whole.safetensors", "c8dbf36e9cc0e402dd4f7be808c10b002aca359d4df7df9f066fc13ce90ae64a", 256,
            [0.0357923, -0.0892759, 0.0213637, -0.1048247],
        ),
        (
            OLD / "cut.safetensors", "4431362c87a462d3226799ec1a8eeb0bc7a6c9c273dac4164268f242f2e3215e", 1040,
            [0.0929532, 0, 0.3618691, 0],
        ),
    ],
)  # fmt: skip
def test_bundles_of_version_0_1_load_with_their_hash_and_vectors(file, encoder_hash, dim, start):
    """Written when an encoder was constructed from a name: `conv`, whole and cut timm networks."""
    encoder = load_encoder(file)
    assert encoder.hash() == encoder_hash
    assert encoder.dim == dim
    wave = np.sin(np.arange(8000) ** 1.5 / 300).astype(np.float32) / 4
    # processors differ by 4e-5 here: a float16 of the log-mel may round to the other side; other weights differ by 0.1
    torch.testing.assert_close(encoder.embed(wave)[0, :4], torch.tensor(start).float(), rtol=1e-3, atol=2e-4)


class Own(torch.nn.Module):
    """A user's network."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, width)
        self.scale = torch.arange(1.0, 65)  # not in the state_dict

    def forward(self, x):
        return self.linear(x.mean((1, 3)) * self.scale)


def test_a_network_of_ones_own_loads_where_the_caller_names_it(tmp_path):
    encoder = Encoder(Own(5), max_frames=200, arguments={"width": 5}).eval()
    file = save_bundle(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(file, network=Own)
    assert loaded.settings() == encoder.settings()
    assert loaded.settings()["network"] == f"{__name__}.Own"
    assert loaded.hash() == encoder.hash()
    wave = 0.1 * torch.randn(1, 60_000)
    assert torch.equal(loaded.embed(wave), encoder.embed(wave))
    with pytest.raises(BundleError, match=r"its network is .*Own', which is not decar's"):
        load_encoder(file)


def test_the_hash_knows_the_code_of_ones_own_network(monkeypatch):
    """Otherwise cached embeddings would outlive the code that made them."""
    with seeded(0):
        encoder = Encoder(Own())
    before = encoder.hash()
    monkeypatch.setattr("inspect.getsource", lambda kind: "class Own: ...")
    assert encoder.hash() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 10**9}, "the weights do not fit"), ({"depth": 1}, "does not describe an encoder"), (7, "TypeError")],
)
def test_arguments_of_ones_own_network_are_data(tmp_path, change, message):
    file = save_bundle(Encoder(Own(5), arguments={"width": 5}), tmp_path / "encoder.safetensors")
    rewrite(file, lambda header, weights: header["encoder"].update(arguments=change))
    with pytest.raises(BundleError, match=message):
        load_encoder(file, network=Own)


@pytest.mark.parametrize("name", ["os.system", "decar.models.save_bundle", 5, ["decar.models.build_network"]])
def test_a_bundle_names_no_network_of_its_own(bundle, name):
    rewrite(bundle, lambda header, weights: header["encoder"].update(network=name))
    with pytest.raises(BundleError, match="which is not decar's"):
        load_encoder(bundle)
