import errno
from pathlib import Path

import numpy as np
import pytest
import xxhash

from decar.audio import journal as module
from decar.audio.clips import ClipEnd
from decar.audio.journal import JOURNAL_FILE, Journal
from decar.digests import sealed

DATA_FILE = "rows.bin"
CLIPS = [np.full((frames, 2), frames, np.float16) for frames in (3, 0, 1, 4)]
ENDS = [ClipEnd(3), ClipEnd(0, "broken\nin two lines"), ClipEnd(1), ClipEnd(4, silent=True)]
NO_ROWS = xxhash.xxh3_64().hexdigest()


def fresh(folder: Path) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder / DATA_FILE, np.float16, width=2, n_clips=4)


def add(journal: Journal, *clips: int) -> None:
    """The clips in one commit."""
    for i in clips:
        journal.rows(CLIPS[i])
        journal.end(ENDS[i])
    journal.commit()


def fill(folder: Path) -> None:
    with fresh(folder) as journal:
        add(journal, 0, 1)
        add(journal, 2, 3)


def test_what_was_appended_is_found_again(tmp_path: Path) -> None:
    fill(tmp_path / "p")
    with fresh(tmp_path / "p") as journal:
        assert (journal.counts, journal.ends, journal.committed) == ([3, 0, 1, 4], ENDS, 4)
        np.testing.assert_array_equal(journal.matrix(), np.concatenate(CLIPS))
    data = np.fromfile(tmp_path / "p" / DATA_FILE, np.float16).reshape(-1, 2)
    np.testing.assert_array_equal(data, np.concatenate(CLIPS))


def test_a_clip_in_parts(tmp_path: Path) -> None:
    """Begun and ended is as appended at once; begun and found bad, or killed, is as never begun."""
    fill(tmp_path / "whole")
    with fresh(tmp_path / "p") as journal:
        journal.rows(CLIPS[0][:1])
        journal.rows(CLIPS[0][1:2])
        journal.rows(CLIPS[0][2:])
        journal.end(ENDS[0])
        journal.rows(CLIPS[3])
        journal.rows(CLIPS[3])
        journal.end(ENDS[1])
        journal.commit()
        journal.rows(CLIPS[2])
        journal.commit()
        assert journal.committed == 2
    with fresh(tmp_path / "p") as journal:  # after a kill
        assert (journal.counts, journal.ends) == ([3, 0], ENDS[:2])
        journal.rows(CLIPS[2])
        journal.end(ENDS[2])
        add(journal, 3)
        digests = journal.blocks.hexdigest()
    with fresh(tmp_path / "whole") as journal:
        assert digests == journal.blocks.hexdigest()
    for name in (DATA_FILE, JOURNAL_FILE):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_cut_anywhere_leaves_whole_chunks(tmp_path: Path, cut: int) -> None:
    """The journal torn at any byte: what is left is a prefix, and filling up gives the same bytes."""
    fill(tmp_path / "whole")
    fill(tmp_path / "p")
    journal = tmp_path / "p" / JOURNAL_FILE
    size = journal.stat().st_size
    journal.write_bytes(journal.read_bytes()[: max(size - cut, 0)])
    with fresh(tmp_path / "p") as store:
        done = len(store.counts)
        assert done in ((4,) if cut == 0 else (0, 2))
        add(store, *range(done, 4))
    assert (tmp_path / "p" / DATA_FILE).read_bytes() == (tmp_path / "whole" / DATA_FILE).read_bytes()


def test_data_behind_the_journal_are_cut_off(tmp_path: Path) -> None:
    fill(tmp_path)
    with open(tmp_path / DATA_FILE, "ab") as file:
        file.write(b"torn")
    with fresh(tmp_path) as journal:
        assert len(journal.counts) == 4
    assert (tmp_path / DATA_FILE).stat().st_size == 8 * 4


def test_a_journal_that_promises_more_than_there_is(tmp_path: Path) -> None:
    fill(tmp_path)
    with open(tmp_path / DATA_FILE, "r+b") as file:
        file.truncate(20)
    with fresh(tmp_path) as journal:
        assert journal.counts == [3, 0]


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]\n",
        b'{"clips": [[1, 1, "", false]]}\n',
        b"\xff\n",
        b"7\n",
        sealed({"clips": [[1, 1, "", False]]}).encode() + b"\n",
        sealed({"clips": [[-1, 1, "", False]], "rows": NO_ROWS}).encode() + b"\n",
        sealed({"clips": [[0, 0, "of more clips", False]] * 3, "rows": NO_ROWS}).encode() + b"\n",
    ],
)
def test_nonsense_in_the_journal(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    journal = tmp_path / JOURNAL_FILE
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + line + second)
    with fresh(tmp_path) as store:
        assert store.counts == [3, 0]
    assert f"{tmp_path} is damaged (journal.jsonl: " in caplog.text


def test_a_write_that_takes_a_part_goes_on_and_a_full_disk_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.os.write
    room = [30]

    def stingy(descriptor: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[:5])
        room[0] -= written
        return written

    with fresh(tmp_path) as journal:
        add(journal, 0, 1)
        monkeypatch.setattr(module.os, "write", stingy)
        with pytest.raises(OSError, match="No space"):
            add(journal, 2, 3)
    monkeypatch.undo()
    with fresh(tmp_path) as journal:
        assert journal.counts == [3, 0]
    monkeypatch.setattr(module.os, "write", stingy)
    room[0] = 10_000
    with fresh(tmp_path) as journal:
        add(journal, 2, 3)
    np.testing.assert_array_equal(np.fromfile(tmp_path / DATA_FILE, np.float16).reshape(-1, 2), np.concatenate(CLIPS))


def test_whole_lines_count_and_what_is_behind_them_goes(tmp_path: Path) -> None:
    def fill(*counts: int) -> int:
        with Journal(tmp_path / DATA_FILE, "<f4", width=3, n_clips=3) as journal:
            found = journal.committed
            for n in counts:
                journal.rows(np.full((n, 3), n, np.float32))
                journal.end(ClipEnd(n))
                journal.commit()
        return found

    assert fill(1, 2) == 0
    with open(tmp_path / JOURNAL_FILE, "a") as file:
        file.write('[[5, 1, "", fal')
    with open(tmp_path / DATA_FILE, "ab") as file:
        file.write(b"half a row")
    assert fill(4) == 2
    with Journal(tmp_path / DATA_FILE, "<f4", width=3, n_clips=3) as journal:
        assert journal.counts == [1, 2, 4]
        assert journal.matrix()[:, 0].tolist() == [1, 2, 2, 4, 4, 4, 4]
    with open(tmp_path / DATA_FILE, "r+b") as file:  # rows that the disk has lost
        file.truncate(20)
    assert fill() == 1
