"""One HTML page of an evaluation: scores with their labels, lengths, and reports beside their references."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from ..data.radiographs import read_small
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, worker_count
from ..data.web_page import jpeg, page, table, text
from .evaluate import Evaluation
from .evaluation_table import HEADS, exchanged_line, flags, numbers
from .metrics import SCORES

SHOWN = 3  # examples each of best, middle and worst
THUMBNAIL = 280  # pixels; shown at 140
_ENGLISH = re.compile(r"\w+(?:[-'/.]\w+)*|\s+|[^\w\s]")
_CHINESE = re.compile(r"[a-zA-Z0-9.]+|\s+|.", re.DOTALL)
_STYLE = """
table{width:100%} .scores td+td+td,.scores th+th+th{text-align:right;font-variant-numeric:tabular-nums}
.extra{background:#ffe3b3} .missed{background:#cfe4ff} .views{display:flex;flex-wrap:wrap;gap:4px;margin-top:.3em}
.views img{width:140px;height:140px} .examples{min-width:640px} .examples td+td{width:38%}
"""


def evaluation_page(
    evaluation: Evaluation, workers: int = 0, timeout: float = TIMEOUT, max_memory: int = MAX_MEMORY
) -> str:
    """The page; it stands alone, with thumbnails of the radiographs in it where their files are known.

    These are read as by :func:`hdxray_fast.data.radiographs.read_small`.
    """
    reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory}
    metrics = evaluation.metrics
    parts = [f"<h1>Generated reports: {text(metrics['predictions'])}</h1>"]
    for language, found in metrics["languages"].items():
        rows = [row for row in evaluation.rows if row["language"] == language]
        parts += [f"<h2>{found['studies']} studies, language {language}</h2>"]
        if why := flags(found):
            common = html.escape(found["repeats"]["most_common"])
            parts.append(
                f'<p class="warning"><b>The model may not look at the images:</b> {"; ".join(why)}. Most common: '
                f"“{common}”</p>"
            )
        parts += [_scores(found), _lengths(found), _examples(rows, language, reading)]
    notes = "".join(f"<li>{text(note)}</li>" for note in metrics["notes"])
    parts.append(f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
    return page("Generated reports", "".join(parts), _STYLE)


def _scores(found: dict) -> str:
    rows = []
    for scores in found["scores"]:
        cells = [html.escape(scores["references"]), html.escape(scores["unit"])]
        for name in SCORES:
            value = scores[name]
            cells.append(html.escape(value) if isinstance(value, str) else f"{value:.4f}")
            if name in scores["intervals"]:
                low, high = scores["intervals"][name]
                cells[-1] += f'<br><span class="small">{low:.3f} to {high:.3f}</span>'
        rows.append(cells)
    stated = [f"<b>{s['references']}, {s['unit']}</b>: {html.escape(s['stated'])}" for s in found["scores"]]
    if any(scores["intervals"] for scores in found["scores"]):
        stated.append(f"Small: 95 % intervals over {found['drawn']}.")
    stated.append("Rows of different references or units are unlike numbers: compare within a row only.")
    stated += [f"Not scored by words: {text(why)}" for why in found["not_scored"]]
    for name, result in found["clinical"].items():
        stated.append(f"<b>{name}</b>: {html.escape(result if isinstance(result, str) else numbers(result))}")
    return f'{table(("references", "unit", *HEADS), rows, "scores")}<p class="small">{"<br>".join(stated)}</p>'


def _lengths(found: dict) -> str:
    lengths, repeats = found["lengths"], found["repeats"]
    rows = [
        (name, numbers(lengths[name]), repeats[key])
        for name, key in (("generated", "different"), ("references", "different_references"))
    ]
    line = exchanged_line(found["exchanged"]) if found["exchanged"] else ""
    head = ("", f"length, {lengths['unit']}s", "different texts")
    return f"{table(head, rows, '')}<p>{line[:1].upper()}{line[1:]}</p>"


def _examples(rows: list[dict], language: str, reading: dict) -> str:
    ranked = sorted(rows, key=lambda row: (-row["rouge_l"], row["id"]))
    middle = max(0, (len(ranked) - SHOWN) // 2)
    chosen: dict[str, tuple[str, dict]] = {}
    for name, some in (
        ("best", ranked[:SHOWN]),
        ("worst", ranked[::-1][:SHOWN]),
        ("middle", ranked[middle : middle + SHOWN]),
    ):
        for row in some:
            chosen.setdefault(row["id"], (name, row))
    order = {"best": 0, "middle": 1, "worst": 2}
    lines = []
    shown = sorted(chosen.values(), key=lambda item: (order[item[0]], -item[1]["rouge_l"]))
    files = list(dict.fromkeys(path for _, row in shown for path in row["images"] if Path(path).is_file()))
    small = dict(zip(files, read_small(files, THUMBNAIL, **reading), strict=True))
    for name, row in shown:
        generated, reference = mark_differences(row["generated"], row["reference"], language)
        about = f"<b>{name}</b><br>{text(row['id'])}<br>"
        pictures = _thumbnails([small.get(path) for path in row["images"]])
        about += f'<span class="small">ROUGE-L {row["rouge_l"]:.3f}</span>{pictures}'
        lines.append((about, generated or "<i>empty</i>", reference))
    return (
        '<h2>Best, middle and worst by ROUGE-L</h2><p class="small"><span class="extra">not in the reference</span> '
        '<span class="missed">not generated</span></p>'
        f"{table(('study', 'generated', 'reference'), lines, 'examples')}"
    )


def mark_differences(generated: str, reference: str, language: str) -> tuple[str, str]:
    """Both texts as HTML, with words that the other lacks (in their order) marked."""
    split = _CHINESE if language == "zh" else _ENGLISH
    sides = [split.findall(generated), split.findall(reference)]
    words = [[i for i, token in enumerate(side) if token[0].isalnum()] for side in sides]
    keys = [[side[i].lower() for i in places] for side, places in zip(sides, words, strict=True)]
    same: tuple[set[int], set[int]] = (set(), set())
    for block in SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
        same[0].update(words[0][block.a : block.a + block.size])
        same[1].update(words[1][block.b : block.b + block.size])
    shown = []
    for side, places, kept, mark in zip(sides, words, same, ("extra", "missed"), strict=True):
        odd = set(places) - kept
        parts = [
            f'<span class="{mark}">{html.escape(t)}</span>' if i in odd else html.escape(t) for i, t in enumerate(side)
        ]
        shown.append("".join(parts))
    return shown[0], shown[1]


def _thumbnails(pictures: Sequence[np.ndarray | None]) -> str:
    made = [jpeg(pixels) for pixels in pictures if pixels is not None]  # the page is about texts
    return f'<div class="views">{"".join(made)}</div>' if made else ""
