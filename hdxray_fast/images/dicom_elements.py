"""Elements of a DICOM header made to be what the standard says they are, before anybody reads them.

Hospitals write decimal commas, words where numbers belong, another VR than the dictionary's, too many values or none.
What can only mean one thing is read as that; anything else counts as absent, so that the element's default is taken.
Both are kept in mind by the element's name. Source: DICOM PS3.5 6.2 (value representations), PS3.6 (dictionary).
"""

from __future__ import annotations

import functools
import math
import re
import struct
from dataclasses import dataclass, field

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# one comma, and no thousands: those would be one to three digits before it and three after
DECIMAL_COMMA = re.compile(r"[+-]?(0+,\d+|\d+,(\d{1,2}|\d{4,})|\d{4,},\d+)")
TEXT = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
BYTES = ("OB", "OW", "OD", "OF", "OL", "OV")
LIMITED = {  # elements of which the standard knows few values, and no reader can do with others
    "PixelRepresentation": (0, 1),
    "PlanarConfiguration": (0, 1),
    "SamplesPerPixel": (1, 3),
    "PixelIntensityRelationshipSign": (1, -1),
}
LUT_DESCRIPTOR, LUT_DATA = 0x00283002, 0x00283006


@dataclass
class Repairs:
    """Names of elements (of the dictionary, no values).

    Attributes:
        read: they are written against the standard, and were read as what they can only mean.
        unusable: they hold nothing that their kind can be; their defaults were taken.
    """

    read: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def flags(self) -> list[str]:
        flags = ["element_repaired"] if self.read else []
        return flags + (["element_unusable"] if self.unusable else [])


@dataclass(frozen=True)
class _Kind:
    name: str
    vrs: tuple[str, ...]  # what the dictionary allows
    single: bool
    count: int  # of values, 0 for any


@functools.cache
def _kind(tag: int) -> _Kind | None:
    from pydicom.datadict import dictionary_keyword, dictionary_VM, dictionary_VR

    try:
        vm = dictionary_VM(tag)
        return _Kind(
            dictionary_keyword(tag),
            tuple(dictionary_VR(tag).split(" or ")),
            vm == "1",
            int(vm) if vm.isdigit() else 0,
        )
    except KeyError:  # private, or newer than the dictionary
        return None


def repair(dataset, repairs: Repairs | None = None) -> Repairs:
    """Put every element of a data set right, in place; empty ones are removed, as absent ones mean the same.

    Args:
        dataset: pydicom Dataset as it was parsed, its elements not yet converted.
        repairs: where to note what was found.
    """
    repairs = Repairs() if repairs is None else repairs
    for element in list(dataset.values()):  # as they were parsed, not converted
        kind = _kind(int(element.tag))
        if kind is None:
            continue
        if element.VR == "SQ" and not isinstance(element.value, (bytes, type(None))):
            usable = "SQ" in kind.vrs and _repair_items(element.value, repairs)
        elif not element.value:
            usable = None
        elif not isinstance(element.value, bytes):  # converted by the parser, or put there by this package
            continue
        elif "SQ" in kind.vrs:
            usable = _sequence(dataset, element, repairs)
        elif kind.vrs[0] in ("DS", "IS"):
            usable = _decimals(dataset, element, kind, repairs)
        elif set(kind.vrs) <= {"US", "SS"}:
            usable = _integers(dataset, element, kind, repairs)
        else:
            usable = _as_dictionary(dataset, element, kind, repairs)
        if not usable:
            del dataset[element.tag]
            if usable is False:
                repairs.unusable.append(kind.name)
    return repairs


def _repair_items(items, repairs: Repairs) -> bool:
    for item in items:
        repair(item, repairs)
        if LUT_DATA in item and LUT_DESCRIPTOR not in item:  # pydicom cannot even look at data without their descriptor
            del item[LUT_DATA]
            repairs.unusable.append("LUTDescriptor")
    return True


def _sequence(dataset, element, repairs: Repairs) -> bool:
    if element.VR not in ("SQ", "UN", None):
        return False
    try:
        return _repair_items(dataset[element.tag].value, repairs)
    except Exception:  # bytes that are no items: the parser stumbles in many ways
        return False


