"""Each mistake of a user's: one clear line that names what to do, no traceback, exit status 2."""

import multiprocessing
import os
import signal
import sys
import time
from collections import deque

import numpy as np
import pytest
import soundfile
import torch

from decar.cli.terminal import explain
from decar.models import save_bundle
from decar.pretrain import EpochLabels, PretrainData
from tests.conftest import SMALL, make_encoder

FAST = ["debug=fast", "encoder=efficientnet_b0", f"encoder.name={SMALL}", "trainer=cpu"]


def one_line(outcome, *parts):
    assert outcome.code == 2
    assert "Traceback" not in outcome.err + outcome.out
    assert len(outcome.errors) == 1, outcome.err
    for part in parts:
        assert part in outcome.errors[0], outcome.errors[0]


def test_no_audio_found(train, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    one_line(train(*FAST, "data=folder", f"data.root={tmp_path / 'empty'}"), "empty", "flac")


def test_no_such_folder(train):
    one_line(train(*FAST, "data=folder", "data.root=/no/such/folder"), "/no/such/folder")


def test_folder_not_given(train):
    one_line(train(*FAST, "data=folder"), "data.root is not set", "data.root=")


def test_k_larger_than_the_number_of_clips(train, sound_folder):
    outcome = train(*FAST, "data=folder", f"data.root={sound_folder}", "k=500")
    one_line(outcome, "k=500", "12", "pass a smaller k")


def test_unknown_task_suggests_and_lists(evaluate):
    one_line(evaluate("task=speker"), "unknown task", "did you mean speaker", "language", "instrument_family")


@pytest.mark.parametrize(
    ("command", "choice", "other"), [("train", "table3", "eval.py"), ("evaluate", "paper", "train.py")]
)
def test_an_experiment_of_the_other_command(command, choice, other, request):
    one_line(request.getfixturevalue(command)(f"experiment={choice}"), f"experiment={choice}", other)


def test_unknown_choice_of_another_group(train):
    one_line(train("clusterer=kmean"), "unknown clusterer", "kmeans", "pic")


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("encodr.name=x", "encoder.name"),
        ("loader.batchsize=3", "loader.batch_size"),
        ("sede=1", "seed"),
        ("trainer.foo=3", "there is no option"),
    ],
)
def test_misspelt_option(train, option, meant):
    one_line(train(*FAST, option), "there is no option", option.split("=")[0], meant)


def test_misspelt_option_of_eval(evaluate):
    one_line(evaluate("bundel=random"), "'bundel'", "did you mean bundle?")


@pytest.mark.parametrize(
    "option",
    ["seed=-1", "seed=abc", "k=0", "k=abc", "loader.batch_size=0", "loader.num_workers=-1", "loader.crop_frames=0",
     "sampler.draws_per_clip=0", "sampler.every_n_steps=0", "encoder.max_frames=0",
     "trainer.max_epochs=abc", "optimizer.lr=abc", "optimizer.lr=-1", "schedule=linear",
     "projection.kind=releasd", "encoder.pool=maximum", "encoder.name=vit_tiny_patch16_224"],
)  # fmt: skip
def test_values_that_make_no_sense(train, option):
    key, value = option.split("=")
    one_line(train(*FAST, option), f"{key}={value}")


@pytest.mark.parametrize("option", ["mode.crop_frames=0", "protocol.lr=abc", "protocol.max_epochs=0", "seed=-1"])
def test_values_that_make_no_sense_to_eval(evaluate, option):
    key, value = option.split("=")
    one_line(evaluate("mode=finetune", "protocol=paper", option), f"{key}={value}")


def test_bundle_set_to_nothing(evaluate):
    one_line(evaluate("bundle=null"), "bundle is not set")


def test_no_gpu(evaluate):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    one_line(evaluate("accelerator=gpu"), "accelerator=cpu")


def test_odd_characters_in_an_option(train):
    one_line(train(*FAST, "data=folder", "data.root=/x/my (sounds)"), "quote")


def test_a_folder_that_holds_a_run_is_not_overwritten(train, sound_folder, tmp_path):
    common = [*FAST, "data=folder", f"data.root={sound_folder}", "k=3", f"hydra.run.dir={tmp_path / 'run'}"]
    assert train(*common).code == 0
    one_line(train(*common), "holds a run already", "resume=auto", "hydra.run.dir")


def test_resume_auto_needs_to_know_the_folder(train):
    one_line(train(*FAST, "resume=auto"), "hydra.run.dir=RUN")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut"])
def test_resume_from_a_damaged_checkpoint(train, tmp_path, content):
    (tmp_path / "cut.ckpt").write_bytes(content)
    one_line(train(*FAST, f"resume={tmp_path / 'cut.ckpt'}"), "cut.ckpt", "not a readable checkpoint")


