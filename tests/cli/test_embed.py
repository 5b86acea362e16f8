import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

import decar
from decar.models import load_encoder, read_facts, save_bundle
from decar.models.bundle import READY_FILE
from decar.models.components import principal_directions
from tests.cli.helpers import decar as run_decar
from tests.conftest import make_encoder

decar_command = run_decar


def test_embed_answers_with_no_training(decar_command, sound_folder, tmp_path):
    outcome = decar_command("embed", str(sound_folder))
    assert outcome.code == 0, outcome.err
    table = pd.read_parquet(tmp_path / "embeddings.parquet")
    assert len(table) == 12
    assert set(table["label"]) == {"low", "high", "noise"}
    x = np.stack(table["embedding"])
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    near = (x @ x.T - 1e9 * np.eye(12)).argmax(1)
    assert (table["label"].to_numpy()[near] == table["label"]).all()  # and says something about the sounds


def test_untrained_weights_are_those_of_eval(decar_command, sound_folder, tmp_path):
    outcome = decar_command("embed", str(sound_folder / "low"), "--bundle", "random", "--out", "o.npy")
    assert outcome.code == 0, outcome.err
    assert np.load(tmp_path / "o.npy").shape == (4, 3072)
    assert pd.read_csv(tmp_path / "o.npy.paths.csv")["path"].tolist() == ["0.wav", "3.wav", "6.wav", "9.wav"]


def test_fewer_numbers_are_embedded_and_searched(decar_command, sound_folder, tmp_path):
    """A search embeds its sound with the directions of the table, and finds what the whole embeddings find."""
    encoder = make_encoder("conv", "catavgmax", widths=(4, 8, 8), hidden=16, local=True, seed=0).eval()
    vectors = decar.embed(sound_folder, encoder, progress=False).vectors
    directions = principal_directions(vectors, 8).half().float()  # as a bundle has them
    save_bundle(encoder, tmp_path / "encoder.safetensors", directions=directions)
    outcome = decar_command("embed", str(sound_folder), "--bundle", "encoder.safetensors", "--dim", "8")
    assert outcome.code == 0, outcome.err
    assert "12 embeddings of 8 numbers" in outcome.out
    table = pd.read_parquet(tmp_path / "embeddings.parquet")
    np.testing.assert_allclose(np.stack(table["embedding"]), vectors @ directions.numpy().T, rtol=1e-3, atol=1e-4)
    sound = str(sound_folder / "high" / "1.wav")
    outcome = decar_command("search", sound, "embeddings.parquet", "-n", "3")
    assert outcome.code == 0, outcome.err
    assert all("high" in line for line in outcome.out.splitlines()[1:4])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["nothing"], "nothing does not exist"),
        (["sounds", "--out", "o.txt"], "has to end in"),
        (["sounds", "--hop", "1"], "without --windows"),
        (["sounds", "--bundle", "no.safetensors"], "no such bundle"),
        (["sounds", "--batch-size", "0"], "0: not allowed"),
        (["sounds", "--dim", "8"], "has no principal directions, so dim=8 cannot be had"),
        (["sounds", "--dim", "8", "--bundle", "random"], "--dim 8: random weights have no principal directions"),
    ],
)
def test_mistakes_get_one_line(decar_command, sound_folder, options, told):
    outcome = decar_command("embed", *options)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert told in outcome.errors[0]


def test_nothing_to_embed_is_a_failure(decar_command, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    outcome = decar_command("embed", str(tmp_path / "bad.wav"))
    assert outcome.code == 2
    assert "none of the 1 clips" in outcome.errors[0]


def test_small_is_a_name_and_a_path_is_a_path(tmp_path, monkeypatch):
    ready = decar.load_encoder()
    assert READY_FILE.stat().st_size < 12e6
    assert decar.load_encoder("small").hash() == ready.hash()
    monkeypatch.chdir(tmp_path)
    save_bundle(make_encoder("mobilenetv3_small_050", seed=1), tmp_path / "small" / "encoder.safetensors")
    assert decar.load_encoder("small").hash() == ready.hash()
    assert decar.load_encoder("./small").hash() != ready.hash()
    assert decar.load_encoder(tmp_path / "small").hash() != ready.hash()


def test_the_ready_bundle_says_where_it_comes_from(tmp_path):
    facts = read_facts()
    assert facts["clips"] == 5542
    assert facts["step"] == 1728
    assert facts["seed"] == 0
    assert all(name.startswith(("MIT", "BSD", "CC")) for name in facts["licenses"])
    with safe_open(READY_FILE, framework="pt") as file:
        assert json.loads(file.metadata()["decar"])["version"]
        assert str(file.get_tensor("mlp.0.weight").dtype) == "torch.float16"
    again = save_bundle(load_encoder(), tmp_path / "a.safetensors", facts, half=True)
    assert load_encoder(again).hash() == load_encoder().hash()
    shutil.copy(again, tmp_path / "b.safetensors")
    assert load_encoder(save_bundle(load_encoder(again), tmp_path / "c.safetensors")).hash() == load_encoder().hash()
