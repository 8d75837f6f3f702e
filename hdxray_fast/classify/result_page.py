"""One HTML page of a probe, a fine-tuning or an evaluation: metrics, curves, decisions, errors, data and settings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from ..data.bootstrap import PatientDraws
from ..data.web_page import jpeg_of_file, page, table, text
from ..terminal import counted
from .calibration import describe_temperature
from .charts import STYLE, calibration_chart, recall_chart, roc_chart
from .class_means import describe_mean
from .curves import BAND_DRAWS, class_curves
from .exclusive import CORNER, OF_A_CLASS, OF_ALL, RANKING
from .interval_text import interval_text, legend
from .label_table import LabelTable, size_in_words
from .metrics import METRICS
from .operating_points import LEVELS

MOST_CLASSES = 14  # with charts, those with most positives; the tables have all
_STYLE = f"""{STYLE}
.charts{{margin-bottom:1em}} .sheet img{{width:100%;min-width:900px}} .settings td:first-child{{white-space:nowrap}}
.settings td+td{{overflow-wrap:anywhere;min-width:10em}}
"""


def result_page(
    title: str,
    labels: LabelTable,
    probabilities: np.ndarray,  # [N, C]
    thresholds: Sequence[float],
    report: dict,
    extra: dict,
    sheet: Path | None = None,
    seed: int = 0,
    made: datetime | None = None,
) -> str:
    """The page; it stands alone.

    Args:
        title: what was done.
        labels: of the images tested.
        probabilities: rows of ``labels``.
        thresholds: ``C``, chosen on validation.
        report: of :func:`.report_predictions`; its ``notes`` open the page, warnings first.
        extra: what else ``metrics.json`` says; its ``config``, or what there is without one, ends the page.
        sheet: PNG of the most confident errors; without the file there is no such part.
        seed: of the draws of patients.
        made: when; now by default.
    """
    parts = [
        f"<h1>{text(title)}</h1><p>{size_in_words(report['images'], report['patients'])}, "
        f"{counted(len(labels.classes), 'class')}.</p>",
        *_told(report.get("notes", ())),
        _metrics(report),
    ]
    parts += [_decisions(report["decisions"])] if "decisions" in report else [_points(report)]
    draws = PatientDraws(labels.patients, min(report["bootstraps"], BAND_DRAWS), seed)
    order = np.argsort(-np.nansum(labels.labels, axis=0), kind="stable")
    parts += [_class(labels, probabilities, thresholds, report, column, draws) for column in order[:MOST_CLASSES]]
    if (left := len(order) - MOST_CLASSES) > 0:
        parts.append(f'<p class="small">Without charts: {counted(left, "class")} with fewer positives.</p>')
    if sheet and (errors := jpeg_of_file(sheet, "radiographs that were decided wrongly, and where the model looked")):
        parts.append(f'<h2>Most confident errors</h2><div class="wide sheet">{errors}</div>')
    settings = extra.get("config") or {name: extra[name] for name in ("model", "data", "split") if name in extra}
    preset = "model" if settings.get("weights") else ""  # a preset is of those without weights, which are what they are
    rows = [
        (text(f"--{name.replace('_', '-')}"), text(_listed(value)))  # as the command is given them
        for name, value in settings.items()
        if value is not None and name != preset
    ]
    rows += [("computed in", text(extra["precision"]))] if "precision" in extra else []
    if rows:
        folded = f"<summary><h2>Data and settings</h2></summary>{table((), rows, 'settings')}"
        parts.append(f"<details>{folded}</details>")
    return page(title, "".join(parts), _STYLE, made)


def _listed(value: object) -> object:
    """A list as it is typed: its members one after another."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _told(notes: Sequence[str]) -> list[str]:
    """What a reader must know before the numbers: warnings, then whatever else was noted."""
    found = []
    for kind in ("warning", "small"):
        some = [line.removeprefix("warning: ") for line in notes if line.startswith("warning: ") == (kind == "warning")]
        lines = "<br>".join(f"{text(line[:1].upper() + line[1:])}." for line in some)
        found += [f'<p class="{kind}">{lines}</p>'] if lines else []
    return found