def test_resume_with_another_network(train, sound_folder, tmp_path):
    common = [*FAST, "data=folder", f"data.root={sound_folder}", "k=3", f"hydra.run.dir={tmp_path / 'run'}"]
    assert train(*common).code == 0
    before = (tmp_path / "run" / "metrics.csv").read_text()
    one_line(train(*common, "resume=auto", "encoder.pool=avg"), "made otherwise", "encoder.pool")
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_table_that_cannot_be_written(decar, evaluate, sound_folder, tmp_path):
    out = tmp_path / "out"
    assert evaluate("task=folder", f"task.path={sound_folder}", "bundle=logmel", f"hydra.run.dir={out}").code == 0
    one_line(decar("table2", str(out), "--csv", str(tmp_path)), str(tmp_path))


def test_missing_label_column(evaluate, sound_folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,species\n" + "".join(f"sounds/low/{i}.wav,a\n" for i in (0, 3)))
    one_line(evaluate("task=csv", f"task.path={table}", "task.label=bird"), "bird", "species", "task.label")


def test_task_without_a_source(evaluate):
    one_line(evaluate("task=csv"), "task.path")


def test_bundle_from_another_front_end(evaluate, tmp_path):
    bundle = save_bundle(make_encoder(SMALL, seed=0), tmp_path / "e.safetensors")
    one_line(evaluate(f"bundle={bundle}", "frontend.n_mels=80"), "front-end", "frontend.n_mels=64")


def test_no_such_bundle(evaluate):
    one_line(evaluate("bundle=/no/such.safetensors"), "/no/such.safetensors", "random")


def test_log_mel_cannot_be_fine_tuned(evaluate):
    one_line(evaluate("bundle=logmel", "mode=finetune"), "mode=frozen")


def test_unknown_network(train, sound_folder):
    one_line(train("data=folder", f"data.root={sound_folder}", "k=3", "encoder.name=eficientnet_b0"), "efficientnet_b0")


def test_resume_from_nothing(train, sound_folder):
    one_line(train(*FAST, "data=folder", f"data.root={sound_folder}", "k=3", "resume=/no/run"), "/no/run", "auto")


def test_only_silence(train, tmp_path):
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", np.zeros(16000), 16000)
    one_line(train(*FAST, "data=folder", f"data.root={tmp_path / 'silent'}"), "silent", "a.wav")


def test_table_without_results(decar, tmp_path):
    (tmp_path / "nothing").mkdir()
    one_line(decar("table2", str(tmp_path / "nothing")), "nothing", "eval.py")


def test_a_bad_job_of_a_sweep_does_not_stop_the_others(evaluate, tmp_path, sound_folder):
    outcome = evaluate(
        "-m", "task=folder", f"task.path={sound_folder}", "bundle=logmel,/no/such.safetensors,random",
        f"encoder.name={SMALL}", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    one_line(outcome, "bundle=/no/such.safetensors", "no such bundle")
    assert len(list((tmp_path / "sweep").rglob("result.json"))) == 2


def bury(worker):
    """Kill a process, unnoticed by torch's handler of SIGCHLD."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    worker.kill()
    worker.join()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def read_from_lost_worker(batches, fault):
    if fault != "stuck":
        next(batches)
        [worker] = multiprocessing.active_children()
        if fault == "unnoticed":
            time.sleep(0.3)  # the next batch is on its way
            bury(worker)
        else:
            os.kill(worker.pid, signal.Signals[fault])
            time.sleep(10)  # ended by torch's handler of SIGCHLD
    deque(batches, maxlen=0)


@pytest.mark.skipif(sys.platform != "linux", reason="loader workers are forked and killed by POSIX signals")
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGBUS", "unnoticed", "stuck"])
def test_a_worker_that_dies_or_hangs_ends_in_a_line(make_store, monkeypatch, fault):
    """A full /dev/shm ends in SIGBUS. A worker may also die while its batch is fetched, or wait for a disk for ever."""
    data = PretrainData(make_store([40] * 16), crop_frames=32, batch_size=8, num_workers=1, timeout=1, every_n_steps=99)
    data.set_labels(EpochLabels(np.zeros((16, 1), np.int64), [1], 0))
    if fault == "stuck":
        monkeypatch.setattr("decar.pretrain.datamodule.stack", lambda *args: time.sleep(60))
    with pytest.raises((RuntimeError, EOFError, ConnectionError)) as caught:
        read_from_lost_worker(iter(data.train_dataloader()), fault)
    for worker in multiprocessing.active_children():
        bury(worker)
    line = explain(caught.value, "train")
    assert line is not None, repr(caught.value)
    assert "a process that reads batches is dead or stuck" in line
    assert (
        "pass loader.num_workers=0, or, in a container, give it more shared memory (docker run --shm-size=8g)" in line
    )


def test_other_connections_that_are_lost_are_not_a_worker():
    assert explain(ConnectionResetError("x"), "train") is None
