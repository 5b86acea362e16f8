"""From a corpus's folder to its manifest and Table 1; what is wrong with a folder is said in one line."""

import json
import re
import shutil

import pandas as pd
import pytest

from decar.audio import LogMelStore
from decar.corpora import CORPORA, load_prepared, prepared_manifest
from decar.corpora.base import Size, rows
from decar.corpora.download import download
from decar.corpora.prepare import prepare, table1
from decar.errors import CorpusError


def test_what_is_prepared_is_found_again(replica, tmp_path):
    made = prepare(CORPORA["esc50"], replica("esc50"), tmp_path, progress=False)
    found = load_prepared(tmp_path, "esc50")
    assert (found.root, found.file, found.missing, found.seconds) == (made.root, made.file, 0, made.seconds)
    assert found.manifest.files == made.manifest.files
    assert found.seconds == pytest.approx(0.5, abs=0.02)
    store = LogMelStore.open_or_build(found.manifest, cache_dir=tmp_path)
    assert len(store) == 30
    assert sum(path.is_dir() for path in (tmp_path / "logmel").iterdir()) == 1  # the one that prepare made
    assert len(prepared_manifest(tmp_path, "esc50", "fold=3")) == 6
    assert load_prepared(tmp_path, "nsynth") is None
    with pytest.raises(CorpusError, match="run `decar prepare nsynth ROOT` first"):
        prepared_manifest(tmp_path, "nsynth")


def test_the_tenth_of_audioset_is_taken_from_the_store_that_prepare_made(replica, tmp_path):
    prepare(CORPORA["audioset"], replica("audioset"), tmp_path, progress=False)
    store = LogMelStore.open_or_build(prepared_manifest(tmp_path, "audioset", "tenth=yes"), cache_dir=tmp_path)
    assert 0 < len(store) < len(load_prepared(tmp_path, "audioset").manifest)
    assert set(store.manifest.column("tenth")) == {"yes"}
    assert sum(path.is_dir() for path in (tmp_path / "logmel").iterdir()) == 1


def test_a_damaged_manifest_is_named(replica, tmp_path):
    made = prepare(CORPORA["esc50"], replica("esc50"), tmp_path, store=False)
    made.file.with_name("facts.json").write_text("{")
    with pytest.raises(CorpusError, match=r"manifest\.csv: damaged .* run `decar prepare esc50 ROOT` again"):
        load_prepared(tmp_path, "esc50")


def test_table1_compares_and_gives_reasons(replica, tmp_path):
    made = prepare(CORPORA["nsynth"], replica("nsynth"), tmp_path, progress=False)
    rows = table1([(CORPORA["nsynth"], made)]).set_index("quantity")
    assert rows.loc["classes", ["expected", "found", "difference"]].tolist() == ["11", "3", "-8"]
    assert rows.loc["clips", ["expected", "found", "difference"]].tolist() == ["301,883", "26", "-301,857"]
    expected, found, difference = rows.loc["mean duration, s", ["expected", "found", "difference"]]
    assert (expected, float(found)) == ("4.00", pytest.approx(0.5, abs=0.02))
    assert float(difference) == pytest.approx(float(found) - 4, abs=0.011)
    assert "train and valid" in rows.loc["clips", "likely reason"]
    assert rows.loc["clips, split=test", ["expected", "difference"]].tolist() == ["4,096", "-4,092"]
    made = prepare(CORPORA["nsynth"], replica("nsynth"), tmp_path, store=False)
    unmeasured = table1([(CORPORA["nsynth"], made)])
    assert unmeasured.set_index("quantity").loc["mean duration, s", "found"] == "not measured"


def test_table1_of_the_paper_is_that_of_its_table(request):
    published = pd.read_csv(request.path.parents[2] / "src" / "decar" / "data" / "paper_tables.csv")
    for name, part in published[published["table"] == 1].groupby("task"):
        values = part.set_index("column")["value"].to_dict()
        assert CORPORA[name].paper == Size(int(values["classes"]), int(values["samples"]), values["avg_duration_s"])
    assert {name for name, corpus in CORPORA.items() if corpus.paper} == set(published["task"])


