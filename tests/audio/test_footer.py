import random
from contextlib import suppress

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decar.audio import Manifest
from decar.audio.footer import column_sizes
from decar.errors import DecarError
from tests.conftest import FORK

MANY = 500


@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_sizes_are_those_that_pyarrow_reads(tmp_path, version):
    n = 3000
    table = pa.table({
        "path": [f"{i}.wav" for i in range(n)], "start": pa.array([None, 0.5, 1e300] * (n // 3)),
        "split.of": ["train"] * n, "n": pa.array(range(n), pa.int16()), "yes": [i % 2 == 0 for i in range(n)],
        "embedding": [[float(i)] * (i % 5) for i in range(n)], "facts": [{"a": i, "b": "x"} for i in range(n)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700, version=version, write_page_checksum=True)
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    found = column_sizes(tmp_path / "t.parquet")
    assert len(found) == metadata.num_row_groups == 5
    for i, group in enumerate(found):
        theirs = [metadata.row_group(i).column(j) for j in range(metadata.num_columns)]
        expected = [(c.path_in_schema, c.num_values, c.total_uncompressed_size) for c in theirs]
        assert [(".".join(path), *sizes) for path, *sizes in group] == expected


def damage_many(file, whole):
    rng = random.Random(0)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(MANY):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(footer, len(whole) - 8)] = rng.choice((0, 1, 255, rng.randrange(256)))
        file.write_bytes(damaged)
        with suppress(DecarError):
            Manifest.from_parquet(file)


def test_no_damage_to_a_footer_ends_the_process(tmp_path):
    """pyarrow's own reader of the sizes of columns ended it for one in 400."""
    file = tmp_path / "clips.parquet"
    pd.DataFrame({"path": ["a.wav", "b.wav"], "start": [0.0, None], "label": ["x", "y"]}).to_parquet(file)
    child = FORK.Process(target=damage_many, args=(file, file.read_bytes()))
    child.start()
    child.join(120)
    assert child.exitcode == 0
