"""Which body part a radiograph shows and which way it looks, by its header and by its pixels, with the evidence.

    header ──header_view──▶ HeaderView ─┐
                                        ├─judge_view──▶ ChestView
    pixels ──view_net─────▶ chances ────┘

A view is "frontal", "lateral", "other" (known to be neither), or "" (nobody knows), which is not the same as other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .view_words import part_in_words, view_in_words

VIEWS = ("frontal", "lateral", "other")

# DICOM PS3.16 CID 4010 "DX View": SNOMED CT codes, and those of SNOMED RT (SRT, SNM3, 99SDM) that files still hold.
CODES = {
    "frontal": "399348003 R-10206 272479007 R-40888 R-10214 399033003 R-10202",
    "lateral": "399198007 R-10232 399173006 R-10236 399067008 R-102CD 399352003 R-10228 399260004 R-10224",
    "other": "399038007 R-10210 399225005 R-10250 399059000 R-10216 399061009 R-10241 399110001 R-102C2 399162004 "
    "R-10242 399099002 R-10230 399288005 R-10248 399135007 R-10220 260427002 R-40783 399236003 R-10234 399368009 "
    "R-10226 399196006 R-10244 399356000 R-40985 399312000 R-10208 399184004 R-10238 399182000 R-102C1 260426006 "
    "R-40782 399132005 R-10252 399325008 R-10254 399160007 R-10204 399004004 R-10246 399006002 R-10212",
}
VIEW_OF_CODE = {code: view for view, codes in CODES.items() for code in codes.split()}
PROSE = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
PART_WORDS = ("BodyPartExamined", "AnatomicRegionSequence", *PROSE)
TAGS = ("ViewPosition", "ViewCodeSequence", "PatientOrientation", *PART_WORDS)


@dataclass(frozen=True)
class HeaderView:
    """What a DICOM header says of view and body part; all words are of closed lists.

    Attributes:
        view: "frontal", "lateral", "other", or "" where it does not say.
        view_element: keyword of the element that says so, or "".
        contradiction: elements that name a view contradict each other; the first of them is believed.
        part: "chest", "other", "unknown" (a word that no list holds), or "".
        part_word: the word of the lists, or "".
        part_element: keyword of the element that says so, or "".
    """

    view: str = ""
    view_element: str = ""
    contradiction: bool = False
    part: str = ""
    part_word: str = ""
    part_element: str = ""


@dataclass(frozen=True)
class ChestView:
    """Which way a radiograph looks.

    Attributes:
        name: "frontal", "lateral", "other" (another projection, or no chest radiograph), or "" where neither the header
            says nor the pixels are sure.
        evidence: "header", "pixels", or "" for no name.
        probability: what the pixels give to ``name``, 0..1, or to the likeliest view if there is no name; None where
            they were not looked at (contour methods other than "network").
        flags: "view_contradiction": header and pixels name different views, and the header is believed;
            "view_unsure": neither is sure.
    """

    name: str = ""
    evidence: str = ""
    probability: float | None = None
    flags: tuple[str, ...] = ()


def judge_view(named: str, chances: Sequence[float] | None, sure: Sequence[float]) -> ChestView:
    """Header and pixels together.

    Args:
        named: the view by the header, or "".
        chances: of frontal, lateral and other, by the pixels; None where they were not looked at.
        sure: chances from which the pixels are believed, in the same order.
    """
    if chances is None:
        return ChestView(named, "header" if named else "")
    best = max(range(len(VIEWS)), key=lambda place: chances[place])
    likely, chance = VIEWS[best], float(chances[best])
    if named:
        flags = ("view_contradiction",) if likely != named and chance >= sure[best] else ()
        return ChestView(named, "header", round(float(chances[VIEWS.index(named)]), 4), flags)
    if chance >= sure[best]:
        return ChestView(likely, "pixels", round(chance, 4))
    return ChestView("", "", round(chance, 4), ("view_unsure",))


def header_view(dataset) -> HeaderView:
    """View and body part by a header (pydicom ``Dataset``), whatever it holds.

    View, first come first believed: ViewCodeSequence, ViewPosition, PatientOrientation (rows or columns towards A or P:
    lateral, PS3.3 C.7.6.1.1.1), then descriptions that name one view. Body part: BodyPartExamined,
    AnatomicRegionSequence; after an unknown word, and of descriptions, only a chest is believed.
    """
    said = [
        ("ViewCodeSequence", _coded_view(dataset)),
        ("ViewPosition", view_in_words(_text(dataset, "ViewPosition"))),
        ("PatientOrientation", _projection(dataset.get("PatientOrientation"))),
        *((name, view_in_words(_text(dataset, name), prose=True)) for name in PROSE),
    ]
    said = [(name, view) for name, view in said if view]
    element, view = said[0] if said else ("", "")
    firm = {view for name, view in said if name not in PROSE}
    part, word, where = "", "", ""
    for name in PART_WORDS:
        found, found_word = part_in_words(_text(dataset, name) or _meanings(dataset, name))
        if found == "chest" or (found and not part and name not in PROSE):  # prose: a hand may be one that holds
            part, word, where = found, found_word, name
        if part in ("chest", "other"):
            break
    return HeaderView(view, element, len(firm) > 1, part, word, where)


def _text(dataset, name: str) -> str:
    """An element as text, the values of several joined; "" for none, and for a sequence."""
    value = dataset.get(name)
    if isinstance(value, (str, bytes)):
        return value.decode("latin-1") if isinstance(value, bytes) else value
    if type(value).__name__ == "MultiValue":
        return " ".join(str(each) for each in value)
    return ""


def _items(dataset, name: str) -> list:
    value = dataset.get(name)
    return list(value) if type(value).__name__ == "Sequence" else []


def _meanings(dataset, name: str) -> str:
    return " ".join(_text(item, "CodeMeaning") for item in _items(dataset, name))


def _coded_view(dataset) -> str:
    for item in _items(dataset, "ViewCodeSequence"):
        view = VIEW_OF_CODE.get(_text(item, "CodeValue").strip().upper()) or view_in_words(_text(item, "CodeMeaning"))
        if view:
            return view
    return ""


def _projection(orientation) -> str:
    """The view by the directions of rows and columns; an axial plane says nothing of a radiograph."""
    if type(orientation).__name__ != "MultiValue" or len(orientation) != 2:
        return ""
    axes = {"L": "x", "R": "x", "A": "y", "P": "y", "H": "z", "F": "z"}
    plane = "".join(sorted(axes.get(str(axis).strip().upper()[:1], "") for axis in orientation))
    return {"xz": "frontal", "yz": "lateral"}.get(plane, "")
