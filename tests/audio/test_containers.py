"""Archives and Parquet files of sounds: the same clips, labels and embeddings as the folder of the same files."""

import io
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import decar
from decar.audio import Manifest, containers
from decar.audio.source import read_source
from decar.embedder import Embedder
from decar.errors import CorpusError, ManifestError
from tests.audio.sounds import tone, write
from tests.conftest import FORK
from tests.faults.test_disk import no_room

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["cat/b.flac", "dog/a.wav", "dog/long.wav"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sources"


@pytest.fixture
def folder(tmp_path):
    """Three sounds; of the long one, 96 kB, digests are of samples."""
    for i, name in enumerate(NAMES):
        write(tmp_path / "sounds" / name, tone(3.0 if "long" in name else 0.3, hz=300.0 + 200 * i))
    return tmp_path / "sounds"


@pytest.fixture(scope="module")
def encoder():
    return decar.load_encoder()


def packed(folder, name="a.zip", prefix=""):
    """An archive beside a folder, of the kind that its name says."""
    path = folder.parent / name
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"{prefix}{file.relative_to(folder)}")
    else:
        kind = {"a.tgz": "gz", "a.tar.bz2": "bz2", "a.TAR.XZ": "xz"}.get(name, "")
        with tarfile.open(path, f"w:{kind}") as archive:
            for file in files:
                archive.add(file, f"{prefix}{file.relative_to(folder)}")
    return path


