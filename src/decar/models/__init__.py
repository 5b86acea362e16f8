"""Networks: the encoder `f`, the layers that train it, and the bundle it travels in."""

from decar.models.bundle import load_encoder, read_facts, save_bundle
from decar.models.encoder import Encoder, embed_store
from decar.models.heads import Projection, PseudoLabelHeads
from decar.models.networks import build_network

__all__ = [
    "Encoder",
    "Projection",
    "PseudoLabelHeads",
    "build_network",
    "embed_store",
    "load_encoder",
    "read_facts",
    "save_bundle",
]
