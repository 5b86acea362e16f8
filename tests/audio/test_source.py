import io
import os
import sys

import pandas as pd
import pytest

from decar.audio.source import read_source
from decar.errors import ManifestError
from tests.audio.sounds import tone, write
from tests.audio.stores import bucket

__all__ = ["bucket"]


def test_everything_that_can_be_pointed_at(tmp_path, monkeypatch):
    write(tmp_path / "d" / "a.wav", tone(0.1))
    write(tmp_path / "d" / "e" / "b.flac", tone(0.1))
    pd.DataFrame({"path": ["d/a.wav"], "start": [0.05], "species": ["owl"]}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"path": ["a.wav"]}).to_parquet(tmp_path / "t.parquet")
    monkeypatch.chdir(tmp_path)

    def paths(source, **options):
        clips = read_source(source, **options)
        assert all(file.is_file() for file in clips.files)
        return clips.table["path"].tolist()

    assert paths("d") == ["a.wav", "e/b.flac"]
    assert paths("t.csv") == ["d/a.wav"]
    assert read_source("t.csv").table["species"].tolist() == ["owl"]
    assert read_source("t.csv").stretches == [(0.05, None)]
    assert paths("t.parquet", root="d") == ["a.wav"]
    assert paths("d/a.wav") == ["d/a.wav"]
    assert paths("d/**/*.*") == ["d/a.wav", "d/e/b.flac"]
    assert paths(str(tmp_path / "d" / "*.wav")) == [str(tmp_path / "d" / "a.wav")]
    assert paths("-", stdin=["d/a.wav\n", "\n", "d/e/b.flac"]) == ["d/a.wav", "d/e/b.flac"]


@pytest.mark.parametrize("options", [{"root": "d"}, {"path_column": "file"}])
@pytest.mark.parametrize("source", ["d", "d/a.wav", "d/*.wav", "s3://b/d", "s3://b/d/a.wav"])
def test_options_of_tables_are_refused_for_other_sources(tmp_path, monkeypatch, bucket, source, options):
    file = write(tmp_path / "d" / "a.wav", tone(0.1))
    bucket.pipe_file("s3://b/d/a.wav", file.read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=rf"with {next(iter(options))}=.*: that is of tables and lists of paths"):
        read_source(source, fetch=True, **options)


@pytest.mark.parametrize(("source", "told"), [("none", "does not exist"), ("*.wav", "no file fits"), ("-", "no path")])
def test_nothing_there(tmp_path, monkeypatch, source, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=told):
        read_source(source, stdin=[])


def test_a_pattern_lists_each_real_folder_once_and_names_what_is_no_file(tmp_path, monkeypatch, caplog):
    write(tmp_path / "d" / "a.wav", tone(0.1))
    (tmp_path / "d" / "loop").symlink_to(".")
    (tmp_path / "d" / "self.wav").symlink_to("self.wav")
    os.mkfifo(tmp_path / "d" / "pipe.wav")
    os.close(os.open(os.fsencode(tmp_path / "d") + b"/\xff.wav", os.O_CREAT))
    monkeypatch.chdir(tmp_path)
    assert read_source("d/**/*.wav").table["path"].tolist() == ["d/a.wav"]
    assert [record.message for record in caplog.records] == [
        "left out: d/pipe.wav (a named pipe, not a file)",
        "left out: d/self.wav (Too many levels of symbolic links)",
        "left out: d/\udcff.wav (its name is not valid Unicode: rename it)",
    ]


def test_a_name_that_is_no_unicode_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.close(os.open(b"\xff.wav", os.O_CREAT))
    with pytest.raises(ManifestError, match=r"\udcff.wav: the name is not valid Unicode"):
        read_source("\udcff.wav")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.wav\n\xff.wav\n"), encoding="utf-8"))
    with pytest.raises(ManifestError, match=r"\udcff.wav: the name is not valid Unicode"):
        read_source("-")
