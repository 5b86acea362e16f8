"""Pre-training through the command line, on real files."""

import base64
import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import wandb
from omegaconf import OmegaConf
from pytorch_lightning import Callback

import decar as decar_package
from benchmarks.damage import damage
from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.cli.train import log_clips, objective
from decar.errors import ConfigError
from decar.files import locked
from decar.models import read_facts
from tests.cli.helpers import write_recordings
from tests.pretrain.wandb_files import files, history, records, run_ids

BUNDLED = Path(decar_package.__file__).parent / "data" / "mini"
FAST = [
    "experiment=paper", "encoder.name=mobilenetv3_small_050", "trainer=cpu", "trainer.max_epochs=2", "k=3",
    "loader.batch_size=8", "sampler.draws_per_clip=2", "report=false",
]  # fmt: skip


def metrics(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def messy_folder(tmp_path):
    """What people have: formats, rates and channels mixed, odd names, and files that are broken in five ways."""
    root = tmp_path / "my sounds"
    sources = sorted((BUNDLED / "audio").glob("spee_*.opus"))[:12]
    targets = [
        ("wav", 44100, 2), ("flac", 48000, 1), ("mp3", 22050, 2), ("ogg", 8000, 1), ("WAV", 16000, 1),
        ("flac", 96000, 2), ("opus", 48000, 1), ("wav", 11025, 1), ("ogg", 44100, 2), ("mp3", 48000, 1),
        ("wav", 16000, 6), ("flac", 16000, 1),
    ]  # fmt: skip
    for i, (source, (ending, rate, channels)) in enumerate(zip(sources, targets, strict=True)):
        wave, _ = soundfile.read(source)
        path = root / ("nested folder/Ümläute" if i % 2 else "日本語") / f"clip {i} ñ.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"opus": {"format": "OGG", "subtype": "OPUS"}}.get(ending, {})
        soundfile.write(path, np.stack([wave] * channels, axis=1), rate, **kind)
    (root / "zero.wav").touch()
    (root / "text.wav").write_text("this is no sound\n" * 50)
    whole = next(root.rglob("*clip 1 *.flac")).read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 3])
    soundfile.write(root / "blip.wav", np.full(48, 0.3), 16000)
    soundfile.write(root / "silence.wav", np.zeros(16000), 16000)
    return root


def test_a_messy_folder_trains_on_the_good_and_names_the_bad(train, messy_folder, tmp_path):
    outcome = train(*FAST, "data=folder", f"data.root={messy_folder}", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    bad = pd.read_csv(run / "bad_files.csv").set_index("path")["reason"]
    reasons = {"zero.wav": "0 bytes", "text.wav": "not audio", "cut.flac": "truncated", "blip.wav": "too short",
               "silence.wav": "silent"}  # fmt: skip
    assert set(bad.index) == set(reasons)
    log = (run / "train.log").read_text()
    for name, reason in reasons.items():
        assert reason in bad[name]
        assert any(name in line and reason in line for line in log.splitlines()), name
    assert "12 clips" in log
    rows = metrics(run)
    assert rows
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    encoder = decar_package.load_encoder(run)
    assert all(torch.isfinite(weight).all() for weight in encoder.weights().values())
    assert np.unique(pd.read_parquet(run / "clusters.parquet")["clip"]).size == 12


@pytest.mark.parametrize(("seconds", "warned"), [(50, False), (70, True)])
def test_long_recordings_get_a_warning(seconds, warned, tmp_path, caplog):
    """A night in one file is one clip with one pseudo-label: as good as nothing is learned from it."""
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).normal(size=8_000 * seconds) / 9, 8_000)
    store = LogMelStore.open_or_build(Manifest.from_folder(tmp_path), FrontEnd(), tmp_path / "cache")
    log_clips(store, tmp_path)
    assert (f"lasts {seconds} s on average" in caplog.text) == warned
    assert ("data.segment=auto" in caplog.text) == warned


def test_a_run_leaves_what_the_design_says(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    assert train(*FAST, "data=folder", f"data.root={sound_folder}", f"hydra.run.dir={run}").code == 0
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "encoder.safetensors"):
        assert (run / name).is_file(), name
    clusters = pd.read_parquet(run / "clusters.parquet")
    assert list(clusters.columns) == ["clip", "epoch", "clustering", "pseudo_label"]
    assert len(clusters) == 12 * 2  # clips x epochs
    rows = metrics(run)
    ended = [row for row in rows if row["loss_epoch"]]
    assert [bool(row["nmi"]) for row in ended] == [False, True], "nothing came before the first assignment"
    assert not (run / "bad_files.csv").exists()
    torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    best, last = (decar_package.load_encoder(folder) for folder in (run / "best", run))
    assert best.hash() == last.hash(), "the second of two epochs is the only one with an NMI"


