"""The data in a page: how they are written into it, and read from it again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

FILE_NAME = "report.html"
MOST_BYTES = 2**26  # of a page
BEGIN, END = b'<script type="application/json" id="data">', b"</script>"


def as_script(data: Any) -> Markup:
    """JSON that can stand in a script element: no `<`, no `&`, and null for what is not finite."""
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    """Keys as text; NaN and infinities, which JSON has not, as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def read_page(page: Path) -> dict[str, Any]:
    """The data in a page, as values; nothing else of it is looked at.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no page of decar's, or a damaged one.
    """
    if page.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    content = page.read_bytes()
    begin = content.find(BEGIN)
    end = content.find(END, begin)
    try:
        data = json.loads(content[begin + len(BEGIN) : end]) if 0 <= begin < end else None
    except RecursionError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("title"), str):
        raise ValueError("not a page of decar's, or a damaged one")
    return data