def _as_dictionary(dataset, element, kind: _Kind, repairs: Repairs) -> bool:
    """Words and bytes: nearly any bytes can be read as the VR that the dictionary has."""
    known = element.VR is None or element.VR in kind.vrs
    words = kind.vrs[0] in TEXT
    if known and not (element.VR in ("US", "SS") and len(element.value) % 2):
        return True
    if words and element.VR in (*BINARY, "AT", "SQ"):
        return False  # numbers in place of a word
    dataset[element.tag] = element._replace(VR=kind.vrs[0] if words else kind.vrs[-1])
    repairs.read.append(kind.name)
    return True


def _values(element, kind: _Kind) -> list | None:
    """Strings or numbers, as the element's own VR has them; None where that has neither."""
    vr = element.VR
    if vr is None or (vr not in TEXT and vr not in BINARY and vr not in BYTES and vr != "SQ"):
        vr = kind.vrs[0]  # implicit, unknown (UN) or no VR at all
    if vr in TEXT:
        return element.value.decode("latin-1").strip(" \0").split("\\")
    if vr in BINARY:
        code = BINARY[vr]
        size = struct.calcsize("=" + code)
        if len(element.value) % size == 0:
            order = "<" if element.is_little_endian else ">"
            return list(struct.unpack(f"{order}{len(element.value) // size}{code}", element.value))
    return None


def _number(value) -> tuple[float, bool]:
    """A string or number as a number, NaN if it is none; and whether it is written as the standard wants."""
    if isinstance(value, str):
        value = value.strip(" \0")
        plain = NUMBER.fullmatch(value) is not None
        if not plain and not DECIMAL_COMMA.fullmatch(value):
            return math.nan, True
        number = float(value.replace(",", "."))
    else:
        plain, number = True, float(value)
    return (number, plain) if math.isfinite(number) else (math.nan, True)


def _single(numbers: list[float]) -> list[float]:
    """One value where one belongs: several that are equal are one."""
    return numbers[:1] if len(set(numbers)) == 1 else [math.nan]


def _decimals(dataset, element, kind: _Kind, repairs: Repairs) -> bool | None:
    values = _values(element, kind)
    if values is None:
        return False
    plain = element.VR in (*kind.vrs, "DS", "IS", None)
    while len(values) > 1 and isinstance(values[-1], str) and not values[-1].strip(" \0"):
        values.pop()  # a backslash at the end separates nothing
        plain = False
    if values == [""]:
        return None
    read = [_number(value) for value in values]
    numbers = [number for number, _ in read]
    plain = plain and all(good for _, good in read)
    if kind.single and len(numbers) > 1:
        numbers, plain = _single(numbers), False
    if kind.name == "NumberOfFrames" and not (numbers[0] >= 1 and numbers[0] == int(numbers[0])):
        return False
    if any(math.isnan(number) for number in numbers):
        if kind.single:
            return False
        # a pair that lost one number, or one window of several: the place is kept, so that the others keep theirs
        repairs.unusable.append(kind.name)
    elif plain and (kind.vrs[0] == "DS" or all(number == int(number) for number in numbers)):
        return True
    else:
        repairs.read.append(kind.name)
    dataset.add_new(element.tag, "DS", numbers if len(numbers) > 1 else numbers[0])
    return True


def _integers(dataset, element, kind: _Kind, repairs: Repairs) -> bool:
    values = _values(element, kind)
    if not values:
        return False
    plain = element.VR in (*kind.vrs, None)
    read = [_number(value) for value in values]
    numbers = [number for number, _ in read]
    if kind.single and len(numbers) > 1:
        numbers, plain = _single(numbers), False
    if kind.count > 1 and len(numbers) != kind.count:
        return False
    if not all(-32768 <= number <= 65535 and number == int(number) for number in numbers):
        return False
    if numbers[0] not in LIMITED.get(kind.name, numbers):
        return False
    if plain:
        return True
    whole = [int(number) for number in numbers]
    dataset.add_new(element.tag, "SS" if min(whole) < 0 else "US", whole if len(whole) > 1 else whole[0])
    repairs.read.append(kind.name)
    return True
