"""Sounds that are rendered: notes, chords and phrases of soundfonts, speech of espeak-ng and flite, models of csound.

Everything is drawn by a generator of (seed, name), so two builds with the same programs make the same sounds. The texts
are numbers and invented words, so that they are nobody's.
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import orchestra
import soundfile
import soxr
import speech
import textures
from cut import Waveform
from fetch import UnavailableError
from table import is_excluded

from decar.audio.decode import SAMPLE_RATE, decode

SEED = 0
TICKS = 960  # a second: 480 a quarter note at the 120 beats a minute that MIDI files have unless they say otherwise
# General MIDI programs that may be rendered of the bank that the instrument tasks are made of
FLUID = [p for p in range(128) if not is_excluded("fluid-soundfont-gm", f"FluidR3_GM/{p:03d}")]
CHORDS = (
    (0, 4, 7),
    (0, 3, 7),
    (0, 4, 7, 10),
    (0, 3, 7, 10),
    (0, 4, 7, 11),
    (0, 5, 7),
    (0, 3, 6),
    (0, 4, 8),
    (0, 7, 12),
)
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 6, 7, 10))
LOW, HIGH = 28, 96  # MIDI notes
DRUMS = 9  # MIDI channel on which General MIDI has drum kits
AUDIBLE = 1e-3  # a sound that stays below was not excited, or is a key without a sample
Event = tuple[float, bytes]  # s, a MIDI message
Sound = tuple[str, Waveform]


def generator(name: str) -> np.random.Generator:
    """Random numbers of their own for each thing that is rendered."""
    return np.random.default_rng([SEED, *name.encode()])


def run(command: Sequence[str], text: str | None = None) -> str:
    """Run an installed program; returns what it prints.

    Raises:
        UnavailableError: It is missing or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=text, check=False)
    except OSError as error:
        raise UnavailableError(f"cannot run {command[0]}: {error.strerror}; install it") from error
    if done.returncode:
        raise UnavailableError(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def tool_version(package: str) -> str:
    """The installed version of a program's Debian package, or of numpy."""
    if package == "numpy":
        return np.__version__
    return run(["dpkg-query", "-W", "-f", "${Version}", package])


def midi(events: Sequence[Event]) -> bytes:
    """A MIDI file of one track (Standard MIDI File, format 0)."""
    track, last = bytearray(), 0
    for second, message in sorted(events):
        tick = round(second * TICKS)
        track += _variable(tick - last) + message
        last = tick
    track += b"\x00\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1]) + (TICKS // 2).to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _variable(number: int) -> bytes:
    """A number in MIDI's variable-length form: 7 bits a byte, the highest first, all but the last marked."""
    parts = [number & 127]
    while number := number >> 7:
        parts.append(number & 127 | 128)
    return bytes(reversed(parts))


def note(start: float, length: float, pitch: int, velocity: int) -> list[Event]:
    """One note as its two messages."""
    key = int(np.clip(pitch, 0, 127))
    return [(start, bytes([0x90, key, velocity])), (start + length, bytes([0x80, key, 0]))]


def single(rng: np.random.Generator, start: float, root: int) -> list[Event]:
    """A note of 0.2 to 2.5 s."""
    return note(start, rng.uniform(0.2, 2.5), root, int(rng.integers(30, 128)))


def chord(rng: np.random.Generator, start: float, root: int) -> list[Event]:
    """Three or four notes at once or quickly after one another."""
    lag, length, velocity = rng.choice([0, 0, 0.03, 0.12]), rng.uniform(0.6, 3), int(rng.integers(40, 120))
    tones = CHORDS[rng.integers(len(CHORDS))]
    return [event for i, tone in enumerate(tones) for event in note(start + i * lag, length, root + tone, velocity)]


def phrase(rng: np.random.Generator, start: float, root: int, seconds: float = 7.5) -> list[Event]:
    """A melody that walks through a scale, in places with a second voice."""
    scale, beat, two = SCALES[rng.integers(len(SCALES))], rng.uniform(0.12, 0.5), rng.random() < 0.3
    events: list[Event] = []
    now, degree = 0.0, int(rng.integers(7))
    while now < seconds:
        length = beat * rng.choice([0.5, 1, 1, 2])
        degree = int(np.clip(degree + rng.integers(-3, 4), -7, 14))
        pitch = root + 12 * (degree // len(scale)) + scale[degree % len(scale)]
        for tone in (0, -12)[: 1 + two]:
            events += note(start + now, length * rng.uniform(0.5, 1.1), pitch + tone, int(rng.integers(50, 120)))
        now += length
    return events


def beat(rng: np.random.Generator, start: float, seconds: float = 7.5) -> list[Event]:
    """A drum pattern of 16 steps, repeated with small changes."""
    step, hits = rng.uniform(0.09, 0.2), []
    for key in (36, 38, 42, *rng.choice(np.arange(35, 82), 4)):
        density = rng.uniform(0.05, 0.5)
        hits += [(i, int(key)) for i in np.flatnonzero(rng.random(16) < density)]
    count = int(seconds / step)
    return [
        event
        for bar in range(0, count, 16)
        for i, key in hits
        if bar + i < count and rng.random() < 0.9
        for event in note(start + (bar + i) * step, 0.1, key, int(rng.integers(40, 127)))
    ]


def melodic_items(rng: np.random.Generator, counts: tuple[int, int, int]) -> list[tuple[float, list[Event]]]:
    """Slots of (seconds, events from 0 on): single notes over the whole range, chords, phrases."""
    notes = np.linspace(LOW, HIGH, counts[0]) + rng.uniform(-2, 2, counts[0])
    slots = [(4.0, single(rng, 0, round(root))) for root in notes]
    slots += [(5.0, chord(rng, 0, int(rng.integers(36, 72)))) for _ in range(counts[1])]
    return slots + [(9.5, phrase(rng, 0, int(rng.integers(40, 76)))) for _ in range(counts[2])]


def drum_items(rng: np.random.Generator, counts: tuple[int, int]) -> list[tuple[float, list[Event]]]:
    """Slots of single hits and patterns of a drum kit."""
    keys = rng.permutation(np.resize(np.arange(35, 82), counts[0]))
    slots = [(2.5, note(0, 0.5, int(key), int(rng.integers(30, 128)))) for key in keys]
    return slots + [(9.5, beat(rng, 0)) for _ in range(counts[1])]


def play(bank: Path, program: int, slots: list[tuple[float, list[Event]]], channel: int, hall: bool) -> list[Waveform]:
    """Each slot's sound, cut where it has died away."""
    starts = np.cumsum([0.0, *(seconds for seconds, _ in slots)])
    events = [(0.0, bytes([0xC0, program]))]
    events += [(start + at, message) for start, (_, part) in zip(starts, slots, strict=False) for at, message in part]
    events = [(at, bytes([message[0] | channel, *message[1:]])) for at, message in events]
    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder) / "score.mid", Path(folder) / "score.wav"
        score.write_bytes(midi(events))
        options = ["-niq", "-g", "0.6", "-r", "44100", "-C", "0", "-R", str(int(hall)), "-F", str(wav)]
        run(["fluidsynth", *options, "-o", "synth.dynamic-sample-loading=1", str(bank), str(score)])
        sound = decode(wav)
    ends = (starts * SAMPLE_RATE).astype(int)
    return [trimmed(sound[a:b]) for a, b in pairwise(ends)]


def trimmed(sound: Waveform) -> Waveform:
    """Without what is under a thousandth of the peak at the end."""
    loud = np.flatnonzero(np.abs(sound) > np.abs(sound).max(initial=0) / 1000)
    return sound[: loud[-1] + 1] if len(loud) else sound[:0]


def soundfont(
    unpacked: Path,
    programs: Sequence[int],
    counts: tuple[int, int, int] = (0, 0, 0),
    drums: tuple[int, int] = (0, 0),
    channel: int = 0,
) -> Iterator[Sound]:
    """Notes, chords and phrases of each program, or hits and patterns of each drum kit, of the banks unpacked."""
    banks = sorted(path for path in unpacked.rglob("*") if path.suffix in (".sf2", ".sf3"))
    turns = [(bank, program) for bank in banks for program in programs]
    for i in generator("turns").permutation(len(turns)):
        bank, program = turns[i]
        name = f"{bank.stem}/{program:03d}"
        rng = generator(f"{name} {drums}")
        slots = drum_items(rng, drums) if any(drums) else melodic_items(rng, counts)
        hall = bool(rng.random() < 0.4)
        for j, sound in enumerate(play(bank, program, slots, channel, hall)):
            if len(sound) >= SAMPLE_RATE // 20 and np.abs(sound).max() > AUDIBLE:
                yield f"{name}/{j}", sound


def spoken(_: Path, utterances: Callable[[np.random.Generator], Iterator[tuple[str, list[str]]]]) -> Iterator[Sound]:
    """The utterances of a speech program, one process each."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        for name, command in utterances(generator(utterances.__name__)):
            run([*command, str(wav)])
            sound = decode(wav)[: 10 * SAMPLE_RATE]
            if np.abs(sound).max(initial=0) > AUDIBLE:  # some words have no sound in some languages
                yield name, sound


def modelled(_: Path) -> Iterator[Sound]:
    """The instruments of `orchestra`, a csound process for each score.

    The models' levels mean nothing, so one is drawn.
    """
    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder) / "score.csd", Path(folder) / "score.wav"
        for name, text, slots in orchestra.scores(generator):
            score.write_text(text)
            run(["csound", "-d", "-m0", "-W", "-f", "-o", str(wav), str(score)])
            sound, rate = soundfile.read(wav, dtype="float32")
            levels = 10 ** generator(name).uniform(-1.5, -0.05, len(slots))
            for i, ((start, end), level) in enumerate(zip(slots, levels, strict=True)):
                piece = trimmed(soxr.resample(sound[int(start * rate) : int(end * rate)], rate, SAMPLE_RATE))
                if len(piece) >= SAMPLE_RATE // 20 and AUDIBLE < np.abs(piece).max() < np.inf:  # some models blow up
                    yield f"{name}/{i}", (piece / np.abs(piece).max() * level).astype(np.float32)


def textured(_: Path) -> Iterator[Sound]:
    """The generators of `textures`, in turn."""
    for i in range(100_000):
        for name in textures.TEXTURES:
            yield f"{name}/{i}", textures.texture(name, generator(f"{name} {i}"))


RENDERERS: dict[str, Callable[[Path], Iterator[Sound]]] = {
    "fluid": partial(soundfont, programs=FLUID, counts=(12, 5, 4)),
    "fluid-drums": partial(soundfont, programs=[0, 8, 16, 24, 25, 32, 40, 48], drums=(47, 6), channel=DRUMS),
    "opl3": partial(soundfont, programs=range(128), counts=(3, 1, 1)),
    "avldrums": partial(soundfont, programs=[0], drums=(94, 40)),
    "espeak-ng": partial(spoken, utterances=speech.espeak),
    "flite": partial(spoken, utterances=speech.flite),
    "csound": modelled,
    "textures": textured,
}
