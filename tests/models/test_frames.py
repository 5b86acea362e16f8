from itertools import pairwise

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch.nn import functional

from decar.audio import FrontEnd
from decar.errors import BundleError, ConfigError
from decar.models import embed_store, load_encoder, save_bundle
from decar.models.embed import evaluating
from decar.models.networks import FrequencyKeeping, conv_trunk
from tests.conftest import SMALL, make_encoder

KEEPING = [{"name": "conv"}, {"name": SMALL, "stride": 8}]


def small_conv(**options):
    return make_encoder(**{"name": "conv", "widths": (3, 4), "hidden": 8, "seed": 0, **options})


def stir(encoder):
    """Gives BatchNorm, which does nothing much when fresh, something to do; some of its weights negative."""
    generator = torch.Generator().manual_seed(1)
    for key, value in encoder.network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=generator) - 0.5 * ("var" not in key))
    return encoder


def slow_conv(x, weight):
    """3×3 convolution of one clip, (C, M, F), padded with zeros, by loops."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x.shape[1:]))
    for c, kernel in enumerate(weight):
        for m in range(x.shape[1]):
            for f in range(x.shape[2]):
                out[c, m, f] = (padded[:, m : m + 3, f : f + 3] * kernel).sum()
    return out


def slow_halve(x):
    c, m, f = x.shape
    out = np.zeros((c, m // 2, f // 2))
    for i in range(m // 2):
        for j in range(f // 2):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return out


def slow_maps(weights, x, n_blocks):
    """The map behind each block, of one clip (M, F), in numpy and loops."""
    w = {key: value.numpy().astype(float) for key, value in weights.items()}
    x, maps = ((x.numpy() - w["mean"]) / w["std"])[None], []
    for block in range(n_blocks):
        x = slow_halve(slow_conv(x, w[f"trunk.{4 * block}.weight"]))
        norm = {k: w[f"trunk.{4 * block + 2}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        for c in range(len(x)):
            x[c] = (x[c] - norm["running_mean"][c]) / np.sqrt(norm["running_var"][c] + 1e-5)
            x[c] = np.maximum(x[c] * norm["weight"][c] + norm["bias"][c], 0)
        maps.append(x)
    return maps


def slow_frames(weights, x, n_blocks, local=False):
    """What the MLP makes of each frame of one clip (M, F), and what it reads: (F', D), in numpy and loops."""
    w = {key: value.numpy().astype(float) for key, value in weights.items()}
    x, frames = slow_maps(weights, x, n_blocks)[-1], []
    for f in range(x.shape[2]):
        flat = np.array([x[c, m, f] for c in range(x.shape[0]) for m in range(x.shape[1])])
        inner = np.maximum(w["mlp.0.weight"] @ flat + w["mlp.0.bias"], 0)
        deep = np.maximum(w["mlp.3.weight"] @ inner + w["mlp.3.bias"], 0)
        frames.append(np.concatenate([deep, flat]) if local else deep)
    return np.stack(frames)


POOLS = {
    "max": lambda y: y.max(0),
    "avg": lambda y: y.mean(0),
    "avgmax": lambda y: (y.mean(0) + y.max(0)) / 2,
    "catavgmax": lambda y: np.concatenate([y.mean(0), y.max(0)]),
}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("pool", list(POOLS))
def test_forward_equals_loops_over_blocks_and_frames(pool, local):
    encoder = stir(small_conv(pool=pool, local=local, frontend=FrontEnd(n_mels=18), min_frames=22)).eval()
    encoder.network.set_input_statistics(-2.0, 3.0)
    x = 3 * torch.randn(2, 1, 18, 22) - 2  # neither is a multiple of the stride
    expected = np.stack([POOLS[pool](slow_frames(encoder.weights(), clip[0], 2, local)) for clip in x])
    assert encoder.dim == expected.shape[1]
    assert (expected > 0).mean() > 0.2
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", list(POOLS))
def test_the_readout_equals_loops_over_bands_and_stands_behind_a_vector_that_it_leaves_alone(pool):
    sizes = {"pool": pool, "local": True, "frontend": FrontEnd(n_mels=18), "min_frames": 22}
    plain = stir(small_conv(**sizes)).eval()
    encoder = stir(small_conv(**sizes, readout=[2, 1], readout_bands=1)).eval()
    assert (encoder.objective_dim, encoder.hash() == plain.hash()) == (plain.dim, False)
    assert set(encoder.weights()) == set(plain.weights())
    x = 3 * torch.randn(2, 1, 18, 22) - 2
    found = encoder(x).detach()
    assert torch.equal(found[:, : plain.dim], plain(x))
    assert torch.equal(encoder.for_objective(x), plain(x))
    maps = [slow_maps(encoder.weights(), clip[0], 2) for clip in x]
    expected = [np.concatenate([POOLS[pool](of[b].mean(1).T) for b in (1, 0)]) / 16 for of in maps]
    assert encoder.dim == plain.dim + len(expected[0])
    np.testing.assert_allclose(found[:, plain.dim :].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bands", "cuts"),
    [(8, range(0, 33, 4)), (32, range(33)), (99, range(33)), (5, [0, 7, 14, 21, 28, 32]), (9, range(0, 33, 4))],
)
def test_bands_of_the_readout_are_means_of_neighbours(bands, cuts):
    encoder = stir(small_conv(readout=[1], readout_bands=bands, pool="avg")).eval()
    x = torch.randn(1, 1, 64, 98)
    full = encoder.network.trunk.maps((x - encoder.network.mean) / encoder.network.std)[0]  # (1, 3, 32, 49)
    expected = [full[0, c, a:b].mean() for c in range(3) for a, b in pairwise(cuts)]
    torch.testing.assert_close(16 * encoder(x)[0, 8:], torch.stack(expected))


def test_the_readout_of_a_long_clip_is_the_mean_of_its_pieces_weighted_by_frames(make_store):
    """Of maxima too: not the maximum over the clip."""
    encoder = stir(small_conv(readout=[1, 2], pool="catavgmax", max_frames=128)).eval()
    store = make_store([300])
    cuts = [store[0][a:b].astype("float32") for a, b in ((0, 128), (128, 256), (256, 300))]
    with evaluating(encoder):
        parts = [encoder(stack_one(cut, encoder)) for cut in cuts]
    expected = (128 * parts[0] + 128 * parts[1] + 44 * parts[2]) / 300
    found = torch.from_numpy(embed_store(encoder, store, progress=False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    highest = torch.stack(parts).amax(0)[:, encoder.objective_dim + 3 * 8 :]
    assert not torch.allclose(found[:, encoder.objective_dim + 3 * 8 :], highest, rtol=1e-3)


def stack_one(cut, encoder):
    """One log-mel `(F, M)` as a batch, padded with silence to the least number of frames."""
    padding = np.full((max(0, encoder.min_frames - len(cut)), 64), encoder.frontend.silence, np.float32)
    return torch.from_numpy(np.concatenate([cut, padding]).T)[None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": [3]}, r"encoder\.readout=\[3\]: give each block once, from 1 to 2"),
        ({"readout": [1, 1]}, "give each block once"),
        ({"readout": [0]}, r"encoder\.readout=0"),
        ({"readout": 1}, r"encoder\.readout=1: not allowed; give a list of blocks, as in \[1, 2\]"),
        ({"readout": [2], "readout_bands": 0}, r"encoder\.readout_bands=0"),
    ],
)
def test_a_readout_that_the_network_has_not_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        small_conv(**options)


def test_a_bundle_keeps_the_readout(tmp_path):
    encoder = small_conv(readout=[1, 2], readout_bands=4).eval()
    loaded = load_encoder(save_bundle(encoder, tmp_path / "encoder.safetensors"))
    x = torch.randn(2, 1, 64, 98)
    assert (loaded.hash(), loaded.objective_dim) == (encoder.hash(), encoder.objective_dim)
    assert torch.equal(loaded(x), encoder(x))


def test_any_bundle_of_such_a_trunk_can_be_read_out(tmp_path):
    with_readout = small_conv(readout=[2, 1], readout_bands=4).eval()
    plain = save_bundle(small_conv().eval(), tmp_path / "encoder.safetensors")
    found = load_encoder(plain, readout=[2, 1], readout_bands=4)
    x = torch.randn(2, 1, 64, 98)
    assert found.hash() == with_readout.hash() != load_encoder(plain).hash()
    assert torch.equal(found(x), with_readout(x))
    assert load_encoder(readout=[1, 2]).dim == 6144
    assert load_encoder().dim == 3072


def test_a_readout_that_a_bundle_cannot_have_is_refused(tmp_path):
    plain = save_bundle(small_conv().eval(), tmp_path / "encoder.safetensors")
    timms = save_bundle(make_encoder(SMALL, stride=8, hidden=8, seed=0), tmp_path / "timm.safetensors")
    with pytest.raises(ConfigError, match=r"encoder\.readout=\[3\]: give each block once, from 1 to 2"):
        load_encoder(plain, readout=[3])
    for path in (timms, "hear:decar.hear"):
        with pytest.raises(BundleError, match=r"readout=\[1\]: only networks with the trunk conv have one"):
            load_encoder(path, readout=[1])


@pytest.mark.parametrize("pool", list(POOLS))
def test_the_words_for_pooling_mean_what_they_mean_to_timm(pool):
    """The whole network's pooling over a map of one row is pooling over time."""
    from timm.layers import SelectAdaptivePool2d

    encoder = small_conv(pool=pool).eval()
    y = {}
    encoder.network.mlp.register_forward_hook(lambda module, given, out: y.update(out=out))
    found = encoder(torch.randn(2, 1, 64, 98))
    timms = SelectAdaptivePool2d(pool_type=pool, flatten=True)(y["out"].transpose(1, 2).unsqueeze(2))
    torch.testing.assert_close(found, timms)


def test_a_cut_network_is_the_first_stages_of_timms_and_holds_nothing_behind_the_cut():
    import timm

    encoder = make_encoder(SMALL, stride=8, hidden=8, seed=0)
    whole = timm.create_model(SMALL, in_chans=1, features_only=True).eval()
    kept = {key.removeprefix("trunk.stages."): w for key, w in encoder.weights().items() if key.startswith("trunk.")}
    assert not whole.load_state_dict(kept, strict=False).unexpected_keys
    x = torch.randn(2, 1, 64, 98)
    with evaluating(encoder):
        features = whole((x + 1.57) / 2.41)[2]
        expected = torch.stack([encoder.network.mlp(frame.flatten(1)) for frame in features.unbind(3)]).amax(0)
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)
    encoder(x).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_network_of_maps_with_the_channels_last_is_turned():
    """mambaout gives (B, M', F', C); other lengths than the measured one must fit the first linear layer too."""
    encoder = make_encoder("mambaout_femto", stride=8, hidden=4, seed=0).eval()
    assert encoder.network.mlp[0].in_features == 96 * 8
    assert encoder(torch.zeros(1, 1, 64, 160)).shape == (1, 4)


def test_the_band_of_a_tone_is_told_apart_and_by_global_pooling_is_not():
    """Far from the edges, a tone five strides higher shifts the map by five rows: the same maximum over all."""
    encoder = stir(small_conv()).eval()
    low, high = torch.full((2, 1, 1, 64, 98), -5.0).unbind(0)
    low[:, :, 20], high[:, :, 40] = 2.0, 2.0
    maps = [encoder.network.trunk((x - encoder.network.mean) / encoder.network.std) for x in (low, high)]
    torch.testing.assert_close(maps[0].amax(dim=(2, 3)), maps[1].amax(dim=(2, 3)))
    assert functional.cosine_similarity(encoder(low), encoder(high)).item() < 0.999
    assert not torch.allclose(encoder(low), encoder(high), atol=1e-2)


@pytest.mark.parametrize("options", KEEPING)
def test_any_length_from_one_second_to_ten(options):
    encoder = make_encoder(**options, hidden=16, seed=0)
    with evaluating(encoder):
        for frames in (98, 99, 100, 103, 128, 333, 998):
            out = encoder(torch.randn(2, 1, 64, frames))
            assert out.shape == (2, 16)
            assert torch.isfinite(out).all()
    assert encoder.embed(torch.zeros(1, 1)).shape == (1, 16)


@pytest.mark.parametrize("options", KEEPING)
def test_embedding_of_a_clip_does_not_depend_on_its_batch(options, make_store):
    encoder = make_encoder(**options, hidden=16, seed=0)
    store = make_store([30, 98, 99, 130, 250, 30, 1200, 128])
    together = embed_store(encoder, store, batch_size=64, progress=False)
    alone = embed_store(encoder, store, batch_size=1, progress=False)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_statistics_normalise_and_are_hashed():
    encoder = small_conv().eval()
    x = torch.randn(2, 1, 64, 98)
    as_made, before = encoder.hash(), encoder(x)
    encoder.network.set_input_statistics(0.5, 2.0)
    assert encoder.hash() != as_made
    torch.testing.assert_close(encoder((x + 1.57) / 2.41 * 2.0 + 0.5), before, rtol=1e-4, atol=1e-5)
    assert {key: str(encoder.weights()[key].dtype) for key in ("mean", "std")} == {
        "mean": "torch.float32", "std": "torch.float32"
    }  # fmt: skip


@pytest.mark.parametrize("given", [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf")), (0, 1e-50)])
def test_statistics_that_cannot_be_are_refused_and_change_nothing(given):
    encoder = small_conv()
    before = encoder.hash()
    with pytest.raises(ConfigError, match="cannot be normalised"):
        encoder.network.set_input_statistics(*given)
    assert encoder.hash() == before


def test_a_whole_network_takes_no_statistics(small_encoder):
    assert not hasattr(small_encoder.network, "set_input_statistics")


def test_dropout_is_in_training_alone():
    encoder = small_conv(dropout=0.9, hidden=64)
    x = torch.randn(4, 1, 64, 98)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_building_leaves_the_running_averages_alone():
    weights = make_encoder("conv", seed=0).weights()
    assert weights["trunk.2.running_mean"].abs().max() == 0
    assert weights["trunk.2.num_batches_tracked"] == 0


@pytest.mark.parametrize("options", KEEPING)
def test_seed_fixes_weights_and_leaves_the_global_generator_alone(options):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (make_encoder(**options, hidden=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert first.hash() == again.hash() != other.hash()
    assert first.network.training


@pytest.mark.parametrize("options", [*KEEPING, {"name": "conv", "widths": [4, 4], "stride": 4, "pool": "catavgmax"}])
def test_a_bundle_rebuilds_network_and_statistics(options, tmp_path):
    encoder = make_encoder(**options, hidden=16, dropout=0.5, local=True, seed=3)
    encoder.network.set_input_statistics(-4.25, 1.75)
    encoder(torch.randn(4, 1, 64, 98))  # moves the running averages
    loaded = load_encoder(save_bundle(encoder, tmp_path / "encoder.safetensors"))
    wave = 0.1 * torch.randn(2, 12000)
    assert not loaded.training
    assert loaded.settings() == encoder.settings()
    assert loaded.hash() == encoder.hash()
    assert (loaded.network.mean.item(), loaded.network.std.item()) == (-4.25, 1.75)
    assert torch.equal(loaded.embed(wave), encoder.embed(wave))


def test_a_bundle_of_other_statistics_shape_is_refused(tmp_path):
    encoder = small_conv()
    path = save_bundle(encoder, tmp_path / "encoder.safetensors")
    encoder.network.mean = torch.zeros(64)
    save_bundle(encoder, path)
    with pytest.raises(BundleError, match="do not fit"):
        load_encoder(path)


def test_settings_tell_what_matters_and_nothing_else():
    common = {"pool": "max", "min_frames": 98, "max_frames": 998, "frontend": FrontEnd().as_dict()}
    whole = make_encoder(SMALL, hidden=3, dropout=0.1, widths=[1], seed=0)
    assert whole.settings() == {"name": SMALL, **common}
    mlp = {"hidden": 8, "dropout": 0.3, "local": False}
    assert small_conv().settings() == {"name": "conv", **common, "stride": 4, "widths": [3, 4], **mlp}
    assert small_conv(stride=4).hash() == small_conv().hash()
    cut = make_encoder(SMALL, stride=16, hidden=8, seed=0)
    assert cut.settings() == {"name": SMALL, **common, "stride": 16, **mlp}


@pytest.mark.parametrize("options", [{}, {"stride": 16, "hidden": 8}], ids=["whole", "cut"])
def test_drop_path_is_in_training_alone_and_in_the_settings(options, tmp_path):
    plain, dropping = (make_encoder(SMALL, seed=0, drop_path=rate, **options) for rate in (None, 0.5))
    assert "drop_path" not in plain.settings()
    assert dropping.settings() == {**plain.settings(), "drop_path": 0.5}
    x = torch.randn(8, 1, 64, 98)
    assert torch.equal(plain.eval()(x), dropping.eval()(x)), "the same weights"
    rates = [part.drop_prob for part in dropping.modules() if isinstance(part, DropPath)]
    assert rates == sorted(rates)
    assert 0 < max(rates) < 0.5
    assert not [part for part in plain.modules() if isinstance(part, DropPath)]
    loaded = load_encoder(save_bundle(dropping, tmp_path / "encoder.safetensors"))
    assert loaded.hash() == dropping.hash()
    assert sum(isinstance(part, DropPath) for part in loaded.modules()) == len(rates)


def test_the_network_of_the_released_code_is_timms_tf_efficientnet_b0():
    """Drop path 0.2 times the share of blocks before, and a BatchNorm epsilon of 1e-3."""
    encoder = make_encoder("tf_efficientnet_b0", drop_path=0.2)
    assert {part.eps for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {1e-3}
    blocks = [block for stage in encoder.network.blocks for block in stage]
    for i, block in enumerate(blocks):
        rate = block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0
        assert rate == pytest.approx(0.2 * i / len(blocks)), i
    ours = make_encoder("efficientnet_b0")
    assert {part.eps for part in ours.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "efficientnet_b0", "drop_path": 1.0}, r"encoder\.drop_path=1\.0: not allowed"),
        ({"name": "vgg11", "drop_path": 0.1}, r"encoder\.drop_path=0\.1: encoder\.name=vgg11 has no such option"),
        ({"name": "vgg11", "drop_path": 0.1, "stride": 8}, r"encoder\.name=vgg11 has no such option"),
        ({"name": SMALL, "stride": 6}, r"encoder\.stride=6: .* it offers 2, 4, 8, 16, 32"),
        ({"name": SMALL, "stride": "8"}, r"encoder\.stride=8: .*whole number"),
        ({"name": "vit_tiny_patch16_224", "stride": 8}, "it offers 16$"),
        ({"name": "swin_tiny_patch4_window7_224", "stride": 8}, "convolutional"),
        ({"name": "eficientnet_b0", "stride": 8}, "efficientnet_b0"),
        ({"name": "conw"}, "close to it: .*conv[, ]"),
        ({"name": "conv", "stride": 4}, r"encoder\.stride=4: .*encoder\.stride=8"),
        ({"name": "conv", "widths": []}, r"encoder\.widths=\[\]"),
        ({"name": "conv", "widths": 64}, r"encoder\.widths=64"),
        ({"name": "conv", "widths": "64"}, r"encoder\.widths=64"),
        ({"name": "conv", "widths": [32, 0]}, r"encoder\.widths=0"),
        ({"name": "conv", "widths": [32, 1.5]}, r"encoder\.widths=1\.5"),
        ({"name": "conv", "hidden": 0}, r"encoder\.hidden=0"),
        ({"name": "conv", "dropout": 1}, r"encoder\.dropout=1"),
        ({"name": "conv", "dropout": -0.1}, r"encoder\.dropout=-0\.1"),
        ({"name": "conv", "dropout": "a"}, r"encoder\.dropout=a"),
        ({"name": "conv", "pool": "maximum"}, r"encoder\.pool=maximum: choose one of max, avg, avgmax, catavgmax"),
        ({"name": "conv", "min_frames": 7}, r"64 bands and 7 frames"),
    ],
)
def test_what_cannot_be_built_gets_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_encoder(**options)
    assert "\n" not in str(caught.value)


def test_a_trunk_must_give_maps():
    with pytest.raises(ConfigError, match="not \\(B, C"):
        FrequencyKeeping(torch.nn.Flatten(), 64)


@pytest.mark.parametrize("local", [False, True])
def test_under_autocast_the_last_layer_and_the_pooling_are_float32(local):
    network = FrequencyKeeping(conv_trunk([8, 8]), 64, hidden=16, pool="avg", local=local).eval()
    x = torch.randn(2, 1, 64, 98)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(x)
        frames = network.trunk((x - network.mean) / network.std).permute(0, 3, 1, 2).flatten(2)
        hidden = network.mlp[:3](frames)
    assert out.dtype == torch.float32
    expected = torch.relu(hidden.float() @ network.mlp[3].weight.T + network.mlp[3].bias).mean(1)
    torch.testing.assert_close(out[:, :16], expected.detach(), rtol=1e-5, atol=1e-6)
