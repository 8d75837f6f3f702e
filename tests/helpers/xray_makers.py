"""Files with known pixels for the canvas tests: small pictures in every format, and DICOM with any header."""

from __future__ import annotations

import base64
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np

# 24 x 16, made from a grey ramp through RGB with Pillow; Adobe marker, inverted inks
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4LCxAWEBETFBUVFQwPFxgWFBgS"
    "FBUU/8AAFAgAEAAYBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAE"
    "EQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6"
    "g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkA"
    "SwAAPwD4U074B3nm/dkr4U074B3nm/dkr4U074B3nm/dkr9U67XR/gHefL8sldro/wAA7z5flkrtdH+Ad58vyyUV2unfAO88r7sldrp3wDvPK+7J"
    "Xa6d8A7zyvuyUV9r6d8A7Pzfux19r6d8A7Pzfux19r6d8A7Pzfux0V2mj/AOz+X5Y67TR/gHZ/L8sddpo/wDs/l+WOiu1074B2flfdjrtdO+Adn5"
    "X3Y67XTvgHZ+V92Oiv/Z"
)
# what must never leave a file: planted into every DICOM made here
PATIENT = {
    "PatientName": "Sentinel^Planted",
    "PatientID": "SENTINEL-4711",
    "PatientBirthDate": "19330303",
    "AccessionNumber": "SENTINELACC",
    "StudyDate": "20330404",
    "StudyTime": "131415",
    "InstitutionName": "Sentinel Hospital",
    "ReferringPhysicianName": "Sentinel^Doctor",
    "StudyInstanceUID": "1.2.826.0.1.99887766",
    "SOPInstanceUID": "1.2.826.0.1.99887767",
    "ImageComments": "sentinel comment",
}
PLANTED = ("sentinel", "4711", "19330303", "20330404", "131415", "99887766", "99887767")


def ramp(height: int = 48, width: int = 64, dtype=np.uint8, top: int | None = None) -> np.ndarray:
    """A diagonal ramp from 0 to ``top``: every orientation and polarity of it looks different."""
    top = np.iinfo(dtype).max if top is None else top
    y, x = np.mgrid[0:height, 0:width].astype(float)
    return np.rint((x / (width - 1) * 2 + y / (height - 1)) / 3 * top).astype(dtype)


def thorax(height: int = 200, width: int = 180) -> np.ndarray:
    """Something with a dense middle, two lungs and black corners: uint8, the right way round."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    body = 150.0 * (np.abs(x - 0.5) < 0.46) * (y > 0.1)
    lungs = sum(np.exp(-(((x - c) / 0.13) ** 2 + ((y - 0.45) / 0.25) ** 2)) for c in (0.29, 0.71))
    middle = 80.0 * np.exp(-(((x - 0.5) / 0.08) ** 2))
    return np.clip(body - 110 * lungs + middle * (y > 0.1) + 3 * np.sin(40 * x + 31 * y) + 6, 0, 255).astype(np.uint8)


def encode(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done
    return data.tobytes()


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, scanlines: bytes, colour: int = 0, bits: int = 8, extra: bytes = b"") -> bytes:
    """A PNG written by hand: any header, any extra chunks (they come before the data)."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + png_chunk(b"IEND", b"")


def scanlines(rows: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in rows)


def exif(orientation: int) -> bytes:
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0)


def with_jpeg_exif(data: bytes, orientation: int) -> bytes:
    payload = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def tiff(
    pixels: np.ndarray | list[np.ndarray],
    photometric: int = 1,
    orientation: int = 1,
    compression: int = 1,
    declared: tuple[int, int] | None = None,
) -> bytes:
    """An uncompressed (1) or deflated (8) little-endian TIFF, one strip per page; ``declared`` lies about the size."""
    pages = pixels if isinstance(pixels, list) else [pixels]
    out = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for number, page in enumerate(pages):
        payload = page.tobytes() if compression == 1 else zlib.compress(page.tobytes())
        width, height = declared or (page.shape[1], page.shape[0])
        samples = 1 if page.ndim == 2 else page.shape[2]
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        tags = [(256, 4, width), (257, 4, height), (258, 3, 8 * page.dtype.itemsize), (259, 3, compression)]
        tags += [(262, 3, photometric), (273, 4, 0), (274, 3, orientation), (277, 3, samples), (278, 4, height)]
        tags += [(279, 4, len(payload)), (339, 3, kind)]
        if samples > 1:  # one value per sample does not fit: keep it to formats whose depth is in 4 bytes
            raise ValueError("grey pages only")
        start = len(out)
        data_at = start + 2 + 12 * len(tags) + 4
        after = data_at + len(payload)
        out += struct.pack("<H", len(tags))
        for tag, code, value in tags:
            value = data_at if tag == 273 else value
            out += struct.pack("<HHI", tag, code, 1) + struct.pack(
                "<I" if code == 4 else "<HH", *([value] if code == 4 else [value, 0])
            )
        out += struct.pack("<I", after if number + 1 < len(pages) else 0) + payload
    return bytes(out)


def dicom(
    path: Path,
    pixels: np.ndarray,
    transfer_syntax: str = "1.2.840.10008.1.2.1",
    codestream: bytes | None = None,
    **elements,
) -> Path:
    """A chest radiograph in DICOM with planted patient data; ``None`` removes an element.

    ``pixels``: [H, W], [N, H, W] with NumberOfFrames, or [H, W, 3] with SamplesPerPixel=3; ``codestream`` goes into the
    file in their place, encapsulated.
    """
    import pydicom
    import pydicom.encaps
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = PATIENT["SOPInstanceUID"]
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = "1.2.826.0.1.1"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    frames_first = "NumberOfFrames" in elements
    settings = {
        **PATIENT,
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PresentationIntentType": "FOR PRESENTATION",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": pixels.shape[1] if frames_first else pixels.shape[0],
        "Columns": pixels.shape[2] if frames_first else pixels.shape[1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **elements,
    }
    settings.setdefault("HighBit", settings["BitsStored"] - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the values are wrong on purpose
        for name, value in settings.items():
            if isinstance(value, pydicom.DataElement):  # with a VR of its own
                dataset.add(value)
            elif value is not None:
                setattr(dataset, name, value)
    big = transfer_syntax == "1.2.840.10008.1.2.2"
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    if codestream is None:
        dataset.add_new("PixelData", "OW" if pixels.dtype.itemsize > 1 else "OB", raw + b"\0" * (len(raw) % 2))
    else:
        dataset.add_new("PixelData", "OB", pydicom.encaps.encapsulate([codestream]))
        dataset["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(
        str(path),
        dataset,
        enforce_file_format=True,
        implicit_vr=transfer_syntax == "1.2.840.10008.1.2",
        little_endian=not big,
    )
    return path


def lut_item(first: int, entries: np.ndarray, bits: int, order: str = "<", packed: bool = False):
    """One item of a Modality or VOI LUT Sequence; ``order`` of bytes in its words, each two 8-bit entries if packed."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first & 0xFFFF, bits])
    if packed:
        entries = np.frombuffer(entries.astype(np.uint8).tobytes() + b"\0" * (len(entries) % 2), "<u2")
    item.add_new("LUTData", "OW", entries.astype(order + "u2").tobytes())
    item.add_new("ModalityLUTType", "LO", "US")
    return item


def pydicom_file(name: str) -> str:
    """A file that comes with pydicom or pydicom-data; the test skips where it does not."""
    import pytest

    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} comes with the package pydicom-data, which is not installed")
    return found
