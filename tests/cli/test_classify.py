"""`decar fit`, `predict`, `suggest`: from labels of stretches to labels of other recordings."""

import errno

import numpy as np
import pandas as pd
import pytest

from decar.downstream.classifier import Classifier
from tests.cli.helpers import write_recordings

KINDS = ("low", "high", "noise", "pulse")


@pytest.fixture
def recordings(tmp_path):
    """Eight recordings of 20 s, four kinds of stretches of 5 s each, in another order every time."""
    write_recordings([tmp_path / ("known" if i < 5 else "new") / f"rec{i}.wav" for i in range(8)])
    rows = [(f"known/rec{i}.wav", 5.0 * j, 5.0, KINDS[(i + j) % 4]) for i in range(5) for j in range(4)]
    pd.DataFrame(rows, columns=["path", "start", "duration", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def truth(table):
    number = table["path"].str.extract(r"rec(\d)")[0].astype(int)
    return [KINDS[(i + int(start) // 5) % 4] for i, start in zip(number, table["start"], strict=True)]


def test_labels_of_some_recordings_become_labels_of_others(decar, recordings):
    outcome = decar("fit", "labels.csv")
    assert outcome.code == 0, outcome.err
    assert "fitted to 20 clips" in outcome.out
    card = (recordings / "classifier.md").read_text()
    assert "| high" in card
    assert "threshold" in card
    outcome = decar("predict", "new", "--classifier", "classifier.safetensors", "--out", "p.csv")
    assert outcome.code == 0, outcome.err
    found = pd.read_csv(recordings / "p.csv")
    assert list(found)[:5] == ["path", "start", "duration", "label", "score_high"]
    assert len(found) == 12
    scores = found[[f"score_{name}" for name in sorted(KINDS)]]
    assert (np.array(sorted(KINDS))[scores.to_numpy().argmax(1)] == truth(found)).all()
    assert (found["label"] == truth(found)).mean() > 0.8
    lines = (recordings / "p/audacity/rec5.wav.txt").read_text().splitlines()
    assert [line.split("\t")[2] for line in lines] == found["label"][found["path"] == "rec5.wav"].tolist()
    assert (recordings / "p/raven/rec7.wav.selections.txt").is_file()
    again = decar("predict", "new", "--classifier", "classifier.safetensors", "--out", "p.csv")
    assert "taken again" in again.err


def test_a_detector_of_one_sound_needs_what_it_is_not(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv")
    labels["label"] = labels["label"].where(labels["label"] == "pulse", "-pulse")
    labels.to_csv(recordings / "pulse.csv", index=False)
    assert decar("fit", "pulse.csv", "--out", "pulse.safetensors").code == 0
    assert decar("predict", "new", "--classifier", "pulse.safetensors").code == 0
    found = pd.read_csv(recordings / "predictions.csv", keep_default_na=False)
    assert ((found["label"] == "pulse") == (np.array(truth(found)) == "pulse")).all()
    tracks = [file.read_text().splitlines() for file in (recordings / "predictions/audacity").glob("*.txt")]
    assert [len(lines) for lines in tracks] == [1, 1, 1]  # a segment without a label is in no track


def test_columns_of_the_source_that_are_called_as_ours_are_kept(decar, recordings):
    table = pd.DataFrame({"path": [f"known/rec{i}.wav" for i in range(5)]})
    own = table.assign(label=[f"tree {i}" for i in range(5)], cluster=[7, 8, 9, 7, 8], distance=range(5))
    own.to_csv(recordings / "sounds.csv", index=False)
    assert decar("cluster", "sounds.csv", "-k", "4").code == 0
    found = pd.read_csv(recordings / "clusters/clusters.csv").drop_duplicates("path")
    assert found[["table_cluster", "table_distance"]].to_numpy().T.tolist() == own.T[2:].to_numpy().tolist()
    assert decar("fit", "labels.csv").code == 0
    assert decar("predict", "clusters/embeddings.parquet", "--classifier", "classifier.safetensors").code == 0
    found = pd.read_csv(recordings / "predictions.csv").drop_duplicates("path")
    assert found["table_label"].tolist() == own["label"].tolist()
    assert decar("export", "clusters", "--to", "spotlight", "--out", "s.parquet").code == 0
    known = pd.read_csv(recordings / "clusters/clusters.csv")["cluster"]
    assert pd.read_parquet(recordings / "s.parquet")["cluster"].tolist() == [f"cluster {c}" for c in known]
    assert decar("export", "clusters/embeddings.parquet", "--to", "spotlight", "--out", "e.parquet").code == 0
    found = pd.read_parquet(recordings / "e.parquet")
    assert "cluster" not in found, "there are no clusters of decar's in this file"
    assert set(found["table_cluster"]) == {"7", "8", "9"}


def test_segments_are_as_long_as_the_labelled_stretches(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv")
    labels.assign(start=labels["start"] + 1, duration=1.5).to_csv(recordings / "short.csv", index=False)
    outcome = decar("fit", "short.csv")
    assert "labelled stretches are of 1.5 s" in outcome.err
    assert decar("predict", "new", "--classifier", "classifier.safetensors").code == 0
    found = pd.read_csv(recordings / "predictions.csv")
    assert found["duration"].max() < 2.3
    assert len(found) == 3 * 13
    assert decar("predict", "new", "--classifier", "classifier.safetensors", "--segment", "5").code == 0
    assert len(pd.read_csv(recordings / "predictions.csv")) == 12


def test_stretches_at_the_beginning_of_long_recordings_are_stretches_too(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv").query("start == 0")
    labels.assign(duration=1.5).to_csv(recordings / "short.csv", index=False)
    outcome = decar("fit", "short.csv")
    assert "labelled stretches are of 1.5 s" in outcome.err
    assert Classifier.load(recordings / "classifier.safetensors").facts["segment"] == 1.5
    labels.assign(duration=20.0).to_csv(recordings / "whole.csv", index=False)
    outcome = decar("fit", "whole.csv")
    assert "labelled stretches" not in outcome.err, "a length that is that of the file says nothing of stretches"
    assert "clips of 20 s are labelled as a whole" in outcome.err
    assert Classifier.load(recordings / "classifier.safetensors").facts["segment"] == "auto"


def test_a_folder_of_folders_and_several_tables_are_labels_too(decar, sound_folder, recordings):
    outcome = decar("fit", "sounds", "labels.csv", "--out", "both.safetensors")
    assert outcome.code == 0, outcome.err
    assert "fitted to 32 clips" in outcome.out
    assert "labelled as a whole" not in outcome.err


def test_long_clips_that_are_labelled_as_a_whole_are_warned_of(decar, recordings):
    rows = [(f"known/rec{i}.wav", KINDS[i % 2]) for i in range(5)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(recordings / "whole.csv", index=False)
    assert "clips of 20 s are labelled as a whole" in decar("fit", "whole.csv").err


def test_what_is_suggested_is_not_labelled_and_can_be_labelled_on_a_page(decar, recordings):
    assert decar("cluster", "known", "-k", "4").code == 0
    outcome = decar("suggest", "known", "-n", "4")
    assert outcome.code == 0, outcome.err
    first = pd.read_csv(recordings / "suggest.csv")
    assert len(first) == 4
    assert sorted(truth(first)) == sorted(KINDS)  # typical clips: one of each kind
    first.assign(label=truth(first)).to_csv(recordings / "first.csv", index=False)
    assert (recordings / "suggest.html").is_file()
    assert decar("fit", "first.csv").code == 0
    more = ("--classifier", "classifier.safetensors", "--labels", "first.csv", "-n", "5", "--out", "next.csv")
    outcome = decar("suggest", "clusters/embeddings.parquet", *more)
    assert outcome.code == 0, outcome.err
    following = pd.read_csv(recordings / "next.csv", keep_default_na=False)
    assert len(following) == 5
    key = ["path", "start"]
    assert not len(following.merge(first, on=key))
    assert {"guess", "score_low"} <= {*following}
    from_sounds = ("suggest", "known", *more[:-1], "sounds.csv")
    assert decar(*from_sounds).code == 0
    pd.testing.assert_frame_equal(following, pd.read_csv(recordings / "sounds.csv", keep_default_na=False))


def test_labels_of_no_recording_of_the_source_are_mentioned(decar, recordings):
    """Paths that start elsewhere: clips that have a label were suggested again."""
    (recordings / "other").mkdir()
    (recordings / "labels.csv").rename(recordings / "other" / "labels.csv")
    outcome = decar("suggest", "known", "--labels", "other/labels.csv", "-n", "3")
    assert "none of the labelled recordings is in known" in outcome.err
    assert "other/known/rec0.wav is one of them" in outcome.err
    said = decar("suggest", "known", "--labels", "other/labels.csv", "--root", ".", "-n", "3").err
    assert "labelled recordings" not in said
    labels = pd.read_csv(recordings / "other" / "labels.csv")
    labels["path"] = str(recordings) + "/" + labels["path"].where(labels["path"] != "known/rec3.wav", "old/rec3.wav")
    labels.to_csv(recordings / "moved.csv", index=False)
    said = decar("suggest", "known", "--labels", "moved.csv", "-n", "3").err
    assert f"1 of 5 labelled recordings are not in known, such as {recordings}/old/rec3.wav" in said


@pytest.mark.parametrize("option", ["--segment 2", "--bundle random", "--engine slurm", "--workers 2", "--jobs 3"])
@pytest.mark.parametrize("command", ["predict", "suggest"])
def test_embeddings_are_taken_as_they_are_or_refused(decar, recordings, command, option):
    table = pd.DataFrame({"path": ["a.wav"], "start": [0.0], "duration": [5.0], "embedding": [[0.5, 0.5]]})
    table.to_parquet(recordings / "e.parquet")
    Classifier(["a"], np.zeros((2, 1)), np.zeros(1), np.zeros(1), {}, {}).save(recordings / "c.safetensors")
    outcome = decar(command, "e.parquet", "--classifier", "c.safetensors", *option.split())
    assert outcome.code == 2
    message = f"{option.split()[0]}: e.parquet holds embeddings, which are taken as they are; give the sounds"
    assert message in outcome.errors[0]


def test_a_bad_file_among_the_labels_is_left_out_and_named(decar, recordings):
    (recordings / "known" / "rec0.wav").write_bytes(b"RIFF")
    outcome = decar("fit", "labels.csv")
    assert outcome.code == 0, outcome.err
    assert "rec0.wav: left out" in outcome.err
    assert "fitted to 16 clips" in outcome.out


def test_tables_that_spell_their_columns_differently_are_one(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv").assign(site=[f"s{i // 4}" for i in range(20)])
    labels[:8].to_csv(recordings / "first.csv", index=False)
    labels[8:].rename(columns={"label": "Label", "site": "Site"}).to_csv(recordings / "second.csv", index=False)
    outcome = decar("fit", "first.csv", "second.csv")
    assert outcome.code == 0, outcome.err
    assert "fitted to 20 clips" in outcome.out, "the labels of the second table were ignored"
    labels[8:].drop(columns="label").to_csv(recordings / "third.csv", index=False)
    outcome = decar("fit", "first.csv", "third.csv")
    assert outcome.code == 2
    assert "third.csv: no column 'label'" in outcome.errors[0]


def test_rows_of_split_test_are_not_fitted_to(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv")
    split = labels["path"].map({"known/rec0.wav": "test", "known/rec1.wav": "valid", "known/rec2.wav": "valid"})
    labels.assign(split=split.fillna("train"))[:16].to_csv(recordings / "split.csv", index=False)
    labels[16:].to_csv(recordings / "rest.csv", index=False)
    outcome = decar("fit", "split.csv", "rest.csv")
    assert outcome.code == 0, outcome.err
    assert "4 labelled clips of split test are left out" in outcome.err
    assert "8 clips of split valid" in (recordings / "classifier.md").read_text()
    assert "fitted to 8 clips" in outcome.out, "a table without the column is fitted to"
    assert decar("suggest", "known", "--labels", "split.csv", "-n", "20").code == 0
    suggested = pd.read_csv(recordings / "suggest.csv")["path"].unique().tolist()
    assert [path[-8:] for path in suggested] == ["rec4.wav"], "what is labelled, also to test on, is not suggested"


def test_stretches_that_have_other_labels_in_another_table_are_counted_and_named(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv")
    labels[:3].assign(label=["high", "pulse,high", labels["label"][2]]).to_csv(recordings / "other.csv", index=False)
    outcome = decar("fit", "labels.csv", "other.csv")
    assert outcome.code == 0, outcome.err
    assert "fitted to 20 clips" in outcome.out
    assert "2 labelled stretches have other labels in another table, and get those of all tables" in outcome.err
    assert "rec0.wav at 0 s has 'low' in labels.csv and 'high' in other.csv" in outcome.err
    counts = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in outcome.out.splitlines() if "|" in row}
    assert [counts[name] for name in ("high", "low", "pulse")] == ["6", "5", "6"]
    (recordings / "same.csv").write_bytes((recordings / "labels.csv").read_bytes())
    assert "other labels" not in decar("fit", "labels.csv", "same.csv").err
    labels.assign(label="-low")[:1].to_csv(recordings / "denied.csv", index=False)
    outcome = decar("fit", "labels.csv", "denied.csv")
    assert outcome.code == 2
    assert "rec0.wav has both 'low' and '-low'" in outcome.errors[0]


def test_a_label_none_of_whose_clips_can_be_read_is_named(decar, recordings):
    labels = pd.read_csv(recordings / "labels.csv")
    labels["label"] = labels["label"].mask(labels["path"] == "known/rec0.wav", "rare")
    labels.to_csv(recordings / "labels.csv", index=False)
    (recordings / "known" / "rec0.wav").write_bytes(b"RIFF")
    outcome = decar("fit", "labels.csv")
    assert outcome.code == 0, outcome.err
    assert "rare: none of its clips can be embedded, so the classifier does not know it" in outcome.err


def test_labels_that_were_typed_into_a_table_are_not_written_over(decar, recordings):
    assert decar("suggest", "known", "-n", "4").code == 0
    assert decar("suggest", "known", "-n", "4").code == 0, "nothing is lost"
    typed = pd.read_csv(recordings / "suggest.csv").assign(label=["low", "", "", ""])
    typed.to_csv(recordings / "suggest.csv", index=False)
    before = (recordings / "suggest.csv").read_bytes()
    outcome = decar("suggest", "known", "-n", "4")
    assert outcome.code == 2
    assert "suggest.csv: has been changed since decar wrote it" in outcome.errors[0]
    assert (recordings / "suggest.csv").read_bytes() == before


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_that_somebody_has_corrected_are_not_written_over(decar, recordings, suffix):
    out = recordings / f"p{suffix}"
    table = pd.DataFrame({"path": ["a.wav"], "start": [0.0], "duration": [5.0], "embedding": [[0.5, 0.5]]})
    table.to_parquet(recordings / "e.parquet")
    Classifier(["a"], np.zeros((2, 1)), np.zeros(1), np.zeros(1), {}, {"encoder": "None"}).save(recordings / "c")
    call = ("predict", "e.parquet", "--root", ".", "--classifier", "c", "--out", out.name)
    assert decar(*call).code == 0
    assert decar(*call).code == 0, "nothing is lost"
    read, write = (pd.read_csv, "to_csv") if suffix == ".csv" else (pd.read_parquet, "to_parquet")
    getattr(read(out).assign(label="b"), write)(out, index=False)
    before = out.read_bytes()
    outcome = decar(*call)
    assert outcome.code == 2
    assert f"--out p{suffix}: has been changed since decar wrote it, and would be overwritten" in outcome.errors[0]
    assert out.read_bytes() == before
    out.rename(recordings / "corrected")
    assert decar(*call).code == 0


def test_predictions_of_a_call_that_was_killed_are_written_anew(decar, recordings, monkeypatch):
    table = pd.DataFrame({"path": ["a.wav"], "start": [0.0], "duration": [5.0], "embedding": [[0.5, 0.5]]})
    table.to_parquet(recordings / "e.parquet")
    Classifier(["a"], np.zeros((2, 1)), np.zeros(1), np.zeros(1), {}, {"encoder": "None"}).save(recordings / "c")
    call = ("predict", "e.parquet", "--root", ".", "--classifier", "c")
    assert decar(*call).code == 0

    def torn(table, file):
        file.write_text("path,label\na.wav,")
        raise OSError(errno.EIO, "the end of a process")

    with monkeypatch.context() as patch:
        patch.setattr("decar.cli.classify.write_table", torn)
        assert decar(*call).code == 2
    assert decar(*call).code == 0


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("predict known --classifier c.safetensors --out mine.csv", "mine.csv"),
        ("suggest known --out mine.csv", "mine.csv"),
        ("cluster known --out mine", "mine/clusters.csv"),
        ("fit labels.csv --out mine.safetensors", "mine.md"),
    ],
)
def test_a_file_of_somebody_else_is_not_written_over(decar, recordings, words, file):
    Classifier(["a"], np.zeros((2, 1)), np.zeros(1), np.zeros(1), {}, {}).save(recordings / "c.safetensors")
    (recordings / file).parent.mkdir(exist_ok=True)
    (recordings / file).write_text("path,label\na.wav,the work of a year\n")
    outcome = decar(*words.split())
    assert outcome.code == 2
    assert f"{file}: is not of an earlier call" in outcome.errors[0]
    assert "the work of a year" in (recordings / file).read_text()


@pytest.mark.parametrize(
    "words",
    [
        "fit labels.csv --out labels.csv", "fit labels.csv --out labels.md",
        "predict labels.csv --classifier c.safetensors --out labels.csv",
        "predict known --classifier c.safetensors --out c.safetensors", "suggest labels.csv --out ./labels.csv",
        "embed labels.parquet --out labels.parquet",
    ],
)  # fmt: skip
def test_a_file_that_is_read_is_not_written_over(decar, recordings, words):
    Classifier(["a"], np.zeros((2, 1)), np.zeros(1), np.zeros(1), {}, {}).save(recordings / "c.safetensors")
    table = pd.read_csv(recordings / "labels.csv")
    table.to_parquet(recordings / "labels.parquet")
    table.to_csv(recordings / "labels.md", index=False)
    before = {file: file.read_bytes() for file in recordings.iterdir() if file.is_file()}
    outcome = decar(*words.split())
    assert outcome.code == 2
    assert "--out" in outcome.errors[0]
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "none.csv"], "none.csv does not exist"),
        (["fit", "labels.csv", "--column", "lable"], "no column 'lable'"),
        (["fit", "labels.csv", "--group", "colour"], "no column 'colour'"),
        (["predict", "new", "--classifier", "labels.csv"], "labels.csv: not readable as a classifier"),
        (["predict", "nowhere", "--classifier", "c.safetensors"], "nowhere does not exist"),
        (["predict", "new", "--classifier", "c.safetensors", "--bundle", "random"], "of another encoder"),
        (["predict", "clusters.parquet", "--classifier", "c.safetensors"], "clusters.parquet does not exist"),
        (["suggest", "new", "-n", "0"], "-n=0"),
        (["suggest", "new", "--labels", "none.csv"], "none.csv does not exist"),
    ],
)
def test_mistakes_get_one_line(decar, recordings, words, message):
    if "c.safetensors" in words:
        assert decar("fit", "labels.csv", "--out", "c.safetensors").code == 0
    outcome = decar(*words)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]


def test_nothing_is_imported_because_a_classifier_says_so(decar, recordings):
    facts = {"encoder": "0" * 64, "bundle": "torch:evil.network", "segment": "auto"}
    Classifier(["a"], np.zeros((4, 1)), np.zeros(1), np.zeros(1), {}, facts).save(recordings / "sent.safetensors")
    (recordings / "evil.py").write_text("open('ran', 'w')")
    outcome = decar("predict", "new", "--classifier", "sent.safetensors")
    assert outcome.code == 2
    assert "nothing is downloaded or imported because a file says so" in outcome.errors[0]
    assert not (recordings / "ran").exists()
