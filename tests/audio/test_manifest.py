import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decar.audio import Manifest
from decar.errors import ManifestError


def csv(tmp_path: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a b.wav").touch()
    manifest = Manifest.from_folder(tmp_path)
    assert manifest.table.to_dict("list") == {"path": ["dog/a b.wav"], "label": ["dog"]}
    assert manifest.files == [tmp_path / "dog" / "a b.wav"]
    assert manifest.stretches == [(0.0, None)]


@pytest.mark.parametrize("name", ["nowhere", "a_file"])
def test_a_folder_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(ManifestError, match=f"{name} .*: give a folder"):
        Manifest.from_folder(tmp_path / name)


def test_no_audio_names_the_kinds_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "song.txt").touch()
    with pytest.raises(ManifestError, match=r"no audio found in .*: files that end in wav .*flac ogg .*are read"):
        Manifest.from_folder(tmp_path)


def test_csv_labels_stay_text(tmp_path: Path) -> None:
    path = csv(tmp_path, "file,tone,word,start,duration\na.wav,1,nan,,\n../é.wav,,NA,0.5,2\n/x/c.wav,007,null,1e-1,\n")
    manifest = Manifest.from_csv(path, path_column="file")
    assert manifest.column("path").tolist() == ["a.wav", "../é.wav", "/x/c.wav"]
    assert manifest.column("tone").tolist() == ["1", "", "007"]
    assert manifest.column("word").tolist() == ["nan", "NA", "null"]
    assert manifest.stretches == [(0.0, None), (0.5, 2.0), (0.1, None)]
    assert manifest.files == [tmp_path / "a.wav", tmp_path / "../é.wav", Path("/x/c.wav")]
    assert Manifest.from_csv(path, path_column="file", root="/data").files[0] == Path("/data/a.wav")


def test_csv_from_a_spreadsheet(tmp_path: Path) -> None:
    marked = csv(tmp_path, "path,label\r\na.wav,x\r\n", encoding="utf-8-sig")  # byte-order mark, DOS line ends
    assert Manifest.from_csv(marked).table.to_dict("list") == {"path": ["a.wav"], "label": ["x"]}
    tabs = csv(tmp_path, "path\tlabel\na, b.wav\tx\n", name="t.tsv")
    assert Manifest.from_csv(tabs).column("path").tolist() == ["a, b.wav"]
    trailing = csv(tmp_path, "path,label,\na.wav,x,\n")
    assert Manifest.from_csv(trailing).column("path").tolist() == ["a.wav"]


