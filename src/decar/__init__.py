"""DECAR: deep clustering for general-purpose audio representations (arXiv 2110.08895)."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decar.models import Encoder as Encoder
    from decar.models import load_encoder as load_encoder

try:
    __version__ = version("decar")
except PackageNotFoundError:  # a bare source tree on the path
    __version__ = "0+unknown"

__all__ = ["Encoder", "__version__", "load_encoder"]


def __getattr__(name: str) -> object:
    """Import torch only when an encoder is asked for, so that `import decar` stays quick."""
    if name in ("Encoder", "load_encoder"):
        return getattr(import_module("decar.models"), name)
    raise AttributeError(f"module 'decar' has no attribute {name!r}")