def _metrics(report: dict) -> str:
    exclusive = "decisions" in report
    metrics = (*RANKING, *OF_A_CLASS) if exclusive else METRICS
    over = report["mean_over"]
    rows: list[tuple] = []
    marked: list[str] = []
    mean = {"mean": report["mean"]} if len(report["classes"]) > 1 else {}
    for name, row in {**report["classes"], **mean}.items():
        few = row.get("few", over["few"]) if report["bootstraps"] else ""
        texts = [interval_text(row[metric], few) for metric in metrics]
        marked += texts
        cells = [_two_lines(told) for told in texts]
        if not exclusive:
            chance = row.get("calibration_by_chance")
            cells.append(f"{chance['value']:.3f}" if chance else "")
        rows.append((text(name), row.get("positive", ""), row.get("negative", ""), *cells))
    head = ["", "with", "without", *(metric.replace("_", " ") for metric in metrics)]
    head += [] if exclusive else ["by chance"]
    drawn = report["bootstraps"]
    notes = [f"Small: 95 % intervals over patients ({drawn} draws)."] if drawn else []
    notes += legend(" ".join(marked))
    told = [describe_mean(over) if mean else "", describe_temperature(report.get("temperature"))]
    notes += [text(line[:1].upper() + line[1:]) for line in told if line]
    if not exclusive:
        notes.append("By chance: the calibration error that perfect probabilities show on as many images.")
    return f'<h2>Metrics</h2>{table(head, rows)}<p class="small">{"<br>".join(notes)}</p>'


def _cell(value: dict | None, few: str = "") -> str:
    return _two_lines(interval_text(value, few))


def _two_lines(told: str) -> str:
    """The value, and below it the interval."""
    number, _, interval = told.partition(" ")
    if not interval:
        return number
    star = "*" * interval.endswith("*")
    return f'{number}<br><span class="small">{interval.rstrip("*").strip("()").replace("-", " to ")}{star}</span>'


def _points(report: dict) -> str:
    titles = {"sensitivity": "sensitivity", "specificity": "specificity"}
    if any("ppv" in row["operating_points"] for row in report["classes"].values()):
        titles |= {"ppv": "PPV", "npv": "NPV"}
    for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")):
        titles |= {f"{one}_at_{other}_{level:g}": f"{one} at<br>{other} {level:.0%}" for level in LEVELS}
    rows = []
    for name, row in report["classes"].items():
        few = row["few"] if report["bootstraps"] else ""
        cells = [_cell(row["operating_points"].get(point), few) for point in titles]
        rows.append((text(name), f"{row['threshold']:.3g}", *cells))
    return (
        f"<h2>Decisions</h2>{table(['', 'threshold', *titles.values()], rows)}"
        '<p class="small">Sensitivity, specificity and predictive values are at the threshold, which was chosen on '
        "validation; the others are the best of the curve of these images.</p>"
    )


def _decisions(found: dict) -> str:
    of_all = [(name.replace("_", " "), _cell(found[name])) for name in OF_ALL]
    names = [text(name) for name in found["classes"]]
    confusion = [(name, *(f"{count:g}" for count in row)) for name, row in zip(names, found["confusion"], strict=True)]
    return (
        f"<h2>Decisions: the most probable class</h2>{table((), of_all)}"
        f"<h3>Confusion</h3>{table([CORNER, *names], confusion)}"
    )


def _class(
    labels: LabelTable,
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    report: dict,
    column: int,
    draws: PatientDraws,
) -> str:
    """A class's charts and what was decided of its images."""
    name = labels.classes[column]
    row = report["classes"][name]
    known = np.flatnonzero(~np.isnan(labels.labels[:, column]))
    truth, score = labels.labels[known, column].astype(int), probabilities[known, column].astype(np.float64)
    head = f"<h2>{text(name)}</h2><p>{counted(row['positive'], 'image')} with it, {row['negative']} without"
    counts = row["positive_patients"], row["negative_patients"]
    head += ".</p>" if None in counts else f" ({counts[0]} and {counts[1]} patients).</p>"
    if not row["positive"] or not row["negative"]:
        return f"{head}<p>No curves: one kind is missing.</p>"
    curves = class_curves(truth, score, known, draws, band=row["few"] != "too few")
    if "decisions" in report:
        charts = [roc_chart(curves, row, None), recall_chart(curves, row, None), calibration_chart(curves)]
        return f'{head}<div class="charts">{"".join(charts)}</div>'
    called = score >= thresholds[column]
    hit, missed = int((called & (truth == 1)).sum()), int((~called & (truth == 1)).sum())
    alarm, right = int((called & (truth == 0)).sum()), int((~called & (truth == 0)).sum())
    at = (hit / (hit + missed), hit / (hit + alarm)) if hit + alarm else None
    charts = [roc_chart(curves, row, row["operating_points"]), recall_chart(curves, row, at), calibration_chart(curves)]
    confusion = table(
        (f"at {thresholds[column]:.3g}", "called present", "not called"),
        [("has it", hit, missed), ("has it not", alarm, right)],
    )
    return f'{head}<div class="charts">{"".join(charts)}</div>{confusion}'
