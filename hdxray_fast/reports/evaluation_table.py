"""An evaluation as a table for terminal and Markdown."""

from __future__ import annotations

from .metrics import SCORES

HEADS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "METEOR")


def format_evaluation(metrics: dict) -> str:
    """``metrics`` as Markdown that reads well on a terminal."""
    lines: list[str] = []
    counted = "radiographs, each with its study's report" if metrics.get("count") == "images" else "studies"
    for language, found in metrics["languages"].items():
        rows = [("references", "unit", *HEADS)]
        marks: list[str] = []
        for scores in found["scores"]:
            cells = [_cell(scores[name], marks) for name in SCORES]
            rows.append((scores["references"], scores["unit"], *cells))
        lines += [f"{found['studies']} {counted}, language {language}", "", *_table(rows), ""]
        lines += [f"{number}) {mark}" for number, mark in enumerate(marks, start=1)]
        lines += [f"- {scores['references']}, {scores['unit']}: {scores['stated']}" for scores in found["scores"]]
        for scores in found["scores"]:
            if scores["intervals"]:
                lines.append(f"- 95 % intervals over {found['drawn']}, {_ranges(scores)}")
        lines += ["- rows of different references or units are unlike numbers: compare within a row only"]
        lines += [f"- not scored by words: {text}" for text in found["not_scored"]]
        for name, result in found["clinical"].items():
            lines.append(f"- {name}: {result if isinstance(result, str) else numbers(result)}")
        lengths, repeats = found["lengths"], found["repeats"]
        for name in ("generated", "references"):
            lines.append(f"- length of {name}, {lengths['unit']}s: {numbers(lengths[name])}")
        lines.append(f"- different texts: {repeats['different']} (references {repeats['different_references']})")
        if found["exchanged"]:
            lines.append(f"- {exchanged_line(found['exchanged'])}")
        for flag in flags(found):
            lines.append(f"- WARNING, the model may not look at the images: {flag}")
        lines.append("")
    lines += [f"- note: {note}" for note in metrics["notes"]]
    return "\n".join(lines).rstrip()


def flags(found: dict) -> list[str]:
    """Why the model seems not to look at the images, in words."""
    return [flag for flag in (found["repeats"]["flagged"], found["exchanged"].get("flagged")) if flag]


def exchanged_line(exchanged: dict) -> str:
    """What the same texts score with other studies."""
    heads = dict(zip(SCORES, HEADS, strict=True))
    scores = [f"{heads[k]} {v if isinstance(v, str) else format(v, '.4f')}" for k, v in exchanged.items() if k in heads]
    interval = " ({:.4f} to {:.4f})".format(*exchanged["interval"]) if exchanged["interval"] else ""
    return (
        f"the same texts given to other studies: {', '.join(scores)}; with their own, ROUGE-L is higher by "
        f"{exchanged['gain']:.4f}{interval}"
    )


def _ranges(scores: dict) -> str:
    heads = dict(zip(SCORES, HEADS, strict=True))
    ranges = [f"{heads[name]} {low:.3f} to {high:.3f}" for name, (low, high) in scores["intervals"].items()]
    return f"{scores['references']}, {scores['unit']}: {', '.join(ranges)}"


def _cell(value: float | str, marks: list[str]) -> str:
    if not isinstance(value, str):
        return f"{value:.4f}"
    if len(value) <= 12:  # "needs Java"
        return value
    if value not in marks:
        marks.append(value)
    return f"{marks.index(value) + 1})"


def numbers(values: dict) -> str:
    """``"mean 31.2, median 30, ..."``."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
