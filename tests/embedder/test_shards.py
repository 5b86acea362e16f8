"""Shards on workers that die, lie or are blind: the table is that of one process, and nothing goes on for ever."""

import errno
import logging
import pickle
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import Manifest, origin
from decar.audio.source import read_source
from decar.cli.app import main
from decar.embedder import Embedder, shards
from decar.embedder.shards import Parts, Shard, work
from decar.errors import DecarError
from decar.fetch import UnreachableError
from decar.limits import Limits, limits, set_limits
from decar.unpack import saving
from tests.audio.stores import bucket
from tests.conftest import make_encoder

__all__ = ["bucket"]

RATE = 16_000


class Workers:
    """An engine in this process. `fate` says what happens to the n-th task: "" or why its worker is lost."""

    device = None

    def __init__(self, fate=lambda n, task: "", tasks=None, room=3):
        self.fate, self.tasks, self.size, self.given, self.results = fate, tasks, room, [], {}

    @contextmanager
    def pool(self, embedder, folder):
        self.embedder = pickle.dumps(embedder)
        yield self

    def room(self):
        return self.size

    def submit(self, tasks):
        assert len(tasks) <= self.size - len(self.results)
        handles = []
        for task in tasks:
            n = len(self.given)
            self.given.append(task)
            self.results[n] = self.fate(n, task) or work(pickle.loads(self.embedder), pickle.loads(pickle.dumps(task)))
            handles.append(n)
        return handles

    def ended(self, handles):
        return [max(handles)]  # those that began last end first

    def outcome(self, handle):
        return self.results.pop(handle)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder("conv", pool="catavgmax", seed=0, hidden=16, widths=(4, 4), max_frames=298).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 clips of many lengths, one of which is no sound, with a label that is kept."""
    root, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for i in range(60):
        soundfile.write(root / f"{i:02}.wav", rng.normal(size=round(RATE * rng.uniform(0.1, 1.2))) * 0.1, RATE)
    (root / "30.wav").write_text("no sound")
    return root


@pytest.fixture(scope="module")
def clips(folder):
    table = pd.DataFrame({"path": [f"{i:02}.wav" for i in range(60)], "kind": [f"k{i % 7}" for i in range(60)]})
    return Manifest(table, folder)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CLIPS", 8)


@pytest.fixture(scope="module")
def alone(clips, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "alone.parquet"
    Embedder(encoder, windows=0.3).write(clips, out, progress=False)
    return out


def spread(engine, clips, encoder, out, **options):
    return Embedder(encoder, windows=0.3, engine=engine, **options).write(clips, out, progress=False)


def assert_equal(out, alone):
    one, many = pd.read_parquet(alone), pd.read_parquet(out)
    pd.testing.assert_frame_equal(many.drop(columns="embedding"), one.drop(columns="embedding"))
    np.testing.assert_allclose(np.stack(many["embedding"]), np.stack(one["embedding"]), rtol=0, atol=1e-6)
    bad = [file.with_name(f"{file.name}.bad.csv").read_text() for file in (out, alone)]
    assert bad[0] == bad[1]
    assert bad[0].count("\n") == 2
    assert not out.with_name(f".{out.name}.parts").exists()


@pytest.mark.parametrize("tasks", [None, 3], ids=["a task a shard", "three tasks"])
def test_many_workers_write_the_table_of_one_process(clips, encoder, alone, tmp_path, tasks):
    engine = Workers(tasks=tasks)
    spread(engine, clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    assert sorted(len(task.shards) for task in engine.given) == ([1] * 8 if tasks is None else [2, 3, 3])  # each once


@pytest.mark.parametrize("tasks", [None, 3], ids=["a task a shard", "three tasks"])
def test_what_a_lost_worker_had_is_done_again(clips, encoder, alone, tmp_path, caplog, tasks):
    def dies(n, task):
        """Every other worker, in its last shard."""
        if n % 2:
            return ""
        done = task.shards[:-1]
        if done:
            n = sum(s.stop - s.first for s in done)
            part = shards.Task(task.clips.take(range(n)), task.records[:n], done, task.parts, limits())
            assert work(pickle.loads(engine.embedder), part) is None
        return "node lost"

    engine = Workers(dies, tasks)
    spread(engine, clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    assert " are embedded again: " in caplog.text
    assert "node lost" in caplog.text
    done = [shard for n, task in enumerate(engine.given) for shard in task.shards if n % 2]
    assert len(done) == len(set(done))  # nothing twice


def test_a_worker_that_dies_on_the_same_shard_again_and_again_is_an_error_that_names_it(clips, encoder, tmp_path):
    engine = Workers(lambda n, task: "out of memory" if task.shards[0].first == 16 else "")
    with pytest.raises(
        DecarError, match=r"clips 17 to 24 \(16\.wav .*: not done by 3 workers, .*: out of memory; what is"
    ):
        spread(engine, clips, encoder, tmp_path / "many.parquet")
    assert sum(task.shards[0].first == 16 for task in engine.given) == 3
    assert not (tmp_path / "many.parquet").exists()


@pytest.mark.parametrize("second", ["workers", "alone"])
def test_a_second_call_goes_on_where_the_first_one_stopped(clips, encoder, alone, tmp_path, second, caplog):
    caplog.set_level(logging.INFO)

    def stops(n, task):
        if n == 5:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        spread(Workers(stops, room=1), clips, encoder, tmp_path / "many.parquet")
    rest = Workers(room=1)
    spread(rest if second == "workers" else None, clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    assert f"going on with {tmp_path / 'many.parquet'} at clip 40 of 60" in caplog.text
    assert [task.shards[0].first for task in rest.given] == ([40, 48, 56] if second == "workers" else [])


def test_what_one_process_began_goes_on_with_workers(clips, encoder, alone, tmp_path, monkeypatch):
    monkeypatch.setattr("decar.embedder.BLOCK_FRAMES", 2000)
    advanced = []

    @contextmanager
    def bar(*args, **kwargs):
        def advance(n):
            advanced.append(n)
            if sum(advanced) > 20:
                raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as patch:
        patch.setattr("decar.embedder.progress_bar", bar)
        with pytest.raises(KeyboardInterrupt):
            spread(None, clips, encoder, tmp_path / "many.parquet")
    rest = Workers()
    spread(rest, clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    first = min(task.shards[0].first for task in rest.given)
    assert 8 < first < 24
    assert first % 8  # within a shard


def test_a_damaged_part_file_is_made_again(clips, encoder, alone, tmp_path, caplog):
    def damages(n, task):
        if n == 4:  # after the task has ended, before it was its turn
            file = engine.given[3].parts.file(engine.given[3].shards[0])
            data = bytearray(file.read_bytes())
            data[-5] ^= 1
            file.write_bytes(data)
        return ""

    engine = Workers(damages, room=1)
    engine.ended = lambda handles: [*handles]
    engine.size = 6
    spread(engine, clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    assert "is damaged, its rows do not fit their digest" in caplog.text


def test_part_files_of_other_sounds_or_options_do_not_count(clips, tmp_path):
    made, shard = shards.Memory(4), Shard(0, 2)
    for i in range(2):
        made.rows(np.full((1, 4), i, np.float32))
        made.end(shards.ClipEnd(100))
    parts = Parts(tmp_path, "key", 4)
    parts.write(shard, made)
    found, rows = parts.read(shard)
    assert [n for n, _ in found] == [1, 1]
    np.testing.assert_array_equal(rows, made.matrix())
    assert parts.read(Shard(2, 4)) is None
    with pytest.raises(shards.DamagedError, match="of other clips"):
        Parts(tmp_path, "another key", 4).read(shard)
    parts.file(shard).rename(parts.file(Shard(0, 3)))
    with pytest.raises(shards.DamagedError, match="of other clips"):
        parts.read(Shard(0, 3))


def test_a_machine_that_does_not_see_the_sounds_does_not_call_them_missing(
    clips, encoder, alone, tmp_path, monkeypatch
):
    elsewhere = Manifest(clips.table, tmp_path / "not mounted")

    def blind(n, task):
        if n in bad:
            object.__setattr__(task, "clips", elsewhere.take(range(task.shards[0].first, task.shards[0].stop)))
        return ""

    bad = {1, 2}
    spread(Workers(blind), clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    bad = set(range(100))
    with pytest.raises(DecarError, match=r"a machine does not see .*00\.wav, which is here"):
        spread(Workers(blind, room=1), clips, encoder, tmp_path / "none.parquet")


def test_a_machine_that_has_other_sounds_at_these_paths_embeds_none_of_them(clips, encoder, alone, tmp_path, caplog):
    """Of equal length and time, as on local disks that are no longer alike."""
    other = shutil.copytree(clips.root, tmp_path / "local disk")
    shutil.copy2(other / "03.wav", other / "05.wav")

    def local(n, task):
        if n in bad:
            first, stop = task.shards[0].first, task.shards[0].stop
            object.__setattr__(task, "clips", Manifest(clips.table, other).take(range(first, stop)))
        return ""

    bad = {0, 1}
    spread(Workers(local), clips, encoder, tmp_path / "many.parquet")
    assert_equal(tmp_path / "many.parquet", alone)
    assert caplog.text.count("has another file at") == 1, "what is the same there will do"
    bad = set(range(100))
    with pytest.raises(DecarError, match=r"by 3 workers, .* has another file at .*05\.wav, or it was changed since"):
        spread(Workers(local, room=1), clips, encoder, tmp_path / "none.parquet")


def test_a_machine_that_does_not_see_the_output_or_has_another_version_says_so(clips, encoder, tmp_path):
    def moved(n, task):
        object.__setattr__(task, "parts", Parts(tmp_path / "not mounted", task.parts.key, task.parts.dim))

    with pytest.raises(DecarError, match=r"does not see .*not mounted: the folder of the output has to lie"):
        spread(Workers(moved), clips, encoder, tmp_path / "a.parquet")

    def other(n, task):
        object.__setattr__(task, "version", "9.9")

    with pytest.raises(DecarError, match=r"has decar .*, this machine 9\.9: install the same"):
        spread(Workers(other), clips, encoder, tmp_path / "a.parquet")


@pytest.mark.parametrize("everywhere", [False, True], ids=["one machine", "all"])
def test_a_cache_that_is_full_or_a_store_that_is_not_reached_may_be_so_on_one_machine(
    clips, encoder, alone, tmp_path, monkeypatch, everywhere
):
    """It ended everything, as a damaged bundle does."""
    faults = [
        UnreachableError("cannot be reached"), OSError(errno.ENOSPC, "No space left"), shards.VanishedError("deleted"),
    ]  # fmt: skip
    into = Embedder.into

    def fails(self, clips, sink, progress=False):
        if not faults:
            return into(self, clips, sink, progress)
        error = faults[0] if everywhere else faults.pop()
        with origin.reachable("s3://b"), saving(tmp_path / "cache"):
            raise error

    monkeypatch.setattr(Embedder, "into", fails)
    if everywhere:
        with pytest.raises(DecarError, match=r"not done by 3 workers, .* because of: s3://b: cannot be reached; what"):
            spread(Workers(room=1), clips, encoder, tmp_path / "none.parquet")
    else:
        spread(Workers(), clips, encoder, tmp_path / "many.parquet")
        assert_equal(tmp_path / "many.parquet", alone)


def test_limits_hold_on_the_workers(clips, encoder, tmp_path):
    before, seen = limits(), []

    def forgets(n, task):
        set_limits(Limits())  # as in a new process
        seen.append(task.limits)
        return ""

    set_limits(Limits(max_hours=0.6 / 3600))
    try:
        spread(Workers(forgets), clips, encoder, tmp_path / "many.parquet")
    finally:
        set_limits(before)
    bad = pd.read_csv(tmp_path / "many.parquet.bad.csv")["reason"]
    assert len(bad) > 10
    assert all("too long" in reason for reason in bad.drop(bad.index[bad.str.contains("not audio")]))


def test_an_embedding_that_is_not_finite_ends_it_by_the_name_of_its_clip(clips, tmp_path):
    broken = make_encoder("conv", pool="catavgmax", seed=0, hidden=16, widths=(4, 4), max_frames=298).eval()
    for parameter in broken.parameters():
        parameter.data.fill_(float("nan"))
    engine = Workers(tasks=1)
    with pytest.raises(DecarError, match=r"00\.wav: its embedding holds NaN"):
        spread(engine, clips, broken, tmp_path / "many.parquet")
    assert len(engine.given) == 1


def test_shards_do_not_depend_on_what_is_done(clips):
    whole = shards.cut(clips)
    assert [(s.first, s.stop) for s in whole] == [(i, min(i + 8, 60)) for i in range(0, 60, 8)]
    assert shards.cut(clips, 16) == whole[2:]
    assert shards.cut(clips, 19) == [Shard(19, 24), *whole[3:]]
    assert shards.cut(clips, 60) == []


def test_a_worker_that_was_given_up_leaves_nothing_behind_when_all_is_done(clips, encoder, tmp_path):
    engine, late = Workers(), []

    def keeps(n, task):
        late.append(task)
        return ""

    engine.fate = keeps
    spread(engine, clips, encoder, tmp_path / "many.parquet")
    assert isinstance(work(pickle.loads(engine.embedder), late[0]), DecarError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.parquet", "many.parquet.bad.csv"]


def test_the_commands_embed_where_they_are_asked_to(folder, tmp_path, monkeypatch):
    made = []

    def engine(address, cores):
        made.append((address, cores, Workers()))
        return made[-1][2]

    monkeypatch.setattr("decar.embedder.engines.RayEngine", engine)
    words = ["--engine", "ray", "--address", "HEAD:1", "--workers", "3", "--bundle", "random", "-k", "3"]
    main(["cluster", str(folder), "--out", str(tmp_path), *words])
    ((address, cores, workers),) = made
    assert (address, cores) == ("HEAD:1", 3)
    assert [len(task.clips) for task in workers.given] == [8] * 7 + [4]
    assert len(pd.read_csv(tmp_path / "clusters.csv")) == 59


def test_workers_fetch_what_lies_in_a_store(clips, encoder, alone, bucket, tmp_path, monkeypatch):
    """Each fetches the sounds of its own shards; which shards there are does not depend on what is in the cache."""
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    for name in clips.table["path"]:
        bucket.pipe_file(f"s3://b/sounds/{name}", (clips.root / name).read_bytes())
    there = read_source("s3://b/sounds", fetch=True, later=True)
    assert there.origin is not None
    begun, sizes = shards.cut(there), shards.cut(clips)
    assert begun == sizes, "by the sizes of the objects, as by those of files"
    made = spread(Workers(), there, encoder, tmp_path / "e.parquet")
    assert shards.cut(there) == begun
    assert sorted(name for name in bucket.sent) == [f"/b/sounds/{i:02}.wav" for i in range(60)]
    here = pd.read_parquet(alone)
    np.testing.assert_array_equal(made.vectors, np.stack(here["embedding"]))
    assert made.table["path"].tolist() == here["path"].tolist()
    assert made.bad["path"].tolist() == ["30.wav"]
