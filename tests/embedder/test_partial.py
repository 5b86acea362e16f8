import numpy as np

from decar.embedder.partial import JOURNAL, VECTORS, Parts
from decar.embedder.reading import ClipEnd


def fill(folder, key, clips):
    with Parts(folder, key, 3) as parts:
        found = parts.committed
        for n in clips:
            parts.rows(np.full((n, 3), n, np.float32))
            parts.clip(ClipEnd(n))
            parts.commit()
    return found


def test_whole_lines_count_and_what_is_behind_them_goes(tmp_path):
    folder = tmp_path / "parts"
    assert fill(folder, "a", [1, 2]) == 0
    with open(folder / JOURNAL, "a") as file:
        file.write('[[5, 1, "", fal')
    with open(folder / VECTORS, "ab") as file:
        file.write(b"half a row")
    assert fill(folder, "a", [4]) == 2
    with Parts(folder, "a", 3) as parts:
        assert parts.counts == [1, 2, 4]
        assert parts.matrix()[:, 0].tolist() == [1, 2, 2, 4, 4, 4, 4]


def test_rows_that_the_disk_has_lost_are_not_believed(tmp_path):
    fill(tmp_path / "parts", "a", [1, 2])
    with open(tmp_path / "parts" / VECTORS, "r+b") as file:
        file.truncate(20)
    assert fill(tmp_path / "parts", "a", []) == 1


def test_another_key_starts_anew(tmp_path):
    fill(tmp_path / "parts", "a", [1, 2])
    assert fill(tmp_path / "parts", "b", []) == 0
