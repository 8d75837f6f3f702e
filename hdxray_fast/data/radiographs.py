"""Canvas, contour and grids of many radiographs, read ahead in worker processes; unreadable ones come back as such.

This module never imports torch, so that its workers start fast and stay small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import HDXrayError
from ..images.canvas import Canvas, read_canvas
from ..images.contour import find_contour, rasterize_polygon
from ..images.perceptual_hash import equalised_thumbnail
from ..images.standardise import standardisation, standardising
from .augment import eight_bits
from .prepared.image import PreparedImage
from .quarantine import Quarantined
from .reader_pool import MAX_MEMORY, TIMEOUT, Failed, Known, call_in_order

PREPARED_PATCH = 16  # side of the patches of grids that prepared data sets keep, pixels
MOST_THREADS = 8  # that read of prepared data sets


@dataclass(frozen=True)
class Radiograph:
    """One radiograph, ready for an encoder.

    Attributes:
        source: path as given, or ``"<array N>"``.
        pixels: ``[S, S] uint8``.
        inside: ``[S/p, S/p] bool``, patches of the chest.
        valid: ``[S/p, S/p] bool``, patches that are no padding.
        scale, shift: ``pixel * scale + shift`` has mean 0 and deviation 1 over the valid patches.
        confidence: of the contour, 0 to 1.
        flagged: the contour is not to be relied on.
        provenance_id: hash of the stored pixels, to find duplicates.
        thumbnail: ``[48, 48] uint8``, to find near duplicates.
        view: name of a :class:`hdxray_fast.ChestView`: frontal, lateral, other, or ``""`` (not known).
        valid_box: ``(top, left, height, width)`` in canvas pixels: what is no padding.
    """

    source: str
    pixels: np.ndarray
    inside: np.ndarray
    valid: np.ndarray
    scale: float
    shift: float
    confidence: float
    flagged: bool
    provenance_id: str
    thumbnail: np.ndarray
    view: str
    valid_box: tuple[int, int, int, int]


def read_radiograph(
    image: str | np.ndarray, source: str, size: int, patch_size: int, method: str = "network"
) -> Radiograph | Quarantined:
    """Read one image (a path, or pixels ``[H, W]``) and find its contour by a method of ``find_contour``."""
    try:
        canvas = read_canvas(image, size=size)
        contour = find_contour(canvas, method=method, patch_size=patch_size)
    except HDXrayError as error:
        return Quarantined(source, type(error).__name__, getattr(error, "reason", str(error)))
    valid = canvas.valid_grid(patch_size)
    scale, shift = standardisation(canvas.pixels, valid)
    return Radiograph(
        source=source,
        pixels=canvas.pixels,
        inside=contour.inside & valid,
        valid=valid,
        scale=scale,
        shift=shift,
        confidence=float(contour.confidence),
        flagged=bool(contour.flagged),
        provenance_id=canvas.provenance.get("pixel_sha256", ""),
        thumbnail=equalised_thumbnail(canvas.pixels, canvas.valid_box),
        view=contour.view.name,
        valid_box=canvas.valid_box,
    )


def read_prepared(image: PreparedImage, source: str, patch_size: int) -> Radiograph | Quarantined:
    """The same of an image that was prepared before, in 8 bits; of a set of raw pixels to the last bit."""
    try:
        found = image.images.read(image.row)
        confidence, flagged, digest, view = image.images.about(image.row)
    except HDXrayError as error:
        return Quarantined(source, type(error).__name__, str(error))
    pixels = eight_bits(found.pixels)
    canvas = Canvas(pixels, found.valid_box, {})
    valid, inside = canvas.valid_grid(patch_size), found.inside
    if patch_size != PREPARED_PATCH:
        inside = rasterize_polygon(found.polygon, canvas.size, patch_size) & valid
    scale, shift = standardisation(pixels, valid)
    thumbnail = equalised_thumbnail(pixels, found.valid_box)
    known = (confidence, flagged, digest, thumbnail, view, found.valid_box)
    return Radiograph(source, pixels, inside, valid, scale, shift, *known)


def read_ahead(
    images: Iterable[tuple[str | np.ndarray | PreparedImage | Quarantined, str]],
    size: int,
    patch_size: int,
    workers: int,
    method: str = "network",
    *,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Iterator[Radiograph | Quarantined]:
    """:func:`read_radiograph` of each ``(image, source)``, in order, a few images ahead of the consumer.

    Worker processes have the caps ``timeout`` (seconds) and ``max_memory`` (MiB) of
    :func:`hdxray_fast.data.reader_pool.call_in_order`. Images of prepared data sets, which are those of ``size`` and
    ``method``, are read by threads: in another process their pixels would cost more to hand over than to read. What is
    quarantined already comes back as it is.
    """
    asked: deque[str] = deque()

    def jobs() -> Iterator[tuple | Known]:
        for image, source in images:
            asked.append(source)
            if isinstance(image, PreparedImage):
                what = image, source, patch_size
                yield Known(threads.submit(read_prepared, *what) if workers else read_prepared(*what))
            elif isinstance(image, Quarantined):
                yield Known(image)
            else:
                yield image, source, size, patch_size, method

    caps = {"timeout": timeout, "max_memory": max_memory}
    with (
        ThreadPoolExecutor(max(1, min(workers, MOST_THREADS)), "hdxray-read") as threads,
        closing(call_in_order(read_radiograph, jobs(), workers=workers, ahead=2, **caps)) as found,
    ):
        for item in found:
            source = asked.popleft()
            item = item.result() if isinstance(item, Future) else item
            yield Quarantined(source, *item) if isinstance(item, Failed) else item


def read_small(
    paths: Sequence[str], size: int, workers: int = 0, timeout: float = TIMEOUT, max_memory: int = MAX_MEMORY
) -> list[np.ndarray | None]:
    """Thumbnails ``[size, size] uint8`` of files, in their order; ``None`` for those that cannot be read."""
    jobs, caps = ((path, size) for path in paths), {"timeout": timeout, "max_memory": max_memory}
    with closing(call_in_order(read_thumbnail, jobs, workers=min(workers, len(paths)), **caps)) as found:
        return [None if isinstance(item, Failed) else item for item in found]


def read_thumbnail(path: str, size: int) -> np.ndarray | None:
    """One of :func:`read_small`; runs in a worker process."""
    try:
        return read_canvas(path, size=size).pixels
    except (HDXrayError, OSError):
        return None


def standardisation_of_view(
    pixels: np.ndarray, box: tuple[int, int, int, int], table: np.ndarray
) -> tuple[float, float]:
    """``(scale, shift)`` of a canvas that is seen through a tone table, without looking through it at every pixel.

    From a histogram of some 160 lines of the radiograph, whose levels then go through the table. What a view moves out
    of the canvas counts as well.

    Args:
        pixels: ``[S, S]`` uint8 or uint16.
        box: ``(top, left, height, width)`` of the radiograph on the canvas.
        table: ``[256] uint8`` or ``[257] uint16``, as :class:`hdxray_fast.View` takes it.
    """
    top, left, height, width = box
    lines = pixels[top : top + height : max(1, height // 160), left : left + width]
    levels = np.iinfo(pixels.dtype).max + 1
    counts = cv2.calcHist([lines], [0], None, [256], [0, levels]).ravel().astype(np.float64)
    values = table.astype(np.float64) if levels == 256 else (table[:-1].astype(np.float64) + table[1:]) / 2
    mean = counts @ values / counts.sum()
    deviation = np.sqrt(counts @ np.square(values - mean) / counts.sum())
    scale, shift = standardising(mean, deviation)
    return float(scale), float(shift)
