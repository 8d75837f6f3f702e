"""IU X-ray as Open-i publishes it: one XML file per study, PNG or DICOM images beside them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ..data.listing import FilesByName, SameNameError
from ..errors import ConfigError
from ..regular_files import REPORT_TEXT, read_bytes
from .studies import Study, StudyTable, chosen_sections, with_names
from .study_list import Studies

SUFFIXES = (".png", ".dcm", ".jpg", ".jpeg")


def read_iu_xray(folder: Path, images: Path, sections: str, language: str) -> StudyTable:
    """Studies of a folder such as ``ecgen-radiology``, in the order of their numbers; splits are left blank.

    Files that are no report are counted in the notes.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.xml"), key=_order)
    found = FilesByName(images, SUFFIXES)
    studies, bad = Studies(), []
    for path in files:
        try:
            studies.append(_read_one(path, images, found, sections, language))
        except SameNameError:
            raise
        except ConfigError as error:
            bad.append(str(error))
    table = StudyTable(studies)
    if bad:
        table.notes.append(with_names(bad, "XML file", "left out: unreadable"))
    return table


def _order(path: Path) -> tuple:
    return (0, int(path.stem), "") if path.stem.isdigit() else (1, 0, str(path))


def _read_one(path: Path, images: Path, found: FilesByName, sections: str, language: str) -> Study:
    try:
        content = read_bytes(path, REPORT_TEXT)
        # Reports have none; a file with nested ones can fill the memory. In UTF-16 a letter is a byte and a zero.
        if b"<!ENTITY" in content.replace(b"\0", b""):
            raise ConfigError(f"{path.name}: declares XML entities, which are not read")
        root = ElementTree.fromstring(content)
    except ConfigError:
        raise
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        line = f", line {error.position[0]}" if isinstance(error, ElementTree.ParseError) else ""
        raise ConfigError(f"{path.name}{line}: is no readable XML") from None
    texts: dict[str, list[str]] = {}
    for element in root.iter("AbstractText"):
        label = (element.get("Label") or "").strip().upper()
        texts.setdefault(label, []).append(" ".join("".join(element.itertext()).split()))
    if not texts:
        raise ConfigError(f"{path.name}: holds no AbstractText")
    uid = root.find(".//uId")
    ids = list(dict.fromkeys(image.get("id") for image in root.iter("parentImage") if image.get("id")))
    return Study(
        id=(uid.get("id") if uid is not None else None) or path.stem,
        images=tuple(str(found.find(name) or images / f"{name}.png") for name in ids),
        report=chosen_sections(" ".join(texts.get("FINDINGS", ())), " ".join(texts.get("IMPRESSION", ())), sections),
        language=language,
        place=path.name,
    )
