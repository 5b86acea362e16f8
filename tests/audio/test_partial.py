import errno
from pathlib import Path

import numpy as np
import pytest

from decar.audio import partial
from decar.audio.partial import JOURNAL_FILE, MEL_FILE, PartialStore

CLIPS = [np.full((frames, 2), frames, np.float16) for frames in (3, 0, 1, 4)]
REASONS = ["", "broken\nin two lines", "", "silent"]


def fresh(folder: Path) -> PartialStore:
    return PartialStore(folder, n_mels=2, n_clips=4)


def fill(folder: Path) -> None:
    with fresh(folder) as store:
        store.append(CLIPS[:2], REASONS[:2])
        store.append(CLIPS[2:], REASONS[2:])


def test_what_was_appended_is_found_again(tmp_path: Path) -> None:
    fill(tmp_path / "p")
    with fresh(tmp_path / "p") as store:
        assert (store.lengths, store.reasons) == ([3, 0, 1, 4], REASONS)
    data = np.fromfile(tmp_path / "p" / MEL_FILE, np.float16).reshape(-1, 2)
    np.testing.assert_array_equal(data, np.concatenate(CLIPS))


def test_a_clip_in_parts(tmp_path: Path) -> None:
    """Begun and ended is as appended at once; begun and dropped, or killed, is as never begun."""
    fill(tmp_path / "whole")
    with fresh(tmp_path / "p") as store:
        store.begin([CLIPS[3]])
        store.drop()
        store.drop()
        store.begin([CLIPS[0][:1], CLIPS[0][1:2]])
        store.append([CLIPS[0][2:], CLIPS[1]], REASONS[:2])
        store.begin([CLIPS[2]])
    with fresh(tmp_path / "p") as store:  # after a kill
        assert (store.lengths, store.reasons) == ([3, 0], REASONS[:2])
        store.begin([CLIPS[2]])
        store.append([CLIPS[1], CLIPS[3]], REASONS[2:])
        digests = store.blocks.hexdigest()
    with fresh(tmp_path / "whole") as store:
        assert digests == store.blocks.hexdigest()
    for name in (MEL_FILE, JOURNAL_FILE):
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
        done = len(store.lengths)
        assert done in ((4,) if cut == 0 else (0, 2))
        if done < 4:
            store.append(CLIPS[done:], REASONS[done:])
    for name in (MEL_FILE,):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_data_behind_the_journal_are_cut_off(tmp_path: Path) -> None:
    fill(tmp_path)
    with open(tmp_path / MEL_FILE, "ab") as file:
        file.write(b"torn")
    with fresh(tmp_path) as store:
        assert len(store.lengths) == 4
    assert (tmp_path / MEL_FILE).stat().st_size == 8 * 4


def test_a_journal_that_promises_more_than_there_is(tmp_path: Path) -> None:
    fill(tmp_path)
    with open(tmp_path / MEL_FILE, "r+b") as file:
        file.truncate(20)
    with fresh(tmp_path) as store:
        assert store.lengths == [3, 0]


@pytest.mark.parametrize(
    "line", [b"[1, 2]\n", b'{"frames": [1]}\n', b'{"frames": [-1], "reasons": [""]}\n', b"\xff\n", b"7\n"]
)
def test_nonsense_in_the_journal(tmp_path: Path, line: bytes) -> None:
    fill(tmp_path)
    journal = tmp_path / JOURNAL_FILE
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + line + second)
    with fresh(tmp_path) as store:
        assert store.lengths == [3, 0]


def test_a_write_that_takes_a_part_goes_on_and_a_full_disk_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = partial.os.write
    room = [30]

    def stingy(descriptor: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[:5])
        room[0] -= written
        return written

    with fresh(tmp_path) as store:
        store.append(CLIPS[:2], REASONS[:2])
        monkeypatch.setattr(partial.os, "write", stingy)
        with pytest.raises(OSError, match="No space"):
            store.append(CLIPS[2:], REASONS[2:])
    monkeypatch.undo()
    with fresh(tmp_path) as store:
        assert store.lengths == [3, 0]
    monkeypatch.setattr(partial.os, "write", stingy)
    room[0] = 10_000
    with fresh(tmp_path) as store:
        store.append(CLIPS[2:], REASONS[2:])
    np.testing.assert_array_equal(np.fromfile(tmp_path / MEL_FILE, np.float16).reshape(-1, 2), np.concatenate(CLIPS))
