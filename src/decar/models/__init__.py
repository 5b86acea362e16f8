"""Networks: the encoder `f`, the layers that train it, and the bundle it travels in."""

from decar.models.bundle import load_encoder, read_facts, save_bundle
from decar.models.encode import encode_store
from decar.models.encoder import Encoder
from decar.models.heads import Projection, PseudoLabelHeads

__all__ = ["Encoder", "Projection", "PseudoLabelHeads", "encode_store", "load_encoder", "read_facts", "save_bundle"]
