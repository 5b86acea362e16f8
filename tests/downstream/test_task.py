import logging
import shutil
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decar.downstream.task import TaskSpec, drop_unreadable, load_task
from decar.errors import TaskError

MINI = str(files("decar") / "data" / "mini" / "metadata.csv")
BUNDLED = {
    "instrument_family": ("instrument_family", 484, 11), "percussion": ("drum_class", 314, 8),
    "speaker": ("speaker", 350, 6), "mandarin_tone": ("tone", 296, 4), "event": ("event", 412, 15),
    "kind": ("kind", 1991, 5), "language": ("language", 350, 5), "instrument_seen": ("instrument_family", 484, 11),
}  # fmt: skip


def write(folder: Path, **columns: list[object]) -> str:
    n = len(next(iter(columns.values())))
    table = pd.DataFrame({"path": [f"{i}.wav" for i in range(n)], **columns})
    table.to_csv(folder / "table.csv", index=False)
    return str(folder / "table.csv")


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tasks_load_as_their_columns_say(name: str) -> None:
    label, n, n_classes = BUNDLED[name]
    task = load_task(TaskSpec(name, label, MINI, f"split_{name}", path_column="file"))
    table = pd.read_csv(MINI, dtype=str, keep_default_na=False)
    assert len(task) == n
    assert len(task.classes) == n_classes
    assert sum(task.counts().values()) == n
    wanted = table.iloc[task.rows]
    assert (wanted[label].to_numpy() == np.asarray(task.classes)[task.y]).all()
    assert (wanted[f"split_{name}"].to_numpy() == task.split).all()
    assert (wanted["file"].to_numpy() == task.manifest.table["path"].to_numpy()).all()
    assert (table[f"split_{name}"] != "").sum() == n


def test_rows_without_label_or_split_are_left_out_and_val_is_valid(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        label=["b", "a", "", "a", "b", "a", "b", "x"],
        split=["train", "Train", "train", "val", "dev", "test", "test", ""],
    )
    task = load_task(TaskSpec("t", "label", path))
    assert task.rows.tolist() == [0, 1, 3, 4, 5, 6]
    assert task.classes == ["a", "b"]
    assert task.y.tolist() == [1, 0, 0, 1, 0, 1]
    assert task.split.tolist() == ["train", "train", "valid", "valid", "test", "test"]


def test_folder_with_splits_and_without(sound_folder: Path, tmp_path: Path) -> None:
    plain = load_task(TaskSpec("folder", "label", str(sound_folder)))
    assert plain.classes == ["high", "low", "noise"]
    assert plain.counts() == {"train": 6, "valid": 3, "test": 3}
    assert sorted(zip(plain.split, plain.y, strict=True)) == sorted(
        zip(["train"] * 6 + ["valid"] * 3 + ["test"] * 3, [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2], strict=True)
    )
    for i, split in enumerate(["train", "train", "validation", "test"]):
        for label in ("low", "high"):
            target = tmp_path / "split" / split / label / f"{i}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((sound_folder / "low" / "0.wav").read_bytes())
    divided = load_task(TaskSpec("folder", "label", str(tmp_path / "split"), split=None))
    assert divided.counts() == {"train": 4, "valid": 2, "test": 2}


@pytest.mark.parametrize("spec", [{"split": None}, {}])
def test_an_archive_is_divided_as_its_folder_is(
    sound_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict
) -> None:
    """Its folders train and test were ignored, and a split was drawn over both."""
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    for name in ("train/a/0.wav", "train/a/1.wav", "train/b/0.wav", "train/b/1.wav", "test/a/2.wav", "test/b/2.wav"):
        target = tmp_path / "divided" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((sound_folder / "low" / "0.wav").read_bytes())
    archive = shutil.make_archive(str(tmp_path / "divided"), "zip", tmp_path, "divided")
    divided = load_task(TaskSpec("folder", "label", archive, **spec))
    tested = divided.manifest.table["path"].to_numpy()[divided.indices("test")]
    assert sorted(tested) == ["divided/test/a/2.wav", "divided/test/b/2.wav"]
    plain = shutil.make_archive(str(tmp_path / "plain"), "zip", sound_folder.parent, sound_folder.name)
    folder = load_task(TaskSpec("folder", "label", str(sound_folder), **spec))
    assert load_task(TaskSpec("folder", "label", plain, **spec)).counts() == folder.counts()


