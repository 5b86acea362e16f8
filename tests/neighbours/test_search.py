"""Search against a slow double loop, the command on real sounds, and every way in which it can be asked wrongly."""

import base64
import contextlib
import io
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from decar.audio import decode
from decar.audio.picture import image_uri, spectrogram
from decar.cli.app import main
from decar.errors import SearchError
from decar.models import save_bundle
from decar.neighbours import Index
from decar.neighbours import index as index_module
from decar.neighbours.index import EmbeddingTable
from decar.neighbours.query import find_queries
from tests.conftest import SMALL, make_encoder


def write(file, vectors, paths=None, facts=None, kind=None, **columns):
    paths = paths or [f"{i}.wav" for i in range(len(vectors))]
    kind = kind or pa.list_(pa.float32())
    table = pa.table({"path": paths, "embedding": pa.array([*map(list, vectors)], kind), **columns})
    pq.write_table(table.replace_schema_metadata({b"decar": json.dumps(facts or {}).encode()}), file)
    return file


def slowly(points, queries, n, measure, left_out):
    if measure != "cosine":
        mean, deviation = points.mean(0), points.std(0)
        scale = np.where(deviation > 1e-6, deviation, np.inf) if measure == "standardised" else 1
        points, queries = (points - mean) / scale, (queries - mean) / scale
    found = []
    for query, out in zip(queries, left_out, strict=True):
        each = [
            (1 - query @ p / (np.linalg.norm(query) * np.linalg.norm(p)), i) for i, p in enumerate(points) if i != out
        ]
        found.append(sorted(each)[:n])
    return np.array([[i for _, i in row] for row in found]), np.array([[d for d, _ in row] for row in found])


@pytest.mark.parametrize("measure", ["cosine", "centred", "standardised"])
@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 9), pa.large_list(pa.float64())])
def test_the_nearest_are_those_of_a_double_loop_whatever_the_blocks(tmp_path, monkeypatch, measure, kind):
    monkeypatch.setattr(index_module, "_ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(3, 1, (40, 9))).astype(np.float16).astype(np.float64)
    points[:, 4] = 2.0
    queries = np.vstack([points[5], rng.random((2, 9))])
    rows, distances = slowly(points, queries, 12, measure, [5, None, None])
    found = Index.from_parquet(write(tmp_path / "e.parquet", points, kind=kind), measure).nearest(
        queries, 12, without=[5, None, None]
    )
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, atol=1e-5)


def test_all_rows_can_be_had_and_no_more(tmp_path):
    index = Index.from_parquet(write(tmp_path / "e.parquet", np.eye(4)))
    assert sorted(index.nearest(np.ones(4), 4).rows[0]) == [0, 1, 2, 3]
    for n, without in ((5, []), (4, [2]), (0, [])):
        with pytest.raises(SearchError, match=rf"n={n}: .*e.parquet has {4 - len(without)} clips"):
            index.nearest(np.ones(4), n, without=without)


@pytest.mark.parametrize(
    ("vector", "told"), [(np.ones(3), "a vector of 3 numbers, .* has 4"), (np.full(4, np.nan), "NaN or Inf")]
)
def test_vectors_that_cannot_be_searched_for(tmp_path, vector, told):
    with pytest.raises(SearchError, match=told):
        Index.from_parquet(write(tmp_path / "e.parquet", np.eye(4))).nearest(vector, 1)


def test_a_vector_of_zeros_has_no_neighbours(tmp_path):
    """The first rows of the table were found, at distance 1."""
    index = Index.from_parquet(write(tmp_path / "e.parquet", np.eye(4)))
    with pytest.raises(SearchError, match="vector 2 of 2 to search for is zero"):
        index.nearest(np.stack([np.ones(4), np.zeros(4)]), 1)


def test_rows_that_cannot_be_searched_are_named(tmp_path):
    broken = np.eye(4)
    broken[2, 1] = np.inf
    with pytest.raises(SearchError, match=r"row 3 \(2\.wav\): its embedding holds NaN or Inf"):
        Index.from_parquet(write(tmp_path / "a.parquet", broken)).nearest(np.ones(4), 1)
    with pytest.raises(SearchError, match=r"row 2 \(1\.wav\): an embedding of another width than 4"):
        Index.from_parquet(write(tmp_path / "b.parquet", [[1.0] * 4, [1.0] * 3])).nearest(np.ones(4), 1)