def test_the_same_seed_gives_the_same_numbers_and_resume_goes_on(train, sound_folder, tmp_path):
    common = [*FAST, "data=folder", f"data.root={sound_folder}"]
    for name in ("a", "b"):
        assert train(*common, f"hydra.run.dir={tmp_path / name}", "trainer.max_epochs=3").code == 0
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
    weights = decar_package.load_encoder(tmp_path / "a").hash()
    assert decar_package.load_encoder(tmp_path / "b").hash() == weights

    again = [*common, f"hydra.run.dir={tmp_path / 'c'}", "resume=auto"]
    first = train(*again, "trainer.max_epochs=2")
    assert "starting anew" in first.out + first.err
    second = train(*again, "trainer.max_epochs=3")
    assert "going on from" in second.out + second.err
    assert decar_package.load_encoder(tmp_path / "c").hash() == weights
    assert len(metrics(tmp_path / "c")) == len(metrics(tmp_path / "a")), "the metrics before the stop are kept"


def test_a_sweep_over_clusterers_and_k(train, sound_folder, tmp_path):
    outcome = train(
        "-m", *FAST, "data=folder", f"data.root={sound_folder}", "clusterer=kmeans,pic", "k=2,3",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "k=2 is not used: labels=network clusters with PIC" in outcome.out + outcome.err
    assert len(list((tmp_path / "sweep").glob("*/encoder.safetensors"))) == 3, "PIC has no k: one job of the two"


def test_two_runs_in_one_process_equal_two_runs_in_two(train, sound_folder, tmp_path):
    """Nothing of a job leaks into the next."""
    common = [*FAST, "data=folder", f"data.root={sound_folder}"]
    train("-m", *common, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    train(*common, "seed=2", f"hydra.run.dir={tmp_path / 'alone'}")
    [second] = (tmp_path / "sweep").glob("*seed=2*/metrics.csv")
    assert second.read_text() == (tmp_path / "alone" / "metrics.csv").read_text()


def test_wandb_offline_gets_config_and_metrics_one_run_a_job(train, sound_folder, tmp_path):
    outcome = train(
        "-m", *FAST, "data=folder", f"data.root={sound_folder}", "logger=[csv,wandb]", "seed=1,2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}", "logger.wandb.log_model=true",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    wandb.teardown()  # its service writes the last records as it ends
    jobs = [folder.parent for folder in (tmp_path / "sweep").glob("*/wandb")]
    assert len(jobs) == 2
    for job in jobs:
        [file] = files(job)
        found = list(records(file))
        config = {update.key: json.loads(update.value_json) for record in found for update in record.config.update}
        assert {"nmi", "loss_epoch", "pseudo_accuracy", "entropy"} <= {key for row in history(job) for key in row}
        assert config["k"] == 3
        made = [record.artifact for record in found if record.artifact.type == "model"]
        assert {(artifact.name, artifact.type) for artifact in made} == {
            (f"encoder-{made[0].run_id}", "model"), (f"encoder-{made[0].run_id}-best", "model"),
        }  # fmt: skip
        for artifact in made:
            [entry] = artifact.manifest.contents
            bundle = job / ("best" if artifact.name.endswith("-best") else "") / "encoder.safetensors"
            assert (entry.path, entry.size) == ("encoder.safetensors", bundle.stat().st_size)
            assert base64.b64decode(entry.digest) == hashlib.md5(bundle.read_bytes()).digest()


class Kill(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_its_run_of_wandb(train, sound_folder, tmp_path):
    words = [*FAST, "trainer.max_epochs=4", "data=folder", f"data.root={sound_folder}", "logger=[csv,wandb]",
             "trainer.log_every_n_steps=1", f"hydra.run.dir={tmp_path / 'run'}", "resume=auto"]  # fmt: skip
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, str(root / "train.py"), *words, f"+callbacks.kill._target_={__name__}.Kill"], check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert train(*words).code == 0
    wandb.teardown()
    rows = [row for row in history(tmp_path / "run") if not any("." in key for key in row)]
    assert len(run_ids(tmp_path / "run")) == 1
    for name in ("loss_step", "loss_epoch"):
        found = [(row["trainer/global_step"], row[name]) for row in rows if name in row]
        assert found == [(int(row["step"]), float(row[name])) for row in metrics(tmp_path / "run") if row[name]]
    assert [row["epoch"] for row in rows if "loss_epoch" in row] == [0, 1, 2, 3]


def test_tensorboard(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    outcome = train(
        *FAST, "data=folder", f"data.root={sound_folder}", "logger=[csv,tensorboard]", f"hydra.run.dir={run}"
    )
    assert outcome.code == 0, outcome.err
    assert list((run / "tensorboard").rglob("events.out.*"))
    assert (run / "metrics.csv").is_file()


def small(folder, run, *more):
    return [
        "experiment=small", "data=folder", f"data.root={folder}", "encoder.widths=[4,8]", "encoder.stride=4",
        "encoder.hidden=16", "trainer=cpu", "loader.batch_size=4", "labels.first.dim=4", "labels.network.dim=4",
        f"hydra.run.dir={run}", *more,
    ]  # fmt: skip


def test_what_is_left_open_is_picked(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    outcome = train(*small(sound_folder, run, "budget=1s", "labels.network_from=0"))
    assert outcome.code == 0, outcome.err
    first = OmegaConf.load(run / "config.yaml")
    assert first.k == 2
    assert first.trainer.max_epochs >= 1
    assert first.sampler.every_n_steps >= 1
    assert "picked k=2, sampler.every_n_steps=" in (run / "train.log").read_text()


def rate(step, total, warm=2, full=3e-4):
    """Linear warm-up, then a cosine to 0."""
    return full * (
        (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    )


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each step that is trained; a step is said to take 1 / 1.15 s, so seconds are steps."""
    from decar.pretrain import DecarModule

    found, step = {}, DecarModule.training_step

    def training_step(self, *args):
        found[self.trainer.global_step] = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        return step(self, *args)

    monkeypatch.setattr(DecarModule, "training_step", training_step)
    monkeypatch.setattr("decar.pretrain.plan.measure_step", lambda *_: 1 / 1.15)
    return found


def test_a_larger_budget_trains_on(train, sound_folder, tmp_path, rates):
    run = tmp_path / "run"
    common = small(sound_folder, run, "warmup_steps=2", "optimizer.lr=3e-4")
    assert train(*common, "budget=6.5s").code == 0
    assert [rates[step][0] for step in range(6)] == pytest.approx([rate(step, 6) for step in range(6)])
    longer = train(*common, "budget=13s", "resume=auto")
    assert longer.code == 0, longer.err
    assert "budget=13s, 6.5s before: 2 epochs of 6 steps in all" in longer.out
    assert "training on: trainer.max_epochs=2, 1 before; 1 epochs are begun" in longer.out
    assert [rates[step][0] for step in range(6, 12)] == pytest.approx([rate(step, 12) for step in range(6, 12)])
    assert all(first == second for first, second in rates.values()), "both groups have one rate"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["lr_schedulers"][0]["_last_lr"][0], len(rates)) == (pytest.approx(0), 12)
    for budget in ("13s", "7s"):
        outcome = train(*common, f"budget={budget}", "resume=auto")
        assert "done already" in outcome.out, outcome.err
    assert len(rates) == 12
    assert train(*common, "budget=null", "trainer.max_epochs=3", "resume=auto").code == 0
    assert json.loads((run / "finished.json").read_text())["steps"] == 18, "an epoch keeps its length"
    refused = train(*common, "budget=null", "trainer.max_epochs=2", "resume=auto")
    assert "3 epochs of this run are begun" in refused.err


def test_a_run_needs_no_config_yaml_to_go_on(train, sound_folder, tmp_path, rates):
    """Torn, zeroed or deleted beside a whole checkpoint: the same bits."""
    runs = [tmp_path / name for name in ("whole", "torn", "zeroed", "deleted")]
    words = ("warmup_steps=2", "budget=6.5s")
    assert train(*small(sound_folder, runs[0], *words)).code == 0
    for run in runs[1:]:
        shutil.copytree(runs[0], run)
    text = (runs[0] / "config.yaml").read_bytes()
    (runs[1] / "config.yaml").write_bytes(text[: len(text) // 2])
    (runs[2] / "config.yaml").write_bytes(bytes(len(text)))
    (runs[3] / "config.yaml").unlink()
    encoders = []
    for run in runs:
        common = small(sound_folder, run, *words[:1], "resume=auto")
        assert "done already" in train(*common, *words[1:]).out
        outcome = train(*common, "budget=13s")
        assert outcome.code == 0, outcome.err
        encoders.append(decar_package.load_encoder(run).hash())
    assert len(set(encoders)) == 1
    assert len({(run / "metrics.csv").read_text() for run in runs}) == 1


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(train, sound_folder, tmp_path):
    common = [*FAST, "data=folder", f"data.root={sound_folder}", "k=3", "trainer.max_epochs=3"]
    assert train(*common, f"hydra.run.dir={tmp_path / 'whole'}").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "finished.json").unlink()
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    done = damage(last, np.random.default_rng(1), "cut tail")
    outcome = train(*common, f"hydra.run.dir={tmp_path / 'cut'}", "resume=auto")
    assert outcome.code == 0, outcome.err
    log = (tmp_path / "cut" / "train.log").read_text()
    assert "last.ckpt is damaged" in log, done
    assert "going on from the one before, last.previous.ckpt" in log
    assert (tmp_path / "cut" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    hashes = {decar_package.load_encoder(tmp_path / name).hash() for name in ("whole", "cut")}
    assert len(hashes) == 1


def test_what_is_given_is_not_picked(train, sound_folder, tmp_path):
    run = tmp_path / "run"
    given = ("budget=null", "k=3", "trainer.max_epochs=2", "sampler.every_n_steps=3", "labels.network_from=1")
    outcome = train(*small(sound_folder, run, *given))
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load(run / "config.yaml")
    assert (config.k, config.sampler.every_n_steps, config.trainer.max_epochs) == (3, 3, 2)
    clusters = pd.read_parquet(run / "clusters.parquet")
    assert clusters.groupby("epoch")["clustering"].nunique().tolist() == [6, 7]
    assert len(pd.read_csv(run / "metrics.csv")["embedding_rank"].dropna()) == 2


def test_two_ways_to_say_how_long_are_refused(train, sound_folder, tmp_path):
    outcome = train(*small(sound_folder, tmp_path / "run", "budget=1h", "trainer.max_epochs=3"))
    assert outcome.code == 2
    assert "budget=1h and trainer.max_epochs=3" in outcome.errors[0]


def test_a_run_cut_short_is_not_done_and_the_same_command_goes_on(train, sound_folder, tmp_path, monkeypatch):
    """The limit of the first call strikes after its first batch, that of the second one never."""
    fast = [word for word in FAST if "draws_per_clip" not in word]
    run, common = tmp_path / "run", [*fast, "data=folder", f"data.root={sound_folder}", "sampler.every_n_steps=3",
                                      "trainer.log_every_n_steps=1"]  # fmt: skip
    again = [*common, f"hydra.run.dir={run}", "resume=auto", "+trainer.max_time='00:01:00:00'"]
    monkeypatch.setattr("decar.pretrain.checkpoint.TimeLimit.time_elapsed", lambda *_: 4000.0)
    monkeypatch.setattr("decar.pretrain.checkpoint.TimeLimit.on_fit_start", lambda *_: None)
    first = train(*again)
    assert first.code == 0, first.err
    assert "stopped in epoch 1 of 2: the same command with" in first.out + first.err
    assert not (run / "finished.json").exists()
    row = metrics(run)[-1]
    assert math.isfinite(float(row["loss_epoch"]))
    monkeypatch.setattr("decar.pretrain.checkpoint.TimeLimit.time_elapsed", lambda *_: 0.0)
    second = train(*again)
    assert "going on from" in second.out + second.err
    assert json.loads((run / "finished.json").read_text())["epochs"] == 2
    assert train(*common, f"hydra.run.dir={tmp_path / 'whole'}").code == 0
    assert (run / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    assert "done already" in train(*again).out


@pytest.mark.parametrize("option", ["max_steps=7", "overfit_batches=2", "fast_dev_run=true"])
def test_options_of_the_trainer_that_cannot_work_are_refused(train, option):
    outcome = train(*FAST, f"+trainer.{option}")
    assert outcome.code == 2
    assert f"trainer.{option.replace('true', 'True')} is not supported" in outcome.errors[0]


def test_what_a_sweeper_is_given(tmp_path):
    found = {"nmi": 0.7, "loss_epoch": 2.0, "probe_accuracy": 0.4}

    def given(metrics, name=None):
        return objective(OmegaConf.create({"objective": name}), metrics)

    assert given(found) == 0.4
    assert given({"nmi": 0.7, "loss_epoch": 2.0}) == 0.7
    assert math.isnan(given({"loss_epoch": 2.0})), "neither: a lower loss must not be taken for a worse run"
    assert given(found, "loss_epoch") == 2.0
    with pytest.raises(ConfigError, match="objective=acc: the run has no such metric; it has loss_epoch, nmi, probe"):
        given(found, "acc")


@pytest.mark.parametrize("labels", ["network", "descriptors", "both", "online"])
@pytest.mark.parametrize(
    "experiment", [[], ["experiment=small"], ["experiment=paper"]], ids=["default", "small", "paper"]
)
def test_debug_fast_runs_with_every_experiment_and_labels(train, sound_folder, tmp_path, experiment, labels):
    outcome = train(
        *experiment, f"labels={labels}", "debug=fast", "trainer=cpu", "data=folder", "encoder=conv",
        f"data.root={sound_folder}", "hydra.run.dir=run", "loader.batch_size=4", "k=3", "sampler.every_n_steps=2",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    sizes = pd.read_parquet(tmp_path / "run/clusters.parquet").groupby("epoch")["clustering"].nunique().tolist()
    assert sizes == {"network": [1, 1], "descriptors": [6, 6], "both": [6, 7], "online": [7, 7]}[labels]


def test_a_stream_trains_without_a_store_of_all_clips_and_has_a_page(train, decar, sound_folder, tmp_path):
    words = ["debug=fast", "trainer=cpu", "data=folder", f"data.root={sound_folder}", "data.stream=true", "k=3",
             "labels=online", "labels.sample=6", "loader.batch_size=4", "hydra.run.dir=run",
             "cache_dir=cache"]  # fmt: skip
    outcome = train(*words)
    assert outcome.code == 0, outcome.err
    assert "6 clips" in outcome.err + outcome.out
    (index,) = (tmp_path / "cache/logmel").glob("*/index.parquet")
    assert len(pd.read_parquet(index)) == 6
    table = pd.read_parquet(tmp_path / "run/clusters.parquet")
    assert (table.groupby(["epoch", "clustering"]).size() == 6).all()
    assert sorted(table["clustering"].unique()) == list(range(7))
    assert read_facts(tmp_path / "run/encoder.safetensors")["clips"] == 12
    again = train(*words, "resume=auto")
    assert "done already" in again.err + again.out
    assert decar("report", "run").code == 0
    sample = {Path(path).name for path in table["clip"]}
    (other,) = [file for file in sorted(sound_folder.rglob("*.wav")) if file.name not in sample][-1:]
    other.rename(other.with_name("zz.wav"))  # no clip of the sample: all that is read before training is as before
    refused = train(*words, "resume=auto")
    assert refused.code == 2
    assert "it belongs to other sounds (6 clips, as many here, with other content or order)" in refused.errors[0]
    assert (tmp_path / "run/report.html").is_file()


def test_a_stream_of_files_that_an_own_source_lists(train, sound_folder, tmp_path, monkeypatch):
    """Its length is not known: what would be picked from it must be given."""
    (tmp_path / "own_source.py").write_text(
        "from pathlib import Path\nclass Clips:\n    def __init__(self, root):\n        self.root = root\n"
        "    def __iter__(self):\n        return ((file, 0.0, None) for file in Path(self.root).rglob('*.wav'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "myconf/data").mkdir(parents=True)
    (tmp_path / "myconf/data/mine.yaml").write_text(
        "name: mine\nlabel: null\nstream: true\nbuffer: 100\n"
        f"manifest:\n  _target_: own_source.Clips\n  root: '{sound_folder}'\n"
    )
    words = ["--config-dir", "myconf", "data=mine", "debug=fast", "trainer=cpu", "labels=online",
             "loader.batch_size=4", "hydra.run.dir=run", "cache_dir=cache"]  # fmt: skip
    refused = train(*words, "k=null")
    assert refused.errors == ["decar: error: k cannot be picked for a stream of unknown length: pass a number"]
    outcome = train(*words, "k=3")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run/finished.json").is_file()
    words[words.index("hydra.run.dir=run")] = "hydra.sweep.dir=sweep"
    outcome = train("-m", *words, "k=3", "pretrain.features=pass,bank")  # which no stream uses
    assert outcome.code == 0, outcome.err
    assert "done already in" in outcome.err + outcome.out


def test_a_budget_that_is_no_time_is_refused(train, sound_folder, tmp_path):
    outcome = train(*small(sound_folder, tmp_path / "run", "budget=soon"))
    assert outcome.code == 2
    assert "budget=soon" in outcome.errors[0]


def test_a_second_job_in_the_folder_of_a_running_one_is_refused_by_name(train, tmp_path, monkeypatch):
    monkeypatch.setattr("decar.files.LOCK_WAIT", 0.1)
    run = tmp_path / "run"
    run.mkdir()
    with locked(run / ".lock"):
        done = train("debug=fast", "trainer.accelerator=cpu", f"hydra.run.dir={run}", "resume=auto")
    assert done.code == 2
    assert len(done.errors) == 1
    for part in (str(run), f"in use by process {os.getpid()} on ", "another hydra.run.dir"):
        assert part in done.errors[0]
    assert not (run / "config.yaml").exists()


def test_long_recordings_are_cut_and_a_run_that_goes_on_keeps_its_segments(train, decar, tmp_path):
    write_recordings([tmp_path / "sounds" / f"{i}.wav" for i in range(3)])
    fast = [option for option in FAST if option not in ("report=false", "experiment=paper")] + ["data=folder"]
    data = ["data.root=sounds", "hydra.run.dir=run", "encoder.name=conv", "encoder.widths=[4,8]", "encoder.stride=4"]
    outcome = train(*fast, *data)
    assert outcome.code == 0, outcome.err
    assert "3 recordings, 1.0 minutes: 12 clips" in (tmp_path / "run" / "train.log").read_text()
    table = pd.read_csv(tmp_path / "run" / "clusters.csv")
    assert sorted(zip(table["path"], table["start"], table["duration"], strict=True)) == [
        (f"{i}.wav", start, pytest.approx(5.0, abs=0.02)) for i in range(3) for start in (0.0, 5.0, 10.0, 15.0)
    ]
    logged = pd.read_parquet(tmp_path / "run" / "clusters.parquet")
    assert len(logged[(logged["epoch"] == 0) & (logged["clustering"] == 0)]) == 12
    refused = train(*fast, *data, "data.segment=10", "trainer.max_epochs=3", "resume=auto")
    assert "data.segment: auto there, 10 here" in refused.errors[0]
    assert "data.segment" in train(*fast, *data, "data.segment=10", "resume=auto").errors[0], "another set of clips"
    assert train(*fast, *data, "resume=auto").code == 0
    assert "done already" in (tmp_path / "run" / "train.log").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert decar("report", "run").code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "0.wav \\u00b7 0:15" in page, "the page lists segments too"
    wrong = train(*fast, *data, "data.segment=five", "hydra.run.dir=other")
    assert "data.segment five: give a number of seconds, auto or none" in wrong.errors[0]
    assert train(*fast, *data, "data.segment=null", "hydra.run.dir=whole", "k=2").code == 0
    assert len(pd.read_csv(tmp_path / "whole" / "clusters.csv")) == 3


def test_the_paper_s_setting_cuts_nothing(train, tmp_path):
    write_recordings([tmp_path / "sounds" / f"{i}.wav" for i in range(3)])
    outcome = train(*FAST, "data=folder", "data.root=sounds", "hydra.run.dir=run", "k=2")
    assert outcome.code == 0, outcome.err
    assert "3 clips, 1.0 minutes" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_starts_from_another_s_encoder(train, sound_folder, tmp_path):
    """With next to no learning rate its weights come out as they were; a run goes on only from the same encoder."""
    data = ["data=folder", f"data.root={sound_folder}", "trainer=cpu", "debug=fast", "k=3"]
    assert train(*data, "hydra.run.dir=first", "encoder.widths=[4,8]", "encoder.stride=4").code == 0
    again = [*data, "init=first", "hydra.run.dir=second", "optimizer.lr=1e-12", "seed=1"]
    outcome = train(*again, "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.err
    first, second = (decar_package.load_encoder(tmp_path / name) for name in ("first", "second"))
    assert first.settings() == second.settings()
    learned = [key for key, value in first.weights().items() if value.is_floating_point() and "running" not in key]
    assert all(torch.allclose(first.weights()[key], second.weights()[key], rtol=0, atol=1e-9) for key in learned)
    assert "init=first: conv" in (tmp_path / "second" / "train.log").read_text()
    assert train(*again, "trainer.max_epochs=3", "resume=auto").code == 0
    assert train(*data, "hydra.run.dir=third", "encoder.widths=[4,8]", "encoder.stride=4", "seed=2").code == 0
    shutil.copy(tmp_path / "third" / "encoder.safetensors", tmp_path / "first" / "encoder.safetensors")
    refused = train(*again, "trainer.max_epochs=4", "resume=auto")
    assert "init_hash" in refused.errors[0]