def test_drawn_split_is_stratified_seeded_and_keeps_files_whole(tmp_path: Path) -> None:
    paths = [f"{i // 2}.wav" for i in range(400)]  # two stretches of each file
    table = pd.DataFrame({"path": paths, "start": [0.0, 1.0] * 200, "label": np.repeat(["a", "b"], [300, 100])})
    table.to_csv(tmp_path / "t.csv", index=False)
    spec = TaskSpec("t", "label", str(tmp_path / "t.csv"), split=None)
    task, again = load_task(spec), load_task(spec)
    other = load_task(replace(spec, split_seed=1))
    assert Counter(zip(task.split.tolist(), task.y.tolist(), strict=True)) == {
        ("train", 0): 210, ("valid", 0): 30, ("test", 0): 60, ("train", 1): 70, ("valid", 1): 10, ("test", 1): 20,
    }  # fmt: skip
    assert (task.split == again.split).all()
    assert (task.split != other.split).any()
    assert all(task.split[0::2] == task.split[1::2])
    assert task.hash() == again.hash() != other.hash()


def test_missing_validation_comes_out_of_train_only(tmp_path: Path) -> None:
    path = write(tmp_path, label=["a", "b"] * 100, split=["train"] * 160 + ["test"] * 40)
    task = load_task(TaskSpec("t", "label", path))
    assert task.counts() == {"train": 136, "valid": 24, "test": 40}
    assert Counter(task.y[task.indices("valid")].tolist()) == {0: 12, 1: 12}
    assert (task.split[160:] == "test").all()


def test_hash_sees_label_split_and_stretch_and_nothing_else(tmp_path: Path) -> None:
    base = {"label": ["a", "b"] * 3, "split": ["train"] * 2 + ["valid"] * 2 + ["test"] * 2, "start": [0.0] * 6}
    spec = TaskSpec("t", "label", write(tmp_path, **base))
    first = load_task(spec).hash()
    write(tmp_path, **base, other=list("abcdef"))
    assert load_task(spec).hash() == first
    for column, value in (("label", "a"), ("split", "test"), ("start", 0.5)):
        changed = {**base, column: [*base[column][:3], value, *base[column][4:]]}
        write(tmp_path, **changed)
        assert load_task(spec).hash() != first, column


GOOD = {"label": ["a", "b", "a", "b", "a", "b"], "split": ["train", "train", "valid", "valid", "test", "test"]}


@pytest.mark.parametrize(
    ("columns", "changes", "words"),
    [
        (
            GOOD,
            {"label": "labl"},
            "has no column 'labl' .columns: path, label, split.; is 'label' meant.*task.label",
        ),
        (
            GOOD,
            {"split": "fold"},
            "has no column 'fold' .columns: path, label, split.*set task.split, or task.split=null",
        ),
        ({**GOOD, "split": ["train", "train", "valid", "fold3", "test", "x"]}, {}, "unknown values 'fold3', 'x'"),
        ({**GOOD, "label": ["a", "b", "a", "b", "a", "c"]}, {}, "no training clip of class 'c'"),
        ({**GOOD, "split": ["train"] * 4 + ["valid"] * 2}, {}, "no test clips .found 4 train, 2 valid, 0 test"),
        ({**GOOD, "split": ["valid"] * 4 + ["test"] * 2}, {}, "no train clips"),
        ({**GOOD, "label": ["a"] * 6}, {}, "one class only .'a'"),
        ({**GOOD, "label": [""] * 6}, {}, "no clip of .* has a value in 'label'"),
        (GOOD, {"path": None}, "no source given; set task.path"),
    ],
)
def test_errors_say_what_was_found_in_one_line(tmp_path: Path, columns: dict, changes: dict, words: str) -> None:
    spec = replace(TaskSpec("mine", "label", write(tmp_path, **columns)), **changes)
    with pytest.raises(TaskError, match=f"task mine.*{words}") as caught:
        load_task(spec)
    assert "\n" not in str(caught.value)