def test_files_that_are_no_embeddings(tmp_path):
    (tmp_path / "text.parquet").write_text("no")
    pd.DataFrame({"path": ["a"]}).to_parquet(tmp_path / "bare.parquet")
    pd.DataFrame({"path": ["a"], "embedding": ["b"]}).to_parquet(tmp_path / "words.parquet")
    write(tmp_path / "empty.parquet", [])
    told = {"text": "cannot be read", "bare": "no column 'embedding'", "words": "holds", "empty": "no rows",
            "none": "no such file"}  # fmt: skip
    for name, words in told.items():
        with pytest.raises(SearchError, match=rf"{name}\.parquet: .*{words}"):
            Index.from_parquet(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize(
    ("facts", "columns", "told"),
    [
        ({"encoder": 5}, {}, r"its metadata has encoder=5, which is no text"),
        ({"root": 1.5}, {}, r"its metadata has root=1\.5, which is no text"),
        ({"bundle": ["a"]}, {}, r"its metadata has bundle=\['a'\], which is no text"),
        ({}, {"start": ["0:10", "1", "2"]}, r"the column 'start' holds string, not numbers; convert it to seconds"),
        ({}, {"duration": [True, True, False]}, r"the column 'duration' holds bool, not numbers"),
        ({}, {"start": [0, -2, 5]}, r"row 2: start=-2 is no number of seconds"),
        ({}, {"start": [0, 0, np.inf]}, r"row 3: start=inf is no number of seconds"),
        ({}, {"duration": [None, 0.0, 1.0]}, r"row 2: duration=0 is no number of seconds"),
    ],
)
def test_facts_and_columns_of_another_kind_are_named(decar, embedded, sound_folder, tmp_path, facts, columns, told):
    """Both roads: a row of the table, and a file, which needs the encoder."""
    file = write(tmp_path / "odd.parquet", np.eye(3), facts=facts, **columns)
    for sound in ("1.wav", str(sound_folder / "low/0.wav")):
        done = decar("search", sound, str(file), "-n", "1", "--html", "p.html")
        assert done.code == 2
        assert len(done.errors) == 1
        assert re.search(rf"odd\.parquet.* {told}", done.errors[0]), done.errors
    assert not (tmp_path / "p.html").exists()


def test_columns_that_cannot_be_used_are_named(tmp_path):
    def opened(**columns):
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return EmbeddingTable.open(tmp_path / "t.parquet")

    vectors = pa.array([[1.0, 0.0]], pa.list_(pa.float32()))
    with pytest.raises(SearchError, match=r"t\.parquet: the column 'path' holds int64, not text"):
        opened(path=[1], embedding=vectors)
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(SearchError, match=r"t\.parquet: cannot be read as Parquet"):
        opened(path=["a"], embedding=vectors, label=invalid)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), vectors], ["path", "path", "embedding"])
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(SearchError, match=r"t\.parquet: 2 columns are called 'path'"):
        EmbeddingTable.open(tmp_path / "t.parquet")


def test_columns_of_pandas_and_whole_seconds_are_understood(decar, tmp_path):
    """A path in pandas' index, categories, and a start in whole numbers."""
    table = pd.DataFrame({"path": ["a.wav"] * 3, "start": [0, 5, 10], "embedding": np.eye(3).tolist()})
    table.astype({"path": "category"}).set_index("path").to_parquet(tmp_path / "t.parquet")
    done = decar("search", "a.wav", "t.parquet", "-n", "2", "--csv", "f.csv", "--html", "f.html")
    assert done.code == 0, done.err
    assert "a.wav (5 s)  (row 2 of t.parquet" in done.out
    assert set(pd.read_csv(tmp_path / "f.csv")["query"]) == {"a.wav", "a.wav (5 s)", "a.wav (10 s)"}


def test_odd_places_cost_a_clip_its_player(decar, tmp_path):
    paths = ["a\0.wav", "x" * 300, "b.wav", "c.wav"]
    table = write(tmp_path / "e.parquet", np.eye(4), paths, start=[0.0, None, 99.0, 0.0])
    soundfile.write(tmp_path / "b.wav", np.ones(16000) / 2, 16000)
    soundfile.write(tmp_path / "c.wav", np.ones(16000) / 2, 16000)
    done = decar("search", "--row", "c.wav", str(table), "-n", "3", "--html", "f.html")
    assert done.code == 0, done.err
    page = (tmp_path / "f.html").read_text()
    assert page.count('<p class="none">') == 3
    assert page.count("<audio") == 1


