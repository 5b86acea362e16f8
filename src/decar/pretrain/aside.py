"""Tensors of a checkpoint in files beside it, named by their digest: written once, whatever the number of checkpoints.

The bank of vectors (`features=bank`) has N × P numbers, and may be a thousand times as large as the network. Its
tensors lie in `bank/` beside the checkpoints, which hold the names of these files in their place. A file is never
changed: `last.ckpt`, `last.previous.ckpt` and `best.ckpt` may name the same one. Files that no checkpoint names are
deleted.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from decar.digests import DamagedError, check_array, load_array, save_array
from decar.errors import TrainingError, one_line
from decar.files import whole

KEY = "bank"  # of a checkpoint, and the folder
_SUFFIX = ".npd"  # npy with a digest, see `save_array`


def put_aside(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The checkpoint to write in `folder`, with names in place of the bank's tensors, which are written.

    Raises:
        OSError: A file cannot be written.
    """
    return {**checkpoint, KEY: _put(checkpoint[KEY], folder / KEY)} if checkpoint.get(KEY) else checkpoint


def _put(tree: Any, folder: Path) -> Any:
    if isinstance(tree, dict):
        return {key: _put(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_put(value, folder) for value in tree]
    array = tree.contiguous().numpy()
    name = _name(array)
    if not (folder / name).is_file():
        with whole(folder / name) as part:
            save_array(part, array)
    return name


def _name(array: NDArray[Any]) -> str:
    """The name of an array's file: a digest of all that it is."""
    digest = xxhash.xxh3_128(f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return f"{digest.hexdigest()}{_SUFFIX}"


def bring_back(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The checkpoint that was read in `folder`, with its tensors in place of their names.

    Raises:
        TrainingError: A file is missing or damaged.
    """
    return {**checkpoint, KEY: _bring(checkpoint[KEY], folder / KEY)} if checkpoint.get(KEY) else checkpoint


def _bring(tree: Any, folder: Path) -> Any:
    if isinstance(tree, dict):
        return {key: _bring(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_bring(value, folder) for value in tree]
    if isinstance(tree, Tensor):  # of an earlier version, or written without `AtomicCheckpointIO`
        return tree
    try:
        array = load_array(folder / tree)
        if _name(array) != tree:
            raise DamagedError("it is another file")
        return torch.from_numpy(array)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{_fault(folder / tree, error)}: resume from best.ckpt beside it, or start anew"
        ) from error


def lost_aside(path: Path) -> str:
    """What is wrong with the files that an undamaged checkpoint names; empty where they are as they were written."""
    try:
        names = _names(path)
    except Exception:  # no checkpoint; torch raises half a dozen kinds, which `readable` reports
        return ""
    for name in names:
        file = path.parent / KEY / name
        try:
            check_array(file)
        except (OSError, DamagedError) as error:
            return _fault(file, error)
    return ""


def _fault(file: Path, error: Exception) -> str:
    reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({one_line(error)})"
    return f"{KEY}/{file.name}, which holds its vectors, is {reason}"


def sweep(folder: Path) -> None:
    """Delete the files that no checkpoint in `folder` names; none where a checkpoint cannot be read."""
    with contextlib.suppress(Exception):  # torch raises half a dozen kinds for a damaged checkpoint
        named = {name for path in folder.glob("*.ckpt") for name in _names(path)}
        for file in (folder / KEY).glob(f"*{_SUFFIX}"):
            if file.name not in named:
                file.unlink()


def _names(path: Path) -> list[str]:
    """The files that a checkpoint names."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return [*_texts(checkpoint.get(KEY))] if isinstance(checkpoint, dict) else []


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _texts(value)
