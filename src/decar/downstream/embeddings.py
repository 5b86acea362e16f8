"""Embeddings of a store, computed once: kept on disk under the hash of the encoder and the fingerprint of the store.

Letters: `N` clips, `D` embedding.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decar.audio.descriptors import logmel_statistics
from decar.audio.store import LogMelStore
from decar.digests import ARRAY_SUFFIX, load_array, save_array
from decar.errors import StoreError, one_line
from decar.files import advice, whole
from decar.models import Encoder, embed_store

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when padding, statistics or layout change: older files are then ignored

Source = Encoder | Literal["logmel"]


def encoder_hash(encoder: Source) -> str:
    """The hash of an encoder; "logmel" for the baseline."""
    return encoder if isinstance(encoder, str) else encoder.hash()


def cached_embeddings(
    encoder: Source,
    store: LogMelStore,
    cache_dir: str | Path,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    progress: bool = True,
) -> NDArray[np.float32]:
    """Embeddings of every clip of a store, from the cache when they are there.

    Several processes may call this at once: each writes its own file and renames it into place. A file whose digest or
    shape is wrong is computed again; a cache that cannot be written is a warning.

    Args:
        encoder: The encoder, always run in eval mode; or "logmel": mean and standard deviation of the log-mel over
            time.
        store: Log-mels of readable clips.
        cache_dir: Where caches live; the files go into its folder `embeddings`.
        batch_size: Clips a batch.
        device: Where the encoder runs.
        progress: Whether to show a bar on stderr.

    Returns:
        `(N, D)` float32 in the order of the store.

    Raises:
        StoreError: An embedding holds NaN or Inf; nothing is written.
    """
    name = f"{encoder_hash(encoder)[:24]}-{store.fingerprint[:24]}-v{FORMAT}{ARRAY_SUFFIX}"
    path = Path(cache_dir).expanduser() / "embeddings" / name
    dim = 2 * store.frontend.n_mels if isinstance(encoder, str) else encoder.dim
    found = _read(path, (len(store), dim))
    if found is not None:
        log.info("embeddings found in %s", path)
        return found
    if isinstance(encoder, str):
        made = np.stack([logmel_statistics(store[i]) for i in range(len(store))]).astype(np.float32)
    else:
        made = embed_store(encoder, store, batch_size=batch_size, device=device, progress=progress)
    bad = np.flatnonzero(~np.isfinite(made.sum(axis=1, dtype=np.float64)))  # float32 cannot overflow it
    if len(bad):
        raise StoreError(
            f"the embedding of {store.named(bad)} holds NaN or Inf: is the bundle from a run that diverged?"
        )
    _write(path, made)
    return made


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The array in a cache file, or None when there is none that can be used."""
    if not path.is_file():
        return None
    try:
        found = load_array(path)
        if found.shape == shape and found.dtype == np.float32:
            return found
        reason = "another shape than the store and the encoder have"
    except (OSError, ValueError) as error:
        reason = one_line(error)
    log.warning("%s is damaged (%s) and is computed again", path, reason)
    return None


def _write(path: Path, x: NDArray[np.float32]) -> None:
    """Write the file; a failure is a warning."""
    try:
        with whole(path) as part:
            save_array(part, x)
    except OSError as error:
        log.warning("%s: embeddings are not kept (%s): %s", path, error, advice(error))
