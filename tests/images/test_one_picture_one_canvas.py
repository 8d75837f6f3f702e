"""The same stored pixels through every encoding that DICOM has, under every header that means the same: one canvas.

The same files are drawn each time; ``HDXRAY_EXAMPLES=2000`` draws so many new ones.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from codestream_makers import htj2k, jpeg_2000, jpeg_colour, jpeg_lossless, jpeg_ls, rle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from xray_makers import dicom, lut_item, thorax

import hdxray_fast as hx

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openjpeg")
pytest.importorskip("libjpeg")

EXAMPLES = int(os.environ.get("HDXRAY_EXAMPLES", "100"))
drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HDXRAY_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = {"implicit": IMPLICIT, "explicit": EXPLICIT, "big endian": BIG, "deflated": "1.2.840.10008.1.2.1.99"}
COMPRESSED = {
    "rle": "1.2.840.10008.1.2.5",
    "jpeg lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg 2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
}


@dataclass
class Picture:
    """Stored values, and what of the header says how they are to be shown."""

    values: np.ndarray  # [H, W] int
    bits: int
    signed: bool
    elements: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)  # sequence: (first, entries, depth, packed)
    unmatched: dict = field(default_factory=dict)  # padding that the stored bits cannot hold

    def patterns(self, above: str) -> np.ndarray:
        """[H, W] uint16 of which the lower bits hold the values, and those above nothing, the sign, or an overlay."""
        clean = (self.values & ((1 << self.bits) - 1)).astype(np.uint16)
        if above == "sign":
            return (self.values & 0xFFFF).astype(np.uint16)
        if above == "overlay" and self.bits < 16:
            rows, columns = np.indices(clean.shape)
            ring = np.abs(np.hypot(rows - 12, columns - 11) - 9) < 1.5  # a circle drawn round a finding
            return clean | (ring.astype(np.uint16) << (15 if self.bits == 15 else self.bits + 1))
        return clean

    def header(self, order: str, depths: str) -> dict:
        """Elements; ``depths`` says whether the tables' descriptors tell the truth."""
        sequences = {}
        for name, (first, entries, depth, packed) in self.tables.items():
            said = depth if depths == "right" or name == "ModalityLUTSequence" else 16 if depths == "too deep" else 8
            sequences[name] = [lut_item(first, entries, said, order, packed)]
        sign = {"BitsStored": self.bits, "HighBit": self.bits - 1, "PixelRepresentation": int(self.signed)}
        return {"BodyPartExamined": None, **sign, **self.elements, **sequences}


def pad_elements(elements: dict, signed: bool, value: int, limit: int | None) -> None:
    for name, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if number is not None:
            elements[name] = pydicom.DataElement(name, "SS" if signed else "US", number)