def test_unreadable_clips_are_dropped_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, label=["a", "b"] * 6, split=["train"] * 4 + ["valid"] * 4 + ["test"] * 4)
    task = load_task(TaskSpec("t", "label", path))
    lengths = np.full(12, 98)
    assert drop_unreadable(task, lengths) is task
    lengths[[0, 8, 9]] = 0
    with caplog.at_level(logging.WARNING):
        left = drop_unreadable(task, lengths)
    assert left.dropped == {"train": 1, "valid": 0, "test": 2}
    assert left.rows.tolist() == [1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert left.manifest.table["path"].tolist() == [f"{i}.wav" for i in left.rows]
    assert (left.y == task.y[left.rows]).all()
    assert (left.split == task.split[left.rows]).all()
    assert left.hash() != task.hash()
    assert "1 of 4 train, 2 of 4 test" in caplog.text
    assert "0.wav" in caplog.text


def test_a_split_lost_to_unreadable_clips_is_an_error(tmp_path: Path) -> None:
    task = load_task(TaskSpec("t", "label", write(tmp_path, **GOOD)))
    with pytest.raises(TaskError, match=r"no valid clips .found 2 train, 0 valid, 2 test, 2 unreadable"):
        drop_unreadable(task, np.array([98, 98, 0, 0, 98, 98]))
    with pytest.raises(TaskError, match="all of one class"):
        drop_unreadable(task, np.array([98, 0, 98, 98, 98, 98]))


def test_a_class_that_loses_its_training_clips_to_damage_is_named(tmp_path: Path, caplog) -> None:
    split = ["train", "train", "train", "valid", "test", "test"]
    task = load_task(TaskSpec("t", "label", write(tmp_path, label=["a", "b", "c", "a", "c", "b"], split=split)))
    with caplog.at_level(logging.WARNING):
        drop_unreadable(task, np.array([98, 98, 0, 98, 98, 98]))
    assert "no readable training clip of class 'c': test clips of it count as wrong" in caplog.text


def test_a_clip_in_two_splits_is_named(tmp_path: Path, caplog) -> None:
    table = pd.DataFrame({
        "path": ["a.wav", "b.wav", "./b.wav", "c.wav", "c.wav", "d.wav"], "start": [0, 0, 0, 0, 5, 0],
        "label": list("abbaba"), "split": ["train", "train", "test", "train", "test", "valid"],
    })  # fmt: skip
    table.to_csv(tmp_path / "table.csv", index=False)
    with caplog.at_level(logging.WARNING):
        load_task(TaskSpec("t", "label", str(tmp_path / "table.csv")))
    assert "task t: 2 clips share sound with a clip of another split, first: ./b.wav" in caplog.text


@pytest.mark.parametrize(("hop", "n"), [(2.5, 3), (4.99, 0), (5.0, 0)])
def test_windows_that_overlap_across_splits_are_named(tmp_path: Path, caplog, hop: float, n: int) -> None:
    """Every second half of a window was heard in training; equal stretches alone were seen."""
    rows = {"path": ["a.wav"] * 8 + ["b.wav"] * 8, "start": [hop * i for i in range(8)] * 2, "duration": [5] * 16}
    split = ["train"] * 4 + ["test"] * 3 + ["train"] + ["train"] * 4 + ["valid"] * 4
    load_task(TaskSpec("t", "label", write(tmp_path, **rows, label=[*"ab"] * 8, split=split)))
    assert ("share sound with a clip of another split" in caplog.text) == (n > 0)
    assert not n or f"{n} clips share" in caplog.text


def test_clips_of_a_task_are_found_in_the_table_of_all(tmp_path: Path) -> None:
    pd.DataFrame({"path": [f"{i}.wav" for i in range(20)], "more": 1}).to_csv(tmp_path / "index.csv", index=False)
    chosen = [7, 3, 11, 2, 19, 5]
    (tmp_path / "tasks").mkdir()
    labels = pd.DataFrame({"path": [f"{i}.wav" for i in chosen], "label": list("ababab")})
    labels["split"] = ["train", "train", "valid", "valid", "test", "test"]
    labels.to_csv(tmp_path / "tasks" / "t.csv", index=False)
    spec = TaskSpec(
        "t", "label", str(tmp_path / "tasks" / "t.csv"), root=str(tmp_path), source=str(tmp_path / "index.csv")
    )
    task = load_task(spec)
    assert task.rows.tolist() == chosen
    assert len(task.source) == 20
    assert task.manifest.table["path"].tolist() == [f"{i}.wav" for i in chosen]
    assert [task.classes[i] for i in task.y] == list("ababab")
    alone = load_task(replace(spec, source=None))
    assert len(alone.source) == 6
    assert alone.hash() == task.hash()


def test_a_clip_that_the_table_of_all_does_not_have_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, label=list("abab"), split=["train", "train", "valid", "test"])
    pd.DataFrame({"path": ["0.wav", "1.wav"]}).to_csv(tmp_path / "index.csv", index=False)
    with pytest.raises(TaskError, match=r"2 of its 4 clips are not in .*index.csv, first: .*2\.wav"):
        load_task(TaskSpec("t", "label", path, source=str(tmp_path / "index.csv")))


