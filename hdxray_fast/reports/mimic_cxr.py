"""MIMIC-CXR as PhysioNet publishes it: a text file per study, tables of splits and views, images by dicom id."""

from __future__ import annotations

import re
from pathlib import Path

from ..data.columns import columns_in_words
from ..errors import ConfigError
from ..regular_files import REPORT_TEXT, read_text
from .csv_rows import Row, read_rows
from .studies import Study, StudyTable, chosen_sections, with_names
from .study_list import Studies

# A heading is a run of capitals at the start of a line, closed by a colon; the two that matter also in small letters.
# Bounded, so that a line of nothing but spaces takes no time.
_HEADING = re.compile(
    r"^[ \t]*([A-Z][A-Z0-9 \t()/,&.\-]{0,80}?|(?i:findings?|impressions?|conclusions?)[ \t]{0,20}):", re.MULTILINE
)
_IMPRESSION = re.compile(r"IMPRESSIONS?|CONCLUSIONS?")
_FINDINGS = re.compile(r"FINDINGS?")
# Within findings these are said of organs, and belong to the text: "LUNGS: Clear. HEART: Normal."
_ORGAN = re.compile(
    r"(THE )?(RIGHT |LEFT |BILATERAL )?(LUNGS?|AIRWAYS?|HEART|CARDIA\w*|CARDIOMEDIASTIN\w*|MEDIASTIN\w*|HIL[AI]|"
    r"AORTA|PLEURA\w*|PNEUMOTHORAX|DIAPHRAGM\w*|BON\w+|OSSEOUS|RIBS?|SPINE|SOFT TISSUES?|CHEST WALL|ABDOMEN|"
    r"UPPER ABDOMEN|LINES?|TUBES?|DEVICES?|SUPPORT DEVICES?|CATHETERS?|HARDWARE|OTHER)\b"
)
# Older reports head the findings with the examination: "PA AND LATERAL CHEST RADIOGRAPHS:", "CHEST, TWO VIEWS:".
_EXAMINATION = re.compile(r"\b(CHEST|RADIOGRAPHS?|VIEWS?)\b")
_PICTURES = re.compile(r"\b(RADIOGRAPHS?|VIEWS?)\b")
_NO_FINDINGS = re.compile(
    r"\b(EXAM|EXAMINATION|TYPE|COMPARISON|COMPARISONS|REASON|STUDY|INDICATION|HISTORY|TECHNIQUE)\b"
)
_FRONTAL_FIRST = {"PA": 0, "AP": 1, "AP AXIAL": 2, "": 3, "LATERAL": 4, "LL": 4}
_IMAGE_SUFFIXES = (".jpg", ".dcm", ".png")


def extract_sections(text: str) -> dict[str, str]:
    """``findings`` and ``impression`` of a report, each ``""`` if it has no such section; white space collapsed.

    ``FINDINGS AND IMPRESSION`` counts as findings. Without a FINDINGS heading, a heading that names the examination
    (``CHEST, TWO VIEWS:``) opens them. Any other heading ends a section, except those of organs (``LUNGS:``), which
    stay in the text.
    """
    headings = [heading for heading in _HEADING.finditer(text) if not _names_organ(heading.group(1).strip())]
    found = {"findings": [], "impression": [], "examination": []}
    ends = [*(heading.start() for heading in headings), len(text)]
    for heading, end in zip(headings, ends[1:], strict=True):
        body = text[heading.end() : end]
        name = heading.group(1).strip().upper()
        if _FINDINGS.match(name):
            kind = "findings"
        elif _IMPRESSION.match(name):
            kind = "impression"
        elif _EXAMINATION.search(name) and not _NO_FINDINGS.search(name):
            kind = "examination"
        else:
            continue
        body = " ".join(body.split())
        if body:
            found[kind].append(body)
    return {
        "findings": " ".join(found["findings"] or found["examination"]),
        "impression": " ".join(found["impression"]),
    }


def _names_organ(heading: str) -> bool:
    return bool(_ORGAN.match(heading)) and not _PICTURES.search(heading)


def read_mimic_cxr(folder: Path, images: Path, sections: str, language: str) -> StudyTable:
    """Studies of a folder with ``mimic-cxr-2.0.0-split.csv``, optionally ``...-metadata.csv``, and the reports.

    Reports are looked for as ``files/p10/p10000032/s50414267.txt``, also below ``mimic-cxr-reports``; images as
    ``files/p10/p10000032/s50414267/<dicom_id>.jpg`` (or ``.dcm``, ``.png``) below ``images``.
    """
    split_rows = _table(folder, "split", required=True)
    views = {row["dicom_id"]: (row.get("ViewPosition") or "").strip().upper() for row in _table(folder, "metadata")}
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in split_rows:
        grouped.setdefault((row["subject_id"], row["study_id"]), []).append(row)
    studies, without_text = Studies(), []
    for (subject, study), rows in grouped.items():
        place = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        text = _first_file(folder / root / place / f"s{study}.txt" for root in ("", "mimic-cxr-reports"))
        if text is None:
            without_text.append(f"row {rows[0].number}")
            continue
        if len({row["split"] for row in rows}) > 1:
            shown = " and ".join(str(row.number) for row in {row["split"]: row for row in reversed(rows)}.values())
            raise ConfigError(f"data: {folder}: a study is in several splits (rows {shown} of the list of splits)")
        rows.sort(key=lambda row: (_FRONTAL_FIRST.get(views.get(row["dicom_id"], ""), 3), row["dicom_id"]))
        found = extract_sections(read_text(text, REPORT_TEXT, errors="replace"))
        studies.append(
            Study(
                id=f"s{study}",
                images=tuple(_image(images / place / f"s{study}", row["dicom_id"]) for row in rows),
                report=chosen_sections(**found, sections=sections),
                split=rows[0]["split"],
                language=language,
                patient=subject,
                place=f"row {rows[0].number}",
            )
        )
    table = StudyTable(studies)
    if without_text:
        table.notes.append(with_names(without_text, "study", "left out: their text file is missing"))
    return table


def _table(folder: Path, name: str, required: bool = False) -> list[Row]:
    path = next(iter(sorted(folder.glob(f"mimic-cxr-*{name}.csv*"))), None)
    if path is None:
        if required:
            raise ConfigError(f"data: {folder} has no mimic-cxr-2.0.0-{name}.csv")
        return []
    rows = read_rows(path)
    needed = {"dicom_id", *(("subject_id", "study_id", "split") if name == "split" else ())}
    if rows and (lacking := sorted(needed - set(rows[0]))):
        raise ConfigError(f"data: {path} has no column {lacking[0]!r}; {columns_in_words(rows[0], needed)}")
    return rows


def _first_file(paths) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _image(folder: Path, dicom: str) -> str:
    return str(_first_file(folder / f"{dicom}{suffix}" for suffix in _IMAGE_SUFFIXES) or folder / f"{dicom}.jpg")
