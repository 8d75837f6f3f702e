"""DICOM headers mutated element by element: absent, empty, of another VR, too many values, out of range, words.

By hand: ``python tests/helpers/header_fuzz.py --count 20000`` tells what became of them, seconds and peak memory. The
files are read in a worker process with the caps of the readers' pool, so that one that crashes is counted.
"""

from __future__ import annotations

import argparse
import collections
import resource
import struct
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from xray_makers import dicom, lut_item, ramp

import hdxray_fast as hx
from hdxray_fast.data.reader_pool import Failed, call_in_order
from hdxray_fast.errors import UnforeseenReadError
from hdxray_fast.images.canvas import Limits
from hdxray_fast.images.dicom_header import TAGS

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, JPEG_2000, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
LIMITS = Limits(max_pixels=1_000_000, max_bytes=8_000_000)
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
VRS = ("AE", "AS", "AT", "CS", "DA", "DS", "FD", "FL", "IS", "LO", "OB", "OW", "PN", "SH", "SL", "SQ", "SS", "SV")
VRS += ("UC", "UI", "UL", "UN", "US", "UT", "UV", "ZZ", "??")
WORDS = (b"abc", b"1,5", b"1,024", b"NaN", b"inf", b"-0", b"0", b"1e400", b"1e308", b"1e-300", b"-99999999", b"0x10")
WORDS += (
    b"\\",
    b"\\\\",
    b"1\\",
    b"\\1",
    b"1\\2\\3",
    b"1.5",
    b"  ",
    b"\0\0",
    b"\xff\xfe",
    b"1_0",
    b"RGB",
    b"MONOCHROME1",
)
WORDS += (
    b"PALETTE COLOR",
    b"YBR_FULL_422",
    b"INVERSE",
    b"LOG",
    b"CT",
    b"RF",
    b"FOR PROCESSING",
    b"SIGMOID",
    b"2",
    b"3",
)
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 24, 25, 32, 255, 256, 4095, 32767, 32768, 65535)
PIXEL_DATA = 0x7FE00010


class Base:
    """A whole file, taken apart: [tag, VR, bytes or a list of items, which are such lists themselves]."""

    def __init__(self, path: Path, syntax: str, encapsulated: bytes | None = None) -> None:
        import pydicom

        self.syntax, self.implicit, self.order = syntax, syntax == IMPLICIT, ">" if syntax == BIG else "<"
        self.encapsulated = encapsulated
        dataset = pydicom.dcmread(path)
        self.elements = self._take(dataset)

    def _take(self, dataset) -> list:
        from pydicom.datadict import dictionary_VR

        taken = []
        for tag in sorted(dataset.keys()):
            raw = dataset.get_item(tag)
            vr = raw.VR or dictionary_VR(tag).partition(" ")[0]
            if vr == "SQ":
                taken.append([int(tag), vr, [self._take(item) for item in dataset[tag].value]])
            else:
                taken.append([int(tag), vr, self._plain(raw.value)])
        return taken

    def _plain(self, value) -> bytes:
        """Elements of items come converted where their VR is a matter of another element."""
        if isinstance(value, (bytes, type(None))):
            return value or b""
        if isinstance(value, str):
            return value.encode()
        numbers = [value] if isinstance(value, int) else list(value)
        return struct.pack(f"{self.order}{len(numbers)}H", *(number & 0xFFFF for number in numbers))

    def write(self, elements: list) -> bytes:
        uid = self.syntax.encode() + b"\0" * (len(self.syntax) % 2)
        meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
        meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta
        return bytes(128) + b"DICM" + meta + b"".join(self._element(*element) for element in elements)

    def _element(self, tag: int, vr: str, value) -> bytes:
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if tag == PIXEL_DATA and self.encapsulated is not None and value == self.encapsulated:
            return head + vr.encode() + b"\0\0\xff\xff\xff\xff" + value
        if isinstance(value, list):
            value = b"".join(self._item(item) for item in value)
        if self.implicit:
            return head + struct.pack("<I", len(value)) + value
        if vr in LONG:
            return head + vr.encode() + b"\0\0" + struct.pack(self.order + "I", len(value)) + value
        value = value[:65535]
        return head + vr.encode() + struct.pack(self.order + "H", len(value)) + value

    def _item(self, item: list) -> bytes:
        value = b"".join(self._element(*element) for element in item)
        return struct.pack(self.order + "HHI", 0xFFFE, 0xE000, len(value)) + value


