"""Sound → numbers: which clips there are, their waveforms, their log-mels, and what enters a batch."""

from decar.audio.augment import RandomGain, RandomResizeCrop, SpecAugment
from decar.audio.decode import decode
from decar.audio.logmel import FrontEnd, LogMel
from decar.audio.manifest import Manifest
from decar.audio.store import LogMelStore

__all__ = ["FrontEnd", "LogMel", "LogMelStore", "Manifest", "RandomGain", "RandomResizeCrop", "SpecAugment", "decode"]
