"""What Audacity and Raven read: a file a recording, in folders as the recordings lie."""

from pathlib import Path

import pandas as pd
import pytest

from decar.audio.annotations import write_annotations
from decar.errors import DecarError


def table(files):
    return pd.DataFrame({
        "file": [str(file) for file in files], "start": [5.0, 0.0, 0.0][: len(files)],
        "duration": [2.5, 5.0, 1.0][: len(files)],
    })  # fmt: skip


def test_a_file_a_recording_sorted_by_time(tmp_path):
    rows = table(["/rec/site a/one.wav", "/rec/site a/one.wav", "/rec/b/two.flac"])
    assert write_annotations(tmp_path, rows, ["cluster 3", "noise", "cluster 0"], 8000.0) == 2
    assert (tmp_path / "audacity/site a/one.wav.txt").read_text() == (
        "0.000000\t5.000000\tnoise\n5.000000\t7.500000\tcluster 3\n"
    )
    lines = (tmp_path / "raven/b/two.flac.selections.txt").read_text().splitlines()
    assert lines == [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation",
        "1\tSpectrogram 1\t1\t0.000000\t1.000000\t0.0\t8000.0\tcluster 0",
    ]
    read = pd.read_csv(tmp_path / "raven/site a/one.wav.selections.txt", sep="\t")
    assert read["Annotation"].tolist() == ["noise", "cluster 3"]


def test_an_earlier_call_leaves_nothing_and_labels_stay_on_their_line(tmp_path):
    write_annotations(tmp_path, table(["/rec/old.wav"]), ["x"], 8000.0)
    write_annotations(tmp_path, table(["/rec/new.wav", "/rec/new.wav"]), ["a\tb\nc", ""], 8000.0)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.txt"))
    assert files == [Path("audacity/new.wav.txt"), Path("raven/new.wav.selections.txt")]
    assert (tmp_path / "audacity/new.wav.txt").read_text() == "5.000000\t7.500000\ta\\tb\\nc\n"


@pytest.mark.parametrize("name", ["audacity/new.wav.txt", "raven/mine.txt"])
def test_labels_that_somebody_has_corrected_are_not_deleted(tmp_path, name):
    write_annotations(tmp_path, table(["/rec/ä.wav", "/rec/new.wav"]), ["x", "y"], 8000.0)
    (tmp_path / "audacity/.DS_Store").write_text("of the system")
    write_annotations(tmp_path, table(["/rec/ä.wav", "/rec/new.wav"]), ["x", "y"], 8000.0)
    (tmp_path / name).write_text("0.0\t3.0\tdog\n")
    with pytest.raises(DecarError, match=rf"{name}: has been changed since decar wrote it"):
        write_annotations(tmp_path, table(["/rec/new.wav"]), ["x"], 8000.0)
    assert (tmp_path / name).read_text() == "0.0\t3.0\tdog\n"
    assert (tmp_path / "audacity/ä.wav.txt").exists()
    (tmp_path / name).unlink()
    write_annotations(tmp_path, table(["/rec/new.wav"]), ["x"], 8000.0)
    assert not (tmp_path / "audacity/ä.wav.txt").exists()


def test_folders_of_a_call_that_was_killed_or_of_before_are_deleted(tmp_path):
    write_annotations(tmp_path, table(["/rec/old.wav"]), ["x"], 8000.0)
    (tmp_path / "audacity/.decar").write_text("decar deletes this folder before it writes it anew.\n")
    (tmp_path / "audacity/part.txt").write_text("")
    write_annotations(tmp_path, table(["/rec/new.wav"]), ["x"], 8000.0)
    assert not (tmp_path / "audacity/part.txt").exists()


def test_recordings_of_one_name_do_not_share_a_file(tmp_path):
    rows = table(["/rec/a.wav", "/rec/a.flac", "/rec/sub/a.wav"])
    write_annotations(tmp_path, rows, ["1", "2", "3"], 8000.0)
    assert len(list((tmp_path / "audacity").rglob("*.txt"))) == 3


def test_a_clean_up_never_reaches_beyond_its_folder(tmp_path):
    """`audacity` may be a link to somebody's folder: the link is not followed."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "audacity").symlink_to(kept)
    with pytest.raises(DecarError, match=r"out/audacity: is not of an earlier call: rename it"):
        write_annotations(out, table(["/rec/a.wav"]), ["1"], 8000.0)
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]


def test_labels_of_one_s_own_are_not_deleted(tmp_path):
    """With `--out` the folder of the recordings, which may have selection tables in a folder of that name."""
    (tmp_path / "raven").mkdir()
    (tmp_path / "raven/a.selections.txt").write_text("a year's work")
    with pytest.raises(DecarError, match=r"/raven: is not of an earlier call: rename it, or write the results to"):
        write_annotations(tmp_path, table(["/rec/a.wav"]), ["1"], 8000.0)
    assert (tmp_path / "raven/a.selections.txt").read_text() == "a year's work"
    assert not (tmp_path / "audacity").exists()
