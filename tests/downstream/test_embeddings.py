import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from decar.audio import LogMelStore
from decar.downstream import evaluate
from decar.downstream.evaluate import cached_embeddings
from tests.downstream.helpers import TinyEncoder


@pytest.fixture
def store(make_store: Callable[..., LogMelStore]) -> LogMelStore:
    return make_store([40, 98, 200, 300] * 3)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the passes over a store."""
    seen: list[int] = []
    encode = evaluate.embed_store
    monkeypatch.setattr(evaluate, "embed_store", lambda *a, **k: (seen.append(1), encode(*a, **k))[1])
    return seen


def embed(encoder: object, store: LogMelStore, folder: Path) -> np.ndarray:
    return cached_embeddings(encoder, store, folder, progress=False)  # type: ignore[arg-type]


def test_computed_once_in_eval_mode_without_a_trace(store: LogMelStore, tmp_path: Path, passes: list[int]) -> None:
    encoder = TinyEncoder().train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    x = embed(encoder, store, tmp_path)
    assert encoder.training
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert np.array_equal(embed(encoder, store, tmp_path), x)
    assert len(passes) == 1
    assert x.shape == (12, 8)
    mel = torch.full((1, 1, 64, 224), store.frontend.silence)
    mel[0, 0, :, :200] = torch.from_numpy(store[2].astype(np.float32)).T
    with torch.no_grad():
        assert np.allclose(x[2], encoder.eval()(mel)[0].numpy(), atol=1e-5)


def test_another_encoder_or_another_store_is_another_file(
    store: LogMelStore, make_store: Callable[..., LogMelStore], tmp_path: Path, passes: list[int]
) -> None:
    first = embed(TinyEncoder(0), store, tmp_path)
    assert not np.allclose(embed(TinyEncoder(1), store, tmp_path), first)
    assert not np.allclose(embed(TinyEncoder(0), make_store([40, 98, 200, 300] * 3, seed=1), tmp_path), first)
    assert np.allclose(embed(TinyEncoder(0), store.take([3, 1]), tmp_path), first[[3, 1]], atol=1e-5)
    assert len(passes) == 4
    assert len(list((tmp_path / "embeddings").iterdir())) == 4


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b"no array at all", lambda b: b[:40]])
def test_damaged_file_is_made_anew(
    store: LogMelStore, tmp_path: Path, passes: list[int], damage: Callable[[bytes], bytes]
) -> None:
    x = embed(TinyEncoder(), store, tmp_path)
    file = next((tmp_path / "embeddings").iterdir())
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(embed(TinyEncoder(), store, tmp_path), x)
    assert np.array_equal(np.load(file), x)
    assert len(passes) == 2


def test_files_of_another_format_are_not_served(
    store: LogMelStore, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(TinyEncoder(), store, tmp_path)
    monkeypatch.setattr(evaluate, "FORMAT", evaluate.FORMAT + 1)
    embed(TinyEncoder(), store, tmp_path)
    assert len(passes) == 2


def test_file_of_another_shape_is_made_anew(store: LogMelStore, tmp_path: Path) -> None:
    x = embed("logmel", store, tmp_path)
    np.save(next((tmp_path / "embeddings").iterdir()), x[:-1])
    assert np.array_equal(embed("logmel", store, tmp_path), x)


def test_logmel_is_mean_and_deviation(store: LogMelStore, tmp_path: Path) -> None:
    x = embed("logmel", store, tmp_path)
    mel = store[5].astype(np.float64)
    assert x.dtype == np.float32
    assert np.allclose(x[5], np.concatenate([mel.mean(0), mel.std(0)]), atol=1e-4)


def test_many_at_once(store: LogMelStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: embed("logmel", store, tmp_path), range(8)))
    assert all(np.array_equal(x, found[0]) for x in found)
    assert len(list((tmp_path / "embeddings").iterdir())) == 1


def test_many_processes_at_once(store: LogMelStore, tmp_path: Path) -> None:
    """Jobs of a sweep ask for the same embeddings at the same time: all get the same, and one whole file stays."""
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(embed, ["logmel"] * 6, [store] * 6, [tmp_path] * 6))
    assert all(np.array_equal(x, found[0]) for x in found)
    [file] = (tmp_path / "embeddings").iterdir()
    assert np.array_equal(np.load(file), found[0])


def test_unwritable_cache_costs_a_warning_only(
    store: LogMelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "embeddings").write_text("a file where the folder should be")
    assert embed("logmel", store, tmp_path).shape == (12, 128)
    assert "not kept" in caplog.text
