"""An evaluation as files: JSON, Markdown, every study as CSV, a page to look at."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ..files import make_folder, written_whole
from ..names import ESCAPES, escaped
from .evaluate import Evaluation
from .evaluation_page import evaluation_page
from .evaluation_table import format_evaluation


def write_evaluation(evaluation: Evaluation, out: str | Path, **reading) -> Path:
    """Write ``metrics.json``, ``metrics.md``, ``scores.csv`` (every study) and ``report.html`` into ``out``.

    ``reading`` are ``workers``, ``timeout`` and ``max_memory`` of :func:`.evaluation_page`.
    """
    out = Path(out)
    make_folder(out)
    columns = ["id", "language", "generated", "reference", "rouge_l", "bleu4", "cider_d", "meteor"]
    text = {"encoding": "utf-8", "errors": ESCAPES}  # notes and paths may quote names
    with written_whole(out / "scores.csv") as temporary, open(temporary, "w", newline="", **text) as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "id": escaped(row["id"])} for row in evaluation.rows)
    for name, content in {
        "metrics.json": json.dumps(evaluation.metrics, ensure_ascii=False, indent=1),
        "metrics.md": format_evaluation(evaluation.metrics),
        "report.html": evaluation_page(evaluation, **reading),
    }.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(content + "\n", **text)
    return out
