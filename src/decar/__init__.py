"""DECAR: deep clustering for general-purpose audio representations (arXiv 2110.08895)."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decar.api import Run as Run
    from decar.api import cluster as cluster
    from decar.api import embed as embed
    from decar.api import search as search
    from decar.api import train as train
    from decar.models import Encoder as Encoder
    from decar.models import load_encoder as load_encoder

try:
    __version__ = version("decar")
except PackageNotFoundError:  # a bare source tree on the path
    __version__ = "0+unknown"

_HOMES = {
    **dict.fromkeys(("Encoder", "load_encoder"), "decar.models"),
    **dict.fromkeys(("Run", "cluster", "embed", "search", "train"), "decar.api"),
}

__all__ = ["Encoder", "Run", "__version__", "cluster", "embed", "load_encoder", "search", "train"]


def __getattr__(name: str) -> object:
    """Import torch only when something of it is asked for, so that `import decar` stays quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'decar' has no attribute {name!r}")