def test_a_missing_folder_and_one_that_is_something_else(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stuff").mkdir()
    for name, corpus in CORPORA.items():
        for folder, says in (("nowhere", "does not exist"), ("file", "is a file"), ("other", "there is: stuff")):
            with pytest.raises(CorpusError, match=f"{re.escape(corpus.title)}: .*{says}") as caught:
                prepare(corpus, tmp_path / folder, tmp_path / "cache")
            assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("name", ["librispeech", "voxceleb1", "tut_urban_2018", "esc50", "fsd50k", "nsynth"])
def test_a_partial_download_is_told_and_may_be_allowed(name, fresh, tmp_path, caplog):
    root = fresh(name)
    lost = CORPORA[name].read(root).files[1]
    lost.unlink()
    with pytest.raises(CorpusError, match=f"1 of .* listed clips are not there, first: {lost}.*--allow-missing"):
        prepare(CORPORA[name], root, tmp_path, store=False)
    made = prepare(CORPORA[name], root, tmp_path, store=False, allow_missing=True)
    assert made.missing == 1
    assert lost not in made.manifest.files
    assert "going on without" in caplog.text
    assert "1 listed clips are missing" in table1([(CORPORA[name], made)])["likely reason"].tolist()[1]


def test_classes_of_several_labels_are_the_labels(fresh, tmp_path):
    """A clip of test may have a set of labels that none of train has, as hundreds of FSD50K do; it was refused."""
    root = fresh("fsd50k")
    made = prepare(CORPORA["fsd50k"], root, tmp_path, store=False)
    assert "Bark,Rain" not in set(made.manifest.table.query("split == 'train'")["labels"])
    found = table1([(CORPORA["fsd50k"], made)]).set_index("quantity")["found"]
    assert found["classes"] == "3"
    change(root / "FSD50K.ground_truth" / "vocabulary.csv", "2,Rain", "2,Snow,/m/03\n3,Rain")
    change(root / "FSD50K.ground_truth" / "eval.csv", '"Bark,Rain"', '"Bark,Snow"')
    with pytest.raises(CorpusError, match=r"no training clip of 'Snow' \(1 such classes\)"):
        prepare(CORPORA["fsd50k"], root, tmp_path, store=False)


def test_nothing_there_is_never_allowed(fresh, tmp_path):
    root = fresh("esc50")
    shutil.rmtree(root / "ESC-50-master" / "audio")
    with pytest.raises(CorpusError, match="30 of 30 listed clips are not there"):
        prepare(CORPORA["esc50"], root, tmp_path, allow_missing=True)


def test_the_other_release_is_recognised(fresh, tmp_path):
    with pytest.raises(CorpusError, match="no word 'backward'; it is the other release: speech_commands_v1"):
        prepare(CORPORA["speech_commands_v2"], fresh("speech_commands_v1"), tmp_path)
    one = fresh("speech_commands_v2") / "SpeechCommands" / "speech_commands_v0.02"
    with pytest.raises(CorpusError, match="the word 'backward' of V2; it is the other release: speech_commands_v2"):
        prepare(CORPORA["speech_commands_v1"], one, tmp_path)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "says"),
    [
        ("esc50", "ESC-50-master/meta/esc50.csv", ",1,0,dog", ",6,0,dog", r"unknown label '6'; expected one of 1, 2"),
        ("esc50", "ESC-50-master/meta/esc50.csv", "fold", "part", r"has no column 'fold' \(columns: filename, part"),
        ("fsd50k", "FSD50K.ground_truth/dev.csv", "Rain", "Snow", r"dev\.csv, 64761: unknown label 'Snow'"),
        ("tut_urban_2018", "TUT-urban-acoustic-scenes-2018-development/evaluation_setup/fold1_train.txt", "\tbus",
         "\tship", "unknown label 'ship'"),
        ("tut_urban_2018", "TUT-urban-acoustic-scenes-2018-development/evaluation_setup/fold1_train.txt", "audio/bus",
         "audio/car", "fold1_train.txt lists audio/car.*which .*meta.csv does not"),
        ("birdsong", "ff1010bird_metadata_2018.csv", "ff1010bird,1", "ff1010bird,2", "'2'; expected one of 0, 1"),
        ("voxceleb1", "iden_split.txt", "1 id10001", "4 id10001", "has the line '4 id10001"),
        ("nsynth", "nsynth-test/examples.json", '"flute"', '"kazoo"', "unknown label 'kazoo'"),
        ("nsynth", "nsynth-test/examples.json", "{", "[", "examples.json cannot be read"),
        ("vocalsound", "datafiles/te.json", "_cough", "_burp", "unknown label 'burp'"),
        ("vocalsound", "datafiles/te.json", '"wav"', '"file"', "cannot be read"),
        ("audioset", "unbalanced_train_segments.csv", ', "/m/', ", /m/", "is not `YTID, start, end"),
    ],
)  # fmt: skip
def test_lists_that_are_not_as_published(name, file, old, new, says, fresh, tmp_path):
    root = fresh(name)
    change(root / file, old, new)
    with pytest.raises(CorpusError, match=says) as caught:
        prepare(CORPORA[name], root, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_list_and_a_leak_and_a_class_without_training_clips(fresh, tmp_path):
    root = fresh("voxceleb1")
    lists = root / "iden_split.txt"
    change(lists, "1 id10001/1zcIwhmdeo4/00001", "3 id10001/1zcIwhmdeo4/00001")
    with pytest.raises(CorpusError, match="video 'id10001/1zcIwhmdeo4' is in more than one split"):
        prepare(CORPORA["voxceleb1"], root, tmp_path)
    lists.write_text(
        "".join(line + "\n" for line in lists.read_text().splitlines() if not line.startswith("1 id10003"))
    )
    with pytest.raises(CorpusError, match=r"more than one split|no training clip of 'id10003'"):
        prepare(CORPORA["voxceleb1"], root, tmp_path)
    change(lists, "3 id10001/1zcIwhmdeo4/00001", "1 id10001/1zcIwhmdeo4/00001")
    with pytest.raises(CorpusError, match="no training clip of 'id10003'"):
        prepare(CORPORA["voxceleb1"], root, tmp_path)
    lists.write_text("\n")
    with pytest.raises(CorpusError, match="is empty; download it again"):
        prepare(CORPORA["voxceleb1"], root, tmp_path)


def test_download_fetches_checks_and_unpacks_once(replica, tmp_path, monkeypatch):
    import dataclasses
    import hashlib

    from decar.corpora import Archive

    source = shutil.make_archive(str(tmp_path / "esc"), "zip", replica("esc50"))
    digest = hashlib.md5((tmp_path / "esc.zip").read_bytes()).hexdigest()
    corpus = dataclasses.replace(CORPORA["esc50"], archives=(Archive(f"file://{source}", f"md5:{digest}"),))
    download(corpus, tmp_path / "root")
    assert (
        CORPORA["esc50"].read(tmp_path / "root").content_hash()
        == CORPORA["esc50"].read(replica("esc50")).content_hash()
    )
    (tmp_path / "esc.zip").unlink()
    download(corpus, tmp_path / "root")  # all of it is there
    wrong = dataclasses.replace(
        corpus, archives=(Archive(f"file://{replica('esc50')}/ESC-50-master/meta/esc50.csv", "md5:0"),)
    )
    with pytest.raises(CorpusError, match="published is 0"):
        download(wrong, tmp_path / "again")
    assert [file.name for file in (tmp_path / "again" / "archives").iterdir()] == [".lock"]
    gone = dataclasses.replace(corpus, archives=(Archive(f"file://{tmp_path}/gone.zip"),))
    with pytest.raises(CorpusError, match="cannot be downloaded"):
        download(gone, tmp_path / "again", tries=2, wait=0.01)


def test_what_needs_a_form_says_where(tmp_path):
    for name in ("iemocap", "voxceleb1", "audioset", "voxforge", "crema_d"):
        with pytest.raises(CorpusError, match=r"cannot be downloaded from here: .*https?://"):
            download(CORPORA[name], tmp_path)


def test_the_manifest_hash_is_that_of_the_content(replica, tmp_path):
    made = prepare(CORPORA["esc50"], replica("esc50"), tmp_path, store=False)
    facts = json.loads(made.file.with_name("facts.json").read_text())
    moved = tmp_path / "elsewhere"
    shutil.copytree(replica("esc50"), moved)
    again = prepare(CORPORA["esc50"], moved, tmp_path / "cache2", store=False)
    assert json.loads(again.file.with_name("facts.json").read_text())["hash"] == facts["hash"]
    assert made.seconds is None  # no store, nothing measured


def test_a_quote_without_its_end_in_a_long_list_is_told(tmp_path):
    """It swallows all that follows; a short list is then cut off, in a long one the csv module gives up."""
    table = tmp_path / "t.csv"
    table.write_text('path,label\na.wav,x\n"b.wav,y\n' + "c.wav,z\n" * 20_000)
    with pytest.raises(CorpusError, match=r"t\.csv, line \d+: field larger than field limit .*; download it again"):
        list(rows(table, ["path"]))
    table.write_text('path,label\na.wav,x\n"b.wav,y\nc.wav,z\n')
    with pytest.raises(CorpusError, match=r"t\.csv, line 3 is cut off; download it again"):
        list(rows(table, ["path", "label"]))
    table.write_text('path,label,more\na.wav,"x,y"\nb.wav,z,,,\n')
    assert list(rows(table, ["path", "label"])) == [
        {"path": "a.wav", "label": "x,y"},
        {"path": "b.wav", "label": "z", "more": ""},
    ]