@pytest.fixture
def embedded(sound_folder, tmp_path):
    """The sounds of a folder, embedded, beside the bundle that did it."""
    encoder = make_encoder(SMALL, seed=0)
    bundle = save_bundle(encoder, tmp_path / "encoder.safetensors")
    files = sorted(sound_folder.rglob("*.wav"))
    vectors = [encoder.embed(torch.from_numpy(decode(file))[None])[0].numpy() for file in files]
    names = [str(file.relative_to(sound_folder)) for file in files]
    facts = {"encoder": encoder.hash(), "bundle": str(bundle)}
    return write(tmp_path / "e.parquet", vectors, names, facts, label=[name.split("/")[0] for name in names])


def test_a_row_of_the_table_needs_no_encoder_and_a_file_finds_itself(decar, embedded, sound_folder, tmp_path):
    (tmp_path / "encoder.safetensors").rename(tmp_path / "moved.safetensors")
    done = decar("search", "low/0.wav", str(embedded), "-n", "3", "--csv", "found.csv")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "found.csv")
    assert list(found["label"]) == ["low"] * 3
    assert "low/0.wav" not in set(found["path"]), "the sound itself is not among those found"
    assert found["distance"].is_monotonic_increasing
    file = str(sound_folder / "noise/2.wav")
    done = decar("search", file, str(embedded), "-n", "4", "--csv", "file.csv", "--bundle", "moved.safetensors")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "file.csv")
    assert found["path"][0] == "noise/2.wav"
    assert found["distance"][0] < 1e-5
    assert re.search(r"1  0\.0000  noise/2\.wav", done.out)


def test_what_a_search_found_can_be_embedded_and_searched_again(decar, tmp_path):
    """Its CSV has columns of the names that the command adds; two of its rows are the same stretch of a file."""
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    paths = ["a.wav", "b.wav", "b.wav", "c.wav", "d.wav"]
    file = write(tmp_path / "e.parquet", vectors, paths, query=["q"] * 5, rank=[1, 2, 3, 4, 5], distance=[0.5] * 5,
                 table_rank=["kept"] * 5)  # fmt: skip
    done = decar("search", "b.wav", str(file), "-n", "4", "--csv", "found.csv")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "found.csv")
    assert found["rank"].tolist() == [1, 2, 3, 4] * 2
    assert found["query"].tolist() == ["b.wav (row 2)"] * 4 + ["b.wav (row 3)"] * 4
    assert set(found["table_query"]) == {"q"}
    assert set(found["table_table_rank"]) == {1, 3, 4, 5, 2}
    assert set(found["table_rank"]) == {"kept"}
    assert [line[:6] for line in done.out.splitlines()].count("   1  ") == 2


def test_the_table_is_written_before_anything_is_printed(embedded, tmp_path, monkeypatch):
    """As of `decar search … | head`: the pipe breaks while the command prints."""

    def broken(*words, **options):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    with contextlib.suppress(BrokenPipeError):
        main(["search", "low/0.wav", str(embedded), "-n", "3", "--csv", str(tmp_path / "f.csv")])
    assert len(pd.read_csv(tmp_path / "f.csv")) == 3


def test_a_file_that_lies_here_is_searched_for_and_a_row_where_it_is_asked_for(decar, embedded, sound_folder, tmp_path):
    """The file here has the name of a row and another sound."""
    (tmp_path / "low").mkdir()
    (tmp_path / "low/0.wav").write_bytes((sound_folder / "noise/2.wav").read_bytes())
    for options in ([], ["--root", str(sound_folder)]):
        done = decar("search", "low/0.wav", *options, str(embedded), "-n", "3", "--csv", "file.csv")
        found = pd.read_csv(tmp_path / "file.csv")
        assert found["path"][0] == "noise/2.wav"
        assert found["distance"][0] < 1e-5
        assert f"low/0.wav  (the file {tmp_path}/low/0.wav, not the row of {embedded}: pass --row" in done.out
    done = decar("search", "low/0.wav", str(embedded), "--row", "-n", "3", "--csv", "row.csv")
    found = pd.read_csv(tmp_path / "row.csv")
    assert set(found["label"]) == {"low"}
    assert "low/0.wav" not in set(found["path"])
    assert f"low/0.wav  (row 5 of {embedded}; 1 - cosine" in done.out
    (tmp_path / "low/0.wav").unlink()
    (tmp_path / "low/0.wav").symlink_to(sound_folder / "low/0.wav")
    done = decar("search", "low/0.wav", str(embedded), "-n", "3", "--root", str(sound_folder))
    assert "low/0.wav  (row 5 of" in done.out  # the same file: no encoder is needed


