"""Studies with known texts for the report tests: published layouts in small."""

from __future__ import annotations

import csv
import json
from pathlib import Path

# What clutters real reports of MIMIC-CXR: a head, sections, de-identified words, a blank section.
MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion or pneumothorax.  Bilateral
 nodular opacities that most likely represent nipple shadows.

 IMPRESSION:

 No acute cardiopulmonary process.
"""


def write_annotation(folder: Path, **splits: list[dict]) -> Path:
    """R2Gen's annotation.json."""
    path = folder / "annotation.json"
    path.write_text(json.dumps(splits, ensure_ascii=False), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    """A CSV file with the columns of the first row."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_iu_xml(path: Path, uid: str, sections: dict[str, str], images: list[str]) -> Path:
    """One study as Open-i publishes it."""
    texts = "".join(f'<AbstractText Label="{name}">{text}</AbstractText>' for name, text in sections.items())
    shown = "".join(
        f'<parentImage id="{name}"><figureId>F{i}</figureId><caption>Xray Chest PA and Lateral</caption>'
        f"<url>/hadoop/{name}.jpg</url></parentImage>"
        for i, name in enumerate(images)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><meta type="rr"/><uId id="{uid}"/><pmcId id="1"/>'
        f"<MedlineCitation><Article><Abstract>{texts}</Abstract></Article></MedlineCitation>{shown}</eCitation>"
    )
    return path


def write_mimic(folder: Path, rows: list[dict], reports: dict[tuple[str, str], str]) -> Path:
    """Tables, text files and empty image files; rows have dicom_id, study_id, subject_id, split, ViewPosition."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("dicom_id", "study_id", "subject_id", "split")
    write_csv(folder / "mimic-cxr-2.0.0-split.csv", [{key: row[key] for key in keys} for row in rows])
    views = [{"dicom_id": row["dicom_id"], "ViewPosition": row["ViewPosition"]} for row in rows]
    write_csv(folder / "mimic-cxr-2.0.0-metadata.csv", views)
    for row in rows:
        place = mimic_place(folder, row["subject_id"]) / f"s{row['study_id']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row['dicom_id']}.jpg").touch()
    for (subject, study), text in reports.items():
        (mimic_place(folder, subject) / f"s{study}.txt").write_text(text)
    return folder


def mimic_place(folder: Path, subject: str) -> Path:
    return folder / "files" / f"p{subject[:2]}" / f"p{subject}"
