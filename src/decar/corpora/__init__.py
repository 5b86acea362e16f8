"""Public corpora: the official layout of each → Manifest."""

from decar.corpora import music, scenes, speech, voice
from decar.corpora.base import Archive, Corpus, Size
from decar.corpora.prepare import load_prepared, prepared_manifest

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        speech.LIBRISPEECH, speech.VOXCELEB1, voice.IEMOCAP, scenes.TUT_URBAN_2018, speech.SPEECH_COMMANDS_V1,
        speech.SPEECH_COMMANDS_V2, scenes.BIRDSONG, speech.VOXFORGE, music.NSYNTH,  # the paper's nine, in its order
        scenes.AUDIOSET, voice.CREMA_D, scenes.ESC50, scenes.FSD50K, music.GTZAN, scenes.URBANSOUND8K,
        voice.VOCALSOUND,
    )
}  # fmt: skip

__all__ = ["CORPORA", "Archive", "Corpus", "Size", "load_prepared", "prepared_manifest"]
