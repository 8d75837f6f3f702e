"""Charts of shares against shares, as SVG that stands in a page."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from .curves import ClassCurves

SIDE, LEFT, TOP = 280, 46, 10  # px of the square of the axes, and where it begins
STYLE = """
.charts{display:flex;flex-wrap:wrap;gap:1em} figure{margin:0;width:340px;max-width:100%} figure svg{width:100%}
figcaption{font-size:.85em;color:#57606a} .axis{fill:none;stroke:#8c959f} .grid{stroke:#e6e9ec} .even{stroke:#8c959f;
stroke-dasharray:4 4} .curve{fill:none;stroke:#0969da;stroke-width:2} .band{fill:#0969da;opacity:.18}
.point{fill:#bc4c00} .reach{stroke:#bc4c00;stroke-width:1.5} .dot{fill:#0969da} .bar{stroke:#0969da;stroke-width:1.5}
.tick{font:11px sans-serif;fill:#57606a} .title{font:12px sans-serif;fill:#1b1f24}
"""


def roc_chart(curves: ClassCurves, row: dict, points: dict | None) -> str:
    """The ROC curve with its band, and the operating point with its intervals.

    Args:
        curves: of the class.
        row: of the class, in a report of :func:`.evaluate_predictions`.
        points: its operating points; ``None`` where there is no threshold.
    """
    parts, words = [_line((0, 1), (0, 1), "even"), _line(*curves.roc, "curve")], ["Dashed: chance."]
    if curves.band is not None:
        parts.insert(0, _band(*curves.band))
        words.append("Band: 95 % over patients at each false positive rate.")
    if points and points["sensitivity"] and points["specificity"]:
        sensitivity, specificity = points["sensitivity"], points["specificity"]
        x, y = 1 - specificity["value"], sensitivity["value"]
        if sensitivity["low"] is not None and specificity["low"] is not None:
            parts.append(_line((x, x), (sensitivity["low"], sensitivity["high"]), "reach"))
            parts.append(_line((1 - specificity["high"], 1 - specificity["low"]), (y, y), "reach"))
        parts.append(_dot(x, y, "point"))
        words.append("Orange: at the threshold of validation, with its 95 % intervals.")
    area = "" if row["auroc"] is None else f", area {row['auroc']['value']:.3f}"
    return _figure(f"ROC{area}", "false positive rate", "true positive rate", parts, words)


def recall_chart(curves: ClassCurves, row: dict, called: tuple[float, float] | None) -> str:
    """Precision and recall, and these at the threshold (``called``)."""
    share = row["positive"] / max(row["positive"] + row["negative"], 1)
    parts = [_line((0, 1), (share, share), "even"), _line(*curves.recall, "curve")]
    words = [f"Dashed: chance, {share:.1%} have the finding."]
    if called is not None:
        parts.append(_dot(*called, "point"))
        words.append("Orange: at the threshold of validation.")
    area = "" if row["auprc"] is None else f", area {row['auprc']['value']:.3f}"
    return _figure(f"Precision and recall{area}", "recall", "precision", parts, words)


def calibration_chart(curves: ClassCurves) -> str:
    """Observed frequency of a few bins of equally many images against their mean probability."""
    parts = [_line((0, 1), (0, 1), "even")]
    parts += [_line((x, x), (low, high), "bar") for x, _, low, high in curves.bins]
    parts += [_dot(x, y, "dot") for x, y, _, _ in curves.bins]
    words = [f"{len(curves.bins)} bins of about as many images; bars: 95 % over patients; dashed: perfect."]
    return _figure("Calibration", "predicted probability", "observed frequency", parts, words)


def _figure(title: str, x: str, y: str, parts: Sequence[str], words: Sequence[str]) -> str:
    bottom, middle = TOP + SIDE, LEFT + SIDE / 2
    grid = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        px, py = _place(share, share)
        grid += f'<line class="grid" x1="{px}" y1="{TOP}" x2="{px}" y2="{bottom}"/>'
        grid += f'<line class="grid" x1="{LEFT}" y1="{py}" x2="{LEFT + SIDE}" y2="{py}"/>'
        grid += f'<text class="tick" x="{px}" y="{bottom + 14}" text-anchor="middle">{share:g}</text>'
        grid += f'<text class="tick" x="{LEFT - 6}" y="{py + 4}" text-anchor="end">{share:g}</text>'
    return (
        f'<figure><svg viewBox="0 0 {LEFT + SIDE + 14} {bottom + 36}" role="img" aria-label="{html.escape(title)}">'
        f'{grid}<rect class="axis" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>{"".join(parts)}'
        f'<text class="title" x="{middle}" y="{bottom + 32}" text-anchor="middle">{html.escape(x)}</text>'
        f'<text class="title" transform="translate(12 {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y)}</text></svg><figcaption><b>{html.escape(title)}.</b> {html.escape(' '.join(words))}"
        "</figcaption></figure>"
    )


def _place(x: float, y: float) -> tuple[float, float]:
    return round(LEFT + SIDE * float(x), 1), round(TOP + SIDE * (1 - float(y)), 1)


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join("{},{}".format(*_place(*point)) for point in zip(x, y, strict=True))


def _line(x: Sequence[float], y: Sequence[float], kind: str) -> str:
    return f'<polyline class="{kind}" points="{_path(x, y)}"/>'


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    return f'<polygon class="band" points="{_path(np.append(x, x[::-1]), np.append(low, high[::-1]))}"/>'


def _dot(x: float, y: float, kind: str) -> str:
    px, py = _place(x, y)
    return f'<circle class="{kind}" cx="{px}" cy="{py}" r="4.5"/>'
