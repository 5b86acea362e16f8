import os
from pathlib import Path

import pytest

from decar.audio.scan import find_audio, labels_from_folders


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_finds_audio_of_any_case_sorted_and_skips_the_rest(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.WAV",
        "a/ä ö.Flac",
        "a/x.ogg",
        "a/deep/y.opus",
        "z.mp3",
        "notes.txt",
        "wav",
        ".hid.wav",
        ".git/h.wav",
    )
    assert find_audio(tmp_path, recursive=True) == ["a/deep/y.opus", "a/x.ogg", "a/ä ö.Flac", "b.WAV", "z.mp3"]
    assert find_audio(tmp_path, recursive=False) == ["b.WAV", "z.mp3"]


def test_all_that_libsndfile_reads_is_found(tmp_path: Path) -> None:
    endings = ("WAVE", "aif", "AIFF", "aifc", "au", "snd", "caf", "w64", "rf64", "oga", "Mp2", "voc")
    names = [f"{i}.{ending}" for i, ending in enumerate(endings)]
    touch(tmp_path, *names)
    assert find_audio(tmp_path, recursive=True) == sorted(names)


def test_what_is_passed_over_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.wav", *(f"{i}/b.M4a" for i in range(12)), "c.txt", "d.txt", "e.txt", "README", ".hidden.m4a")
    monkeypatch.setenv("PATH", "")
    assert find_audio(tmp_path, recursive=True) == ["a.wav"]
    line = f"passed over in {tmp_path}: 12 .m4a, 3 .txt, 1 without an ending; install the program ffmpeg"
    assert [record.levelname for record in caplog.records if record.message.startswith(line)] == ["WARNING"]
    monkeypatch.setattr("decar.audio.ffmpeg.available", lambda: True)
    assert len(find_audio(tmp_path, recursive=True)) == 13


def test_links_are_followed_once_and_dangling_ones_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.wav")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert find_audio(tmp_path, recursive=True) == ["gone.wav", "real/a.wav"]


def test_a_pipe_is_no_audio_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would block for ever
    touch(tmp_path, "a.wav")
    assert find_audio(tmp_path, recursive=True) == ["a.wav"]


def test_a_name_that_is_no_unicode_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.wav")
    with open(os.fsencode(tmp_path) + b"/\xff.wav", "wb") as file:
        file.write(b"x")
    assert find_audio(tmp_path, recursive=True) == ["a.wav"]
    assert "not valid Unicode" in caplog.text


def test_first_level_folders_are_labels() -> None:
    assert labels_from_folders(["dog/1/a.wav", "cat/b.wav", "c.wav"]) == {"label": ["dog", "cat", ""]}
    assert labels_from_folders(["c.wav"]) == {"label": [""]}


def test_split_folders_are_splits_only_when_all_are() -> None:
    paths = ["Train/dog/a.wav", "val/cat/x/b.wav", "dev/c.wav", "validation/d/e.wav", "test/d/f.wav"]
    assert labels_from_folders(paths) == {
        "label": ["dog", "cat", "", "d", "d"],
        "split": ["train", "valid", "valid", "valid", "test"],
    }
    assert labels_from_folders(["train/a/x.wav", "extra/y.wav"]) == {"label": ["train", "extra"]}


def test_folders_that_are_half_splits_are_labels_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """They are classes, and what is learned of them is which clip is of which split."""
    paths = ["train/a/x.wav", "test/a/y.wav", "extra/z.wav"]
    assert labels_from_folders(paths) == {"label": ["train", "test", "extra"]}
    assert "the folders test, train are named as splits, and extra is not: all of them are labels" in caplog.text
    caplog.clear()
    labels_from_folders(["train/a.wav", "bus/b.wav"])  # means of transport
    assert not caplog.text
