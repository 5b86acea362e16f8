"""Nearest clips to a sound, in a table of embeddings."""

from decar.neighbours.index import Index, Measure, Neighbours

__all__ = ["Index", "Measure", "Neighbours"]
