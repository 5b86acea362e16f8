"""What the speech programs say and how: numbers, and words invented from syllables of the language's script."""

import subprocess
from collections.abc import Iterator

import numpy as np

CYRILLIC = ("ru", "uk", "bg", "be", "mk", "sr", "kk", "ky", "tt", "ba", "cv")
SCRIPTS = {
    "latin": ((*"bdfghjklmnprstvz", "st", "tr", "kl", "sh"), ("a", "e", "i", "o", "u", "ai", "ou", "ei")),
    "cyrillic": (tuple("бвгджзклмнпрстхш"), tuple("аеиоуыяю")),
    "greek": (tuple("βγδζκλμνπρστφχ"), ("α", "ε", "ι", "ο", "ου", "ω")),
}
# scripts in which a word of Latin letters would be spelled or read as English: numbers only
NUMBERS_ONLY = (
    "am", "ar", "as", "bn", "bpy", "chr", "cmn", "fa", "grc", "gu", "hak", "he", "hi", "hy", "ja", "ka", "kn", "ko",
    "kok", "ml", "mr", "my", "ne", "or", "pa", "sd", "shn", "si", "ta", "te", "th", "ur", "yue",
)  # fmt: skip
VARIANTS = (
    "",
    "+m1",
    "+m2",
    "+m3",
    "+m4",
    "+m5",
    "+m6",
    "+m7",
    "+f1",
    "+f2",
    "+f3",
    "+f4",
    "+f5",
    "+croak",
    "+whisper",
)
FLITE = ("kal16", "awb", "rms", "slt")
SUBJECTS = (
    "the old clock",
    "a small dog",
    "my neighbour",
    "the river",
    "no one here",
    "every second train",
    "the moon",
)
VERBS = ("carries", "has forgotten", "looks like", "will never reach", "was painted by", "counts", "sings about")
OBJECTS = ("seven green bottles", "a heavy stone", "the northern road", "yesterday's weather", "three quiet children")
TAILS = ("before breakfast", "in the dark", "without any doubt", "as far as I know", "and then it stops", "once a year")


def espeak(rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """Names and commands: every language in turn, a voice, rate and pitch drawn for each utterance."""
    languages = espeak_languages()
    for i in range(1000):
        for language in languages:
            voice = language + VARIANTS[rng.integers(len(VARIANTS))]
            rate, pitch = str(rng.integers(110, 240)), str(rng.integers(15, 85))
            yield f"{language}/{i}", ["espeak-ng", "-v", voice, "-s", rate, "-p", pitch, text(rng, language), "-w"]


def espeak_languages() -> list[str]:
    """The languages of the program, without two faults of version 1.51.

    It lists chr-US-Qaaa-x-west, a name that it does not know, and crashes on some numbers in Greenlandic.
    """
    listed = subprocess.run(["espeak-ng", "--voices"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[1] for line in listed.splitlines()[1:]}
    return sorted(name for name in names if name.islower() and name != "kl")


def flite(rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """Names and commands: every voice in turn."""
    for i in range(10_000):
        for voice in FLITE:
            stretch, tone = (
                f"duration_stretch={rng.uniform(0.75, 1.4):.2f}",
                f"int_f0_target_mean={rng.uniform(80, 220):.0f}",
            )
            options = ["--setf", stretch, "--setf", tone]
            yield f"{voice}/{i}", ["flite", "-voice", voice, *options, "-t", sentence(rng), "-o"]


def sentence(rng: np.random.Generator) -> str:
    """An English sentence with words or numbers."""
    words = [pick[rng.integers(len(pick))] for pick in (SUBJECTS, VERBS, OBJECTS, TAILS)]
    return (
        " ".join(words if rng.random() < 0.8 else [*words[:2], str(rng.integers(10_000)), words[3]])
        + ".?!"[rng.integers(3)]
    )


def text(rng: np.random.Generator, language: str) -> str:
    """What a voice of a language says: numbers, and words where its script is known."""
    base = language.split("-")[0]
    if base in NUMBERS_ONLY or rng.random() < 0.35:
        return ", ".join(str(int(10 ** rng.uniform(0, 6))) for _ in range(rng.integers(2, 5))) + ".?!"[rng.integers(3)]
    script = "cyrillic" if base in CYRILLIC else "greek" if base == "el" else "latin"
    return " ".join(word(rng, script) for _ in range(rng.integers(3, 9))) + ".?!"[rng.integers(3)]


def word(rng: np.random.Generator, script: str) -> str:
    """One to four syllables."""
    consonants, vowels = SCRIPTS[script]
    syllables = [
        consonants[rng.integers(len(consonants))] + vowels[rng.integers(len(vowels))] for _ in range(rng.integers(1, 5))
    ]
    return "".join(syllables) + (consonants[rng.integers(10)] if rng.random() < 0.4 else "")
