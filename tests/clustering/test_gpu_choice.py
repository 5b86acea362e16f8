"""Which device faiss takes, without a GPU: a stand-in for its GPU build sees eight and notes which are asked for."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from decar.clustering import PIC, KMeans, faiss_on, nearest
from decar.clustering.nearest import GPU_TEMP_BYTES, gpu_index
from decar.errors import ClusteringError
from tests.clustering.test_base import noise


class EightGpus:
    """faiss with eight devices; an index on one of them is noted, and is on the CPU in truth."""

    def __init__(self) -> None:
        self.devices: list[int] = []
        self.memory: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("index_cpu_to_all_gpus", "Kmeans"):
            raise AssertionError(f"faiss.{name} takes all GPUs")
        return getattr(faiss, name)

    def get_num_gpus(self) -> int:
        return 8

    def StandardGpuResources(self) -> Any:
        return SimpleNamespace(setTempMemory=self.memory.append)

    def GpuIndexFlatConfig(self) -> Any:
        return SimpleNamespace(device=0)

    def GpuIndexFlatL2(self, resources: Any, dim: int, config: Any) -> Any:
        self.devices.append(config.device)
        return faiss.IndexFlatL2(dim)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[EightGpus]:
    made = EightGpus()
    monkeypatch.setattr(nearest, "load_faiss", lambda: made)
    return made


@pytest.mark.parametrize("clusterer", [KMeans(k=4), PIC(sigma="auto")], ids=["kmeans", "pic"])
def test_a_rank_takes_its_own_device_alone(clusterer: Any, gpus: EightGpus) -> None:
    with faiss_on(5):
        there = clusterer.fit_predict(noise(60)).labels
    assert set(gpus.devices) == {5}
    assert gpus.memory == [GPU_TEMP_BYTES] * len(gpus.devices)
    gpus.devices.clear()
    with faiss_on(None):  # trainer.accelerator=cpu on a machine with GPUs
        here = clusterer.fit_predict(noise(60)).labels
    assert gpus.devices == []
    np.testing.assert_array_equal(there, here)


def test_centres_learned_on_one_rank_are_used_on_the_device_of_another(gpus: EightGpus) -> None:
    with faiss_on(0):
        centres = KMeans(k=4).fit(noise(60))
    gpus.devices.clear()
    with faiss_on(3):
        centres.assign(noise(60))
    assert gpus.devices == [3]


def test_outside_of_training_it_is_the_current_device_and_a_demand_is_kept(gpus: EightGpus) -> None:
    assert gpu_index("auto") == gpu_index(True) == 0
    assert gpu_index(False) is None
    with faiss_on(None):
        assert gpu_index("auto") is None
        with pytest.raises(ClusteringError, match="gpu=true, but this process trains on the CPU: pass trainer=gpu"):
            gpu_index(True)
    assert gpu_index("auto") == 0, "the context is over"


def test_a_rank_that_trains_on_the_cpu_does_not_touch_cuda(gpus: EightGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched() -> int:
        raise AssertionError("torch.cuda.current_device() makes a context on GPU 0")

    monkeypatch.setattr(nearest, "_current_device", touched)
    with faiss_on(None):
        assert gpu_index("auto") is None
    with faiss_on(5):
        assert gpu_index("auto") == gpu_index(True) == 5
    assert gpu_index(False) is None


@pytest.mark.parametrize("gpu", [0, 3, "yes", None])
def test_a_device_is_not_named_here(gpu: Any, gpus: EightGpus) -> None:
    with pytest.raises(ClusteringError, match="give true, false or auto"):
        gpu_index(gpu)


def test_without_a_gpu_auto_is_the_cpu() -> None:
    with faiss_on(2):
        assert gpu_index("auto") is None


@pytest.mark.parametrize(("device", "used"), [("cpu", set()), ("cuda:3", {3})])
def test_the_trainers_device_is_the_clusterers(device, used, gpus, make_store, tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """With accelerator=cpu faiss stays off the GPUs; on a GPU it takes the one that this rank trains on."""
    import torch

    from decar.pretrain import DecarModule
    from tests.pretrain.helpers import build, fit

    monkeypatch.setattr(DecarModule, "_root_device", torch.device(device))
    module, data = build(make_store([20, 40, 33, 64] * 5), clusterers=[KMeans(k=3), PIC(n_neighbors=2)])
    fit(module, data, tmp_path, epochs=2)
    assert set(gpus.devices) == used