def parquet(path, sounds, **columns):
    """A file as `datasets` writes it; `sounds` are pairs of path and bytes."""
    rows = [None if sound is None else {"path": sound[0], "bytes": sound[1]} for sound in sounds]
    table = pa.table({"audio": pa.array(rows, SOUND), **columns})
    features = {"audio": {"_type": "Audio"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=2)
    return path


def of(folder, *names):
    return [(name.split("/")[-1], (folder / name).read_bytes()) for name in names or NAMES]


def contents(clips):
    return [file.read_bytes() for file in clips.files]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.bz2", "a.TAR.XZ"])
def test_an_archive_is_the_folder_that_it_holds(folder, name, encoder):
    plain, clips = read_source(folder), read_source(packed(folder, name))
    pd.testing.assert_frame_equal(clips.table, plain.table)
    assert clips.table["label"].tolist() == ["cat", "dog", "dog"]
    assert contents(clips) == contents(plain)
    assert np.array_equal(Embedder(encoder).files(clips).vectors, Embedder(encoder).files(plain).vectors)


def test_a_parquet_file_is_the_folder_that_it_holds(folder, encoder):
    file = parquet(folder.parent / "t.parquet", of(folder), label=[0, 1, 1], speaker=["x", None, "z"])
    plain, clips = read_source(folder), read_source(file)
    assert clips.table.to_dict("list") == {
        "path": ["b.flac", "a.wav", "long.wav"], "label": ["cat", "dog", "dog"], "speaker": ["x", "", "z"],
    }  # fmt: skip
    assert contents(clips) == contents(plain)
    assert np.array_equal(Embedder(encoder).files(clips).vectors, Embedder(encoder).files(plain).vectors)


def test_folders_that_wrap_all_are_no_labels(folder):
    assert Manifest.from_path(packed(folder, prefix="esc/")).table.to_dict("list") == {
        "path": [f"esc/{name}" for name in NAMES], "label": ["cat", "dog", "dog"],
    }  # fmt: skip
    clips = Manifest.from_path(packed(folder, prefix="esc/train/"))
    assert (set(clips.table["split"]), clips.table["label"].tolist()) == ({"train"}, ["cat", "dog", "dog"])
    assert set(Manifest.from_path(packed(folder, prefix="train/")).table["split"]) == {"train"}
    assert set(Manifest.from_path(packed(folder / "dog", prefix="dog/")).table["label"]) == {"dog"}


def test_a_table_may_name_sounds_in_an_archive(folder):
    (folder.parent / "t.csv").write_text("path,call\ndog/a.wav,alarm\n")
    clips = read_source(folder.parent / "t.csv", root=packed(folder))
    assert clips.table["call"].tolist() == ["alarm"]
    assert contents(clips) == [(folder / "dog" / "a.wav").read_bytes()]


def test_several_parquet_files_and_names_that_occur_twice(folder, monkeypatch):
    """What stands before the number stays: recorders write the time there."""
    first, second = of(folder, "dog/a.wav", "cat/b.flac"), of(folder, "dog/long.wav")
    sounds = [("x/a.wav", first[0][1]), ("y\\a.wav", first[1][1]), ("..", b""), None, ("ä" * 200 + "\n.wav", b"")]
    parquet(folder.parent / "train-0.parquet", sounds[:2], label=[1, -1])
    parquet(folder.parent / "train-1.parquet", [("a.wav", second[0][1]), None, sounds[4]])
    monkeypatch.chdir(folder.parent)
    clips = read_source("train-*.parquet")
    assert clips.table["path"].tolist() == ["a.wav", "a~2.wav", "a~3.wav", "sound", "ä" * 97 + "_.wav"]
    assert clips.table["label"].tolist() == ["dog", "", "", "", ""]
    assert contents(clips) == [first[0][1], first[1][1], second[0][1], b"", b""]
    assert Manifest.from_parquet("train-*.parquet", where="label=dog").table["path"].tolist() == ["a.wav"]


def test_names_that_some_disks_take_for_one_are_told_apart(folder):
    """On a Mac or on Windows A.wav was written over a.wav, and both rows had the sound of the second."""
    data = [of(folder, name)[0][1] for name in ("dog/a.wav", "cat/b.flac", "dog/long.wav")]
    names = ["a.wav", "A.wav", "\u00e9.wav", "e\u0301.wav", "stra\u00dfe.wav", "STRASSE.wav"]
    parquet(folder.parent / "t.parquet", [(name, data[i % 3]) for i, name in enumerate(names)])
    clips = Manifest.from_parquet(folder.parent / "t.parquet")
    taken = [unicodedata.normalize("NFD", path).casefold() for path in clips.table["path"]]
    assert len(set(taken)) == len(names)
    assert clips.table["path"].tolist()[:2] == ["a.wav", "A~2.wav"]
    assert contents(clips) == [data[i % 3] for i in range(len(names))]


def test_a_second_call_takes_what_is_there(folder, cache, monkeypatch):
    archive = packed(folder)
    before = read_source(archive)
    monkeypatch.setattr(containers, "unpack", None)
    after = read_source(shutil.move(archive, folder.parent / "moved.zip"))
    assert after.root == before.root
    assert after.fingerprint() == before.fingerprint()
    assert sorted(entry.name for entry in cache.iterdir()) == sorted([after.root.name, f"{after.root.name}.json"])


def test_what_has_gone_or_was_changed_in_the_cache_is_unpacked_anew(folder, cache):
    archive = packed(folder)
    clips = read_source(archive)
    fingerprint, good = clips.fingerprint(), contents(clips)
    for damage in (
        lambda file: file.unlink(),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: shutil.rmtree(cache),
        lambda file: file.parents[1].with_suffix(".json").unlink(),
    ):
        damage(clips.files[1])
        again = read_source(archive)
        assert contents(again) == good
        assert again.fingerprint() == fingerprint  # results of these sounds are found again


def test_a_changed_archive_is_noticed_whatever_its_time_and_size(folder):
    """Also where the change lies between the samples of which the digest of a large sound is made."""
    archive = packed(folder, "a.tar")
    before, times = read_source(archive), (archive.stat().st_atime_ns, archive.stat().st_mtime_ns)
    old = contents(before)
    sound = folder / "dog" / "long.wav"
    content = bytearray(sound.read_bytes())
    content[20_000] ^= 1
    sound.write_bytes(content)
    os.utime(packed(folder, "a.tar"), ns=times)
    after = read_source(archive)
    assert contents(after)[2] == bytes(content) != old[2]
    assert after.fingerprint() != before.fingerprint()


def test_an_archive_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    archive, real = packed(folder), containers.unpack
    monkeypatch.setattr(containers, "unpack", lambda *words: (real(*words), archive.touch()))
    with pytest.raises(ManifestError, match=r"a\.zip: has changed while it was read; run the same command again"):
        read_source(archive)


def test_a_kill_in_between_leaves_nothing_that_is_taken_for_sounds(folder, cache, monkeypatch):
    archive = packed(folder)

    def killed():
        os.replace = lambda *_: os._exit(9)
        read_source(archive)

    child = FORK.Process(target=killed)
    child.start()
    child.join()
    assert child.exitcode == 9
    assert [entry.suffix for entry in cache.iterdir() if entry.is_dir()] == [".part"]
    clips = read_source(archive)
    assert contents(clips) == contents(read_source(folder))
    assert sorted(entry.suffix for entry in cache.iterdir()) == ["", ".json"]


def test_two_processes_at_once_unpack_once(folder, cache):
    archive, count = packed(folder), folder.parent / "count"

    def counting(*words, real=containers.unpack):
        with count.open("a") as file:
            file.write("x")
        return real(*words)

    containers.unpack, real = counting, containers.unpack
    try:
        children = [FORK.Process(target=read_source, args=(archive,)) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    finally:
        containers.unpack = real
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert count.read_text() == "x"
    assert contents(read_source(archive)) == contents(read_source(folder))


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(folder, cache, kind):
    file = packed(folder) if kind == "zip" else parquet(folder.parent / "t.parquet", of(folder))
    with (
        no_room(50_000),
        pytest.raises(ManifestError, match=r"(a\.zip|t\.parquet): cannot be unpacked to .*DECAR_CACHE"),
    ):
        read_source(file)
    assert not any(entry.is_dir() for entry in cache.iterdir())
    assert contents(read_source(file))


def test_a_cache_that_cannot_be_written_is_an_error(folder, cache):
    cache.parent.write_text("a file")
    with pytest.raises(ManifestError, match=r"a\.zip: cannot be unpacked to .*cache.*DECAR_CACHE names another folder"):
        read_source(packed(folder))


def test_hostile_and_damaged_archives_are_refused_by_name(folder, cache):
    archive = packed(folder)
    good = archive.read_bytes()
    archive.write_bytes(good[: len(good) // 2])
    with pytest.raises(CorpusError, match=r"a\.zip: damaged or not an archive"):
        read_source(archive)
    for name, content, error, message in (
        ("../evil.wav", b"1", CorpusError, r"a\.zip: refused, its member '\.\./evil\.wav' leads out"),
        ("a.wav", bytes(3_000_000), CorpusError, r"a\.zip: refused, it unpacks to more than"),
        ("readme.txt", b"1", ManifestError, r"no audio found in .*a\.zip"),
    ):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(name, content)
        with pytest.raises(error, match=message):
            read_source(archive)
    assert sum(entry.is_dir() for entry in cache.iterdir()) == 1  # of the last one, which is whole


def test_a_name_that_is_no_unicode_is_left_out_with_a_line(folder, caplog):
    archive = folder.parent / "a.tar"
    with tarfile.open(archive, "w") as made:
        for name in ("a.wav", "\udcff.wav"):
            info = tarfile.TarInfo(name)
            info.size = 4
            made.addfile(info, io.BytesIO(b"1234"))
    assert read_source(archive).table["path"].tolist() == ["a.wav"]
    assert "its name is not valid Unicode" in caplog.text


def test_parquet_files_that_cannot_be_right(folder, cache):
    file, sounds = folder.parent / "t.parquet", of(folder)
    parquet(file, [("a.wav", None)], label=[0])
    with pytest.raises(
        ManifestError, match=r"t\.parquet: the column 'audio' holds only the path of a\.wav, not its bytes"
    ):
        read_source(file)
    parquet(file, sounds, label=[0, 1, 2])
    with pytest.raises(ManifestError, match=r"t\.parquet: column 'label': 2 is no number of its 2 classes"):
        read_source(file)
    parquet(file, [])
    with pytest.raises(ManifestError, match=r"t\.parquet: has no rows"):
        read_source(file)
    rows = pa.array([{"path": "a.wav", "bytes": bytes(3_000_000)}], SOUND)
    pq.write_table(pa.table({"audio": rows}), file, compression="zstd")  # 1 kB
    with pytest.raises(CorpusError, match=r"t\.parquet: refused, it unpacks to more than"):
        read_source(file)
    parquet(file, sounds, other=pa.array([None] * 3, SOUND))
    with pytest.raises(ManifestError, match=r"'audio', 'other' hold sounds: name one"):
        read_source(file)
    assert len(read_source(file, path_column="audio")) == 3
    file.write_bytes(parquet(file, sounds).read_bytes()[:-9])
    with pytest.raises(ManifestError, match=r"t\.parquet cannot be read as Parquet"):
        read_source(file)
    pd.DataFrame({"path": ["a.wav"]}).to_parquet(file)
    shutil.copy(file, folder.parent / "u.parquet")
    with pytest.raises(ManifestError, match=r"\?\.parquet: 2 tables that are not of one set of sounds"):
        read_source(f"{folder.parent}/?.parquet")
    assert not cache.exists() or not any(entry.suffix == ".part" for entry in cache.iterdir())


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("p.parquet", "p.zip"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ManifestError, match=r"p\.parquet cannot be read: it is a folder, a pipe or a device"):
        read_source(tmp_path / "p.parquet")
    with pytest.raises(ManifestError, match=r"p\.zip is a file, not a folder"):
        Manifest.from_folder(tmp_path / "p.zip")


def test_a_sound_without_a_name_and_one_of_another_width(folder, encoder):
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    rows = pa.array([{"bytes": content, "path": None} for _, content in of(folder)], large)
    pq.write_table(pa.table({"audio": rows}), folder.parent / "t.parquet")
    clips = read_source(folder.parent / "t.parquet")
    assert clips.table["path"].tolist() == ["sound", "sound~2", "sound~3"]
    assert np.array_equal(Embedder(encoder).files(clips).vectors, Embedder(encoder).files(read_source(folder)).vectors)


def test_memory_does_not_grow_with_a_parquet_file(folder, monkeypatch):
    """64 MB of sounds in row groups of 2 MB."""
    rng, file = np.random.default_rng(0), folder.parent / "t.parquet"
    with pq.ParquetWriter(file, pa.schema([("audio", SOUND)])) as writer:
        for i in range(32):
            rows = [{"bytes": rng.bytes(10**6), "path": f"{i}-{j}.wav"} for j in range(2)]
            writer.write_table(pa.table({"audio": pa.array(rows, SOUND)}))
    rows, most = containers._rows, []
    monkeypatch.setattr(
        containers, "_rows", lambda *words: (most.append(pa.total_allocated_bytes()) or row for row in rows(*words))
    )
    before = pa.total_allocated_bytes()
    assert len(read_source(file)) == 64
    assert max(most) - before < 30e6


def test_damage_within_a_parquet_file_is_noticed(folder):
    """One byte of the sounds: checksums of pages, where there are some, or the file is another one for its digest."""
    file = folder.parent / "t.parquet"
    rows = [{"path": path, "bytes": content} for path, content in of(folder)]
    pq.write_table(pa.table({"audio": pa.array(rows, SOUND)}), file, write_page_checksum=True, compression=None)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises((ManifestError, CorpusError), match=r"t\.parquet"):
        read_source(file)


def test_pictures_are_no_sounds_and_a_named_column_of_paths_is_taken(folder):
    file = folder.parent / "sounds" / "t.parquet"
    picture = pa.array([{"path": "p.png", "bytes": b"1"}], SOUND)
    table = pa.table(
        {"image": picture, "path": ["dog/a.wav"], "audio": pa.array([{"path": "x", "bytes": b"2"}], SOUND)}
    )
    meta = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    pq.write_table(table.replace_schema_metadata(meta), file)
    assert contents(read_source(file)) == [b"2"]
    pq.write_table(table.select(["image", "path"]).replace_schema_metadata(meta), file)
    assert read_source(file).table["path"].tolist() == ["dog/a.wav"]
    pq.write_table(table.rename_columns(["image", "file", "audio"]), file)
    assert read_source(file, path_column="file").table["path"].tolist() == ["dog/a.wav"]


def test_where_an_archive_is_no_source_the_error_says_what_to_do(folder):
    with pytest.raises(ManifestError, match=r"a\.zip is an archive, not a table: .* data=folder data.root=.*a\.zip"):
        Manifest.from_csv(packed(folder))
    with pytest.raises(
        ManifestError, match=r"a\.rar is a file, not a folder: give a folder .* or a zip or tar archive"
    ):
        Manifest.from_folder(shutil.copy(packed(folder), folder.parent / "a.rar"))
