"""Each mistake of a user's: one clear line that names what to do, no traceback, exit status 2."""

import numpy as np
import pytest
import soundfile

from decar.models import Encoder, save_bundle
from tests.conftest import SMALL

FAST = ["debug=fast", "trainer=cpu"]


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


def test_unknown_choice_of_another_group(train):
    one_line(train("clusterer=kmean"), "unknown clusterer", "kmeans", "pic")


@pytest.mark.parametrize("option", ["trainer.max_epoch=3", "encodr.name=x", "loader.batchsize=3", "sede=1"])
def test_misspelt_option(train, option):
    outcome = train(*FAST, option)
    one_line(outcome, "there is no option", option.split("=")[0], "did you mean")


def test_missing_label_column(evaluate, sound_folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,species\n" + "".join(f"sounds/low/{i}.wav,a\n" for i in (0, 3)))
    one_line(evaluate("task=csv", f"task.path={table}", "task.label=bird"), "bird", "species", "task.label")


def test_task_without_a_source(evaluate):
    one_line(evaluate("task=csv"), "task.path")


def test_bundle_from_another_front_end(evaluate, tmp_path):
    bundle = save_bundle(Encoder(SMALL, seed=0), tmp_path / "e.safetensors")
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
