"""What asks for much is refused in a line, or read in bounded memory, at every door; the job goes on.

`make test-slow` takes all of them through all doors and measures; here the memory is that of Python and NumPy.
"""

import contextlib
import math
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from omegaconf import OmegaConf

from decar.audio import LogMelStore, Manifest, decode
from decar.audio.decode import decode_blocks
from decar.audio.doctor import examine
from decar.cli.app import main
from decar.cli.config import conf_dir
from decar.embedder import Embedder
from decar.errors import AudioError, ConfigError, DecarError, ManifestError, SearchError
from decar.limits import Limits, limits, set_limits
from decar.models import load_encoder
from decar.neighbours.index import EmbeddingTable
from decar.neighbours.query import _embed
from tests.audio.sounds import tone, write
from tests.faults.bombs import HEAVY, SOUNDS, TABLES, chained_flac, flac_claiming

AT_ALL_DOORS = ("1 Hz.wav", "1 GHz.wav", "200 channels.wav", "says 24 h.flac")


@pytest.fixture(autouse=True)
def _usual_limits():
    yield
    set_limits(Limits())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All bombs, and a sound among them."""
    made = tmp_path_factory.mktemp("bombs")
    for name, (write_bomb, _) in SOUNDS.items():
        write_bomb(made / name)
    write(made / "good.wav", tone(1.0))
    return made


class Cost:
    """Seconds, and MB of arrays and objects at the most."""

    def __enter__(self):
        tracemalloc.start()
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.begin
        self.megabytes = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()


def clips_of(folder, *names):
    return Manifest(pd.DataFrame({"path": names}), folder)


def test_a_store_is_built_around_them(folder, tmp_path):
    with Cost() as cost:
        store = LogMelStore.open_or_build(Manifest.from_folder(folder), cache_dir=tmp_path, progress=False)
    reasons = dict(store.bad.itertuples(index=False))
    without_ffmpeg = {name for name in SOUNDS if name.endswith(".m4a") and shutil.which("ffmpeg") is None}
    assert reasons.keys() == SOUNDS.keys() - without_ffmpeg  # a folder's .m4a are passed over, with a line
    assert {name: reason for name, reason in reasons.items() if not reason.startswith(SOUNDS[name][1])} == {}
    assert len(store.usable()) == 1
    assert cost.seconds < 20
    assert cost.megabytes < 50


def test_the_doctor_names_them(folder):
    with Cost() as cost:
        found = examine(clips_of(folder, *AT_ALL_DOORS, "good.wav"), progress=False)
    assert found["path"].tolist() == list(AT_ALL_DOORS)
    assert (found["problem"] == "unreadable").all()
    assert all(detail.startswith(SOUNDS[name][1]) for name, detail in found[["path", "detail"]].to_numpy())
    assert cost.megabytes < 20


def test_embed_leaves_them_out(folder, small_encoder):
    with Cost() as cost:
        made = Embedder(small_encoder, device="cpu").files(clips_of(folder, *AT_ALL_DOORS, "good.wav"))
    assert made.table["path"].tolist() == ["good.wav"]
    assert made.bad["path"].tolist() == list(AT_ALL_DOORS)
    assert all(reason.startswith(SOUNDS[name][1]) for name, reason in made.bad[["path", "reason"]].to_numpy())
    assert cost.megabytes < 50


@pytest.mark.parametrize("name", AT_ALL_DOORS)
def test_search_refuses_them(folder, small_encoder, name):
    with pytest.raises(SearchError, match=f"cannot be searched for, {SOUNDS[name][1]}"):
        _embed(small_encoder, str(folder / name))


def test_samples_of_a_caller_keep_to_the_limits_of_rates(small_encoder):
    for rate, reason in ((1, "rate too low"), (10**9, "rate too high")):
        with pytest.raises(AudioError, match=reason):
            small_encoder.embed(np.zeros(10_000, np.float32), rate)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_refused(tmp_path, name):
    write_bomb, reason = TABLES[name]
    write_bomb(tmp_path / name)
    with Cost() as cost, pytest.raises(ManifestError, match=reason) as told:
        Manifest.from_path(tmp_path / name)
    assert str(told.value).startswith(f"the table {tmp_path / name} ")
    assert cost.seconds < 5
    assert cost.megabytes < 100


def test_a_table_of_embeddings_keeps_to_the_limit_of_rows(tmp_path):
    table = pd.DataFrame({"path": ["a.wav"] * 30, "embedding": [[0.0, 1.0]] * 30})
    table.to_parquet(tmp_path / "e.parquet")
    assert len(EmbeddingTable.open(tmp_path / "e.parquet")) == 30
    set_limits(Limits(max_rows=29))
    with pytest.raises(DecarError, match="has 30 rows or more, the limit max_rows is 29"):
        EmbeddingTable.open(tmp_path / "e.parquet")


def test_rows_at_the_limit_are_read_and_one_more_is_not(tmp_path):
    for n in (5, 6):
        table = pd.DataFrame({"path": [f"{i}.wav" for i in range(n)]})
        table.to_csv(tmp_path / f"{n}.csv", index=False)
        table.to_parquet(tmp_path / f"{n}.parquet")
    set_limits(Limits(max_rows=5))
    for suffix in ("csv", "parquet"):
        assert len(Manifest.from_path(tmp_path / f"5.{suffix}")) == 5
        with pytest.raises(ManifestError, match="has 6 rows or more, the limit max_rows is 5"):
            Manifest.from_path(tmp_path / f"6.{suffix}")


def test_a_length_that_no_header_says_is_counted_while_it_is_read(tmp_path):
    """Of a FLAC without a length, and of streams one after another; a stretch is judged by its own length."""
    flac_claiming(0)(tmp_path / "unknown.flac")
    write(tmp_path / "a.wav", tone(0.5))
    (tmp_path / "chain.wav").write_bytes((tmp_path / "a.wav").read_bytes() * 2)
    for name, seconds in (("unknown.flac", 0.625), ("chain.wav", 1.0)):
        set_limits(Limits(max_hours=0.6 / 3600))
        with pytest.raises(AudioError, match="too long"):
            decode(tmp_path / name)
        assert len(decode(tmp_path / name, start=0.1, duration=0.5)) == 8_000
        set_limits(Limits(max_hours=seconds / 3600))
        assert len(decode(tmp_path / name)) == seconds * 16_000


def test_many_streams_cost_as_many_looks(tmp_path):
    """90 kB of 300 streams before an end full of false frames: each stream looked at all of them, 22 s."""
    chained_flac(tmp_path / "a.flac")
    with Cost() as cost:
        assert sum(map(len, decode_blocks(tmp_path / "a.flac"))) == 300_000
    assert cost.seconds < 8


def test_blocks_are_small_at_high_rates_and_many_channels(tmp_path):
    """4 s of 40 channels at 384 kHz, 246 MB as samples; what comes out is the mean."""
    wave = (np.arange(4 * 384_000) % 384).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 384_000, 40, "PCM_16") as file:
        for at in range(0, len(wave), 38_400):
            file.write(np.repeat(wave[at : at + 38_400, None], 40, axis=1))
    with Cost() as cost:
        blocks = list(decode_blocks(tmp_path / "a.wav", sample_rate=384_000))
    np.testing.assert_allclose(np.concatenate(blocks), wave / 32768, atol=1e-6)
    assert cost.megabytes < 150  # two blocks of a second


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    """As a table, and in a table: reading a named pipe waits until somebody writes to it."""
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}[kind]
    for name in ("t.csv", "t.parquet", "a.wav"):
        make(tmp_path / name)
    for read, name in ((Manifest.from_csv, "t.csv"), (Manifest.from_parquet, "t.parquet")):
        with pytest.raises(ManifestError, match="cannot be read: it is a folder, a pipe or a device"):
            read(tmp_path / name)
    write(tmp_path / "good.wav", tone(1.0))
    clips = clips_of(tmp_path, "a.wav", "good.wav")
    store = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    assert store.reasons == ["not a file", ""]
    assert examine(clips, progress=False)[["path", "detail"]].to_numpy().tolist() == [["a.wav", "not a file"]]


def test_a_store_of_other_limits_is_another(tmp_path):
    write(tmp_path / "in" / "a.wav", tone(1.0))
    write(tmp_path / "in" / "b.wav", tone(2.0))
    clips, found = Manifest.from_folder(tmp_path / "in"), []
    for hours in (12.0, 1.5 / 3600, 12.0):
        set_limits(Limits(max_hours=hours))
        store = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
        found.append(store.bad["path"].tolist())
    assert found == [[], ["b.wav"], []]


def test_options_set_them(tmp_path, capsys):
    """`decar` by --max-hours and so on, train.py and eval.py by the node `limits`, whose values are the usual ones."""
    write(tmp_path / "a.wav", tone(2.0))
    for options, code in ((["--max-hours", str(1 / 3600)], 1), ([], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", str(tmp_path), *options])
        assert ended.value.code == code
        told = "a.wav: unreadable: too long: 0.00 h or more, the limit max_hours is 0.000277778 h"
        assert (told in capsys.readouterr().out) == bool(code)
    assert limits() == Limits()
    for name in ("train", "eval"):
        assert Limits(**OmegaConf.load(conf_dir() / f"{name}.yaml").limits) == Limits()


@pytest.mark.parametrize(("name", "value"), [("min_rate", 0), ("max_rows", 1.5), ("max_hours", math.nan)])
def test_limits_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}: not allowed"):
        Limits(**{name: value})


class Peak:
    """Seconds, and MB of the process at the most: of all, and over what it had before."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before, self.begin = self._megabytes("VmRSS"), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds, self.all = time.perf_counter() - self.begin, self._megabytes("VmHWM")
        self.more = self.all - self.before

    @staticmethod
    def _megabytes(key):
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
        return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_all_of_them_at_all_doors(tmp_path, capsys):
    """Under 10 s and 500 MB over the baseline, each; prints a table."""
    encoder, cache = load_encoder(), tmp_path / "cache"

    def clip(file):
        return clips_of(file.parent, file.name)

    sounds = {
        "store": lambda file: LogMelStore.open_or_build(clip(file), cache_dir=cache, progress=False),
        "embed": lambda file: Embedder(encoder, device="cpu").files(clip(file)),
        "doctor": lambda file: examine(clip(file), progress=False),
        "search": lambda file: _embed(encoder, str(file)),
    }
    write(tmp_path / "warm.wav", tone(30.0))
    for enter in sounds.values():
        enter(tmp_path / "warm.wav")
    rows = []
    for name, (write_bomb, _) in {**SOUNDS, **HEAVY, **TABLES}.items():
        write_bomb(tmp_path / name)
        for door, enter in ({"table": Manifest.from_path} if name in TABLES else sounds).items():
            with Peak() as peak, contextlib.suppress(DecarError):
                enter(tmp_path / name)
            rows.append((name, door, peak.seconds, peak.more))
        (tmp_path / name).unlink()
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:24} {door:7} {sec:6.2f} s {most:6.0f} MB" for name, door, sec, most in rows))
    assert max(seconds for *_, seconds, _ in rows) < 10
    assert max(most for *_, most in rows) < 500


@pytest.mark.slow
def test_ten_hours_are_built_and_examined_in_bounded_memory(tmp_path, capsys):
    """A WAV of 1.2 GB, for which a store took 5.6 GB."""
    minute = (np.random.default_rng(0).normal(size=960_000) * 3_000).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1, "PCM_16") as file:
        for _ in range(600):
            file.write(minute)
    clips = Manifest.from_folder(tmp_path)
    with Peak() as built:
        store = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    with Peak() as examined:
        found = examine(clips, progress=False)
    assert store.lengths.tolist() == [3_599_998]
    assert not len(found)
    with capsys.disabled():
        for name, peak in (("store", built), ("doctor", examined)):
            print(f"\n10 h, {name}: {peak.seconds:.0f} s, {peak.all:.0f} MB, {peak.more:.0f} over the baseline")
    assert max(built.all, examined.all) < 1500
