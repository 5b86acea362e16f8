"""Procedural sounds in numpy: weather, water, fire, engines, impacts, animals' calls, signals.

Each function draws its parameters and makes one clip (T,) of 1 to 8 s at 16 kHz. Levels are drawn, 1 is full scale.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import signal

RATE = 16_000
Wave = npt.NDArray[np.float64]
Rng = np.random.Generator


def _length(rng: Rng, low: float = 2.0, high: float = 8.0) -> int:
    return int(RATE * rng.uniform(low, high))


def _band(noise: Wave, low: float, high: float, order: int = 2) -> Wave:
    """Noise between two frequencies (Hz)."""
    sos = signal.butter(order, [max(low, 20), min(high, 7900)], "bandpass", fs=RATE, output="sos")
    return np.asarray(signal.sosfilt(sos, noise))


def _coloured(rng: Rng, samples: int, slope: float) -> Wave:
    """Noise whose power falls with frequency to the `slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    wave = np.fft.irfft(spectrum, samples)
    return np.asarray(wave / wave.std())


def _slow(rng: Rng, samples: int, rate: float) -> Wave:
    """A smooth random curve in [0, 1] with about `rate` turns a second."""
    knots = rng.random(max(4, int(samples / RATE * rate) + 3))
    return np.interp(np.linspace(0, len(knots) - 1, samples), np.arange(len(knots)), knots)


def _placed(rng: Rng, samples: int, rate: float, make: Callable[[], Wave]) -> Wave:
    """Events at random times, `rate` a second, of random levels."""
    out = np.zeros(samples)
    for start in rng.integers(0, samples, rng.poisson(rate * samples / RATE) + 1):
        event = make()[: samples - start] * rng.pareto(3)
        out[start : start + len(event)] += event
    return out


def _decay(samples: int, seconds: float) -> Wave:
    return np.asarray(np.exp(-np.arange(samples) / (RATE * seconds)))


def _tone(frequency: npt.ArrayLike, samples: int) -> Wave:
    """A sine of a frequency (Hz) that may change."""
    return np.asarray(np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, samples)) / RATE))


def _finished(rng: Rng, wave: Wave) -> npt.NDArray[np.float32]:
    """At a drawn level, with short fades."""
    fade = np.minimum(1, np.minimum(np.arange(len(wave)), np.arange(len(wave))[::-1]) / 80)
    level = 10 ** rng.uniform(-1.6, -0.05)
    return np.asarray(wave * fade / (np.abs(wave).max() + 1e-9) * level, np.float32)


def wind(rng: Rng) -> Wave:
    """Gusts: bands of noise whose centre and level wander together."""
    n = _length(rng, 4, 9)
    gust = _slow(rng, n, rng.uniform(0.3, 1.2))
    noise = _coloured(rng, n, rng.uniform(0.8, 1.6))
    howl = sum(_band(noise, f, f * 1.25) * np.clip(gust * 4 - i, 0, 1) for i, f in enumerate(rng.uniform(150, 1400, 4)))
    return np.asarray(noise * gust**2 * 0.5 + howl)


def rain(rng: Rng) -> Wave:
    """Drops on a surface over the hiss of many more."""
    n, low = _length(rng, 3, 9), rng.uniform(400, 2500)
    drop = _band(rng.standard_normal(400) * _decay(400, 0.004), low, low * 2.5)
    drops = _placed(rng, n, 10 ** rng.uniform(1, 2.7), lambda: drop * rng.choice([-1, 1]))
    hiss = _band(_coloured(rng, n, 0.3), 800, 7500)
    return np.asarray(drops + hiss * 10 ** rng.uniform(-2, -0.3) * drops.std())


def waves(rng: Rng) -> Wave:
    """Surf: noise that swells and brightens."""
    n = _length(rng, 6, 9)
    swell = np.clip(np.sin(2 * np.pi * (np.arange(n) / RATE / rng.uniform(4, 9) + rng.random())), 0, 1) ** 1.5
    low, high = _band(_coloured(rng, n, 1), 80, 900), _band(rng.standard_normal(n), 900, 6000)
    return low * (0.2 + swell) + high * swell**3 * 0.6


def stream(rng: Rng) -> Wave:
    """Running water: bubbles, sines that rise as they die (van den Doel 2005)."""
    n, small = _length(rng), rng.uniform(400, 1500)

    def bubble() -> Wave:
        f, size = small * 2 ** rng.normal(0, 0.5), int(RATE * rng.uniform(0.01, 0.06))
        return _tone(f * (1 + np.arange(size) / RATE * rng.uniform(1, 8)), size) * _decay(size, 0.012)

    return _placed(rng, n, 10 ** rng.uniform(0.6, 2), bubble) + _coloured(rng, n, 1.2) * rng.uniform(0, 0.02)


def fire(rng: Rng) -> Wave:
    """Crackles over a rumble."""
    n = _length(rng)

    def crackle() -> Wave:
        size = int(rng.uniform(30, 400))
        return _band(rng.standard_normal(size) * _decay(size, 0.003), rng.uniform(300, 2500), 7000)

    rumble = _band(_coloured(rng, n, 1.5), 30, 300) * (0.5 + _slow(rng, n, 3))
    return _placed(rng, n, rng.uniform(5, 40), crackle) + rumble * rng.uniform(0.02, 0.3)


def thunder(rng: Rng) -> Wave:
    """A clap, then rolling low noise."""
    n = _length(rng, 4, 9)
    roll = _band(_coloured(rng, n, 2), 25, rng.uniform(120, 400)) * _slow(rng, n, 4) * _decay(n, rng.uniform(0.8, 3))
    clap = _band(rng.standard_normal(n), 100, rng.uniform(1000, 5000)) * _decay(n, rng.uniform(0.05, 0.4))
    return roll + clap * rng.uniform(0, 0.8)


def engine(rng: Rng) -> Wave:
    """Firing pulses through resonances; idling, revving or passing by."""
    n = _length(rng, 3, 9)
    speed = rng.uniform(15, 60) * (1 + rng.uniform(0, 3) * _slow(rng, n, rng.choice([0.05, 0.4, 1.5])))
    phase = np.cumsum(speed) / RATE
    uneven = 1 + rng.uniform(0, 0.4) * np.sin(np.pi * phase)
    pulses = np.exp(-rng.uniform(3, 14) * (phase % 1)) * uneven + rng.uniform(0, 0.4) * rng.standard_normal(n) * (
        phase % 1 < 0.3
    )
    pipes = sum(_band(pulses, f, f * 1.5) for f in rng.uniform(60, 2500, 4))
    return np.asarray(pipes + 0.3 * pulses - pulses.mean() * 0.3)


def machine(rng: Rng) -> Wave:
    """A motor's harmonics, fan noise, and now and then a rattle."""
    n, base = _length(rng), rng.choice([50, 60, 100, 120, rng.uniform(80, 400)])
    hum = sum(_tone(base * k, n) * rng.pareto(2) / k for k in range(1, 9))
    air = _band(rng.standard_normal(n), rng.uniform(100, 800), rng.uniform(1500, 7000)) * rng.uniform(0, 1.5)
    rattle = (np.arange(n) / RATE * rng.uniform(3, 25) % 1 < 0.1) * rng.standard_normal(n) * rng.uniform(0, 0.8)
    return np.asarray(hum + air + rattle)


def impact(rng: Rng) -> Wave:
    """Struck wood, glass, metal or skin: a few damped modes and a click, once or some times."""
    stretch, damping, base = rng.uniform(1.2, 2.8), 10 ** rng.uniform(-2, 0), 10 ** rng.uniform(1.9, 3.3)
    modes = base * np.arange(1, 9) ** stretch * 2 ** rng.normal(0, 0.1, 8)
    modes, size = modes[modes < 7500], int(RATE * min(2.5, 8 * damping + 0.1))

    def hit() -> Wave:
        ring = sum(_tone(f, size) * _decay(size, damping / (1 + f / 1500)) * rng.random() for f in modes)
        return np.asarray(ring + rng.standard_normal(size) * _decay(size, 0.002) * rng.uniform(0, 2))

    n = _length(rng, 0.4, 4)
    return _placed(rng, n, rng.choice([0.3, 1, 4]), hit) + np.pad(hit(), (0, max(0, n - size)))[:n]


def steps(rng: Rng) -> Wave:
    """Footsteps: heel and toe on a ground of gravel, wood or snow."""
    n, rhythm = _length(rng, 3, 8), rng.uniform(0.28, 0.75)
    low, grain, out = rng.uniform(60, 500), rng.uniform(0.02, 0.12), np.zeros(n)
    for start in np.arange(rng.uniform(0, 0.3), n / RATE - 0.3, rhythm):
        for lag, gain in ((0.0, 1.0), (rng.uniform(0.06, 0.14), 0.6)):
            at = int((start + lag + rng.normal(0, 0.01)) * RATE)
            step = _band(rng.standard_normal(3200) * _decay(3200, grain), low, low * rng.uniform(4, 25)) * gain
            out[max(at, 0) : at + 3200] += step[: len(out[max(at, 0) : at + 3200])] * rng.uniform(0.6, 1)
    return out


def insects(rng: Rng) -> Wave:
    """Crickets or cicadas: pulsed high tones, some of them together."""
    n = _length(rng)
    out = np.zeros(n)
    for _ in range(rng.integers(1, 5)):
        t, f, pulse, call = np.arange(n) / RATE, rng.uniform(2200, 7000), rng.uniform(15, 90), rng.uniform(0.4, 4)
        gate = (t * pulse % 1 < rng.uniform(0.3, 0.7)) * (t * call + rng.random()) % 1 < rng.uniform(0.2, 0.9)
        out += (
            _tone(f * (1 + 0.01 * _slow(rng, n, 8)), n) * np.convolve(gate, np.hanning(80) / 40, "same") * rng.random()
        )
    return out


def birds(rng: Rng) -> Wave:
    """Whistled syllables, repeated with small changes."""
    n = _length(rng)
    shapes = rng.uniform(-1, 1, (rng.integers(1, 4), 3))
    centre, width = rng.uniform(1500, 5500), rng.uniform(0.1, 0.6)

    def call() -> Wave:
        size = int(RATE * rng.uniform(0.04, 0.3))
        t, (a, b, c) = np.linspace(0, 1, size), shapes[rng.integers(len(shapes))]
        bend = a * t + b * np.sin(2 * np.pi * t) + c * np.sin(2 * np.pi * t * rng.integers(2, 12)) * 0.4
        return _tone(centre * 2 ** (width * bend), size) * np.hanning(size)

    return _placed(rng, n, rng.uniform(1, 6), call) + rng.uniform(0, 0.02) * _coloured(rng, n, 1)


def growl(rng: Rng) -> Wave:
    """Calls of larger animals: a rough glottal pulse through moving formants."""
    n = _length(rng, 0.5, 4)
    pitch = 10 ** rng.uniform(1.6, 2.9) * 2 ** (rng.uniform(-1, 1) * _slow(rng, n, rng.uniform(1, 6)))
    phase = np.cumsum(pitch * (1 + rng.uniform(0, 0.1) * rng.standard_normal(n))) / RATE
    source = (phase % 1) ** rng.uniform(1, 6) - 0.3 + rng.uniform(0, 0.3) * rng.standard_normal(n)
    formants = sum(_band(source, f, f * 1.3) for f in rng.uniform([300, 800, 1800], [900, 2200, 3800]))
    return np.asarray(formants) * np.sin(np.linspace(0, np.pi, n)) ** rng.uniform(0.3, 1.5)


def alarm(rng: Rng) -> Wave:
    """Sirens, beeps, ringing."""
    n, f = _length(rng), rng.uniform(350, 3000)
    t, rate = np.arange(n) / RATE, rng.uniform(0.3, 12)
    curve = (np.sin(2 * np.pi * rate * t), np.sign(np.sin(2 * np.pi * rate * t)), t * rate % 1)[rng.integers(3)]
    gate = 1.0 if rng.random() < 0.5 else np.convolve(t * rng.uniform(0.5, 5) % 1 < 0.5, np.ones(160) / 160, "same")
    tone = _tone(f * (1 + rng.uniform(0, 0.6) * (curve + 1)), n)
    return np.asarray(np.tanh(tone * rng.uniform(1, 8)) * gate)


def clock(rng: Rng) -> Wave:
    """Ticks, ratchets, typing: short clicks in a rhythm or out of it."""
    n, rate = _length(rng), 10 ** rng.uniform(0, 1.5)
    times = np.arange(0, n / RATE, 1 / rate) + rng.normal(0, rng.choice([0, 0.3]) / rate, int(np.ceil(n / RATE * rate)))
    out, size = np.zeros(n), 800
    kinds = [
        _band(rng.standard_normal(size) * _decay(size, rng.uniform(0.001, 0.01)), f, 2 * f)
        for f in rng.uniform(500, 3500, 2)
    ]
    for i, at in enumerate((times.clip(0, n / RATE - 0.06) * RATE).astype(int)):
        out[at : at + size] += kinds[i % 2][: n - at] * rng.uniform(0.7, 1)
    return out


def friction(rng: Rng) -> Wave:
    """Scraping, tearing, brushing: noise with slips, in strokes."""
    n = _length(rng, 1, 6)
    low, stroke = rng.uniform(200, 2500), np.abs(np.sin(2 * np.pi * np.arange(n) / RATE * rng.uniform(0.4, 4)))
    slips = _placed(rng, n, 10 ** rng.uniform(1.3, 2.8), lambda: rng.standard_normal(60) * _decay(60, 0.001))
    return _band(slips + rng.uniform(0, 0.3) * rng.standard_normal(n), low, low * rng.uniform(2, 8)) * stroke


def crowd(rng: Rng) -> Wave:
    """Applause: claps of many hands."""
    n = _length(rng, 3, 8)
    hands = rng.uniform(700, 2500, 12)

    def clap() -> Wave:
        f = hands[rng.integers(12)]
        return _band(rng.standard_normal(500) * _decay(500, rng.uniform(0.003, 0.012)), f, 2 * f)

    return _placed(rng, n, 10 ** rng.uniform(0.7, 2.5), clap) * (0.4 + _slow(rng, n, 1))


def texture(name: str, rng: Rng) -> npt.NDArray[np.float32]:
    """One clip (T,) of a kind of texture."""
    return _finished(rng, TEXTURES[name](rng))


_ALL = (
    wind, rain, waves, stream, fire, thunder, engine, machine, impact, steps, insects, birds, growl, alarm, clock,
    friction, crowd,
)  # fmt: skip
TEXTURES: dict[str, Callable[[Rng], Wave]] = {make.__name__: make for make in _ALL}
