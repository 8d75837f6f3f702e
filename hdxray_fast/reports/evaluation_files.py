"""An evaluation as files: JSON, Markdown, every study as CSV, a page to look at."""

from __future__ import annotations

import json
from pathlib import Path

from ..data.csv_cells import write_table
from ..files import claim_names, refuse_foreign, written_whole
from ..names import ESCAPES
from ..terminal import visible_lines
from .evaluate import Evaluation
from .evaluation_page import evaluation_page
from .evaluation_table import format_evaluation

MAKER, FILES = "report-evaluate", ("metrics.json", "metrics.md", "scores.csv", "report.html")


def refuse_other_files(out: str | Path) -> None:
    """The refusal of :func:`write_evaluation`, before anything is computed."""
    refuse_foreign(Path(out), MAKER, FILES)


def write_evaluation(evaluation: Evaluation, out: str | Path, **reading) -> Path:
    """Write ``metrics.json``, ``metrics.md``, ``scores.csv`` (every study) and ``report.html`` into ``out``.

    ``reading`` are ``workers``, ``timeout`` and ``max_memory`` of :func:`.evaluation_page`.

    Raises:
        ConfigError: one of them is there, and no evaluation of reports made it; or ``out`` cannot be written.
    """
    out = Path(out)
    claim_names(out, MAKER, FILES)
    columns = ["id", "language", "generated", "reference", "rouge_l", "bleu4", "cider_d", "meteor"]
    with written_whole(out / "scores.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        write_table(stream, columns, evaluation.rows, names=("id",))
    text = {"encoding": "utf-8", "errors": ESCAPES}  # notes and paths may quote names
    for name, content in {
        "metrics.json": json.dumps(evaluation.metrics, ensure_ascii=False, indent=1),
        "metrics.md": visible_lines(format_evaluation(evaluation.metrics)),
        "report.html": evaluation_page(evaluation, **reading),
    }.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(content + "\n", **text)
    return out
