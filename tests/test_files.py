"""Whole or not at all."""

import pytest

from decar.files import whole


def test_what_is_written_stands_where_it_should_and_is_readable_by_others(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with whole(target) as part:
        part.write_text("new")
        assert not target.exists()
        assert part.suffix == ".txt"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "b.txt"
    target.write_text("old")

    def fail():
        with whole(target) as part:
            part.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
