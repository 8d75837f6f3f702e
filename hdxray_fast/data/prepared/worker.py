"""One source to one row: canvas, contour, filters, encoded pixels. Runs in worker processes; never raises."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ...errors import HDXrayError, ImageReadError, OtherModalityError
from ...images.canvas import Canvas, Limits, read_canvas
from ...images.contour import Contour, find_contour
from ...images.perceptual_hash import equalised_thumbnail, perceptual_hash
from ...images.standardise import standardisation
from ..reader_pool import DIED, OUT_OF_MEMORY
from .archives import is_archive
from .sources import Source, as_file

PATCH = 16  # side of a patch of the stored inside grid, pixels
OK, UNREADABLE, FILTERED = "ok", "unreadable", "filtered"
# What a Python caller could do, which nobody can who runs prepare
ADVICE = re.compile(r"(; pass force=|[.;] if this is expected, pass ).*", re.I | re.S)
FRAMES = re.compile(r"; choose one with frame=.*", re.S)


@dataclass
class Row:
    """What becomes of a source.

    Attributes:
        source: name, as the user gave it.
        status: ``"ok"``, ``"unreadable"`` or ``"filtered"``.
        reason: why it is not ok; never text out of a file's header.
        data: encoded pixels.
        facts: columns of the index, see ``shards.schema``.
        seconds: that it took, in the worker.
        error: kind of the error that the reason tells of.
    """

    source: str
    status: str
    reason: str = ""
    data: bytes = b""
    facts: dict = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def prepare_source(source: Source, recipe: dict, key: bytes | None, path: str | None = None) -> Row:
    """Read, look, filter and encode one source.

    Args:
        source: what to read; its ``patient``, if any, is hashed already.
        recipe: of :meth:`hdxray_fast.data.prepared.config.PrepareConfig.recipe`.
        key: secret for the patient's hash; without one no patient is looked for.
        path: a file with the source's bytes, if they are unpacked already.
    """
    began = time.monotonic()
    try:
        row = read(source, recipe, key, path)
    except OtherModalityError as error:
        row = Row(source.name, FILTERED, error.reason.partition(";")[0], error=type(error).__name__)
    except HDXrayError as error:
        reason = ADVICE.sub("", getattr(error, "reason", str(error)))
        reason = FRAMES.sub("; only files of a single frame are read", reason)
        row = unreadable(source, type(error).__name__, reason)
    except MemoryError:
        row = unreadable(source, *OUT_OF_MEMORY)
    except Exception as error:  # one file in a million must not stop the others; its text may quote the file
        name = type(error).__name__
        row = Row(source.name, UNREADABLE, f"{name} while it was read", error=name)
    row.seconds = time.monotonic() - began
    return row


def unreadable(source: Source, error: str, reason: str) -> Row:
    """The row of a source that cannot be read, for an error of that name."""
    plain = error in (DIED.error, "TimeoutError")  # whose reasons say it all
    return Row(source.name, UNREADABLE, reason if plain else f"{error}: {reason}", error=error)


def read(source: Source, recipe: dict, key: bytes | None, path: str | None = None) -> Row:
    """As :func:`prepare_source`, but raises what goes wrong."""
    limits = Limits()
    if not source.member and is_archive(Path(source.path)):
        raise ImageReadError(source.name, "is an archive whose list of files is damaged")
    with nullcontext(path) if path else as_file(source, limits.max_bytes) as file:
        canvas = read_canvas(
            file,
            size=recipe["size"],
            bits=recipe["bits"],
            any_modality=recipe["modality"] == "any",
            limits=limits,
        )
        patient = source.patient if key is None else source.patient or patient_hash(key, _dicom_patient(file, canvas))
    reason = _filtered(canvas, recipe)
    if reason:
        return Row(source.name, FILTERED, reason)
    contour = find_contour(canvas, method=recipe["contour"], patch_size=PATCH)
    if contour.confidence < recipe["min_confidence"]:
        return Row(source.name, FILTERED, f"contour confidence below min_confidence={recipe['min_confidence']:g}")
    data = encode(canvas.pixels, recipe["format"], recipe["quality"])
    return Row(source.name, OK, "", data, _facts(canvas, contour, data, patient))


def encode(pixels: np.ndarray, kind: str, quality: int = 95) -> bytes:
    """``[S, S] uint8 | uint16`` as it lies in a shard; ``raw`` is row-major, little endian."""
    if kind == "raw":
        return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    done, data = cv2.imencode(".jpg" if kind == "jpeg" else ".png", pixels, options)
    if not done:
        raise MemoryError
    return data.tobytes()


def patient_hash(key: bytes, patient: str) -> str:
    """HMAC-SHA256 of a patient id, 16 hexadecimal digits; empty for none."""
    return hmac.new(key, patient.strip().encode(), hashlib.sha256).hexdigest()[:16] if patient.strip() else ""


def _filtered(canvas: Canvas, recipe: dict) -> str:
    """Why an image is left out; empty if it is not. What a file does not say is no reason."""
    flags = canvas.provenance.get("flags", ())
    lateral = "lateral_view" in flags
    if recipe["view"] == "frontal" and lateral:
        return "lateral view"
    if recipe["view"] == "lateral" and not lateral:
        return "not a lateral view"
    if recipe["body_part"] == "chest" and "body_part_not_chest" in flags:
        return "body part is not the chest"
    rows, columns = canvas.provenance["original_size"]
    if min(rows, columns) < recipe["min_side"]:
        return f"{columns} x {rows} pixels, less than min_side={recipe['min_side']}"
    return ""


def _dicom_patient(path: str, canvas: Canvas) -> str:
    if canvas.provenance.get("format") != "dicom":
        return ""
    from ...images.dicom import read_patient_id

    return read_patient_id(path)


def _facts(canvas: Canvas, contour: Contour, data: bytes, patient: str) -> dict:
    provenance = canvas.provenance
    valid = canvas.valid_grid(PATCH)
    scale, shift = standardisation(canvas.pixels, valid)
    rows, columns = provenance["original_size"]
    thumbnail = equalised_thumbnail(canvas.pixels, canvas.valid_box)
    return {
        "crc32": zlib.crc32(data),
        "valid_box": [int(v) for v in canvas.valid_box],
        "polygon": np.asarray(contour.polygon, np.float32).ravel().tolist(),
        "inside": np.packbits(contour.inside & valid).tobytes(),
        "inside_share": float(contour.inside.mean()),
        "confidence": float(contour.confidence),
        "method": contour.method,
        "flagged": bool(contour.flagged),
        "scale": scale,
        "shift": shift,
        "pixel_sha256": provenance.get("pixel_sha256", ""),
        "patient": patient,
        "height": int(rows),
        "width": int(columns),
        "format": str(provenance.get("format", "")),
        "view": str(provenance.get("view", "")),
        "flags": list(provenance.get("flags", ())),
        "provenance": json.dumps(
            {name: value for name, value in sorted(provenance.items()) if name not in ("source", "flags")}
        ),
        "thumbnail": thumbnail.tobytes(),
        "perceptual_hash": perceptual_hash(thumbnail[None]).tobytes(),
    }
