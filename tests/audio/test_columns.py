"""Tables as other programs write them: the right stretch of the right file, or a refusal that names the column."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decar.audio import Manifest
from decar.errors import ManifestError

STRETCHES = [(1.0, 2.0), (0.5, 0.25)]


def save(tmp_path: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize(
    "text",
    [
        "path,start,end\na.wav,1,3\nb.wav,.5,.75\n",
        "path,start_time,end_time\na.wav,1,3\nb.wav,.5,.75\n",
        "path,onset,offset\na.wav,1,3\nb.wav,.5,.75\n",
        "path,offset,duration\na.wav,1,2\nb.wav,.5,.25\n",
        "path,begin,stop\na.wav,1,3\nb.wav,.5,.75\n",
        "path,start_ms,end_ms\na.wav,1000,3000\nb.wav,500,750\n",
        "path,start,end,duration\na.wav,1,3,2.004\nb.wav,.5,.75,.25\n",
        "path,start,end,duration\na.wav,1,,2\nb.wav,.5,.75,\n",
        " Path ,START, Duration (s)\na.wav,1,2\nb.wav,.5,.25\n",
        '"File","Begin Time (s)","End Time (s)"\n"a.wav","1","3"\n"b.wav",".5",".75"\n',
        "filename;start;end\na.wav;1;3\nb.wav;.5;.75\n",
        "audio_filepath;onset;offset\na.wav;1;3\nb.wav;.5;.75\n",
        "path,starttime,endtime\na.wav,1,3\nb.wav,.5,.75\n",
        "file_name\tstartTime\tendTime\na.wav\t1\t3\nb.wav\t.5\t.75\n",
        "label;wav;segment_start;segment_end\nx,y;a.wav;1;3\nz;b.wav;.5;.75\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_in_other_words_gives_the_same_stretches(tmp_path: Path, text: str, encoding: str) -> None:
    clips = Manifest.from_csv(save(tmp_path, text, encoding=encoding))
    assert clips.files == [tmp_path / "a.wav", tmp_path / "b.wav"]
    found = [(start, round(duration or -1, 2)) for start, duration in clips.stretches]
    assert found == STRETCHES
    assert not {"end", "offset", "stop"} & set(clips.table)
    assert clips.take([1]).stretches == clips.stretches[1:]


def test_what_was_taken_for_what_is_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Manifest.from_csv(save(tmp_path, "File;Onset;Offset;Split\na.wav;1;3;train\n")).take([0])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 't.csv'}: cells are separated by semicolons; paths from 'File'; split from 'Split'; "
        "start from 'Onset'; end from 'Offset'"
    ]
    caplog.clear()
    Manifest.from_csv(save(tmp_path, "path,start,duration,split\na.wav,1,3,train\n"))
    assert not caplog.records


def test_a_raven_table_has_a_row_a_selection_and_times_in_its_own_file(tmp_path: Path) -> None:
    head = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tBegin File"
    rows = [f"{i}\t{view} 1\t1\t{begin}\t{begin + 2}\t0\t{file}"
            for i, (begin, file) in enumerate([(61, "a.wav"), (90.5, "b.wav")]) for view in ("Waveform", "Spectrogram")
            ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"counts over all files of a sequence: .*'File Offset \(s\)'"):
        Manifest.from_csv(save(tmp_path, "\n".join([head, *rows]), "r.txt"))
    placed = [row + f"\t{place}" for row, place in zip(rows, [1, 1, 30.5, 30.5], strict=True)]
    clips = Manifest.from_csv(save(tmp_path, "\n".join([head + "\tFile Offset (s)", *placed]), "r.txt"))
    assert clips.table["path"].tolist() == ["a.wav", "b.wav"]
    assert clips.stretches == [(1.0, 2.0), (30.5, 2.0)]
    one = [row.replace("b.wav", "a.wav") for row in rows]
    assert Manifest.from_csv(save(tmp_path, "\n".join([head, *one]), "r.txt")).stretches == [(61.0, 2.0), (90.5, 2.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,audio\na.wav,b.wav\n", r"'file', 'audio' may all be the paths: name .* by path_column \(--path-column"),
        ("clip,label\na.wav,x\n", r"no column 'path' \(columns: clip, label\): name .*data.path_column=NAME"),
        ("path,start,end\na.wav,1,2\nb.wav,3,3\n", "column 'end', row 2: '3' is not after the start"),
        ("path,onset,offset\na.wav,3,2\n", "column 'offset', row 1: '2' is not after the start"),
        ("path,begin,end\na.wav,-1,2\n", "column 'begin', row 1: '-1' is not a number of seconds ≥ 0"),
        ("path,start,end,duration\na.wav,1,2,60\n", "column 'end', row 1: '2' contradicts 'duration'"),
        ('path,start,end\na.wav,"1,5",2\n', "column 'start', row 1: '1,5' is not a number .* decimal comma"),
        ("path,stop\na.wav,yes\n", "column 'stop', row 1: 'yes' is not .* rename the column if it is not the end"),
        ("path,begin,start_time\na.wav,1,2\n", "'begin', 'start_time' may all be the start: rename"),
        ("path,start,end_sample\na.wav,1,48000\n", "column 'end_sample' looks like a time and is not understood"),
        ("path,start,length\na.wav,1,3\n", "column 'length' looks like a time"),
        ("path,start,offset\na.wav,1,3\n", "column 'offset' looks like a time"),
        ("path,offset\na.wav,1\n", "column 'offset' looks like a time"),
        ("path,start;end\na.wav,0.5;1\n", "column 'start;end' looks like a time"),
        ("path,start-end\na.wav,0.5 - 1.25\n", "column 'start-end' looks like a time"),
        ("path,tmin,tmax\na.wav,1,3\n", "column 'tmin' looks like a time"),
        ("path,t_min,t_max\na.wav,1,3\n", "column 't_min' looks like a time"),
        ("path,frame_offset,num_frames\na.wav,16000,16000\n", "column 'frame_offset' looks like a time"),
        ("path,start,num_frames\na.wav,1,16000\n", "column 'num_frames' looks like a time"),
        ("path,start,n_samples\na.wav,1,16000\n", "column 'n_samples' looks like a time"),
        ("path,start_frame,end_frame\na.wav,1,3\n", "column 'start_frame' looks like a time"),
    ],
)
def test_what_is_not_clear_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.from_csv(save(tmp_path, text))
    assert str(tmp_path / "t.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["path,duration_s,start_date\na.wav,3,2020\n", "path,stop_word,times\na.wav,yes,3\n"])
def test_columns_that_are_no_stretches_stay_labels(tmp_path: Path, text: str) -> None:
    clips = Manifest.from_csv(save(tmp_path, text))
    assert clips.stretches == [(0.0, None)]
    assert ",".join(clips.table) == text.splitlines()[0]


def test_a_parquet_table_and_a_frame_mean_the_same_as_a_text(tmp_path: Path) -> None:
    table = pd.DataFrame({"File": ["a.wav", "b.wav"], "onset": [1.0, 0.5], "offset": [3.0, np.nan]})
    table.to_parquet(tmp_path / "t.parquet")
    frame = table.rename(columns={"File": "path"})
    for clips in (Manifest.from_path(tmp_path / "t.parquet"), Manifest(frame, tmp_path)):
        assert clips.table["path"].tolist() == ["a.wav", "b.wav"]
        assert clips.stretches == [(1.0, 2.0), (0.5, None)]


def test_the_path_column_that_is_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path, "file,My Clips\na.wav,b.wav\n")
    assert Manifest.from_csv(file, path_column="My Clips").table["path"].tolist() == ["b.wav"]
    assert Manifest.from_csv(file, path_column="my_clips").table["path"].tolist() == ["b.wav"]
    with pytest.raises(ManifestError, match=r"no column 'My Clip' .*; is 'My Clips' meant"):
        Manifest.from_csv(file, path_column="My Clip")


def test_a_label_is_found_whatever_its_capitals_and_spaces(tmp_path: Path) -> None:
    clips = Manifest.from_csv(save(tmp_path, "path,Species ,kind,Kind\na.wav,owl,1,2\n"))
    assert clips.column("species").tolist() == ["owl"]
    assert clips.column("kind").tolist() == ["1"]
    with pytest.raises(ManifestError, match="no column 'KIND'"):  # either could be meant
        clips.column("KIND")
    with pytest.raises(ManifestError, match=r"no column 'specis' .*; is 'Species' meant"):
        clips.column("specis")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'[{"path": "a.wav"}]', "is JSON: save it as 'CSV UTF-8'"),
        ("t.csv", b'{"path": "a.wav"}', "is JSON"),
        ("t.xlsx", b"PK\x03\x04", "is an Excel workbook"),
        ("t.csv", b"PK\x03\x04", "is a ZIP archive, as Excel workbooks are"),
        ("t.csv", b"PAR1", "is Parquet"),
        ("t.csv", "path\nä.wav\n".encode("cp1252"), "is not UTF-8.* 0xe4.*save it as 'CSV UTF-8' .*Windows-1252"),
        ("t.csv", "path\na.wav\n".encode("utf-16-le"), "is UTF-16 without a byte-order mark"),
    ],
)
def test_a_file_of_another_kind_says_what_to_do(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        Manifest.from_path(tmp_path / name)


def test_paths_with_backslashes_and_spaces_are_found_where_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    for name in ("birds/a.wav", "birds\\b.wav", "c.wav"):
        (tmp_path / name).touch()
    text = "path\nbirds\\a.wav\nbirds\\b.wav\n c.wav\nbirds\\gone.wav\n"
    clips = Manifest.from_csv(save(tmp_path, text))
    assert clips.table["path"].tolist() == ["birds/a.wav", "birds\\b.wav", "c.wav", "birds\\gone.wav"]
    with pytest.raises(ManifestError, match=r"1 paths have backslashes, such as C:\\gone\.wav, .*--root"):
        Manifest.from_csv(save(tmp_path, "path\nc.wav\nC:\\gone.wav\n"))


@pytest.mark.parametrize(
    "text",
    ["path,label,label\na.wav,dog,cat\n", "path,label, label\na.wav,dog,cat\n", "path\tpath\na.wav\tb.wav\n"],
)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, text: str) -> None:
    """The first was taken without a word."""
    with pytest.raises(ManifestError, match=r"columns \d and \d are both called '(label|path)' and differ: rename one"):
        Manifest.from_csv(save(tmp_path, text))


def test_two_columns_of_one_name_and_content_are_one(tmp_path: Path) -> None:
    found = Manifest.from_csv(save(tmp_path, "path,label,,label,\na.wav,dog,1,dog,2\nb.wav,,3,,4\n"))
    assert found.column("label").tolist() == ["dog", ""]


@pytest.mark.parametrize(
    "text",
    [
        'path,label\na.wav,dog\nb.wav,"\nc.wav,cat\nd.wav,"\n',  # ditto marks
        'path\tlabel\tplace\na.wav\t"dog\tx\nb.wav\tcat\ty\nc.wav\t"cow\tz\n',
        'label,path\r\n"dog,a.wav\r\ncat",b.wav\r\n',
        'path\n"a.wav\nb.wav"\nc.wav\n',
    ],
)
def test_rows_that_quotes_have_joined_are_refused(tmp_path: Path, text: str) -> None:
    """They vanished, and one label held them all."""
    with pytest.raises(ManifestError, match=r"row \d: quotes join \d lines of the table to one row"):
        Manifest.from_csv(save(tmp_path, text))


@pytest.mark.parametrize("note", ["heard once,\nthen again, louder", "a\nb, c", "one\n\ntwo", "x.wav\ny, z.wav"])
def test_a_cell_may_have_several_lines(tmp_path: Path, note: str) -> None:
    found = Manifest.from_csv(save(tmp_path, f'path,note\na.wav,"{note}"\nb.wav,\n'))
    assert found.column("note").tolist() == [note, ""]
