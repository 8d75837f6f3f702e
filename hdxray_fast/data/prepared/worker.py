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
from ..reader_pool import DIED, out_of_memory
from .archives import is_archive
from .sources import Source, as_file

THUMBNAIL = 160  # side of the picture kept of what is left out, pixels
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
        data: encoded pixels; empty where they lie in the file of their shard.
        facts: columns of the index, see ``shards.schema``.
        seconds: that it took, in the worker.
        error: kind of the error that the reason tells of.
        start, length: bytes; where in that file they lie.
    """

    source: str
    status: str
    reason: str = ""
    data: bytes = b""
    facts: dict = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    start: int = 0
    length: int = 0


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
        row = unreadable(source, *out_of_memory())
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
        part = body_part_word(file, canvas)
    reason = _too_small(canvas, recipe)
    if reason:
        return Row(source.name, FILTERED, reason)
    contour = find_contour(canvas, method=recipe["contour"], patch_size=PATCH)
    about = {**_about(canvas, contour, patient), "body_part": part}
    reason = _filtered(canvas, contour, recipe)
    if reason:
        return Row(source.name, FILTERED, reason, facts={**about, "left_out": _small_jpeg(canvas)})
    if contour.confidence < recipe["min_confidence"]:
        return Row(source.name, FILTERED, f"contour confidence below min_confidence={recipe['min_confidence']:g}")
    data = encode(canvas.pixels, recipe["format"], recipe["quality"])
    return Row(source.name, OK, "", data, {**_facts(canvas, contour, data), **about})


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
    patient = patient.strip()
    return hmac.new(key, patient.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16] if patient else ""


def _filtered(canvas: Canvas, contour: Contour, recipe: dict) -> str:
    """Why an image is left out; empty if it is not. What neither header nor pixels are sure of is no reason."""
    view = contour.view
    if recipe["view"] == "frontal" and view.name in ("lateral", "other"):
        name = "neither frontal nor lateral view" if view.evidence == "header" else "no chest radiograph"
        return f"{'lateral view' if view.name == 'lateral' else name} ({view.evidence})"
    if recipe["view"] == "lateral" and view.name != "lateral":
        return "not a lateral view"
    if recipe["body_part"] == "chest" and "body_part_not_chest" in canvas.provenance.get("flags", ()):
        return "body part is not the chest"
    return ""


def _too_small(canvas: Canvas, recipe: dict) -> str:
    rows, columns = canvas.provenance["original_size"]
    if min(rows, columns) < recipe["min_side"]:
        return f"{columns} x {rows} pixels, less than min_side={recipe['min_side']}"
    return ""


def body_part_word(path: str, canvas: Canvas) -> str:
    """The body part: a word of the lists, or, as the file has it, one that they do not hold ("?" before it).

    The latter is for counting: what is written of it, see :meth:`.shards.ShardFolder.write`.
    """
    part = str(canvas.provenance.get("body_part", ""))
    if part != "unknown":
        return part
    from ...images.dicom import read_body_part

    return "?" + read_body_part(path)


def _small_jpeg(canvas: Canvas) -> bytes:
    """A small JPEG for the sheet of what was left out."""
    grey = canvas.pixels if canvas.pixels.dtype == np.uint8 else (canvas.pixels >> 8).astype(np.uint8)
    return encode(cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA), "jpeg", 80)


def _dicom_patient(path: str, canvas: Canvas) -> str:
    if canvas.provenance.get("format") != "dicom":
        return ""
    from ...images.dicom import read_patient_id

    return read_patient_id(path)


def _about(canvas: Canvas, contour: Contour, patient: str) -> dict:
    """What is kept of an image even if it is left out."""
    return {
        "patient": patient,
        "view": contour.view.name,
        "view_evidence": contour.view.evidence,
        "view_probability": contour.view.probability,
        "flags": list(dict.fromkeys((*canvas.provenance.get("flags", ()), *contour.view.flags))),
    }


def _facts(canvas: Canvas, contour: Contour, data: bytes) -> dict:
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
        "height": int(rows),
        "width": int(columns),
        "format": str(provenance.get("format", "")),
        "provenance": json.dumps(
            {name: value for name, value in sorted(provenance.items()) if name not in ("source", "flags")}
        ),
        "thumbnail": thumbnail.tobytes(),
        "perceptual_hash": perceptual_hash(thumbnail[None]).tobytes(),
    }
