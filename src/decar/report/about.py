"""With what a run was made: versions, hardware, date, command."""

import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from decar import __version__
from decar.cores import cpu_count
from decar.digests import DamagedError, read_json, write_json
from decar.errors import DecarError
from decar.files import whole

ENVIRONMENT = "environment.json"  # in the folder of a run
PACKAGES = (
    "torch", "torchaudio", "pytorch-lightning", "hydra-core", "timm", "faiss-cpu", "faiss-gpu", "numpy", "scipy",
    "scikit-learn", "pandas", "pyarrow", "soundfile", "plotly",
)  # fmt: skip


def environment(command: Sequence[str]) -> dict[str, str]:
    """What this process runs with, in words: no names of machines or people."""
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(command),
        "decar": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "accelerators": ", ".join(cards) or "none",
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def write_environment(run: Path) -> None:
    """Keep beside a run what it was made with."""
    with whole(run / ENVIRONMENT) as part:
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        write_json(part, environment(command))


def read_environment(run: Path) -> dict[str, str]:
    """What a run was made with.

    Raises:
        DecarError: It was not written down, or is damaged.
    """
    file = run / ENVIRONMENT
    if not file.is_file():  # a named pipe would block
        raise DecarError(f"{file}: not there: the run was made without a report")
    try:
        return {str(key): str(value) for key, value in read_json(file).items()}
    except (OSError, DamagedError) as error:
        raise DecarError(f"{file}: damaged ({error}): nothing says what the run was made with") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
