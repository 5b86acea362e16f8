"""Exported files against `Encoder.embed`: real sounds, every bend of the padding's rule, several batch sizes."""

import json
from importlib import resources

import numpy as np
import onnx
import pytest
import torch

from decar.audio import FrontEnd, LogMel, decode
from decar.errors import ConfigError
from decar.models import Encoder, save_bundle
from decar.models.export import (
    TOLERANCE,
    ExportError,
    WaveformEncoder,
    export_encoder,
    largest_difference,
    load_exported,
    longest,
    trial_clips,
)  # fmt: skip
from tests.conftest import SMALL, make_encoder

CLOSE = 1e-4  # for the networks tried here; one that follows single log-mels comes to more


def tiny(**options):
    encoder = make_encoder("conv", widths=[4, 8], hidden=16, pool="catavgmax", local=True, seed=0, **options)
    return encoder.eval()


def real_clips():
    files = sorted((resources.files("decar") / "data" / "mini" / "audio").iterdir(), key=str)[::250]
    sound = torch.cat([torch.from_numpy(decode(str(file))) for file in files])
    sound = sound.repeat(-(-160_000 // len(sound)))
    clips = [sound[None, :n] for n in (100, 400, 7000, 16_077, 33_333, 160_000)]
    return [*clips, torch.stack([sound[i * 9000 :][:20_000] for i in range(4)])]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / f"encoder.{request.param}"
    encoder = tiny()
    return encoder, path, request.param, export_encoder(encoder, path, request.param)


def test_real_sounds_of_any_length_embed_alike(exported):
    encoder, path, to, reported = exported
    assert 0 <= reported <= CLOSE
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # one file, nothing beside it
    assert largest_difference(encoder, load_exported(path, to), real_clips()) <= CLOSE


@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("dim", [None, 5])
def test_a_readout_and_fewer_numbers_are_exported(tmp_path, to, dim):
    encoder = tiny(readout=[1, 2], readout_bands=5)
    if dim:
        encoder = encoder.reduced(torch.linalg.qr(torch.randn(encoder.dim, dim))[0].T).eval()
    export_encoder(encoder, tmp_path / "encoder", to)
    embed = load_exported(tmp_path / "encoder", to)
    assert embed(real_clips()[2]).shape[1] == encoder.dim
    assert largest_difference(encoder, embed, real_clips()) <= CLOSE


def test_the_file_says_what_it_is(exported):
    encoder, path, to, _ = exported
    if to == "onnx":
        model = onnx.load(path)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        shape = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert shape == ["batch", "samples"]
    else:
        extra = {"decar.json": ""}
        torch.export.load(str(path), extra_files=extra)
        facts = json.loads(extra["decar.json"])
    assert facts["sample_rate"] == "16000"
    assert facts["embedding_dim"] == str(encoder.dim)
    assert facts["max_samples"] == str(998 * 160 + 399)
    assert facts["piece_hop"] == str(998 * 160)
    assert facts["encoder_hash"] == encoder.hash()
    assert json.loads(facts["settings"]) == json.loads(json.dumps(encoder.settings()))


@pytest.mark.parametrize("options", [{}, {"min_frames": 50, "max_frames": 70}, {"min_frames": 64, "max_frames": 64}])
def test_the_rule_of_padding_is_kept_at_every_length(options):
    encoder = tiny(**options)
    module = WaveformEncoder(encoder).eval()
    top = encoder.max_frames - 1
    lengths = [1, 399, 400, 559, 560, *(400 + 160 * f + 31 for f in (*range(40, min(top, 140)), top - 45, top))]
    clips = [0.1 * torch.randn(1, n) for n in lengths if encoder.frontend.n_frames(n) <= encoder.max_frames]
    differences = [largest_difference(encoder, module, [clip]) for clip in clips]
    assert np.median(differences) <= 1e-5  # a wrong length would differ in all
    assert max(differences) <= CLOSE  # where a log-mel was rounded otherwise


def test_a_longer_sound_is_refused_by_the_file_not_cut(exported):
    encoder, path, to, _ = exported
    embed = load_exported(path, to)
    assert embed(torch.zeros(1, longest(encoder))).shape == (1, encoder.dim)
    with pytest.raises(Exception, match=r"(?i)bounds|range|guard|<="):
        embed(torch.zeros(1, longest(encoder) + 1))


def test_frames_of_a_convolution_are_those_of_the_fft():
    spec = FrontEnd(n_fft=512, win_length=320, hop_length=80, n_mels=32)
    encoder = make_encoder("conv", widths=[4], hidden=8, frontend=spec, seed=0).eval()
    seen = []
    encoder.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    wave = 0.1 * torch.randn(1, 12_000)  # 147 frames, 13 of silence
    WaveformEncoder(encoder).eval()(wave)
    mel = seen[0][:, 0]
    expected = LogMel(spec)(wave).half().float()
    away = (mel[..., :147].squeeze(1) - expected).abs()
    assert (away > 1e-4).float().mean() < 0.01  # halfway between two float16 numbers
    assert away.max() < 0.01
    assert torch.allclose(mel[..., 147:], torch.tensor(spec.silence))
    assert mel.shape[-1] == 160


def test_the_trial_hears_what_is_wrong():
    encoder = tiny()
    assert largest_difference(encoder, lambda wave: encoder.embed(wave) * 1.01) == pytest.approx(0.01, rel=0.01)
    assert largest_difference(encoder, lambda wave: encoder.embed(wave)[:1]) == float("inf")
    assert largest_difference(encoder, lambda wave: encoder.embed(wave[:, :150_000])) > TOLERANCE
    assert {wave.shape[0] for wave in trial_clips(encoder)} == {1, 3}


class LogMelItself(torch.nn.Module):
    """A network that follows each log-mel, as encoders of some real runs nearly do: 1.1e-4 was seen, and refused."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, logmel):
        return self.scale * logmel[:, 0, :, :40].flatten(1)


def test_log_mels_rounded_the_other_way_are_no_fault(tmp_path):
    encoder = Encoder(LogMelItself(), FrontEnd(), min_frames=98, max_frames=998)
    assert CLOSE < export_encoder(encoder, tmp_path / "encoder.pt2", "torch") <= TOLERANCE


def test_a_file_that_embeds_differently_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr("decar.models.export.load_exported", lambda path, to: lambda wave: torch.zeros(len(wave), 96))
    with pytest.raises(ExportError, match="embeds differently"):
        export_encoder(tiny(), tmp_path / "encoder.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'decar\[export\]'"):
        export_encoder(tiny(), tmp_path / "encoder.onnx", "onnx")
    with pytest.raises(ConfigError, match="--to tflite: choose one of onnx, torch"):
        export_encoder(tiny(), tmp_path / "encoder.tflite", "tflite")


def test_the_encoder_keeps_its_flags(tmp_path):
    encoder = tiny().train()
    export_encoder(encoder, tmp_path / "encoder.pt2", "torch")
    assert all(part.training for part in encoder.modules())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "efficientnet_b0", "pool": "max"},
        {"name": "efficientnet_b0", "pool": "avg", "stride": 8},
        {"name": "mobilenetv3_small_100", "pool": "max"},
        {"name": SMALL, "pool": "catavgmax"},
        {"name": "conv", "stride": 8, "local": True, "pool": "catavgmax"},
    ],
    ids=lambda options: f"{options['name']}-{options['pool']}",
)
def test_the_networks_that_people_use(tmp_path, options, to):
    encoder = make_encoder(seed=0, **options).eval()
    assert export_encoder(encoder, tmp_path / "file", to) <= CLOSE
    assert largest_difference(encoder, load_exported(tmp_path / "file", to), real_clips()) <= CLOSE


def test_the_command_writes_checks_and_says_so(tmp_path, capsys):
    from decar.cli.app import main

    bundle = save_bundle(tiny(), tmp_path / "encoder.safetensors")
    main(["export", str(bundle), "--to", "torch", "--out", str(tmp_path / "out" / "encoder.pt2")])
    out = capsys.readouterr().out
    assert "waveform (batch, samples) at 16000 Hz in, embedding (batch, " in out
    assert "largest relative difference" in out
    assert (tmp_path / "out" / "encoder.pt2").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "none"), "--to", "torch", "--out", str(tmp_path / "encoder.pt2")])
    assert stop.value.code == 2
    assert "no such bundle" in capsys.readouterr().err
