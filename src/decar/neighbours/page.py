"""The clips found as one self-contained HTML page, with players and spectrograms (template: `page.html`)."""

import logging
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

from decar.audio import LogMel
from decar.audio.picture import image_uri, opus_uri, spectrogram, waveform_of
from decar.errors import AudioError, printable
from decar.files import whole

log = logging.getLogger(__name__)


def write_page(file: Path, found: pd.DataFrame, root: Path, measure: str) -> None:
    """Write the page.

    Args:
        file: The page.
        found: The result of a search: `query`, `rank` (0: the sound itself), `distance`, `path` and the rest of its
            row; `start` and `duration` (s) where clips are stretches.
        root: Where relative paths start from; a clip that does not exist there has no player and no picture.
        measure: Which distance it is.

    Raises:
        OSError: It cannot be written.
    """
    logmel = LogMel()
    queries = [
        (printable(name), [_clip(clip, root, logmel) for clip in clips.to_dict("records")])
        for name, clips in found.groupby("query", sort=False)
    ]
    template = (files("decar.neighbours") / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    html = environment.from_string(template).render(queries=queries, measure=measure)
    with whole(file) as part:
        part.write_text(html, encoding="utf-8")


def _clip(clip: dict[Any, Any], root: Path, logmel: LogMel) -> dict[str, str]:
    """One clip for the template: its texts, and data URIs of picture and sound, or the fault in their place."""
    clip = {key: value for key, value in clip.items() if not _blank(value)}
    others = [f"{key} {clip[key]}" for key in clip if key not in ("query", "rank", "distance", "path")]
    texts = {
        "place": f"{clip['distance']:.4f}" if clip["rank"] else "searched for",
        "path": printable(clip["path"]),
        "more": printable(", ".join(others)),
    }
    start, duration = (float(clip[key]) if key in clip else None for key in ("start", "duration"))
    try:
        wave = waveform_of(root / str(clip["path"]), start or 0.0, duration)
        if len(wave) < logmel.spec.win_length:
            raise AudioError("shorter than a window")
    except AudioError as error:
        log.warning("%s: no player (%s)", clip["path"], error)
        return {**texts, "fault": printable(error)}
    picture = spectrogram(np.asarray(logmel(torch.from_numpy(wave)[None])[0].T.numpy()))
    return {**texts, "fault": "", "picture": image_uri(picture), "sound": opus_uri(wave)}


def _blank(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
