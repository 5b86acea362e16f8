"""The page as a file: whole, bounded, safe, and made whatever is missing."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decar.audio import Manifest
from decar.clustering import Clusters
from decar.downstream import Result
from decar.models import embed_store, save_bundle
from decar.report import RunFiles, explorer, page, render, run, write_environment, write_report
from decar.report.clips import sounds
from decar.report.clusters import Assignments
from decar.report.run import as_script, clustering_names
from tests.conftest import make_encoder
from tests.report.helpers import EVIL, N, small_run, sounds_in, write_clusters


@pytest.fixture(scope="module")
def encoder():
    return make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg")


def gathered(source):
    return run.gather(source, progress=False)


def data_of(html: str):
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)


def result(encoder_hash, **changes):
    given = {
        "task": "kind", "mode": "frozen", "protocol": "search", "bundle": "x", "encoder": "decar",
        "encoder_hash": encoder_hash, "seed": 0, "split_hash": "s", "value": 0.75, "valid_value": 0.5, "n_train": 8,
        "n_valid": 4, "n_test": 4, "n_classes": 2, "dropped": {}, "confusion": [[2, 0], [1, 1]], "classes": ["a", EVIL],
        "chosen": {}, "version": "0", "seconds": 1.0,
    }  # fmt: skip
    return Result(**{**given, **changes})


def test_everything_there_makes_a_page_without_a_note(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    write_environment(source.run)
    result(encoder.hash()).write(source.run / "result.json")
    file = write_report(source, progress=False)
    assert file == source.run / "report.html"
    data = data_of(file.read_text(encoding="utf-8"))
    assert data["notes"] == {}
    assert data["n_clips"] == len(data["clips"]["x"]) == N
    assert data["labels"] == ["kind"]
    assert [c["sizes"]["epochs"] for c in data["clusterings"]] == [[0, 1], [0, 1]]
    three, four, final = data["explorer"]
    assert [found["name"] for found in data["explorer"]] == ["clustering 1", "clustering 2", "final embedding"]
    table = pd.read_csv(source.run / "clusters.csv")
    assert np.bincount(table["cluster"]).tolist() == [c["size"] for c in final["clusters"]]
    assert list(table) == ["path", "start", "duration", "cluster", "distance", "novelty", "kind"]
    assert table["duration"].tolist() == pytest.approx([0.5] * N, abs=0.02)
    kept = Clusters.load(source.run / "clusters.npz")
    vectors = embed_store(encoder, source.store, progress=False)
    assert kept.place(vectors).labels.tolist() == table["cluster"].tolist() == data["clips"]["clusters"][2]
    assert kept.facts["encoder"] == encoder.hash()
    assert three["overall"]["kind"] == {"purity": 1.0, "nmi": 1.0}
    assert [c["size"] for c in four["clusters"]] == [6] * 4
    assert four["overall"]["kind"]["purity"] == pytest.approx(2 / 6)
    assert data["environment"]["decar"] == data["version"]
    [row] = data["results"]
    assert row["confusion"] == [[2, 0], [1, 1]]
    assert data["n_sounds"] == N
    audio, picture, fault = data["clips"]["sounds"]["5"]
    assert (audio[:22], picture[:23], fault) == ("data:audio/ogg;base64,", "data:image/webp;base64,", "")


def test_names_and_labels_are_never_markup(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    evil = tmp_path / "<b onclick='x'>run"
    source.run.rename(evil)
    source = RunFiles(evil, {"note": "</script><script>bad()", "<i>key": 1}, source.store, label="kind")
    html = write_report(source, progress=False).read_text(encoding="utf-8")
    ours = html[: html.index("plotly.js v")] + html[html.rindex("setUpTheme();") :]
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "<script>bad" not in html
    assert "<b onclick" not in html
    assert "&lt;b onclick=&#39;x&#39;&gt;run" in ours
    data = data_of(html)
    assert data["clips"]["name"][0] == EVIL
    assert "</script><img src=x onerror=alert(2)>" in data["clips"]["labels"]["kind"]["values"]
    assert data["config"]["note"] == "</script><script>bad()"


def test_the_page_names_no_address_that_it_would_load_and_forbids_itself_any(tmp_path):
    html = render(gathered(RunFiles(tmp_path, {}, "no clips")))
    assert "default-src 'none'" in html
    assert not re.findall(r"<(?:script|link|img|audio|iframe)[^>]+(?:src|href)=(?![\"']data:)", html)


@pytest.mark.parametrize(
    ("missing", "section", "says"),
    [
        ("metrics.csv", "curves", "not there"), ("clusters.parquet", "clusters", "not there"),
        ("encoder.safetensors", "map", "no such bundle"), ("environment.json", "environment", "not there"),
        ("nothing", "results", "no results of this encoder"),
    ],
)  # fmt: skip
def test_what_is_missing_is_a_note_and_the_rest_is_there(tmp_path, encoder, missing, section, says):
    source = small_run(tmp_path, encoder)
    write_environment(source.run)
    path = source.run / missing
    if path.exists():
        path.rename(tmp_path / "away")
    data = gathered(source)
    assert says in data["notes"][section]
    assert set(data["notes"]) == {section, "results"}
    assert bool(data["curves"]) == (section != "curves")
    assert bool(data["clips"]) == (section != "map")
    assert bool(data["explorer"]) == (section != "map")
    render(data)


def test_damaged_files_are_notes_too(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    (source.run / "encoder.safetensors").write_bytes(b"\0" * 99)
    next((source.run / "clusters.parquet").iterdir()).write_bytes(b"no parquet")
    (source.run / "environment.json").write_text("[1")
    (source.run / "result.json").write_text("{}")
    (source.run / "metrics.csv").write_bytes(b"\xff\xfe\n\n")
    assert set(gathered(source)["notes"]) == {"map", "clusters", "environment", "results", "curves"}


def test_clips_that_are_not_to_be_had_leave_curves_and_flows(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    data = gathered(RunFiles(source.run, {}, "the folder is gone"))
    assert data["notes"]["map"] == "the folder is gone"
    assert data["n_clips"] == N
    assert data["clusterings"][0]["flows"]


def test_no_labels_one_epoch(tmp_path, encoder):
    source = small_run(tmp_path, encoder, epochs=1)
    table = source.store.manifest.table.drop(columns="kind")
    source.store.manifest = Manifest(table, source.store.manifest.root)
    data = gathered(source)
    assert data["labels"] == []
    assert data["clusterings"][0]["flows"] == []
    assert data["explorer"][0]["overall"] == {}
    assert data["explorer"][0]["clusters"][0]["purity"] == {}
    render(data)


def test_clusters_of_other_clips_are_not_laid_over_these(tmp_path, encoder, caplog):
    source = small_run(tmp_path, encoder)
    for part in (source.run / "clusters.parquet").iterdir():
        part.unlink()
    (source.run / "clusters.parquet").rmdir()
    write_clusters(source.run, pd.DataFrame({"path": ["else"] * N}), np.zeros((1, 1, N), int))
    data = gathered(source)
    assert data["clusterings"]
    assert [found["name"] for found in data["explorer"]] == ["final embedding"]
    assert "other clips" in caplog.text


def test_the_summary_counts_sounds_and_ends_with_the_figures_of_the_run(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    result(encoder.hash()).write(source.run / "result.json")
    data = gathered(source)
    found = data["summary"]
    assert found.pop("best")["encoders"] == {"this encoder": 0.75}
    assert found.pop("seconds") == pytest.approx(N * 0.5, abs=N * 0.02)
    figures = {"loss_step": 1.0, "loss_epoch": 0.5, "nmi": 0.5, "n_clusters": 3.0}
    assert found == {"recordings": N, "clips": N, "epochs": 2, "trained": None, "figures": figures}
    assert [c["size"] for c in data["explorer"][2]["clusters"]] == sorted(
        (c["size"] for c in data["explorer"][2]["clusters"]), reverse=True
    )
    assert page.sections_of(data) == ["summary", "explorer", "map", "curves", "clusters", "results", "options"]


def test_one_epoch_has_no_section_of_curves_but_a_run_without_figures_says_so(tmp_path, encoder):
    source = small_run(tmp_path, encoder, epochs=1)
    assert "curves" not in page.sections_of(gathered(source))
    (source.run / "metrics.csv").unlink()
    assert "curves" in page.sections_of(gathered(source))


def test_sampled_clips_are_those_drawn_and_sizes_are_of_all(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(run, "sample", lambda n, seed: np.array([3, 4, 8, 11]))
    data = gathered(small_run(tmp_path, encoder))
    assert data["clips"]["name"] == ["clip 3.wav", "clip 4.wav", "clip 8.wav", "clip 11.wav"]
    assert data["n_clips"] == N
    first = data["explorer"][0]["clusters"]
    assert [c["size"] for c in first] == [8, 8, 8]
    assert data["clips"]["clusters"][0] == [0, 1, 2, 2], "places in the sample"
    assert data["clips"]["middle"][0][:2] == [1.0, 1.0]
    assert data["clips"]["middle"][0][2] == pytest.approx(data["clips"]["middle"][0][3])


def test_sounds_stop_at_the_budget_and_pictures_go_on(tmp_path, encoder):
    store = small_run(tmp_path, encoder).store
    found = sounds(store, list(range(N)), budget=10**6, most=3)
    assert [bool(s.audio) for s in found.values()] == [True] * 3 + [False] * (N - 3)
    assert found[9].picture
    tight = sounds(store, list(range(N)), budget=20_000)
    assert 1 < len(tight) < N
    assert sum(s.size for s in tight.values()) <= 20_000


def test_a_file_that_went_away_keeps_its_picture_and_says_why(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    (tmp_path / "sounds" / "clip 5.wav").unlink()
    (tmp_path / "sounds" / "clip 6.wav").write_text("no sound")
    heard = gathered(source)["clips"]["sounds"]
    assert (heard[5][0], bool(heard[5][1]), heard[5][2]) == ("", True, "file not found")
    assert "not audio" in heard[6][2]


def test_only_results_of_this_encoder_and_what_compares_with_them(tmp_path, encoder):
    source, other = small_run(tmp_path, encoder), tmp_path / "eval"
    given = {
        "own": result(encoder.hash()), "random": result("r", encoder="random"), "other": result("else"),
        "far": result("r", encoder="random", task="unasked"),
    }  # fmt: skip
    for name, one in given.items():
        (other / name).mkdir(parents=True)
        one.write(other / name)
    found = gathered(RunFiles(source.run, {}, source.store, downstream=(other,)))["results"]
    assert [(row["task"], row["encoder"]) for row in found] == [("kind", "random weights"), ("kind", "this encoder")]


def test_results_that_were_judged_again_count_once_and_an_older_split_not_at_all(tmp_path, encoder):
    """All of them were averaged in the bars and in the summary."""
    source, other = small_run(tmp_path, encoder), tmp_path / "eval"
    own = {"network": "conv", "value": 0.5}
    given = [
        result(encoder.hash(), **{**own, "value": 0.1}, split_hash="t"), result("r", encoder="random", split_hash="t"),
        result(encoder.hash(), **{**own, "value": 0.2}), result(encoder.hash(), **own),
        result("r", encoder="random", network="conv", value=0.3), result("q", encoder="random", network="wide"),
    ]  # fmt: skip
    for i, one in enumerate(given):
        (other / f"{9 - i}").mkdir(parents=True)
        os.utime(one.write(other / f"{9 - i}"), (1000 + i, 1000 + i))
    data = gathered(RunFiles(source.run, {}, source.store, downstream=(other,)))
    assert [(row["encoder"], row["value"]) for row in data["results"]] == [
        ("random weights", 0.3), ("this encoder", 0.5),
    ]  # fmt: skip
    assert data["notes"]["results"] == "results of kind on older splits are left out: they do not compare"


def test_a_label_that_is_missing_is_none_on_the_map_too(tmp_path, encoder):
    source = small_run(tmp_path, encoder)
    table = source.store.manifest.table.assign(kind=[None, "low", float("nan"), "high"] * 6)
    store = replace(source.store, manifest=replace(source.store.manifest, table=table))
    data = gathered(RunFiles(source.run, {}, store, label="kind"))
    assert data["clips"]["labels"]["kind"]["values"] == ["high", "low"]
    assert data["clips"]["labels"]["kind"]["codes"] == [-1, 1, -1, 0] * 6


def test_numbers_that_json_has_not_and_odd_names(tmp_path):
    text = str(as_script({"a": float("nan"), 3: [float("inf"), np.float32(0.5)], "b": "\udcff & <"}))
    assert json.loads(text) == {"a": None, "3": [None, 0.5], "b": "\udcff & <"}
    assert not set("<&") & set(text)
    assert len(sounds_in(tmp_path, 3)) == 3


def test_a_fault_of_ours_costs_a_section_and_is_told_in_the_log(tmp_path, encoder, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(explorer, "tsne", broken)
    data = gathered(small_run(tmp_path, encoder))
    assert data["notes"]["map"] == "could not be made: RuntimeError: no ink"
    assert data["curves"]
    assert "section map could not be made" in caplog.text


def test_clusterings_are_named_by_what_they_are_of():
    def of(*epochs):
        return Assignments(pd.DataFrame(), list(epochs), np.zeros((len(epochs), 0), np.int64))

    both = {"labels": {"_target_": "decar.pretrain.BothLabels", "first": {"descriptors": ["spectrum", "change"]}}}
    assert clustering_names(both, [of(0, 1), of(0, 1), of(1, 2)]) == ["spectrum", "change", "own, epoch 3"]
    paper = {"labels": {"_target_": "decar.pretrain.NetworkLabels"}}
    assert clustering_names(paper, [of(0, 99)]) == ["own, epoch 100"]
    assert clustering_names({"labels": {"_target_": "mine.Labels"}}, [of(0)]) == ["clustering 1"]
    assert clustering_names({"labels": "broken"}, [of(0), of(0)]) == ["clustering 1", "clustering 2"]


def test_a_run_folder_that_cannot_be_written_has_its_page_all_the_same(tmp_path, encoder, caplog):
    source = small_run(tmp_path, encoder)
    (source.run / "clusters.npz").mkdir()
    data = run.gather(source, progress=False, keep=True)
    assert data["explorer"]
    assert "the clusters of the run are not written" in caplog.text


def test_a_page_that_is_made_again_takes_its_clips_from_the_one_before(tmp_path, encoder, monkeypatch):
    source = small_run(tmp_path, encoder)
    first = data_of(write_report(source, progress=False).read_text(encoding="utf-8"))
    looked, other = [], make_encoder("conv", seed=9, widths=[4, 4], hidden=8, pool="avg")
    true_look = run.look
    monkeypatch.setattr(run, "look", lambda *args, **options: looked.append(1) or true_look(*args, **options))
    result(encoder.hash()).write(source.run)
    again = data_of(write_report(source, progress=False).read_text(encoding="utf-8"))
    assert looked == []
    assert again["clips"] == first["clips"]
    assert (len(first["results"] or []), len(again["results"])) == (0, 1)
    file = source.run / "report.html"
    for i, change in enumerate((
        lambda: file.write_bytes(file.read_bytes().replace(b'"middle":[[', b'"middle":[[0,', 1)),  # damaged
        lambda: (source.run / "clusters.csv").unlink(),
        lambda: write_report(RunFiles(source.run, source.config, source.store, label="kind", seed=1), progress=False),
        lambda: save_bundle(other, source.run / "encoder.safetensors"),
    ), 1):  # fmt: skip
        change()
        looked.clear()
        renewed = data_of(write_report(source, progress=False).read_text(encoding="utf-8"))
        assert looked == [1], i
        assert (renewed["clips"]["x"] == first["clips"]["x"]) == (i < 4)
        assert (source.run / "clusters.csv").is_file()