def test_the_page_holds_all_it_shows_and_escapes_what_it_says(decar, embedded, sound_folder, tmp_path):
    odd = 'low/<b onload="x">&.wav'
    (sound_folder / "low/3.wav").rename(sound_folder / odd)
    table = pq.read_table(embedded)
    paths = [odd if path == "low/3.wav" else path for path in table["path"].to_pylist()]
    paths = ["gone.wav" if path == "low/6.wav" else path for path in paths]
    pq.write_table(table.set_column(0, "path", pa.array(paths)), embedded)
    done = decar("search", odd, str(embedded), "-n", "11", "--html", "page.html", "--root", str(sound_folder))
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text()
    assert "<b onload" not in page
    assert "&lt;b onload=&#34;x&#34;&gt;&amp;.wav" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page), "nothing is fetched"
    players = re.findall(r'<audio[^>]*src="data:audio/ogg;base64,([^"]+)"', page)
    assert len(players) == 11, "itself and eleven, one of which is gone"
    assert page.count("file not found") == 1
    assert "Content-Security-Policy" in page
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(players[0])))
    assert len(wave) / rate == pytest.approx(0.5, abs=0.02)
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 11


def test_a_long_sound_is_the_mean_of_its_pieces(tmp_path):
    encoder = make_encoder(SMALL, seed=0, max_frames=120)
    bundle = str(save_bundle(encoder, tmp_path / "encoder.safetensors"))
    table = EmbeddingTable.open(write(tmp_path / "e.parquet", np.eye(4)))
    wave = np.random.default_rng(0).normal(size=45000).astype(np.float32) * np.linspace(0.1, 0.01, 45000)
    file = str(tmp_path / "long.wav")
    soundfile.write(file, wave, 16000, subtype="FLOAT")
    [query] = find_queries([file], table, bundle)
    mel = encoder.logmel(torch.from_numpy(wave.astype(np.float32))[None])[0]
    vectors, frames = [], []
    for first in range(0, mel.shape[1], 120):  # the frames, cut end to end
        piece = torch.nn.functional.pad(mel[:, first : first + 120], (0, max(0, 98 - len(mel[0, first:]))),
                                        value=encoder.frontend.silence)  # fmt: skip
        frames.append(min(120, mel.shape[1] - first))
        with torch.no_grad():
            vectors.append(encoder.eval()(piece[None, None])[0].numpy())
    assert frames == [120, 120, 39]
    np.testing.assert_allclose(query.vector, np.average(vectors, axis=0, weights=frames), rtol=1e-3, atol=1e-4)


def test_a_wrong_question_is_one_line(decar, embedded, sound_folder, tmp_path):
    other = str(save_bundle(make_encoder(SMALL, seed=1), tmp_path / "other.safetensors"))
    (tmp_path / "text.wav").write_text("no sound" * 40)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    table, real = str(embedded), str(sound_folder / "low/0.wav")
    for words, told in (
        (["gone.wav", table], "gone.wav: no such file, and no path of"),
        ([str(tmp_path / "text.wav"), table], "text.wav: cannot be searched for, not audio"),
        ([str(tmp_path / "silent.wav"), table], "silent.wav: cannot be searched for, it is silent"),
        ([real, table, "--bundle", other], "other.safetensors is another encoder"),
        (["low/0.wav", table, "--bundle", other], "other.safetensors is another encoder"),
        (["--row", real, table], "0.wav: no path of"),
        (["low/0.wav", table, "-n", "12"], "has 11 clips to find"),
        (["low/0.wav", str(tmp_path / "no.parquet")], "no.parquet: no such file"),
    ):
        done = decar("search", *words)
        assert done.code == 2
        assert len(done.errors) == 1
        assert told in done.errors[0], done.errors
    write(embedded, np.eye(4), facts={"encoder": "a" * 64, "bundle": "random"})
    done = decar("search", real, table)
    assert "does not say which bundle made it (it says 'random'): pass --bundle" in done.errors[0]


def test_pictures_are_what_they_show(tmp_path):
    logmel = np.full((50, 64), -11.0)
    logmel[20, 5] = 2.0
    picture = spectrogram(logmel)
    assert picture.shape == (64, 50, 3)
    assert np.unravel_index(picture.sum(axis=2).argmax(), (64, 50)) == (63 - 5, 20), "low bands lie below"
    assert spectrogram(np.zeros((1000, 64))).shape == (64, 400, 3)
    Image = pytest.importorskip("PIL.Image")
    png = base64.b64decode(image_uri(picture).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
