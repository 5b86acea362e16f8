"""What was found as one HTML page that needs nothing beside it: players and spectrograms are inside."""

import logging
import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from decar.audio import LogMel
from decar.audio.picture import opus_uri, png_uri, spectrogram, waveform_of
from decar.errors import AudioError, printable
from decar.files import whole

log = logging.getLogger(__name__)

_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:62em;padding:0 1em;color:#222;background:#fff}
h2{margin-top:2em;word-break:break-all}.clips{display:grid;
grid-template-columns:repeat(auto-fill,minmax(14em,1fr));gap:1em}
figure{margin:0;border:1px solid #ddd;border-radius:6px;padding:.6em}
img{width:100%;height:6em;image-rendering:pixelated}
audio{width:100%}figcaption{font-size:.85em;word-break:break-all}.none{color:#a00}
"""
_RULES = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; form-action 'none'; base-uri 'none'"
)
_POLICY = f'<meta http-equiv="Content-Security-Policy" content="{_RULES}">'


def write_page(file: Path, found: pd.DataFrame, root: Path, measure: str) -> None:
    """Write the page.

    Args:
        file: Where to.
        found: What `decar search` tells: `query`, `rank` (0: the sound itself), `distance`, `path` and the rest of its
            row; `start` and `duration` (s) where clips are stretches.
        root: Where relative paths start from; a clip that is not there is shown without player and picture.
        measure: Which distance it is.

    Raises:
        OSError: It cannot be written.
    """
    logmel, parts = LogMel(), []
    for name, clips in found.groupby("query", sort=False):
        cells = "\n".join(_clip(clip, root, logmel) for clip in clips.to_dict("records"))
        parts.append(f'<h2>{_text(name)}</h2>\n<div class="clips">\n{cells}\n</div>')
    head = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{_POLICY}<title>Nearest clips</title>'
        f"<style>{_STYLE}</style>"
    )
    line = f"<h1>Nearest clips</h1>\n<p>Distance: 1 − cosine of the embeddings ({escape(measure)}); 0 is the same.</p>"
    with whole(file) as part:
        part.write_text("\n".join([head, line, *parts, "</html>\n"]), encoding="utf-8")


def _clip(clip: dict[Any, Any], root: Path, logmel: LogMel) -> str:
    """One clip: picture, player, distance, and what the table knows of it."""
    place = f"{clip['distance']:.4f}" if clip["rank"] else "searched for"
    known = {key: clip[key] for key in clip if key not in ("query", "rank", "distance", "path")}
    told = ", ".join(f"{key} {value}" for key, value in known.items() if not _blank(value))
    words = f"<b>{place}</b> {_text(clip['path'])}" + (f"<br>{_text(told)}" if told else "")
    return f"<figure>{_sound(clip, root, logmel)}<figcaption>{words}</figcaption></figure>"


def _sound(clip: dict[Any, Any], root: Path, logmel: LogMel) -> str:
    start, duration = (None if _blank(clip.get(key)) else float(clip[key]) for key in ("start", "duration"))
    try:
        wave = waveform_of(root / str(clip["path"]), start or 0.0, duration)
        if len(wave) < logmel.spec.win_length:
            raise AudioError("shorter than a window")
    except AudioError as error:
        log.warning("%s: no player (%s)", clip["path"], error)
        return f'<p class="none">{_text(error)}</p>'
    picture = spectrogram(np.asarray(logmel(torch.from_numpy(wave)[None])[0].T.numpy()))
    return f'<img alt="" src="{png_uri(picture)}"><audio controls preload="none" src="{opus_uri(wave)}"></audio>'


def _text(value: object) -> str:
    """Names and labels as text in HTML."""
    return escape(printable(value))


def _blank(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
