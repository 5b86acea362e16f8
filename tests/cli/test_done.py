"""What is done is not done again, and a table in one sweep."""

import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.damage import damage
from decar.cli.config import OUR_NETWORK, job_name
from decar.cli.runs import changed_options, options_of_seeds, refuse_other_run, same_job
from decar.digests import read_json, write_json
from decar.errors import TrainingError
from decar.models import read_facts, save_bundle
from tests.conftest import SMALL, make_encoder

FAST = [
    "experiment=paper", "report=false", f"encoder.name={SMALL}", "trainer=cpu", "trainer.max_epochs=1",
    "loader.batch_size=8",
]  # fmt: skip


def exchange(folder):
    """Low and high tones change places, at equal sizes and modification times."""
    for low, high in zip(sorted((folder / "low").iterdir()), sorted((folder / "high").iterdir()), strict=True):
        contents, times = (high.read_bytes(), low.read_bytes()), (low.stat().st_mtime_ns, high.stat().st_mtime_ns)
        for path, content, time in zip((low, high), contents, times, strict=True):
            path.write_bytes(content)
            os.utime(path, ns=(time, time))


@pytest.fixture
def asked(tmp_path):
    cfg = OmegaConf.create({"k": None, "seed": 0, "resume": None, "labels": {"k": None}, "callbacks": [{"x": 1}]})
    OmegaConf.save(OmegaConf.merge(cfg, {"k": 64, "labels": {"k": 64}}), tmp_path / "config.yaml")
    return cfg


