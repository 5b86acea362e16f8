"""Run folders that somebody sent run nothing, read nothing of the reader's, and take no memory without bound."""

import ast
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import decar
from decar.audio import FrontEnd, Manifest
from decar.cli.runs import MAX_BYTES, read_config
from decar.errors import ConfigError, ManifestError, SearchError
from decar.report.folder import cache_of, frontend_of, manifest_of
from tests.audio.sounds import tone, write

ROOT = Path(decar.__file__).parent


@pytest.fixture
def honest(tmp_path):
    """The configuration of a run, as plain values."""
    write(tmp_path / "sounds" / "a.wav", tone(0.5))
    manifest = {"_target_": "decar.audio.Manifest.from_folder", "root": str(tmp_path / "sounds")}
    return {
        "data": {"name": "folder", "label": None, "manifest": manifest},
        "frontend": {"_target_": "decar.audio.FrontEnd", **FrontEnd().as_dict()},
        "seed": 0,
        "cache_dir": str(tmp_path / "theirs"),
    }


def hostile(honest, mark):
    """One variant of `honest` a line, each of which made the folder `mark` when it was instantiated."""
    evil = {"_target_": "os.mkdir", "path": str(mark)}
    manifest, frontend = honest["data"]["manifest"], honest["frontend"]
    return {
        "outer target": {**honest, "data": {**honest["data"], "manifest": evil}},
        "nested target in the manifest's path": {**honest, "data": {"manifest": {**manifest, "root": evil}}},
        "another of decar's functions": {
            **honest, "data": {"manifest": {"_target_": "decar.models.save_bundle", "bundle": "x", "address": "a/b"}},
        },
        "target of the front-end": {**honest, "frontend": evil},
        "nested target in a number": {**honest, "frontend": {**frontend, "sample_rate": evil}},
        "partial target": {**honest, "data": {"manifest": {**manifest, "_partial_": True}}},
        "nested target in a list": {**honest, "data": {"manifest": {**manifest, "root": [evil]}}},
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hostile({"data": {"manifest": {}}, "frontend": {}}, "")))
def test_a_hostile_run_folder_runs_nothing(name, honest, tmp_path, decar):
    run, mark = tmp_path / "run", tmp_path / "ran"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(hostile(honest, mark)[name]))
    outcome = decar("report", str(run))
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "config.yaml: " in outcome.errors[0]
    assert not mark.exists()
    assert not (run / "report.html").exists()


def test_the_environment_of_the_reader_stays_out_of_the_page(honest, tmp_path, decar, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = tmp_path / "run"
    run.mkdir()
    honest["data"]["label"] = "${oc.env:SECRET}"
    (run / "config.yaml").write_text(yaml.safe_dump(honest))
    assert decar("report", str(run)).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "hunter2" not in page
    assert "oc.env:SECRET" in page


def test_picks_of_a_resumed_run_are_numbers_or_nothing(tmp_path, monkeypatch):
    from decar.cli.runs import PICKED, read_before
    from decar.cli.trainer import _kept

    monkeypatch.setenv("SECRET", "7")
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({}, checkpoint)  # of an earlier version: it keeps no options
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"k": "${oc.env:SECRET}", "trainer": {"max_epochs": 3}}))
    assert _kept(read_before(checkpoint), list(PICKED)) == {"trainer.max_epochs": 3}


def test_an_honest_configuration_gives_its_clips(honest, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(honest))
    config = read_config(tmp_path / "config.yaml")
    assert config == honest
    assert manifest_of(config).table["path"].tolist() == ["a.wav"]
    assert frontend_of(config) == FrontEnd()
    assert isinstance(manifest_of(config), Manifest)


def test_only_a_folder_that_decar_kept_log_mels_in_is_a_cache(honest, tmp_path):
    assert cache_of(honest, "mine") == "mine"
    (tmp_path / "theirs" / "logmel").mkdir(parents=True)
    assert cache_of(honest, "mine") == str(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "has YAML aliases"),
        ("a: " + "1" * MAX_BYTES, "larger than"),
        ("- 1\n- 2\n", "not a mapping"),
        ("[" * 100_000, "has more than 50 levels"),
        ("a: " + "{a: " * 60, "has more than 50 levels"),
        ("a: [\0", "cannot be read"),
        ("a: !!python/object/apply:os.mkdir [x]\n", "cannot be read"),
        ("", "holds no options"),
        ("{}", "holds no options"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(text, says, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        read_config(file)
    assert "\n" not in str(error.value)


def test_wrong_numbers_are_named(honest):
    with pytest.raises(ConfigError, match=r"frontend.f_min=True is not a number"):
        frontend_of({**honest, "frontend": {**honest["frontend"], "f_min": True}})
    with pytest.raises(ConfigError, match=r"frontend"):
        frontend_of({**honest, "frontend": {**honest["frontend"], "sample_rate": "many"}})
    with pytest.raises(ConfigError, match=r"frontend.n_fast is no option of"):
        frontend_of({**honest, "frontend": {**honest["frontend"], "n_fast": 3}})


def test_a_table_that_names_a_bundle_on_the_hub_downloads_nothing(tmp_path, monkeypatch):
    from decar.models import bundle
    from decar.neighbours.index import EmbeddingTable
    from decar.neighbours.query import find_queries

    def fetch(address):
        raise AssertionError(f"{address} was fetched")

    monkeypatch.setattr(bundle, "_fetch", fetch)
    sound = write(tmp_path / "a.wav", tone(0.5))
    table = EmbeddingTable(tmp_path / "e.parquet", pd.DataFrame({"path": ["b.wav"]}), 3, {"bundle": "hf://evil/one"})
    with pytest.raises(
        SearchError, match=r"nothing is downloaded .*because a file says so; .* pass --bundle hf://evil/one"
    ):
        find_queries([str(sound)], table)


def test_no_module_instantiates_what_it_found():
    """`instantiate` stands only where the configuration is Hydra's; run folders are read in cli/runs.py alone."""
    loads, makes = set(), set()
    for path in sorted((ROOT / "cli").glob("*.py")):
        text = path.read_text()
        loads |= {path.stem} if "OmegaConf.load(" in text else set()
        makes |= (
            {path.stem}
            if "instantiate" in {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
            else set()
        )
    # a child of a job loads what its parent has just written; the checks read decar's own conf/
    assert loads == {"launch", "checks"}
    assert makes == {"train", "eval", "config", "trainer"}, "modules whose configuration is the caller's own"


def test_a_found_configuration_cannot_have_addresses_fetched(honest, tmp_path):
    (tmp_path / "t.csv").write_text("path\nhttps://example.org/a.wav\n")
    manifest = {"_target_": "decar.audio.Manifest.from_csv", "path": str(tmp_path / "t.csv")}
    with pytest.raises(ConfigError, match=r"data.manifest.fetch is no option of decar.audio.Manifest.from_csv"):
        manifest_of({**honest, "data": {"manifest": {**manifest, "fetch": True}}})
    with pytest.raises(ManifestError, match=r"https://example.org/a.wav is an address, and nothing is fetched"):
        manifest_of({**honest, "data": {"manifest": manifest}}).identity()
