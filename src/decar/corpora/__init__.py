"""Public corpora: the official layout of each → Manifest."""

from decar.corpora import (
    audioset,
    birdsong,
    crema_d,
    esc50,
    fsd50k,
    gtzan,
    iemocap,
    librispeech,
    nsynth,
    speech_commands,
    tut2018,
    urbansound8k,
    vocalsound,
    voxceleb1,
    voxforge,
)
from decar.corpora.base import Archive, Corpus, Size
from decar.corpora.prepare import load_prepared, prepared_manifest

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        librispeech.CORPUS, voxceleb1.CORPUS, iemocap.CORPUS, tut2018.CORPUS, speech_commands.V1, speech_commands.V2,
        birdsong.CORPUS, voxforge.CORPUS, nsynth.CORPUS,  # the paper's nine, in its order
        audioset.CORPUS, crema_d.CORPUS, esc50.CORPUS, fsd50k.CORPUS, gtzan.CORPUS, urbansound8k.CORPUS,
        vocalsound.CORPUS,
    )
}  # fmt: skip

__all__ = ["CORPORA", "Archive", "Corpus", "Size", "load_prepared", "prepared_manifest"]