def grouped(tmp_path: Path, n: int = 240) -> tuple[str, pd.DataFrame]:
    """Twelve speakers in four places (three speakers each), two recordings of each speaker; all speak every class."""
    clip = np.arange(n)
    table = pd.DataFrame({"path": [f"{i}.wav" for i in clip], "label": np.array(["a", "b", "c"])[clip % 3]})
    speaker = clip // 3 % 12
    table["Speaker_ID"] = [f"s{i}" for i in speaker]
    table["recording"] = [f"s{i}-{j}" for i, j in zip(speaker, clip // 36 % 2, strict=True)]
    table["location"] = [f"l{i // 3}" for i in speaker]
    table["split"] = np.where(speaker < 9, "train", "test")
    table.to_csv(tmp_path / "g.csv", index=False)
    return str(tmp_path / "g.csv"), table


@pytest.mark.parametrize("split", ["split", None])
@pytest.mark.parametrize("group", ["auto", "Speaker_ID", "location"])
def test_what_belongs_together_is_on_one_side_of_a_drawn_split(tmp_path: Path, split: str | None, group: str) -> None:
    path, table = grouped(tmp_path)
    for seed in range(5):
        task = load_task(TaskSpec("t", "label", path, split, group=group, split_seed=seed))
        for column in ["Speaker_ID", "recording", "location"] if group == "auto" else [group]:
            assert pd.Series(task.split).groupby(table[column]).nunique().max() == 1, column
        counts = pd.crosstab(task.split, task.y)
        assert (counts.to_numpy() > 0).all(), "every class is in every split"
        assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 2, "the classes' shares are alike"
    if group == "Speaker_ID" and split is None:
        sizes = [len(set(table["Speaker_ID"][task.split == name])) for name in ("train", "valid", "test")]
        assert sizes == [9, 1, 2]


@pytest.mark.parametrize("group", ["auto", None])
def test_a_file_that_is_spelled_in_two_ways_is_on_one_side_of_a_drawn_split(tmp_path: Path, group: str | None) -> None:
    rows = [(f"{'./' if k % 2 else ''}x/../r{i}.wav", 5 * k, 5, "ab"[i % 2]) for i in range(30) for k in range(4)]
    columns = dict(zip(("path", "start", "duration", "label"), map(list, zip(*rows, strict=True)), strict=True))
    task = load_task(TaskSpec("t", "label", write(tmp_path, **columns), split=None, group=group))
    files = [path.removeprefix("./") for path in task.manifest.table["path"]]
    assert pd.Series(task.split).groupby(files).nunique().max() == 1
    assert set(task.split) == {"train", "valid", "test"}
    dotted = {**columns, "path": [f"./{path.removeprefix('./')}" for path in columns["path"]]}
    plain = {**columns, "path": files}
    drawn = [load_task(TaskSpec("t", "label", write(tmp_path, **c), split=None)).split for c in (dotted, plain)]
    assert (drawn[0] == drawn[1]).all()


def test_a_draw_by_files_alone_is_what_it_was(tmp_path: Path) -> None:
    path, table = grouped(tmp_path)
    drawn = load_task(TaskSpec("t", "label", path, group=None))
    assert (pd.Series(drawn.split).groupby(table["Speaker_ID"]).nunique() > 1).any()
    table[["path", "label", "split"]].to_csv(tmp_path / "bare.csv", index=False)
    assert load_task(TaskSpec("t", "label", str(tmp_path / "bare.csv"))).hash() == drawn.hash()
    assert drawn.hash()[:16] == "4ea6e96cd9f364bb"


def test_columns_that_leave_nothing_to_draw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, table = grouped(tmp_path)
    task = load_task(TaskSpec("t", "Speaker_ID", path, None))  # two recordings a speaker: too few
    assert set(task.split[task.y == 0]) == {"train", "valid", "test"}
    table.assign(source="zoo").to_csv(path, index=False)
    with caplog.at_level(logging.INFO):
        load_task(TaskSpec("t", "label", path, None))
    assert "no file, Speaker_ID, recording, location is in two of them" in caplog.text
    assert "source not kept apart in the draw" in caplog.text
    with pytest.raises(TaskError, match="too few values of source to draw a split that divides none"):
        load_task(TaskSpec("t", "label", path, None, group="source"))
    with pytest.raises(TaskError, match=r"task.group=sorce: no column 'sorce' .*; is 'source' meant"):
        load_task(TaskSpec("t", "label", path, None, group="sorce"))
    load_task(TaskSpec("t", "label", path, None, group=None))


@pytest.mark.parametrize(
    ("other", "named"), [("Dog", True), ("dogs", False), ("01", True), ("1.0", True), ("10", False), ("ｄｏｇ", True)]
)
def test_labels_that_differ_in_spelling_alone_are_named(tmp_path: Path, caplog, other: str, named: bool) -> None:
    """They are two classes, and half of the clips of one thing count as wrong."""
    label = ["1", "1", other, other] if other[:1].isdigit() else ["dog", "dog", other, other]
    path = write(tmp_path, path=[f"{i}.wav" for i in range(12)], label=label * 3,
                 split=["train"] * 4 + ["valid"] * 4 + ["test"] * 4)  # fmt: skip
    assert len(load_task(TaskSpec("t", "label", path)).classes) == 2
    assert ("is one spelling meant?" in caplog.text) == named
