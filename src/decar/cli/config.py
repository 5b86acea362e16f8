"""Where the configuration lies, and the few values in it that only the machine knows."""

import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import decar

_PACKAGE = Path(decar.__file__).parent


def conf_dir() -> Path:
    """The configuration: beside `src` in a checkout, inside the package when installed from a wheel."""
    installed, checkout = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
    return installed if installed.is_dir() else checkout


def bundled(name: str = "") -> str:
    """Path of the bundled sounds, or of a file among them."""
    return str(_PACKAGE / "data" / "mini" / name)


def cache_home() -> str:
    """Where log-mel stores and embeddings are kept: `DECAR_CACHE`, else `decar` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return os.environ.get("DECAR_CACHE") or str(Path(base) / "decar")


def wandb_offline() -> bool:
    """Whether wandb has nobody to log in as."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is None
    except (OSError, netrc.NetrcParseError):
        return True


def register_resolvers() -> None:
    """Make these values known to the configuration, as `${bundled:…}` and so on."""
    resolvers: dict[str, Callable[..., Any]] = {
        "bundled": bundled,
        "cache_home": cache_home,
        "wandb_offline": wandb_offline,
        "basename": os.path.basename,
        "is_terminal": sys.stderr.isatty,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
