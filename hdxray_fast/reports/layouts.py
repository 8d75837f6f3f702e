"""Where studies are read from: R2Gen's annotation.json, CSV, IU X-ray's XML and MIMIC-CXR's text files."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ..data.columns import PATH_COLUMNS, PATIENT_COLUMNS, columns_in_words, find_column, named_column
from ..data.prepared.finding import refuse_prepared
from ..data.seen import Seen
from ..data.splits import SPLIT_COLUMNS
from ..data.table_text import TABLE_FILES
from ..errors import ConfigError
from ..names import unescaped
from ..regular_files import read_json, reason_of, what_else
from .csv_rows import read_rows
from .iu_xray import read_iu_xray
from .mimic_cxr import read_mimic_cxr
from .studies import SECTIONS, Study, StudyTable, check_language, chosen_sections, finish_table, language_at
from .study_list import Studies

LAYOUTS = ("r2gen", "csv", "iu-xray", "mimic-cxr")
IMAGE_COLUMNS = (*PATH_COLUMNS, "images", "image_1", "image_path_1", "frontal")
NUMBERED = re.compile(r"image(?:_path)?_(\d+)")  # a view a column
REPORT_COLUMNS = ("report", "text", "report_text")
ID_COLUMNS = ("id", "study", "study_id", "uid")
KNOWN = ("report", "findings", "impression", *ID_COLUMNS)  # names that tell a header


def read_studies(
    data: str | Path,
    *,
    layout: str | None = None,
    images: str | Path | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    sections: str = "findings",
    report_column: str | None = None,
    language: str = "en",
    val_share: float = 0.1,
    test_share: float = 0.2,
    split_seed: int = 0,
    need_images: bool = True,
    prepared: str | Path | None = None,
    record: Seen | None = None,
) -> StudyTable:
    """Read studies.

    Args:
        data: ``annotation.json`` of R2Gen; a CSV with columns ``image`` (several separated by ``;``, or ``image_1``,
            ``image_2``, ...), ``report`` (or ``findings`` and ``impression``) and optionally ``split``, ``id``,
            ``patient`` and ``language``; the folder of IU X-ray's XML reports; or the folder of MIMIC-CXR with its
            reports and its split and metadata tables.
        layout: ``"r2gen"``, ``"csv"``, ``"iu-xray"`` or ``"mimic-cxr"``; left out, it is told by what ``data`` is.
        images: folder that relative image paths start from; that of ``data`` by default.
        image_column: the CSV column of the images' files, where it goes by none of the usual names.
        patient_column: likewise, that of the patients.
        sections: ``"findings"`` (as R2Gen), ``"impression"`` or ``"both"``, where reports have sections: XML, text, and
            CSV without a column ``report``.
        report_column: the CSV column that holds the report.
        language: ``"en"`` or ``"zh"``, of reports that do not say.
        val_share: share of the patients for ``val`` if no study is in it; likewise ``test_share``.
        test_share: see ``val_share``.
        split_seed: of splits made here.
        need_images: studies whose image files are missing are left out; ``False`` reads texts alone.
        prepared: folder of a prepared data set that holds the images; studies whose images it lacks are left out.
        record: what a model has seen: its patients stay in its splits, where the table gives no others.

    Raises:
        ConfigError: ``data`` cannot be read or lacks what its layout needs, a language is not known, or a patient or
            image is in two splits.
    """
    path = Path(data)
    refuse_prepared(path, "reports")
    layout = layout or guess_layout(path)
    if not path.exists():
        raise _missing(path)
    if sections not in SECTIONS:
        raise ConfigError(f"sections: got {sections!r}, accepted are {', '.join(map(repr, SECTIONS))}")
    check_language(language)
    root = Path(images) if images else path.parent if path.is_file() else path
    columns = {"report_column": report_column, "image_column": image_column, "patient_column": patient_column}
    if layout != "csv" and (given := [name for name, column in columns.items() if column is not None]):
        raise ConfigError(f"{given[0]}: names a column of a CSV, which {path} is not; leave it out")
    if layout == "r2gen":
        table = _read_annotation(path, root, language)
    elif layout == "csv":
        table = _read_csv(path, root, sections, language, **columns)
    elif layout == "iu-xray":
        table = read_iu_xray(path, root, sections, language)
    elif layout == "mimic-cxr":
        table = read_mimic_cxr(path, root, sections, language)
    else:
        raise ConfigError(f"layout: got {layout!r}, accepted are {', '.join(map(repr, LAYOUTS))}")
    return finish_table(table, str(path), val_share, test_share, split_seed, need_images, prepared, record, images)


# Its settings that configurations and commands take under the same names
STUDY_SETTINGS = tuple(
    name for name in inspect.signature(read_studies).parameters if name not in ("data", "need_images", "record")
)


def guess_layout(path: Path) -> str:
    """The layout that ``path`` has by its looks, or a ConfigError."""
    if not path.exists():
        raise _missing(path)
    if path.is_file() and path.suffix.lower() in (".json", *TABLE_FILES):
        return "r2gen" if path.suffix.lower() == ".json" else "csv"
    if path.is_dir():
        if any(path.glob("mimic-cxr-*split.csv*")):
            return "mimic-cxr"
        if any(path.glob("*.xml")) or any(path.glob("*/*.xml")):
            return "iu-xray"
    elif reason := what_else(path):
        raise ConfigError(f"data: {path} {reason}; give annotation.json, a CSV, or the folder of the reports")
    raise ConfigError(
        f"data: {path} is none of the layouts that are told by themselves (annotation.json, a .csv, a folder with .xml "
        f"reports or with mimic-cxr-2.0.0-split.csv); give layout (--layout), one of {', '.join(LAYOUTS)}"
    )


def _missing(path: Path) -> ConfigError:
    reason = what_else(path) or "does not exist"
    return ConfigError(f"data: {path} {reason}; give annotation.json, a CSV, or the folder of the reports")


def image_path(root: Path, name: str) -> str:
    """``name``, as a table has it, below ``root``; R2Gen keeps images in a folder ``images`` beside the annotation."""
    name = unescaped(name)
    path = root / name
    if not path.is_file() and (root / "images" / name).is_file():
        path = root / "images" / name
    return str(path)


def _read_annotation(path: Path, root: Path, language: str) -> StudyTable:
    try:
        content = read_json(path, None)
    except UnicodeDecodeError as error:
        raise ConfigError(f"data: {path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"data: {path} is not a readable JSON file ({reason_of(error)})") from None
    if not isinstance(content, dict) or not {"train", "val", "test"} & set(content):
        raise ConfigError(f"data: {path} has no 'train', 'val' or 'test' at its top, as R2Gen's annotation.json does")
    studies = Studies()
    for split in ("train", "val", "test"):
        if not isinstance(content.get(split, []), list):
            raise ConfigError(f"data: {path}: {split} is no list of studies")
        for number, entry in enumerate(content.get(split, [])):
            where = f"data: {path}, {split}[{number}]"
            if not isinstance(entry, dict):
                raise ConfigError(f"{where} is no object with id, report and image_path")
            for key in ("report", "image_path"):
                if key not in entry:
                    raise ConfigError(f"{where} has no {key!r}")
            names = entry["image_path"]
            names = [names] if isinstance(names, str) else names
            report = entry["report"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"{where}: image_path is neither a path nor a list of paths")
            if report is not None and not isinstance(report, str):
                raise ConfigError(f"{where}: report is a {type(report).__name__}, accepted is text")
            studies.append(
                Study(
                    id=_told(entry.get("id")) or f"{split}-{number}",
                    images=tuple(image_path(root, name) for name in names),
                    report=report or "",
                    split=split,
                    language=language_at(entry.get("language", language), where),
                    patient=_told(entry.get("subject_id")),
                    place=f"{split}[{number}]",
                )
            )
    return StudyTable(studies)


def _told(value: object) -> str:
    """An id of JSON as text without spaces around it; blank where it is null, or the NaN that pandas may write."""
    return "" if value is None or value != value else str(value).strip()


def _read_csv(
    path: Path,
    root: Path,
    sections: str,
    language: str,
    report_column: str | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
) -> StudyTable:
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    first = named_column(columns, image_column, IMAGE_COLUMNS, "image_column", path)
    numbered = {name: NUMBERED.fullmatch(name.strip().lower()) for name in columns if name != first}
    others = sorted((name for name, match in numbered.items() if match), key=lambda name: int(numbered[name][1]))
    others += [name for name in [find_column(columns, ["lateral"])] if name]
    text = report_column or find_column(columns, REPORT_COLUMNS)
    if report_column and report_column not in columns:
        raise ConfigError(f"report_column: {path} has no column {report_column!r}; {columns_in_words(columns, KNOWN)}")
    parts = [find_column(columns, [name]) for name in ("findings", "impression")]
    if lacking := [what for what, there in (("images", first), ("reports", text or any(parts))) if not there]:
        raise ConfigError(
            f"data: {path} has no column of {' and none of '.join(lacking)}: {columns_in_words(columns, KNOWN)}; "
            "needed are 'image' (or image_column) and 'report' (or 'findings' and 'impression', or report_column), "
            "with commas, semicolons or tabs between columns"
        )
    ids = find_column(columns, ID_COLUMNS)
    patients = named_column(columns, patient_column, PATIENT_COLUMNS, "patient_column", path)
    split, spoken = find_column(columns, SPLIT_COLUMNS), find_column(columns, ["language"])
    notes = []
    if text and sections != "findings":
        notes.append(f"sections={sections} says nothing here: the column {text!r} is read as it is")
    studies = Studies()
    for row in rows:
        names = [name.strip() for column in (first, *others) for name in row[column].split(";") if name.strip()]
        report = row[text] if text else chosen_sections(*(row[part] if part else "" for part in parts), sections)
        studies.append(
            Study(
                id=(row[ids].strip() if ids else "") or f"row-{row.number}",
                images=tuple(image_path(root, name) for name in names),
                report=report,
                split=row[split] if split else "",
                language=language_at((row[spoken] if spoken else "") or language, f"data: {path}, row {row.number}"),
                patient=row[patients].strip() if patients else "",  # "P1 " and "P1" are one
                place=f"row {row.number}",
            )
        )
    return StudyTable(studies, notes)
