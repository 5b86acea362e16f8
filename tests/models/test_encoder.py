import numpy as np
import pytest
import soundfile
import timm
import torch

from decar.audio import FrontEnd
from decar.embedder import Embedder
from decar.errors import BundleError, ConfigError
from decar.models import embed_store, load_encoder, save_bundle
from decar.models.embed import evaluating
from decar.models.export import WaveformEncoder
from tests.conftest import SMALL, make_encoder


def test_the_default_is_the_papers_network():
    encoder = make_encoder(seed=0).eval()
    assert encoder.dim == 1280
    assert encoder.settings()["name"] == "efficientnet_b0"
    x = torch.randn(2, 1, 64, 98)
    features = encoder.network.forward_features(x)
    assert torch.equal(encoder(x), features.amax(dim=(2, 3)))  # global max-pool, nothing after it


@pytest.mark.parametrize(("pool", "factor"), [("max", 1), ("avg", 1), ("catavgmax", 2)])
def test_dim_is_what_comes_out(pool, factor):
    encoder = make_encoder("efficientnet_lite0", pool=pool, seed=0).eval()
    assert encoder.dim == 1280 * factor
    assert encoder(torch.zeros(1, 1, 64, 98)).shape == (1, encoder.dim)


def test_seed_fixes_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = make_encoder(SMALL, seed=1), make_encoder(SMALL, seed=1), make_encoder(SMALL, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert first.hash() == again.hash() != other.hash()


def test_hash_knows_the_front_end_too():
    assert make_encoder(SMALL, seed=0).hash() != make_encoder(SMALL, seed=0, frontend=FrontEnd(f_min=50.0)).hash()


def test_unknown_network_suggests_a_near_one():
    with pytest.raises(ConfigError, match="efficientnet_b0"):
        make_encoder("eficientnet_b0")


def test_embedding_of_a_clip_does_not_depend_on_its_batch(small_encoder, make_store):
    lengths = [30, 98, 99, 130, 250, 30, 1200, 128]
    store = make_store(lengths)
    together = embed_store(small_encoder, store, batch_size=64, progress=False)
    alone = embed_store(small_encoder, store, batch_size=1, progress=False)
    assert together.shape == (len(lengths), small_encoder.dim)
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(alone), rtol=1e-4, atol=1e-5)


def test_embed_store_equals_a_plain_loop(small_encoder, make_store):
    store = make_store([98, 98, 98])
    with evaluating(small_encoder):
        expected = [small_encoder(torch.from_numpy(store[i].astype("float32").T)[None, None]) for i in range(3)]
    found = embed_store(small_encoder, store, progress=False)
    torch.testing.assert_close(torch.from_numpy(found), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_the_pass_leaves_modes_and_batchnorm_as_they_were(make_store):
    encoder = make_encoder(SMALL, seed=0)
    encoder.train()
    encoder.network.bn1.eval()  # a part frozen on purpose
    before = encoder.hash()
    embed_store(encoder, make_store([98] * 4), progress=False)
    assert encoder.hash() == before
    assert encoder.training
    assert not encoder.network.bn1.training


def test_embed_takes_waveforms_of_any_length_and_agrees_with_the_log_mel(small_encoder):
    wave = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    embedded = small_encoder.embed(wave)
    with evaluating(small_encoder):
        torch.testing.assert_close(embedded, small_encoder(small_encoder.logmel(wave).unsqueeze(1)))
    for samples in (1, 399, 400, 5000, 16000 * 11):
        found = small_encoder.embed(torch.zeros(1, samples))
        assert found.shape == (1, small_encoder.dim)
        assert torch.isfinite(found).all()


def test_embed_takes_bfloat16_and_no_waveform_at_all(small_encoder):
    wave = (0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))).bfloat16()
    torch.testing.assert_close(small_encoder.embed(wave), small_encoder.embed(wave.float()), rtol=0, atol=0)
    assert small_encoder.embed(torch.zeros(0, 16000)).shape == (0, small_encoder.dim)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """timm's weights of a network, for colour pictures, as a file in place of a download."""
    torch.manual_seed(3)
    state = timm.create_model(SMALL, pretrained=False).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    create = timm.create_model

    def without_network(*args, **options):
        return create(*args, **options, **({"pretrained_cfg_overlay": overlay} if options["pretrained"] else {}))

    overlay = {"file": str(tmp_path / "weights.pth"), "hf_hub_id": None, "url": ""}
    monkeypatch.setattr(timm, "create_model", without_network)
    return state


@pytest.mark.parametrize("stride", [None, 4])
def test_published_weights_are_taken_with_the_colours_summed(published, stride, tmp_path):
    encoder = make_encoder(SMALL, stride=stride, hidden=8, pretrained=True, seed=0)
    found = encoder.network.state_dict() if stride is None else encoder.network.trunk.stages.state_dict()
    torch.testing.assert_close(found["conv_stem.weight"], published["conv_stem.weight"].sum(1, keepdim=True))
    deeper = [name for name in found if name.startswith("blocks.") and name.endswith("weight")]
    assert deeper
    assert all(torch.equal(found[name], published[name]) for name in deeper)
    save_bundle(encoder, tmp_path / "encoder.safetensors")
    assert load_encoder(tmp_path / "encoder.safetensors").hash() == encoder.hash()
    assert "pretrained" not in encoder.settings()  # a bundle brings its own weights


def test_weights_that_are_not_published_or_cannot_be_fetched_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"encoder\.pretrained=true: timm has published no weights of .*conv"):
        make_encoder("conv", pretrained=True)
    with pytest.raises(ConfigError, match="efficientnet_b0"):
        make_encoder("eficientnet_b0", pretrained=True)
    create = timm.create_model

    def offline(*args, **options):
        if options["pretrained"]:
            raise OSError("no\nnetwork")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    for stride in (None, 4):
        with pytest.raises(ConfigError, match=rf"^encoder\.pretrained=true: no weights of {SMALL} \(no network\)$"):
            make_encoder(SMALL, stride=stride, pretrained=True)


def test_an_encoder_with_l2_hears_no_level_and_every_way_in_agrees(tmp_path):
    encoder = make_encoder("conv", widths=(2, 3), hidden=4, seed=0, frontend=FrontEnd(l2=True))
    wave = (0.1 * np.random.default_rng(0).normal(size=(2, 20_000))).astype(np.float32)
    wave[1] *= 3
    vectors = encoder.embed(wave)
    torch.testing.assert_close(encoder.embed(wave * np.float32([[7], [0.1]])), vectors, rtol=1e-3, atol=1e-4)
    for i, clip in enumerate(wave):
        soundfile.write(tmp_path / f"{i}.wav", clip, 16_000, subtype="FLOAT")
    embedded = Embedder(save_and_load(encoder, tmp_path)).files([tmp_path / "0.wav", tmp_path / "1.wav"])
    torch.testing.assert_close(torch.from_numpy(embedded.vectors), vectors, rtol=1e-4, atol=1e-5)
    exported = WaveformEncoder(encoder).eval()
    torch.testing.assert_close(exported(torch.from_numpy(wave)), vectors, rtol=1e-2, atol=1e-3)
    with pytest.raises(BundleError, match=r"l2=True; asked for l2=False\): pass frontend\.l2=True"):
        load_encoder(tmp_path / "l2.safetensors", frontend=FrontEnd())


def save_and_load(encoder, folder):
    return load_encoder(save_bundle(encoder, folder / "l2.safetensors"))
