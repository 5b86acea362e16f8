"""The only door to faiss: import, threads, GPUs, and exact nearest neighbours (approximate ones: `approximate.py`)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import query_blocks
from decar.errors import ClusteringError

_ROWS_AT_ONCE = 16_384  # a quarter of the usual block: each row brings its neighbours along

GPU_TEMP_BYTES = 2**29  # scratch memory of faiss on its GPU; its own default is 1.5 GB, beside the network's tensors

_UNSET = -1
_device: ContextVar[int | None] = ContextVar("device of faiss")

Search = Callable[[NDArray[np.int64], int], NDArray[np.int64]]


def load_faiss() -> Any:
    """Import faiss on first use, so that all else works without it.

    Raises:
        ClusteringError: Neither wheel is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ClusteringError(
            f'clustering needs faiss ({error}): pip install "decar[cpu]", or "decar[gpu]" on a CUDA machine; not both'
        ) from error
    return faiss


@contextmanager
def faiss_threads(n_threads: int | None) -> Iterator[Any]:
    """Yield faiss running on `n_threads`, and give the process its former number back.

    Args:
        n_threads: None leaves the number as it is: OMP_NUM_THREADS, or one a core.
    """
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    if n_threads is not None:
        faiss.omp_set_num_threads(n_threads)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def faiss_on(device: int | None) -> Iterator[None]:
    """Within this context `gpu="auto"` means one CUDA device, the one that this process trains on.

    Args:
        device: Its index among the visible ones; None: the process trains on the CPU, and so faiss stays there.
    """
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def gpu_index(gpu: bool | Literal["auto"]) -> int | None:
    """The CUDA device that faiss is to run on, None for the CPU.

    One device, never all of them: each rank of a job has its own, and the others belong to other ranks or jobs. Outside
    of `faiss_on` it is torch's current device.

    Args:
        gpu: False: the CPU; `auto`: the GPU of this process where it has one and faiss sees it; True: as `auto`, but
            without one it is an error, since faiss itself would silently take the CPU.

    Raises:
        ClusteringError: A GPU is demanded and faiss sees none or the process trains on the CPU, or `gpu` is none of
            these.
    """
    if not (isinstance(gpu, bool) or gpu == "auto"):
        raise ClusteringError(f"gpu={gpu!r} makes no sense: give true, false or auto; the trainer says which GPU")
    if not gpu:
        return None
    if not load_faiss().get_num_gpus():
        device, why = None, 'faiss sees no GPU: install "decar[gpu]" instead of "decar[cpu]"'
    else:
        device, why = _device.get(_UNSET), "this process trains on the CPU: pass trainer=gpu"
        device = _current_device() if device == _UNSET else device
    if gpu is True and device is None:
        raise ClusteringError(f"gpu=true, but {why}, or set gpu=auto")
    return device


def _current_device() -> int:
    """Torch's current CUDA device; 0 where torch is not in use."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.current_device()) if torch is not None and torch.cuda.is_available() else 0


def flat_index(faiss: Any, dim: int, gpu: bool | Literal["auto"]) -> Any:
    """An empty exact L2 index of vectors of width `dim`, on the CPU or on one GPU with bounded scratch memory."""
    device = gpu_index(gpu)
    if device is None:
        return faiss.IndexFlatL2(dim)
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_TEMP_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    return faiss.GpuIndexFlatL2(resources, dim, config)


def nearest_neighbours(
    features: NDArray[np.float32],
    n_neighbors: int,
    *,
    gpu: bool | Literal["auto"] = False,
    n_threads: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact nearest neighbours of every point among the others.

    faiss finds them by |x|² + |y|² - 2xy, whose rounding differs between i→j and j→i and between machines. So distances
    are taken anew as differences and each row is sorted by (distance, index): duplicates lie at 0.0 exactly.

    Args:
        features: `(N, d)` with `N > n_neighbors`.
        n_neighbors: Neighbours a point; itself never counts, its duplicates do.
        gpu: As of `gpu_index`.
        n_threads: Threads on the CPU; None leaves faiss's own number.

    Returns:
        Indices `(N, n_neighbors)`, nearest first, and squared L2 distances of the same shape.
    """
    with faiss_threads(n_threads) as faiss:
        index = flat_index(faiss, features.shape[1], gpu)
        index.add(features)
        return refine(
            features, np.arange(len(features)), n_neighbors, lambda rows, n: index.search(features[rows], n)[1]
        )


def refine(
    features: NDArray[np.float32], order: NDArray[np.int64], n_neighbors: int, search: Search
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Search the neighbours of all points, a block at a time; leave out the point itself, measure anew, and sort.

    Args:
        features: `(N, d)`.
        order: All `N` indices, in the order in which they are searched.
        n_neighbors: Neighbours a point.
        search: From `(b,)` indices and a number n to `(b, n)` neighbours, the point itself among them or not.
    """
    neighbours = np.empty((len(features), n_neighbors), np.int64)
    squared = np.empty(neighbours.shape, np.float32)
    for block in query_blocks(len(features), _ROWS_AT_ONCE):
        rows = order[block]
        found = search(rows, n_neighbors + 1)
        itself = found == rows[:, None]
        itself[~itself.any(axis=1), -1] = True  # crowded out by its duplicates: drop the farthest instead
        others = found[~itself].reshape(-1, n_neighbors)
        difference = features[others]
        difference -= features[rows, None]
        distances = np.einsum("nkd,nkd->nk", difference, difference)
        nearest = np.lexsort((others, distances), axis=-1)
        neighbours[rows] = np.take_along_axis(others, nearest, axis=1)
        squared[rows] = np.take_along_axis(distances, nearest, axis=1)
    return neighbours, squared
