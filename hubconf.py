"""Entry points of torch.hub: `torch.hub.load("USER/decar", "decar")`, or `source="local"` from a checkout."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decar.models import Encoder

# what torch.hub looks for before it calls an entry; it installs nothing
dependencies = ["torch", "torchaudio", "timm", "numpy", "soundfile", "soxr", "safetensors", "huggingface_hub"]


def decar(bundle: str | None = None) -> "Encoder":
    """An encoder in eval mode on the CPU: `.embed(waveform (B, T))` gives `(B, D)`, `.sample_rate` is in Hz.

    Args:
        bundle: Whatever `decar.load_encoder` takes: a bundle, a run's folder, `hf://USER/NAME`; None for the encoder
            that comes with decar.
    """
    source = str(Path(__file__).parent / "src")
    if source not in sys.path:  # torch.hub takes its own path entry away again, so parts that are imported later fail
        sys.path.insert(0, source)
    from decar.models import load_encoder

    return load_encoder(bundle or "small")
