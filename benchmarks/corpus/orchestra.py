"""Physical models of instruments and shaken things, by csound's own opcodes, as scores of single notes and phrases."""

from collections.abc import Callable, Iterator

import numpy as np

SLOT, PHRASE = 4.0, 9.0  # s, of a note and of a phrase
NOTES, PHRASES, TAKES = 8, 2, 8  # of a score; scores of each instrument
HEADER = "sr=44100\nksmps=16\nnchnls=1\n0dbfs=1\ngisine ftgen 1,0,4096,10,1\ngivib ftgen 2,0,4096,10,1\n"
# p4: level, p5: Hz, p6 to p8: drawn in [0, 1]
TUNED = {
    "bow": "a1 wgbow p4,p5,1+4*p6,.03+.2*p7,4+3*p8,.01,2",
    "flute": "a1 wgflute p4,p5,.3+.1*p6,.05+.1*p7,.1,.1+.2*p8,4+2*p6,.03,2",
    "clarinet": "a1 wgclar p4,p5,-.2-.1*p6,.05+.2*p7,.1,.1+.2*p8,4+2*p6,.03,2",
    "brass": "a1 wgbrass p4,p5,.2+.4*p6,.05+.1*p7,4+3*p8,.03,2",
    "string": "a1 pluck p4,p5,p5,0,2,1+3*p6\na1 tone a1,500+6000*p7",
    "plucked": "a1 wgpluck2 .1+.8*p6,p4,p5,.1+.8*p7,.2+.7*p8",
    "bar": "a1 barmodel 1,1,10+400*p6,.0005+.003*p6,.2,.5+6*p7,.1+.8*p8,200+600*p6,.05\na1=a1*p4*4",
    "voice": "a1 fof p4*.3,p5,400+500*p6,0,50,.003,.02,.007,200,1,2,p3\n"
    "a2 fof p4*.2,p5,900+1400*p7,0,80,.003,.02,.007,200,1,2,p3\n"
    "a3 fof p4*.1,p5,2400+600*p8,0,120,.003,.02,.007,200,1,2,p3\na1=a1+a2+a3",
    "bell": "a0 mpulse 1,0\na1 mode a0,p5,300+900*p6\na2 mode a0,p5*(2.1+p7),300+600*p6\n"
    "a3 mode a0,p5*(3.7+2*p8),200+400*p6\na1=(a1+.6*a2+.4*a3)*p4*.02",
}
SHAKEN = {
    "maraca": "a1 cabasa p4,.01,int(20+400*p6),.6+.3*p7",
    "crunch": "a1 crunch p4,.01,int(3+20*p6),.8+.15*p7",
    "sekere": "a1 sekere p4,.01,int(20+80*p6),.6+.3*p7",
    "sand": "a1 sandpaper p4,.01,int(40+200*p6),.5+.4*p7",
    "stix": "a1 stix p4,.01,int(5+50*p6),.6+.3*p7",
    "guiro": "a1 guiro p4,.01,int(40+200*p6),0,.6,1500+2000*p7,3000+2000*p8",
    "tambourine": "a1 tambourine p4,.01,int(8+60*p6),.5+.4*p7,0,1800+900*p8,5000+1500*p8,7500+1500*p6",
    "bamboo": "a1 bamboo p4,.01,int(2+4*p6),.2+.6*p7,0,1800+1500*p8,1500+1400*p6,2500+1400*p7",
    "drips": "a1 dripwater p4,.01,int(4+20*p6),.7+.25*p7,0,300+400*p8,400+600*p6,600+600*p7",
    "sleigh": "a1 sleighbells p4,.01,int(10+60*p6),.6+.3*p7,0,1800+1500*p8,4000+2500*p6,5200+2500*p7",
}


def scores(generator: Callable[[str], np.random.Generator]) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    """Names, csound files, and the start and end (s) of each sound in what a file makes."""
    for take in range(TAKES):
        for name, body in {**TUNED, **SHAKEN}.items():
            rng = generator(f"csound {name} {take}")
            lines, slots = _lines(rng, name in TUNED)
            instrument = f"instr 1\n{body}\naenv linsegr 0,.005,1,p3,1,.15,0\na1 dcblock a1\nout a1*aenv\nendin\n"
            text = "<CsoundSynthesizer>\n<CsInstruments>\n" + HEADER + instrument + "</CsInstruments>\n<CsScore>\n"
            yield f"{name}/{take}", f"{text}{lines}e\n</CsScore>\n</CsoundSynthesizer>\n", slots


def _lines(rng: np.random.Generator, tuned: bool) -> tuple[str, list[tuple[float, float]]]:
    """The notes of a score: single ones over the range, then phrases."""
    lines, slots, now = [], [], 0.0
    for midi in rng.permutation(np.linspace(36, 88, NOTES)):
        lines.append(_note(rng, now, rng.uniform(0.3, SLOT - 1), midi, tuned))
        slots.append((now, now := now + SLOT))
    for _ in range(PHRASES):
        at, midi, beat = now, rng.uniform(45, 76), rng.uniform(0.15, 0.6)
        while at < now + PHRASE - 1.5:
            length, midi = beat * rng.choice([1, 1, 2]), np.clip(midi + rng.integers(-4, 5), 36, 90)
            lines.append(_note(rng, at, length, midi, tuned))
            at += length
        slots.append((now, now := now + PHRASE))
    return "".join(lines), slots


def _note(rng: np.random.Generator, start: float, length: float, midi: float, tuned: bool) -> str:
    drawn = " ".join(f"{x:.4f}" for x in rng.random(3))
    level = rng.uniform(0.1, 0.6) if tuned else rng.uniform(0.3, 0.9)
    return f"i1 {start:.4f} {length:.4f} {level:.4f} {440 * 2 ** ((midi - 69) / 12):.3f} {drawn}\n"
