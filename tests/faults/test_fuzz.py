"""Readers of files that strangers made: thousands of odd inputs, and only ever a DecarError (`make test-slow`)."""

import json
import struct
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from decar.audio import Manifest
from decar.cli.checks import check
from decar.cli.config import conf_dir
from decar.cli.terminal import explain
from decar.errors import DecarError
from decar.models import load_encoder, save_bundle
from decar.models.bundle import read_facts
from decar.pretrain.checkpoint import readable
from tests.conftest import make_encoder

MANY = 2_000
FEW = 300
SLOW = pytest.param(MANY, marks=pytest.mark.slow)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def fuzz(inputs, attempt, n):
    """Call `attempt` on `n` inputs, the same ones each time."""
    run = settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
    count = []

    @run
    @given(inputs)
    def each(one):
        count.append(1)
        attempt(one)

    each()
    assert len(count) >= 0.9 * n, "inputs ran out: the strategy repeats itself"


def only_decar_errors(call):
    """What a reader of foreign input may do: succeed, or raise an error that a user can mend."""
    try:
        return call()
    except DecarError as error:
        if not str(error).strip():
            raise
        return None


def mutated(whole: bytes):
    """Bytes of a valid file, cut, flipped, doubled, or with something else in between; or any bytes."""
    places = st.integers(0, max(0, len(whole) - 1))
    flipped = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8).map(
        lambda changes: _with(whole, changes)
    )
    cut = places.map(lambda at: whole[:at])
    inserted = st.tuples(places, st.binary(min_size=1, max_size=40)).map(lambda p: whole[: p[0]] + p[1] + whole[p[0] :])
    removed = st.tuples(places, places).map(lambda p: whole[: min(p)] + whole[max(p) :])
    return st.one_of(flipped, cut, inserted, removed, st.binary(max_size=200))


def _with(whole: bytes, changes):
    changed = bytearray(whole)
    for at, value in changes:
        changed[at] = value
    return bytes(changed)


CSV = 'path,start,duration,split,label\na.wav,0,1.5,train,dog\n"b,c.wav",,,test,"NA"\nd.wav,1e3,2,,"ä ""x"""\n'.encode()
CELLS = st.one_of(
    st.text(max_size=12),
    st.floats(width=32).map(str),
    st.sampled_from(["", "NaN", "-1", "1e400", "../../x", "\0", "=1"]),
)
TABLES = st.tuples(
    st.lists(st.sampled_from(["path", "start", "duration", "split", "label", "Path", "", "ä"]), min_size=1, max_size=5),
    st.lists(st.lists(CELLS, max_size=6), max_size=4),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]),
).map(
    lambda t: "\n".join(t[2].join(map(_quoted, row)) for row in [t[0], *t[1]]).encode(t[3], errors="replace")
)  # fmt: skip


def _quoted(cell: str) -> str:
    return f'"{cell}"' if "\n" in cell else cell


def use(manifest):
    """What is done with a manifest before any sound is read."""
    if manifest is not None:
        only_decar_errors(lambda: manifest.stretches)
        only_decar_errors(lambda: manifest.fingerprint())
        only_decar_errors(lambda: manifest.content_hash(*manifest.table.columns[:2]))


@pytest.mark.parametrize("n", [FEW, SLOW])
def test_csv_manifests(tmp_path, n):
    file = tmp_path / "clips.csv"

    def attempt(content):
        file.write_bytes(content)
        use(only_decar_errors(lambda: Manifest.from_csv(file)))

    fuzz(st.one_of(mutated(CSV), TABLES), attempt, n)


@pytest.mark.parametrize("n", [FEW, SLOW])
def test_parquet_manifests(tmp_path, n):
    file = tmp_path / "clips.parquet"
    pd.DataFrame({"path": ["a.wav", "b.wav"], "start": [0.0, None], "label": ["x", "y"]}).to_parquet(file)

    def attempt(content):
        file.write_bytes(content)
        use(only_decar_errors(lambda: Manifest.from_parquet(file)))

    fuzz(mutated(file.read_bytes()), attempt, n)