def test_same_job_looks_at_what_was_asked_for(asked, tmp_path):
    assert same_job(asked, tmp_path), "k was left open and picked"
    asked.resume = "auto"
    assert same_job(asked, tmp_path), "how it goes on does not count"
    assert not same_job(OmegaConf.merge(asked, {"k": 32}), tmp_path)
    assert not same_job(OmegaConf.merge(asked, {"seed": 1}), tmp_path)
    assert not same_job(OmegaConf.merge(asked, {"callbacks": [{"x": 2}]}), tmp_path)
    assert not same_job(OmegaConf.merge(asked, {"new": 1}), tmp_path)
    later = {"exact": True, "compile": False, "devices": [1]}  # as earlier versions did, and on another GPU
    assert same_job(OmegaConf.merge(asked, later), tmp_path)
    assert not same_job(OmegaConf.merge(asked, {"exact": False}), tmp_path)
    assert not same_job(asked, tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("{")
    assert not same_job(asked, tmp_path)


def test_a_run_of_before_networks_had_names_goes_on():
    cfg = OmegaConf.create({"encoder": {"_target_": OUR_NETWORK, "n_mels": 64, "name": "conv"}})
    before = {"encoder._target_": "decar.models.Encoder", "encoder.name": "conv"}
    assert not changed_options(before, cfg)
    assert changed_options({**before, "encoder.name": "resnet18"}, cfg) == {"encoder.name": ("resnet18", "conv")}
    assert "encoder._target_" in changed_options({**before, "encoder._target_": "mymodule.MyNetwork"}, cfg)


def test_names_of_folders():
    assert (
        job_name(["k=2", "clusterer=pic", "resume=auto"]) == job_name(["clusterer=pic", "k=2"]) == "clusterer=pic,k=2"
    )
    names = [job_name([f"bundle=/{a}/run 1/", "k=2"]) for a in "ab"]
    assert all(name.startswith("bundle=run_1_,k=2-") for name in names)
    assert names[0] != names[1], "two paths with one end"
    long = [job_name([f"x={'y' * 300}{a}"]) for a in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 200
    assert job_name([]).startswith("job")


def test_a_sweep_again_does_only_what_is_new(train, sound_folder, tmp_path):
    sweep = ["-m", *FAST, "data=folder", f"data.root={sound_folder}", "resume=auto", f"hydra.sweep.dir={tmp_path}/s"]
    first = train(*sweep, "k=2,300")
    assert first.code == 2, "300 clusters of a dozen clips"
    [run] = [path for path in (tmp_path / "s").iterdir() if "k=2," in path.name]
    weights = (run / "encoder.safetensors").stat().st_mtime_ns
    again = train(*sweep, "k=3,2")  # the other order: a job is found by its options, not by its number
    assert again.code == 0, again.err
    assert again.out.count("done already") == 1
    assert (run / "encoder.safetensors").stat().st_mtime_ns == weights
    assert read_facts(run)["k"] == 2
    assert read_facts(run)["clusterer"] == "kmeans"
    longer = train(*sweep, "k=2", "trainer.max_epochs=2")
    assert "done already" not in longer.out


def test_jobs_that_differ_only_in_what_plays_no_part_are_one(train, sound_folder, tmp_path):
    """PIC has no `k`: of a sweep over both it is trained once, and known as done when the sweep is repeated."""
    words = ["-m", *FAST, "data=folder", f"data.root={sound_folder}", "clusterer=pic,kmeans", "k=2,3",
             "hydra.sweep.dir=s"]  # fmt: skip
    first = train(*words)
    assert first.code == 0, first.err
    finished = sorted(path.parent.name for path in (tmp_path / "s").glob("*/finished.json"))
    assert [name[: name.index(",data")] for name in finished] == [
        "clusterer=kmeans",
        "clusterer=kmeans",
        "clusterer=pic",
    ]
    assert first.out.count("from which only k=3 differs, which is not used") == 1
    again = train(*words[:-2], "k=5,3,2", "clusterer=pic", "hydra.sweep.dir=s", "resume=auto")
    assert again.code == 0, again.err
    assert again.out.count("done already") == 3
    assert sorted(path.parent.name for path in (tmp_path / "s").glob("*/finished.json")) == finished
    bundle = next((tmp_path / "s").glob("clusterer=pic*/encoder.safetensors"))
    damage(bundle, np.random.default_rng(0), "zeros")
    anew = train(*words[:-3], "clusterer=pic", "k=7", "hydra.sweep.dir=s", "resume=auto")
    assert anew.code == 0, anew.err
    assert "is not used" in anew.out
    assert "done already" not in anew.out, "without its bundle the other job is of no use"
    assert len(list((tmp_path / "s").glob("*/finished.json"))) == 4


@pytest.mark.slow  # two processes that import torch
def test_side_by_side_they_are_one_too(train, sound_folder, tmp_path):
    words = ["-m", *FAST, "data=folder", f"data.root={sound_folder}", "clusterer=pic", "k=2,3,4", "hydra.sweep.dir=s",
             "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]  # fmt: skip
    done = train(*words)
    assert done.code == 0, done.err
    assert len(list((tmp_path / "s").glob("*/encoder.safetensors"))) == 1
    logs = [path.read_text() for path in (tmp_path / "s").glob("*/train.log")]
    assert sum("which is not used" in text and "done already in" in text for text in logs) == 2


def test_another_seed_or_other_sounds_are_another_job(train, sound_folder, tmp_path):
    words = ["-m", *FAST, "data=folder", f"data.root={sound_folder}", "clusterer=pic", "hydra.sweep.dir=s"]
    assert train(*words, "k=2").code == 0
    assert "done already" not in train(*words, "k=3", "seed=1").out
    exchange(sound_folder)
    assert "done already" not in train(*words, "k=4").out
    exchange(sound_folder)
    assert "done already" in train(*words, "k=5").out


def test_a_run_goes_on_only_with_its_own_options_and_sounds(train, sound_folder, tmp_path):
    common = [*FAST, "data=folder", f"data.root={sound_folder}", f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]
    assert train(*common, "k=3").code == 0
    assert "k: 3 there, 2 here" in train(*common, "k=2").err
    assert "optimizer.lr: 0.05 there, 0.01 here" in train(*common, "k=3", "optimizer.lr=0.01").err
    exchange(sound_folder)
    assert "other content or order" in train(*common, "k=3").err
    exchange(sound_folder)
    added = sound_folder / "low" / "new.wav"
    shutil.copy(sound_folder / "low" / "0.wav", added)
    assert "12 clips, here 13" in train(*common, "k=3").err
    added.unlink()
    assert "done already" in train(*common, "k=3", "logger=csv", "stall_timeout=30").out
    sound_folder.rename(tmp_path / "moved")
    common[common.index(f"data.root={sound_folder}")] = f"data.root={tmp_path / 'moved'}"
    assert "done already" in train(*common, "k=3").out
    (tmp_path / "run").rename(tmp_path / "moved run")
    common[common.index(f"hydra.run.dir={tmp_path / 'run'}")] = f"hydra.run.dir={tmp_path / 'moved run'}"
    assert "done already" in train(*common, "k=3").out
    longer = train(*common, "k=3", "trainer.max_epochs=2", "stall_timeout=60")
    assert longer.code == 0, longer.err
    assert len(pd.read_csv(tmp_path / "moved run" / "metrics.csv")) == 2


def test_a_finished_run_makes_again_what_it_has_lost(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    common = [*FAST, "data=folder", f"data.root={sound_folder}", f"hydra.run.dir={run}", "resume=auto", "k=3",
              "trainer.max_epochs=2"]  # fmt: skip
    assert train(*common).code == 0
    files = ["encoder.safetensors", "clusters.parquet/epoch_00001.parquet", "metrics.csv"]
    before = {name: (run / name).read_bytes() for name in files}
    figures = set(json.loads((run / "finished.json").read_text())["metrics"].items())
    (run / files[0]).unlink()
    damage(run / files[1], np.random.default_rng(0), "zeros")
    first_epoch = run / "clusters.parquet/epoch_00000.parquet"
    first_epoch.unlink()
    outcome = train(*common, "report=true")
    assert outcome.code == 0, outcome.err
    assert f"{run / files[0]}: it is missing; making it again" in outcome.out
    assert f"{run / files[1]}: it is damaged" in outcome.out
    assert f"{first_epoch}: it is missing, and no checkpoint holds this epoch" in outcome.out
    assert {name: (run / name).read_bytes() for name in files} == before
    assert set(json.loads((run / "finished.json").read_text())["metrics"].items()) <= figures
    assert (run / "report.html").is_file()
    assert not first_epoch.exists()
    (run / files[1]).unlink()
    shutil.rmtree(run / "checkpoints")
    outcome = train(*common)
    assert "there is no checkpoint to make it from" in outcome.out
    assert "done already" in outcome.out


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [((2, True), (2, False), False), ((2, False), (4, False), True), ((1, False), (2, True), True),
     ((1, True), (2, False), False)],
)  # fmt: skip
def test_what_batchnorm_is_computed_over_stays(before, now, same, tmp_path):
    """A run's number of processes, and `trainer.sync_batchnorm`."""
    run = {
        "options": {"trainer.sync_batchnorm": before[1]},
        "content": "",
        "n_clips": 1,
        "version": "1",
        "processes": before[0],
    }
    torch.save({"run": run}, tmp_path / "last.ckpt")
    cfg = OmegaConf.create({"trainer": {"sync_batchnorm": now[1]}})
    with nullcontext() if same else pytest.raises(TrainingError, match=r"sync_batchnorm .*: True there, False here"):
        refuse_other_run(cfg, tmp_path / "last.ckpt", "", 1, now[0])


def test_a_root_for_the_bundled_sounds_is_refused(train, sound_folder):
    outcome = train(*FAST, f"data.root={sound_folder}")
    assert outcome.code == 2
    assert "data.root" in outcome.err


def test_judged_once(evaluate, sound_folder, tmp_path):
    bundle = save_bundle(make_encoder(SMALL, seed=5), tmp_path / "run" / "encoder.safetensors")
    table = tmp_path / "mine.csv"
    files = sorted(path.relative_to(sound_folder) for path in sound_folder.rglob("*.wav"))
    pd.DataFrame({"path": files, "label": [path.parent.name for path in files]}).to_csv(table, index=False)
    words = ["task=csv", f"task.path={table}", f"task.root={sound_folder}", "task.split=null", f"bundle={bundle}",
             "resume=auto", f"hydra.run.dir={tmp_path / 'out'}"]  # fmt: skip
    result = tmp_path / "out" / "result.json"
    assert evaluate(*words).code == 0
    first = result.stat().st_mtime_ns
    assert "judged already" in evaluate(*words).out
    assert result.stat().st_mtime_ns == first
    assert "judged already" not in evaluate(*words, "seed=1").out, "another question"
    assert json.loads(result.read_text())["seed"] == 1
    save_bundle(make_encoder(SMALL, seed=6), bundle)
    assert "judged already" not in evaluate(*words, "seed=1").out, "another encoder under the same name"
    table.touch()
    assert "judged already" in evaluate(*words, "seed=1").out, "the table holds the same"
    times, content = table.stat(), pd.read_csv(table)
    content.loc[[0, len(content) - 1], "label"] = content.loc[[len(content) - 1, 0], "label"].tolist()
    content.to_csv(table, index=False)
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "other labels and splits: judging again" in evaluate(*words, "seed=1").out
    exchange(sound_folder)
    assert "other sounds: judging again" in evaluate(*words, "seed=1").out
    assert "judged already" in evaluate(*words, "seed=1").out
    assert evaluate(*words, "protocol=knn").code == 0
    assert "judged already" in evaluate(*words, "protocol=knn").out
    judged = read_json(tmp_path / "out" / "judged.json")
    del judged["protocol"]  # as 0.2 left it, with another measure
    write_json(tmp_path / "out" / "judged.json", judged)
    assert "other protocol: judging again" in evaluate(*words, "protocol=knn").out


def test_options_that_seeds_share_are_read_beside_the_bundle(tmp_path):
    ours = {
        "seed": 3, "k": 8, "budget": None, "cache_dir": "/home/me", "encoder": {"name": "conv", "seed": 3},
        "loader": {"batch_size": 64, "num_workers": 2}, "clusterer": {"k": 8, "gpu": "auto"},
        "trainer": {"max_epochs": 7, "precision": "16-mixed", "devices": 2},
        "data": {"root": "/home/me/sounds", "where": "a=b"}, "frontend": {"_target_": "decar.audio.FrontEnd"},
    }  # fmt: skip
    wanted = {
        "budget": None, "encoder.name": "conv", "loader.batch_size": 64, "trainer.max_epochs": 7,
        "trainer.precision": "16-mixed", "clusterer.k": 8, "data.where": "a=b",
        "frontend._target_": "decar.audio.FrontEnd",
    }  # fmt: skip
    OmegaConf.save(ours, tmp_path / "config.yaml")
    for bundle in (tmp_path, tmp_path / "encoder.safetensors", tmp_path / "best" / "encoder.safetensors"):
        assert options_of_seeds(str(bundle)) == wanted
    OmegaConf.save(ours | {"budget": "2h"}, tmp_path / "config.yaml")
    del wanted["trainer.max_epochs"]  # what a budget is planned into follows from the machine
    assert options_of_seeds(str(tmp_path)) == wanted | {"budget": "2h"}
    (tmp_path / "config.yaml").write_text("password: secret\n")
    assert options_of_seeds(str(tmp_path)) == {}, "of another program"
    assert options_of_seeds("small") == {}


def test_table3_in_one_sweep(evaluate, decar, sound_folder, tmp_path):
    base = " ".join([*FAST, "data=folder", f"data.root={sound_folder}"])
    words = [
        "experiment=table3", f"pretrain.base='{base}'", "+pretrain.columns.kmeans_2='k=2'",
        "pretrain.column=kmeans_2,pic", "task=folder", f"task.path={sound_folder}", "mode=frozen,finetune",
        "protocol.max_epochs=1", "accelerator=cpu",
    ]  # fmt: skip
    first = evaluate(*words)
    assert first.code == 0, first.err
    runs = tmp_path / "runs" / "table3"
    assert {path.name for path in (runs / "encoders").iterdir() if path.is_dir()} == {"kmeans_2-seed0", "pic-seed0"}
    found = [json.loads(path.read_text()) for path in runs.rglob("result.json")]
    assert {(r["pretrained"]["clusterer"], r["mode"]) for r in found} == {
        (clusterer, mode) for clusterer in ("kmeans", "pic") for mode in ("frozen", "finetune")
    }
    assert {r["pretrained"]["options"]["optimizer.lr"] for r in found} == {0.05}
    assert not {"seed", "k", "data.root"} & {*found[0]["pretrained"]["options"]}
    again = evaluate(*words)
    assert again.out.count("judged already") == len(found)
    other = evaluate(
        *words[:1], f"pretrain.base='{base} optimizer.lr=0.01'", *words[2:], "pretrain.column=pic", "mode=frozen"
    )
    assert other.code == 2
    assert "optimizer.lr: 0.05 there, 0.01 here" in other.err
    table = decar("table3", str(runs), "--csv", str(tmp_path / "table3.csv"))
    assert table.code == 0, table.err
    cells = pd.read_csv(tmp_path / "table3.csv")
    assert set(cells["column"]) == {"kmeans_2", "pic"}
    for r in found:
        assert (abs(cells["ours"] - 100 * r["value"]) < 1e-6).any()


def test_corpora_that_are_not_here_cost_a_line(evaluate, tmp_path):
    outcome = evaluate("experiment=table3", "pretrain.column=pic", "mode=frozen", f"cache_dir={tmp_path / 'cache'}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("decar prepare") == 9
    assert not (tmp_path / "runs" / "table3" / "encoders").exists(), (
        "nothing is pre-trained for a task that is not here"
    )


def test_a_failed_pretraining_is_said(evaluate, sound_folder, tmp_path):
    outcome = evaluate(
        "experiment=table3", "pretrain.base='experiment=paper data=folder data.root=/nowhere'", "pretrain.column=pic",
        "task=folder", f"task.path={sound_folder}", "mode=frozen",
    )  # fmt: skip
    assert outcome.code == 2
    assert "/nowhere" in outcome.err
    assert any("pre-training" in line and "pic-seed0" in line for line in outcome.errors)
