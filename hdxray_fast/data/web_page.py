"""One HTML page that stands alone: nothing is fetched, no script runs, and what comes from elsewhere is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from .. import __version__
from ..names import escaped

STYLE = """
body{font:15px/1.5 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;max-width:1100px;
margin:2em auto;padding:0 1em;color:#1b1f24;background:#fff;overflow-wrap:break-word} h1{font-size:1.5em}
h2{font-size:1.15em;margin-top:2em} table{border-collapse:collapse}
td,th{padding:.4em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #d8dee4} tr{break-inside:avoid}
.numbers td+td,.numbers th+th{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
details{margin-top:2em} summary{cursor:pointer} summary h2{display:inline}
footer{margin-top:3em;border-top:1px solid #d8dee4;padding-top:.6em}
.wide{overflow-x:auto} .small{color:#57606a;font-size:.9em}
.warning{background:#ffebe9;border-left:4px solid #cf222e;padding:.6em 1em}
"""
_NO_NETWORK = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: object) -> str:
    """As the page may hold it: markup and control characters written out."""
    return html.escape(escaped(str(value)))


def page(title: str, body: str, style: str = "", made: datetime | None = None) -> str:
    """The whole page; ``body`` and ``style`` are HTML and CSS, ``title`` is text, ``made`` says when (UTC by default
    now) and stands at its foot."""
    when = (made or datetime.now(timezone.utc)).astimezone(timezone.utc)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NO_NETWORK}"><title>{text(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}"
        f'<footer class="small">Made on {when:%Y-%m-%d at %H:%M} UTC by hdxray_fast {text(__version__)}. '
        "Not a medical device: figures for research.</footer></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table that scrolls by itself where the screen is narrow; cells are HTML.

    Args:
        head: of the columns; may be none.
        rows: as wide as the head.
        kind: its CSS class.
    """
    top = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>" if head else ""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{top}{lines}</table></div>'


def jpeg(picture: np.ndarray, alt: str = "", quality: int = 85) -> str:
    """``<img>`` of a picture ``[H, W]`` or ``[H, W, 3]`` BGR, ``uint8``, in the page itself."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done  # JPEG encodes every such array
    return f'<img alt="{text(alt)}" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def jpeg_of_file(path: Path, alt: str = "") -> str:
    """:func:`jpeg` of a picture that this package wrote; nothing where it did not."""
    if not path.is_file():
        return ""
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    return "" if picture is None else jpeg(picture, alt)
