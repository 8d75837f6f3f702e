"""One HTML page of an evaluation: scores with their labels, lengths, and reports beside their references."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import cv2
import numpy as np

from ..data.radiographs import read_small
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, worker_count
from ..names import escaped
from .evaluate import Evaluation
from .evaluation_table import HEADS, exchanged_line, flags, numbers
from .metrics import SCORES

SHOWN = 3  # examples each of best, middle and worst
THUMBNAIL = 280  # pixels; shown at 140
_ENGLISH = re.compile(r"\w+(?:[-'/.]\w+)*|\s+|[^\w\s]")
_CHINESE = re.compile(r"[a-zA-Z0-9.]+|\s+|.", re.DOTALL)
_STYLE = """
body{font:15px/1.5 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;max-width:1100px;
margin:2em auto;padding:0 1em;color:#1b1f24;background:#fff} h1{font-size:1.5em} h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;width:100%} td,th{padding:.4em .6em;text-align:left;vertical-align:top;
border-bottom:1px solid #d8dee4} .scores td+td+td,.scores th+th+th{text-align:right;font-variant-numeric:tabular-nums}
.small{color:#57606a;font-size:.9em} .warning{background:#ffebe9;border-left:4px solid #cf222e;padding:.6em 1em}
.extra{background:#ffe3b3} .missed{background:#cfe4ff} .views{display:flex;gap:4px;margin-top:.3em}
.views img{width:140px;height:140px} tr{break-inside:avoid}
.text{width:38%}
"""


def evaluation_page(
    evaluation: Evaluation, workers: int = 0, timeout: float = TIMEOUT, max_memory: int = MAX_MEMORY
) -> str:
    """The page; it stands alone, with thumbnails of the radiographs in it where their files are known.

    These are read as by :func:`hdxray_fast.data.radiographs.read_small`.
    """
    reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory}
    metrics = evaluation.metrics
    parts = [f"<h1>Generated reports: {html.escape(metrics['predictions'])}</h1>"]
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
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in metrics["notes"])
    parts.append(f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
    return (
        '<!doctype html><html><head><meta charset="utf-8"><title>Generated reports</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _scores(found: dict) -> str:
    lines = ["".join(f"<th>{head}</th>" for head in ("references", "unit", *HEADS))]
    for scores in found["scores"]:
        cells = [html.escape(scores["references"]), html.escape(scores["unit"])]
        for name in SCORES:
            value = scores[name]
            cells.append(html.escape(value) if isinstance(value, str) else f"{value:.4f}")
            if name in scores["intervals"]:
                low, high = scores["intervals"][name]
                cells[-1] += f'<br><span class="small">{low:.3f} to {high:.3f}</span>'
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    stated = [f"<b>{s['references']}, {s['unit']}</b>: {html.escape(s['stated'])}" for s in found["scores"]]
    if any(scores["intervals"] for scores in found["scores"]):
        stated.append(f"Small: 95 % intervals over {found['drawn']}.")
    stated.append("Rows of different references or units are unlike numbers: compare within a row only.")
    stated += [f"Not scored by words: {html.escape(text)}" for text in found["not_scored"]]
    for name, result in found["clinical"].items():
        stated.append(f"<b>{name}</b>: {html.escape(result if isinstance(result, str) else numbers(result))}")
    return f'<table class="scores">{table}</table><p class="small">{"<br>".join(stated)}</p>'


def _lengths(found: dict) -> str:
    lengths, repeats = found["lengths"], found["repeats"]
    lines = [
        f"<tr><td>{name}</td><td>{numbers(lengths[name])}</td><td>{repeats[key]}</td></tr>"
        for name, key in (("generated", "different"), ("references", "different_references"))
    ]
    head = f"<tr><th></th><th>length, {lengths['unit']}s</th><th>different texts</th></tr>"
    line = exchanged_line(found["exchanged"]) if found["exchanged"] else ""
    return f"<table>{head}{''.join(lines)}</table><p>{line[:1].upper()}{line[1:]}</p>"


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
        about = f"<b>{name}</b><br>{html.escape(escaped(row['id']))}<br>"
        pictures = _thumbnails([small.get(path) for path in row["images"]])
        about += f'<span class="small">ROUGE-L {row["rouge_l"]:.3f}</span>{pictures}'
        texts = f'<td class="text">{generated or "<i>empty</i>"}</td><td class="text">{reference}</td>'
        lines.append(f"<tr><td>{about}</td>{texts}</tr>")
    return (
        '<h2>Best, middle and worst by ROUGE-L</h2><p class="small"><span class="extra">not in the reference</span> '
        '<span class="missed">not generated</span></p>'
        "<table><tr><th>study</th><th>generated</th><th>reference</th></tr>"
        f"{''.join(lines)}</table>"
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
    made = []
    for pixels in pictures:
        if pixels is None:
            continue  # the page is about texts; whoever reads images names what is wrong with them
        data = base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()
        made.append(f'<img alt="" src="data:image/jpeg;base64,{data}">')
    return f'<div class="views">{"".join(made)}</div>' if made else ""