@pytest.mark.parametrize("n", [FEW, SLOW])
def test_conditions_on_a_manifest(n):
    clips = Manifest(pd.DataFrame({"path": ["a.wav", "b.wav"], "label": ["x", "y"], "duration": [1.0, 2.0]}), Path())
    words = st.sampled_from(
        ["path", "label", "duration", "=", "!=", "==", " and ", " or ", ">", "'", "x", "1", "(", ")", "@clips", "`",
         ".", "__class__", "[", "]", "~", "*", "import os"]
    )  # fmt: skip

    def attempt(condition):
        only_decar_errors(lambda: clips.where(condition))

    fuzz(st.one_of(st.lists(words, max_size=8).map("".join), st.text(max_size=30)), attempt, n)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    return save_bundle(make_encoder("conv", widths=[4, 4, 8], hidden=16, seed=0), folder / "encoder.safetensors")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def headers(whole: bytes):
    """The bundle with other values in its header."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    described = json.loads(header["__metadata__"]["decar"])
    paths = [(key,) for key in described] + [("encoder", key) for key in described["encoder"]]
    paths += [("encoder", "frontend", key) for key in described["encoder"]["frontend"]]

    def changed(change):
        (*outer, last), value = change
        other = json.loads(json.dumps(described))
        place = other
        for key in outer:
            place = place[key]
        place[last] = value
        text = json.dumps({**header, "__metadata__": {"decar": json.dumps(other)}}).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    sizes = st.one_of(st.integers(-3, 300), st.integers(300, 2**40))  # the large ones must be seen before they are made
    return st.tuples(st.sampled_from(paths), st.one_of(sizes, st.lists(sizes, max_size=4), JSON)).map(changed)


@pytest.mark.parametrize("n", [FEW, SLOW])
def test_bundles(tmp_path, bundle, n):
    file = tmp_path / "encoder.safetensors"
    whole = bundle.read_bytes()

    def attempt(content):
        file.write_bytes(content)
        only_decar_errors(lambda: read_facts(file))
        only_decar_errors(lambda: load_encoder(file))

    fuzz(st.one_of(mutated(whole[:4000]), mutated(whole), headers(whole)), attempt, n)


@pytest.mark.parametrize("n", [FEW, SLOW])
def test_checkpoints(tmp_path, n):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(3)}, "optimizer_states": [], "loops": {}}, file)

    def attempt(content):
        file.write_bytes(content)
        only_decar_errors(lambda: readable(file))

    fuzz(mutated(file.read_bytes()), attempt, n)


@pytest.mark.parametrize("n", [40, SLOW])
def test_options(n):
    """Any option with any value: it is taken, or refused in one line; composed as the command line does."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        known = sorted(_leaves(OmegaConf.to_container(compose("train"))))
    known = [key for key in known if not key.startswith(("callbacks", "logger"))]
    groups = ["data", "encoder", "labels", "clusterer", "trainer", "experiment", "optimizer", "k=", "+x", "~k", "++k"]
    names = st.one_of(st.sampled_from(known), st.sampled_from(groups), st.text(max_size=10))
    values = st.one_of(
        st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.just("null"),
        st.sampled_from(["[1,2]", "{a:1}", "${k}", "${nope}", "${bundled:x}", "'", '"', "1e999", "true", "-0", "???"]),
    )  # fmt: skip

    def attempt(pair):
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = compose("train", overrides=[f"{pair[0]}={pair[1]}"])
            check(cfg)
            OmegaConf.to_container(cfg.loader, resolve=True)
        except Exception as error:
            line = explain(error, "train")
            if line is None:
                raise
            assert "\n" not in line

    fuzz(st.tuples(names, values), attempt, n)


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
