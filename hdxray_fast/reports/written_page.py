"""One HTML page of written reports: the text on each study beside the picture of what it was read off."""

from __future__ import annotations

from ..data.web_page import jpeg_of_file, page, table, text
from ..terminal import counted
from .written import WrittenReport, WrittenReports

MOST_LINES = 500  # of studies without a picture; a browser shows them at once
_STYLE = """
figure{margin:.5em 0 0} figure img{max-width:100%} blockquote{margin:.3em 0;white-space:pre-wrap}
.texts{width:100%} .texts td:first-child{width:22%}
"""
_HOW_TO_READ = (
    "The pictures show which places of the radiographs the model looked at while it wrote. The first map is the mean "
    "of all sentences (orange: more than an even share, blue: less), the others are what a sentence adds to that mean. "
    "They tell neither where a finding lies nor whether a sentence is true."
)


def written_page(done: WrittenReports) -> str:
    """The page; it stands alone. Studies with a picture come with it, the others in a table of at most ``MOST_LINES``.

    Reports that the data have of the studies stand below those that were written.
    """
    told = [*([f"warning: {done.warning}"] if done.warning else []), *done.notes]
    told += [f"unreadable: {bad.path}: {bad.reason}" for bad in done.quarantined]
    lines = "".join(f"<p{_warns(line)}>{text(line)}</p>" for line in told)
    drawn = [row for row in done.rows if row.picture is not None]
    others = [row for row in done.rows if row.picture is None]
    parts = [f"<h1>{counted(len(done.rows), 'report')}, written by a model</h1>{lines}"]
    if drawn:
        parts.append(f'<p class="small">{_HOW_TO_READ}</p>')
    parts += [_with_picture(row) for row in drawn]
    if others:
        parts.append(_without_picture(others))
    return page("Written reports", "".join(parts), _STYLE)


def _warns(line: str) -> str:
    return ' class="warning"' if line.startswith(("warning: ", "unreadable: ")) else ""


def _about(row: WrittenReport) -> str:
    return "".join(f'<p class="warning">{text(told)}</p>' for told in row.views_in_words)


def _with_picture(row: WrittenReport) -> str:
    reference = f"<p>The radiologist's:</p><blockquote>{text(row.study.report)}</blockquote>"
    return (
        f"<h2>{text(row.study.files)}</h2>{_about(row)}<blockquote>{text(row.text) or '<i>nothing</i>'}</blockquote>"
        f"{reference if row.study.report else ''}"
        f"<figure>{jpeg_of_file(row.picture, 'what each sentence was read off')}</figure>"
    )


def _without_picture(rows: list[WrittenReport]) -> str:
    both = any(row.study.report for row in rows)
    lines = []
    for row in rows[:MOST_LINES]:
        cells = [text(row.study.files) + _about(row), text(row.text) or "<i>nothing</i>"]
        lines.append([*cells, text(row.study.report)] if both else cells)
    more = len(rows) - len(lines)
    left = f'<p class="small">{counted(more, "report")} more in predictions.csv.</p>' if more else ""
    head = ("radiographs", "report", "the radiologist's") if both else ("radiographs", "report")
    return f"<h2>Without a picture</h2>{table(head, lines, 'texts')}{left}"
