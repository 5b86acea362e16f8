import json
import os
from pathlib import Path

import pytest

from decar.digests import read_json
from decar.downstream.results import Result, collect
from decar.errors import DecarError
from tests.downstream.helpers import make_result


def test_written_and_read_back(tmp_path: Path) -> None:
    result = make_result()
    path = result.write(tmp_path)
    assert path == tmp_path / "result.json"
    assert Result.read(path) == result
    assert os.listdir(tmp_path) == ["result.json"]
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert {"task", "mode", "encoder_hash", "seed", "split_hash", "metric", "confusion", "version"} <= set(entries)


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    result = make_result(bundle="runs/\udcff ä", classes=["\x1b[2J", "\ud800"])
    path = result.write(tmp_path)
    assert Result.read(path) == result
    assert "ä" in path.read_text(encoding="utf-8")


def test_entries_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    path = make_result().write(tmp_path / "result.json")
    path.write_text(json.dumps({**read_json(path), "novelty": 1}))
    assert Result.read(path) == make_result()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"task": "x"}', None, "value", "mode", "nan", "percent", "minus"], ids=lambda t: repr(t)
)  # fmt: skip
def test_damage_is_told_in_one_line(tmp_path: Path, text: str | None) -> None:
    path = make_result().write(tmp_path / "result.json")
    good = read_json(path)
    changed = {"value": {"value": "high"}, "mode": {"mode": "thawed"}, "nan": {"value": float("nan")},
               "percent": {"value": 75.0}, "minus": {"valid_value": -1}}  # fmt: skip
    if text is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**good, **changed[text]}) if text in changed else text)
    with pytest.raises(DecarError, match=r"result\.json: not a .*run eval\.py again") as caught:
        Result.read(path)
    assert "\n" not in str(caught.value)


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DecarError, match="could not be written"):
        make_result().write(tmp_path / "file" / "result.json")


def test_collect_finds_all_and_takes_the_newest_of_equal_questions(tmp_path: Path) -> None:
    for i, (seed, value) in enumerate([(0, 0.1), (1, 0.2), (0, 0.3)]):
        path = make_result(seed=seed, value=value).write(tmp_path / "runs" / f"job{i}" / "result.json")
        os.utime(path, (1000 + i, 1000 + i))
    found = collect([tmp_path / "runs", tmp_path / "runs" / "job2"])
    assert [(r.seed, r.value) for r in found] == [(1, 0.2), (0, 0.3)]
    assert collect([tmp_path / "runs" / "job0" / "result.json"])[0].value == 0.1


def test_collect_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DecarError, match="no such file or folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DecarError, match=r"no result\.json in there.*eval\.py"):
        collect([tmp_path])


def test_collect_goes_on_past_what_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_result().write(tmp_path / "a" / "result.json")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "result.json")  # opening it would block for ever
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert len(collect([tmp_path])) == 1
    assert [record.message for record in caplog.records] == [
        f"left out: {tmp_path}/b/result.json (a named pipe, not a file)",
        f"left out: the folder {tmp_path}/b/loop (the same folder as {tmp_path})",
    ]