@st.composite
def pictures(draw) -> Picture:
    bits, signed = draw(st.sampled_from([8, 10, 12, 14, 16])), draw(st.booleans())
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    rows, columns = draw(st.sampled_from([(32, 32), (41, 33), (32, 40)]))
    shape = cv2.resize(thorax(), (columns, rows), interpolation=cv2.INTER_AREA) / 255.0
    low, high = draw(st.sampled_from([(0.0, 1.0), (0.1, 0.9), (0.0, 0.4), (0.3, 0.95)]))
    span = highest - lowest
    values = np.rint(lowest + span * (low + (high - low) * shape / shape.max())).astype(np.int64)
    picture = Picture(values, bits, signed)
    elements = picture.elements
    elements["PhotometricInterpretation"] = draw(st.sampled_from(["MONOCHROME2", "MONOCHROME1"]))
    padding = draw(st.sampled_from(["none", "value", "range", "outside", "range outside"]))
    if padding in ("value", "range"):
        values[:, :4] = lowest
        values[:2, :4] += padding == "range"
        pad_elements(elements, signed, lowest, lowest + 1 if padding == "range" else None)
    elif padding != "none" and bits < 16:
        outside = lowest - 300 if signed else 65536 - 2000  # the latter's lower bits are those of a stored value
        pad_elements(picture.unmatched, signed, outside, outside + 200 if padding == "range outside" else None)
    modality = draw(st.sampled_from(["none", "rescale", "table"]))
    if modality == "table" and bits <= 12:
        picture.tables["ModalityLUTSequence"] = (lowest, np.arange(1 << bits) * (65535 >> bits), 16, False)
        low_unit, high_unit = 0.0, 65535.0
    elif modality == "rescale":
        elements["RescaleSlope"], elements["RescaleIntercept"] = 2, -100
        low_unit, high_unit = 2.0 * lowest - 100, 2.0 * highest - 100
    else:
        low_unit, high_unit = float(lowest), float(highest)
    voi = draw(st.sampled_from(["none", "window", "table", "packed table"]))
    if voi == "window":
        elements["WindowCenter"] = (low_unit + high_unit) / 2
        elements["WindowWidth"] = (high_unit - low_unit) * draw(st.sampled_from([0.5, 1.0]))
        elements["VOILUTFunction"] = draw(st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    elif voi.endswith("table") and modality == "none" and bits <= 14:
        depth = 8 if voi == "packed table" else draw(st.sampled_from([10, 12]))
        curve = np.linspace(0, 1, 1 << bits) ** draw(st.sampled_from([0.7, 1.0, 1.6]))
        entries = np.rint(curve * ((1 << depth) - 1)).astype(np.int64)
        picture.tables["VOILUTSequence"] = (lowest, entries, depth, voi == "packed table")
    return picture


@st.composite
def encodings(draw) -> dict:
    name = draw(st.sampled_from([*NATIVE, *COMPRESSED]))
    return {
        "name": name,
        "above": draw(st.sampled_from(["zero", "sign", "overlay"])),  # High Bit
        "whole words": draw(st.booleans()),  # the encoder was given 16 bits, whatever Bits Stored
        "stream signed": draw(st.booleans()),
        "allocated": draw(st.sampled_from([16, 16, 8])),  # 8 where the values fit
        "shifted": draw(st.booleans()) if name in NATIVE or name == "rle" else False,
        "tail": draw(st.sampled_from([0, 0, 3, 64])),  # zero bytes after the codestream's end
        "unmatched padding": draw(st.booleans()),
        "depths": draw(st.sampled_from(["right", "right", "too deep", "too shallow"])),
        "missing": draw(st.sampled_from([(), (), ("SamplesPerPixel",), ("PixelRepresentation",), ("HighBit",)])),
    }


def write(path: Path, picture: Picture, encoding: dict) -> Path | None:
    """The picture in this encoding; None where there is no encoder, or no such combination."""
    name, bits = encoding["name"], picture.bits
    patterns = picture.patterns(encoding["above"])
    elements = picture.header(">" if name == "big endian" else "<", encoding["depths"])
    elements |= picture.unmatched if encoding["unmatched padding"] else {}
    shift = 0
    if encoding["shifted"] and bits < 16 and encoding["allocated"] == 16:
        shift = 16 - bits
        patterns, elements["HighBit"] = patterns << shift | 5 % (1 << shift), 15
    if encoding["allocated"] == 8 and bits == 8:
        patterns = patterns.astype(np.uint8)
    for element in encoding["missing"]:
        if not (element == "PixelRepresentation" and picture.signed) and not (element == "HighBit" and shift):
            elements[element] = None
    codestream, syntax = None, NATIVE.get(name) or COMPRESSED[name]
    depth = 8 * patterns.dtype.itemsize if encoding["whole words"] else bits
    values = patterns & ((1 << depth) - 1)
    if name == "rle":
        codestream = rle(patterns)
    elif name == "jpeg lossless":
        codestream = jpeg_lossless(values, depth)
    elif name == "jpeg-ls":
        codestream = jpeg_ls(values, depth)
    elif name == "jpeg 2000":
        signed = encoding["stream signed"]
        extended = values.astype(np.int32) - ((values >> (depth - 1)).astype(np.int32) << depth) if signed else values
        codestream = jpeg_2000(extended.astype(patterns.dtype), depth, signed)
    elif name == "htj2k":
        codestream = htj2k(patterns)
        if codestream is None:
            return None
    if codestream:
        codestream += b"\0" * (encoding["tail"] if name != "rle" else 0)
    return dicom(path, patterns, syntax, codestream, **elements)


PLAIN = {"name": "explicit", "above": "zero", "whole words": False, "stream signed": False, "allocated": 16}
PLAIN |= {"shifted": False, "tail": 0, "unmatched padding": False, "depths": "right", "missing": ()}
READ = st.sampled_from([{}, {"window": "full"}, {"window": "minmax"}, {"bits": 16}, {"prefer": "window"}])


def contradictions(picture: Picture, encoding: dict, options: dict) -> set[str]:
    """The flags that name what is contradictory about the file; it is settled, so that the canvas is the same."""
    found = set()
    stream_signed = {"jpeg 2000": encoding["stream signed"], "htj2k": False}.get(encoding["name"], picture.signed)
    if stream_signed != picture.signed:
        found.add("codestream_sign_differs")
    if encoding["unmatched padding"] and picture.unmatched:
        found.add("padding_unusable")
    depth = picture.tables.get("VOILUTSequence", (0, 0, 0, 0))[2]
    said = {"right": depth, "too deep": 16, "too shallow": 8}[encoding["depths"]]
    if depth not in (0, said) and "window" not in options:
        found.add("lut_depth_differs")
    return found


@given(picture=pictures(), encoding=encodings(), options=READ)
@drawn
def test_one_canvas(tmp_path, picture, encoding, options):
    path = write(tmp_path / "again.dcm", picture, encoding)
    if path is None:
        return
    reference = hx.read_canvas(write(tmp_path / "plain.dcm", picture, PLAIN), size=32, pixel_hash="full", **options)
    canvas = hx.read_canvas(path, size=32, pixel_hash="full", **options)
    assert np.array_equal(canvas.pixels, reference.pixels)
    assert canvas.provenance["pixel_sha256"] == reference.provenance["pixel_sha256"]
    named = {"codestream_bits_differ", "codestream_sign_differs", "padding_unusable", "lut_depth_differs"}
    assert named & set(canvas.provenance["flags"]) == contradictions(picture, encoding, options)


def relabelled(path: Path, syntax: str, padding: int) -> Path:
    """The same file with another transfer syntax in its meta header, and DataSetTrailingPadding at its end."""
    data = path.read_bytes()
    at = data.index(b"\x02\0\x10\0UI")
    end = at + 8 + struct.unpack_from("<H", data, at + 6)[0]
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    data = data[:at] + b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid + data[end:]
    group = struct.unpack_from("<I", data, 140)[0] + 8 + len(uid) - (end - at)
    header = b"\xfc\xff\xfc\xff" + (b"OB\0\0" if syntax == IMPLICIT else b"")  # as the data are encoded, not the meta
    tail = header + struct.pack("<I", padding) + bytes(padding) if padding else b""
    path.write_bytes(data[:140] + struct.pack("<I", group) + data[144:] + tail)
    return path


@given(picture=pictures(), name=st.sampled_from(["implicit", "explicit"]), padding=st.sampled_from([0, 2, 126]))
@settings(drawn, phases=[Phase.generate])
def test_one_canvas_whatever_the_meta_header_names(tmp_path, picture, name, padding):
    reference = hx.read_canvas(write(tmp_path / "plain.dcm", picture, PLAIN), size=32)
    path = write(tmp_path / "again.dcm", picture, PLAIN | {"name": name})
    relabelled(path, EXPLICIT if name == "implicit" else IMPLICIT, padding)
    assert np.array_equal(hx.read_canvas(path, size=32).pixels, reference.pixels)


@given(
    stored=st.sampled_from(["rgb", "ycbcr"]),
    marked=st.booleans(),
    jfif=st.booleans(),
    names=st.sampled_from([b"\1\2\3", b"\0\1\2", b"RGB"]),
    header=st.sampled_from(["RGB", "YBR_FULL", "YBR_FULL_422"]),
    tint=st.integers(-12, 12),
)
@drawn
def test_one_canvas_of_a_grey_picture_in_colour(tmp_path, stored, marked, jfif, names, header, tint):
    grey = thorax(64, 56).astype(int)
    rgb = np.clip(np.dstack([grey + tint // 4, grey, grey - tint // 4]), 0, 255).astype(np.uint8)
    reference = hx.read_canvas(rgb, size=64)
    samples = rgb if stored == "rgb" else cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    if names == b"RGB" and stored != "rgb":
        names = b"\1\2\3"
    marker = "" if not marked else "adobe rgb" if stored == "rgb" else "jfif" if jfif else "adobe ycbcr"
    stream = jpeg_colour(np.ascontiguousarray(samples), marker, names)
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": header}
    path = dicom(tmp_path / "a.dcm", rgb, "1.2.840.10008.1.2.4.50", stream, **colour)
    canvas = hx.read_canvas(path, size=64)
    assert np.abs(canvas.pixels.astype(int) - reference.pixels).max() <= 12  # grey levels; the JPEG has its share
    differs = (header == "RGB") != (stored == "rgb")
    assert ("codestream_colour_differs" in canvas.provenance["flags"]) == differs