def bases(folder: Path) -> dict[str, Base]:
    """Small files of every kind, with every element that changes how pixels are read."""
    import pydicom

    deep = ramp(40, 40, np.uint16, 4095)
    rich = {
        "BitsStored": 12,
        "WindowCenter": [1000, 2000],
        "WindowWidth": [500, 900],
        "VOILUTSequence": [lut_item(0, np.arange(256), 8)],
        "PixelPaddingValue": 0,
        "PixelPaddingRangeLimit": 3,
        "PixelSpacing": [0.2, 0.2],
        "RescaleSlope": "1.5",
        "RescaleIntercept": "-5",
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "PatientOrientation": ["L", "F"],
        "SpecificCharacterSet": "ISO_IR 100",
    }
    made = {}
    for name, syntax in {"implicit": IMPLICIT, "explicit": EXPLICIT, "big endian": BIG}.items():
        made[name] = Base(dicom(folder / "a.dcm", deep, syntax, **rich), syntax)
    table = {"ModalityLUTSequence": [lut_item(0, np.arange(4096), 12)], "Modality": "RF", "BitsStored": 12}
    made["signed, table"] = Base(dicom(folder / "a.dcm", deep.astype(np.int16), IMPLICIT, **table), IMPLICIT)
    raw = {**rich, "PresentationIntentType": "FOR PROCESSING"}
    made["raw"] = Base(dicom(folder / "a.dcm", deep, EXPLICIT, **raw), EXPLICIT)
    grey = ramp(40, 40)
    frames = dicom(folder / "a.dcm", np.stack([grey, grey // 2]), EXPLICIT, NumberOfFrames=2)
    made["two frames"] = Base(frames, EXPLICIT)
    colour = np.dstack([grey, 255 - grey, grey // 2])
    about = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    made["colour"] = Base(dicom(folder / "a.dcm", colour, EXPLICIT, **about), EXPLICIT)
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = (np.arange(256) * 257).astype("<u2").tobytes()
    made["palette"] = Base(dicom(folder / "a.dcm", grey, EXPLICIT, **palette), EXPLICIT)
    for name, syntax in {"JPEG 2000": JPEG_2000, "RLE": RLE}.items():
        dataset = pydicom.dcmread(dicom(folder / "a.dcm", deep, EXPLICIT, **rich))
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(folder / "a.dcm")
        made[name] = Base(folder / "a.dcm", syntax, pydicom.dcmread(folder / "a.dcm").PixelData + END)
    for name, pixels, header in (
        ("JPEG", grey, {}),
        ("JPEG colour", colour, {**about, "PhotometricInterpretation": "YBR_FULL"}),
    ):
        stream = cv2.imencode(".jpg", pixels)[1].tobytes()
        value = pydicom.encaps.encapsulate([stream])
        base = Base(dicom(folder / "a.dcm", pixels, EXPLICIT, **header), JPEG, value + END)
        base.elements[-1][1:] = ["OB", base.encapsulated]
        made[name] = base
    for base in made.values():
        if base.encapsulated is not None:
            base.elements[-1][2] = base.encapsulated
    return made


END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def mutate_value(vr: str, value: bytes, order: str, rng: np.random.Generator) -> tuple[str, bytes]:
    kind = rng.integers(8)
    if kind == 0:
        return vr, b""
    if kind == 1:  # another VR, the same bytes
        return str(rng.choice(VRS)), value
    if kind == 2:  # another VR, any bytes
        return str(rng.choice(VRS)), rng.bytes(int(rng.integers(0, 20)))
    if kind == 3:  # too many values
        return vr, value + value if vr in ("US", "SS", "OW", "OB") else value + b"\\" + value
    if kind == 4:
        return vr, WORDS[rng.integers(len(WORDS))]
    if kind == 5:
        return vr, WORDS[rng.integers(len(WORDS))] + b"\\" + WORDS[rng.integers(len(WORDS))]
    if kind == 6:  # one value or three, anywhere in the range
        many = int(rng.choice([1, 1, 1, 3]))
        return "US", b"".join(struct.pack(order + "H", NUMBERS[rng.integers(len(NUMBERS))]) for _ in range(many))
    number = str(NUMBERS[rng.integers(len(NUMBERS))] * int(rng.choice([-1, 1]))).encode()
    return "DS" if rng.integers(2) else vr, number


def mutate_header(base: Base, rng: np.random.Generator) -> tuple[bytes, list]:
    """A file with one to three elements changed, and which."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    elements = [[tag, vr, _copy(value)] for tag, vr, value in base.elements]
    changed = []
    for _ in range(rng.integers(1, 4)):
        if rng.integers(6) == 0:  # one that is not there, perhaps
            tag = int(tag_for_keyword(TAGS[rng.integers(len(TAGS))]))
            if all(tag != known for known, *_ in elements):
                elements.append([tag, dictionary_VR(tag).partition(" ")[0], b"1 "])
                elements.sort(key=lambda element: element[0])
        where = elements
        place = int(rng.integers(len(where)))
        while isinstance(where[place][2], list) and rng.integers(4) and where[place][2] and where[place][2][0]:
            where = where[place][2][0]  # inside of the item
            place = int(rng.integers(len(where)))
        tag, vr, value = where[place]
        if tag == PIXEL_DATA and rng.integers(4):
            continue
        if rng.integers(6) == 0:
            del where[place]
            changed.append((hex(tag), "absent"))
            if not elements:
                break
            continue
        plain = value if isinstance(value, bytes) else b"".join(base._item(item) for item in value)
        vr, new = mutate_value(vr, plain, base.order, rng)
        where[place][1:] = [vr, new]
        changed.append((hex(tag), vr, new[:24]))
    return base.write(elements), changed


def _copy(value):
    return value if isinstance(value, bytes) else [[[t, v, _copy(x)] for t, v, x in item] for item in value]


def survive(path: Path, made: dict[str, Base], numbers: Iterable[int], seed: int) -> tuple[collections.Counter, list]:
    """Read mutated files, one for each number: what became of them, and those that ended where nobody foresaw it."""
    fates, bugs = collections.Counter(), []
    names = list(made)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        name = names[number % len(names)]
        data, changed = mutate_header(made[name], rng)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # NumPy's: a number that became none
                frame = 0 if rng.integers(2) else None
                canvas = hx.read_canvas(path, size=32, any_modality=True, frame=frame, limits=LIMITS)
            fates["canvas, flagged" if set(canvas.provenance["flags"]) else "canvas"] += 1
        except UnforeseenReadError as error:
            bugs.append((number, name, changed, error.reason))
            fates["unforeseen"] += 1
        except hx.HDXrayError as error:
            fates[type(error).__name__] += 1
        except Exception as error:
            bugs.append((number, name, changed, repr(error)))
            fates["bare"] += 1
    return fates, bugs


def survive_some(folder: str, numbers: range, seed: int) -> tuple[collections.Counter, list, int]:
    """:func:`survive` in a process of its own; the last is its peak memory in KiB."""
    folder = Path(folder)
    found = survive(folder / f"{numbers.start}.dcm", bases(folder), numbers, seed)
    return *found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    import header_fuzz  # by name, for the worker processes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    fates, bugs, peak, dead, began = collections.Counter(), [], 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chunks = [range(start, min(start + 500, asked.count)) for start in range(0, asked.count, 500)]
        jobs = [(folder, numbers, asked.seed) for numbers in chunks]
        for found in call_in_order(header_fuzz.survive_some, jobs, workers=1, timeout=600):
            if isinstance(found, Failed):
                dead += 1
                print(found.reason)
                continue
            fates, bugs, peak = fates + found[0], bugs + found[1], max(peak, found[2])
    for bug in bugs[:40]:
        print(*bug)
    print(f"{asked.count} headers in {time.monotonic() - began:.0f} s, peak memory {peak / 1024:.0f} MiB")
    print(f"{len(bugs)} unforeseen or bare exceptions, {dead} dead workers; {dict(fates.most_common())}")


if __name__ == "__main__":
    main()