def test_path_column_wins_over_an_old_path(tmp_path: Path) -> None:
    manifest = Manifest.from_csv(csv(tmp_path, "path,file\n/gone/a.wav,b.wav\n"), path_column="file")
    assert manifest.table.to_dict("list") == {"path": ["b.wav"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,label\na.wav,x\n", r"no column 'path' \(columns: clip, label\)"),
        ("path,label\n", "has no rows"),
        ("", "cannot be read as CSV"),
        ("path,label\na.wav,x\n,y\n", "row 2 has no path"),
        ("path,start\na.wav,0\nb.wav,soon\n", "t.csv: column 'start', row 2: 'soon' is not a number of seconds ≥ 0"),
        ("path,start\na.wav,-1\n", "column 'start', row 1"),
        ("path,duration\na.wav,0\n", "column 'duration', row 1: '0' is not a number of seconds > 0"),
        ("path,duration\na.wav,inf\n", "column 'duration', row 1"),
        ("path,duration\na.wav,nan\n", "column 'duration', row 1"),
        ("path\na.wav," + 200_000 * "x" + "\n", "cannot be read as CSV: field larger than field limit"),
    ],
)
def test_bad_csv_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.from_csv(csv(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_unreadable_tables(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path\nä.wav\n".encode("latin-1"))
    (tmp_path / "no.parquet").write_text("text")
    for read, name in [
        (Manifest.from_csv, "latin.csv"),
        (Manifest.from_csv, "."),
        (Manifest.from_parquet, "no.parquet"),
    ]:
        with pytest.raises(ManifestError, match="cannot be read"):
            read(tmp_path / name)
    for read in (Manifest.from_csv, Manifest.from_parquet):
        with pytest.raises(ManifestError, match="does not exist"):
            read(tmp_path / "nowhere")


def test_parquet_labels_become_text(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "path": ["a.wav", "b.wav"],
            "pitch": pd.array([60, None], dtype="Int64"),
            "word": ["x", None],
            "start": [None, 1.5],
            "embedding": [[1.0, 2.0], [3.0]],
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    manifest = Manifest.from_parquet(tmp_path / "t.parquet")
    assert manifest.column("pitch").tolist() == ["60", ""]
    assert manifest.column("word").tolist() == ["x", ""]
    assert manifest.stretches == [(0.0, None), (1.5, None)]
    assert "embedding" not in manifest.table.columns


def test_missing_column_lists_those_there_are() -> None:
    manifest = Manifest(pd.DataFrame({"path": ["a"], "word": ["x"]}), Path())
    with pytest.raises(ManifestError, match=r"no column 'wrod' \(columns: path, word\)"):
        manifest.column("wrod")


def test_take_by_index_and_by_mask() -> None:
    table = pd.DataFrame({"path": list("abcd"), "start": [0.0, 1.0, 2.0, np.nan]}, index=[9, 8, 7, 6])
    manifest = Manifest(table, Path("/r"))
    assert manifest.take([2, 0]).column("path").tolist() == ["c", "a"]
    masked = manifest.take(np.array([False, True, False, True]))
    assert masked.column("path").tolist() == ["b", "d"]
    assert masked.table.index.tolist() == [0, 1]
    assert len(manifest.take([])) == 0
    assert table.index.tolist() == [9, 8, 7, 6]  # the caller's table is left alone
    with pytest.raises(ValueError, match="mask needs 4"):
        manifest.take(np.array([True]))


def test_fingerprint_is_the_hash_of_its_definition(tmp_path: Path) -> None:
    """A store of another version is found by it, so that it may be computed otherwise, but never be another."""
    large = bytes(range(256)) * 400
    (tmp_path / "ü.wav").write_bytes(b"12345")
    (tmp_path / "large.wav").write_bytes(large)
    os.utime(tmp_path / "large.wav", ns=(7, 7))
    paths = ["ü.wav", "large.wav", "missing.wav", "ü.wav"]
    table = pd.DataFrame({"path": paths, "start": [0.0, 0.5, np.nan, 1.0]})
    starts = [i * (len(large) - 16_384) // 3 for i in range(4)]
    blocks = b"".join(large[start : start + 16_384] for start in starts)
    small = hashlib.blake2b(b"5" + b"12345", digest_size=16).digest()
    digests = [small, hashlib.blake2b(b"102400" + blocks, digest_size=16).digest(), bytes(16), small]
    stretches = struct.pack("<8d", 0.0, -1.0, 0.5, -1.0, -1.0, -1.0, 1.0, -1.0)
    content = hashlib.sha256(b"".join(digests) + stretches)
    named = content.digest() + "\0".join(paths).encode() + struct.pack("<4q", 0, 7, 0, 0)
    assert Manifest(table, tmp_path).identity() == (hashlib.sha256(named).hexdigest(), content.hexdigest(), 4)


def test_fingerprint_follows_the_audio_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    table = pd.DataFrame({"path": ["a.wav", "b.wav"], "start": [0.0, 1.0], "label": ["x", "y"]})
    base = Manifest(table, tmp_path).fingerprint()
    assert Manifest(table.assign(label="z"), tmp_path).fingerprint() == base
    assert Manifest(table.assign(start=[0.0, 2.0]), tmp_path).fingerprint() != base
    assert Manifest(table.assign(duration=[1.0, 1.0]), tmp_path).fingerprint() != base
    assert Manifest(table.iloc[::-1], tmp_path).fingerprint() != base
    (tmp_path / "b.wav").write_bytes(b"1")
    appeared = Manifest(table, tmp_path).fingerprint()
    assert appeared != base
    os.utime(tmp_path / "b.wav", ns=(0, 0))
    assert Manifest(table, tmp_path).fingerprint() == appeared, "all of its content was read"
    (tmp_path / "b.wav").write_bytes(b"2")
    os.utime(tmp_path / "b.wav", ns=(0, 0))
    assert Manifest(table, tmp_path).fingerprint() != appeared


def test_content_hash_knows_neither_root_nor_disk(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a", "b"], "word": ["x", "yz"], "w2": ["y", ""]})
    base = Manifest(table, tmp_path).content_hash("path", "word")
    assert Manifest(table, Path("/other")).content_hash("path", "word") == base
    assert Manifest(table.assign(w2="q"), tmp_path).content_hash("path", "word") == base
    assert Manifest(table.assign(w2="q"), tmp_path).content_hash() != Manifest(table, tmp_path).content_hash()
    shifted = table.assign(path=["a", "by"], word=["x", "z"])  # the same letters, another border
    assert Manifest(shifted, tmp_path).content_hash("path", "word") != base


def test_reading_a_table_needs_no_torch() -> None:
    """The module itself: the package `decar.audio` exports LogMel and cannot do without."""
    code = (
        "import sys, types, pathlib, decar; room = types.ModuleType('decar.audio');"
        "room.__path__ = [str(pathlib.Path(decar.__file__).parent / 'audio')]; sys.modules['decar.audio'] = room;"
        "import decar.audio.manifest; assert 'torch' not in sys.modules and 'soundfile' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


TABLE = "path,kind,ok\na.wav,dog,True\nb.wav,cat,false\nc.wav,dog,0\nd.wav,owl,yes\n"


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (None, "abcd"), ("ok", "ad"), ("kind=dog", "ac"), ("kind!=dog", "bd"), ("kind = dog and ok", "a"),
        ("kind!=dog and kind!=owl", "b"), ('kind!="dog"', "bd"), ("kind='owl'", "d"),
    ],
)  # fmt: skip
def test_only_rows_for_which_it_holds(tmp_path: Path, where: str | None, paths: str) -> None:
    found = Manifest.from_csv(csv(tmp_path, TABLE), where=where)
    assert found.table["path"].tolist() == [f"{letter}.wav" for letter in paths]
    Manifest.from_csv(csv(tmp_path, TABLE)).table.to_parquet(tmp_path / "t.parquet")
    again = Manifest.from_parquet(tmp_path / "t.parquet", where=where)
    assert again.table["path"].tolist() == found.table["path"].tolist()


def test_conditions_that_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"where=sort=dog: no column 'sort' \(columns: path, kind, ok\)"):
        Manifest.from_csv(csv(tmp_path, TABLE), where="sort=dog")
    with pytest.raises(ManifestError, match="holds for none of 4 clips"):
        Manifest.from_csv(csv(tmp_path, TABLE), where="kind=owl and kind=cat")
    for word in ("kind=bat", "kind!=bat"):  # a misspelt exclusion would leave everything in
        with pytest.raises(ManifestError, match=r"no clip has kind=bat \(values: 'dog', "):
            Manifest.from_csv(csv(tmp_path, TABLE), where=word)


def test_a_part_of_a_table_is_understood_as_all_of_it(tmp_path: Path) -> None:
    """Workers and streams are given some rows at a time, hours after the table was read."""
    rows = "".join(f"{i}.wav,{i % 3}.5,{'none' if i == 7 else i}\n" for i in range(9))
    manifest = Manifest.from_csv(csv(tmp_path, f"path,Begin Time (s),end_marker\n{rows}"))
    assert manifest.take(np.arange(3)).stretches == manifest.stretches[:3]
    assert manifest.where("end_marker!=none").stretches == manifest.stretches[:7] + manifest.stretches[8:]
