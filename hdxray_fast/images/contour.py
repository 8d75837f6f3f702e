"""Room: a canvas goes in, the contour of the chest comes out.

The contour is the convex hull of lungs and mediastinum together. Methods, best first:

* ``network``: a small U-Net run by ``cv2.dnn`` (:mod:`.images.contour_net`), with a confidence; a picture it is not
  sure of is looked at again zoomed, inverted and turned (the rescue), and failing that is flagged;
* ``classical``: template matching and a shape model (:mod:`hdxray_fast.images.contour_classical`), no network;
* ``prior``: the mean shape, placed in the radiograph's box; the picture is not looked at;
* ``rectangle``: the fixed box of the published code, for comparisons.

What was measured, on which images, and what is not solved: docs/contour.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..errors import ArgumentError, ArgumentTypeError
from .contour_methods import METHODS
from .contour_net import FRAME, STRANGE, Reading, default_runner, read_frames
from .panels import FLAGGED_COLOUR, contour_view, notebook_png
from .view import VIEWS, ChestView, judge_view
from .view_net import SURE, view_chances

if TYPE_CHECKING:
    from .canvas import Canvas

ACCEPT = 0.7  # a contour with less confidence is flagged
RESCUE_ACCEPT, RESCUE_STRANGE = 0.92, 7.25  # the best of many looks is high by chance too: more is asked of it
FALLBACK_CONFIDENCE = 0.45  # what fell back never passes for accepted
PRIOR_CONFIDENCE = 0.1  # the prior and the rectangle have not looked at the picture


@dataclass(frozen=True, eq=False)
class Contour:
    """The chest's outline on a canvas.

    Attributes:
        polygon: [K, 2] float32, convex, (x, y) in canvas pixels: the canvas spans 0..S.
        inside: [S/p, S/p] bool, True where at least half of a patch's area lies inside the polygon.
        confidence: 0..1; for the network the estimated chance that the outline overlaps the true one well.
        method: what happened: "network"; after a rescue "network:zoom", "network:trim" (plain borders cut off),
            "network:invert" or "network:rot90", "rot180", "rot270" (the picture was turned by as much, anticlockwise,
            before the chest was found); "classical"; "prior"; "rectangle".
        flagged: the confidence is under the acceptance threshold: look at it before relying on it. Never a
            "rectangle", which is what was asked for, whatever the picture.
        view: which way the radiograph looks, by its header and, with the method "network", by its pixels.
    """

    polygon: np.ndarray
    inside: np.ndarray
    confidence: float
    method: str
    flagged: bool
    view: ChestView = field(default_factory=ChestView)
    _canvas: weakref.ref | None = field(default=None, repr=False)  # no more than borrowed

    def __repr__(self) -> str:
        inside = f"inside {int(self.inside.sum())} of {self.inside.size} patches"
        words = [f"{len(self.polygon)} points", inside, f"confidence={self.confidence}", f"method={self.method!r}"]
        return f"Contour({', '.join([*words, f'flagged={self.flagged}', f'view={self.view.name!r}'])})"

    def _repr_png_(self) -> bytes | None:
        """The outline on its canvas, as a notebook shows it; nothing once the canvas is gone."""
        canvas = None if self._canvas is None else self._canvas()
        if canvas is None:
            return None
        colours = (FLAGGED_COLOUR,) if self.flagged else ()
        words = f"{self.method} {self.confidence:.2f}, inside {self.inside.mean():.0%}"
        words += f", {self.view.name or 'view unsure'}" + (", FLAGGED" if self.flagged else "")
        return notebook_png(contour_view(canvas.grey(), self.inside, self.polygon, *colours), words)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_canvas": None}  # a process that gets a contour has another canvas


def rasterize_polygon(polygon: np.ndarray, size: int, patch_size: int = 16) -> np.ndarray:
    """Patches of a square canvas whose area lies at least half inside a polygon.

    The area is exact: each edge is cut at the grid lines, and the signed areas between its pieces and the right border
    are summed (as font rasterisers do). Parts of the polygon outside the canvas are cut off.

    Args:
        polygon: [K, 2] real numbers, (x, y) in canvas pixels, either direction, not crossing itself.
        size: S, side of the canvas in pixels, a multiple of patch_size.
        patch_size: p, side of a patch in pixels.

    Returns:
        [S/p, S/p] bool.

    Raises:
        ArgumentError: wrong shape, non-finite points, or a size that is no multiple of patch_size.
        ArgumentTypeError: not numbers.
    """
    _check_sizes(size, patch_size)
    try:
        points = np.asarray(polygon, np.float64)  # [K, 2]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"polygon must be an array of numbers [K, 2], got {type(polygon).__name__}") from error
    if points.ndim != 2 or points.shape[1] != 2:
        raise ArgumentError(f"polygon must have shape [K, 2] (x, y in canvas pixels), got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ArgumentError("polygon holds points that are not finite; give x, y in canvas pixels")
    cells = size // patch_size
    if len(points) < 3:
        return np.zeros((cells, cells), bool)
    start = _cut_off(points / patch_size, -1.0, cells + 1.0)  # far points would cost digits
    if not len(start):
        return np.zeros((cells, cells), bool)
    delta = np.roll(start, -1, axis=0) - start  # [K, 2]
    # every edge is cut where it crosses a grid line: fractions t of the edge, sorted
    lines = np.arange(cells + 1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        cuts = (lines[None, :, None] - start[:, None, :]) / delta[:, None, :]  # [K, cells + 1, 2]
    cuts = np.clip(np.nan_to_num(cuts, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0).reshape(len(start), -1)
    ends = np.ones((len(start), 1))
    cuts = np.sort(np.concatenate([0 * ends, cuts, ends], axis=1), axis=1)  # [K, 2 cells + 4]
    edge, piece = np.nonzero(np.diff(cuts, axis=1) > 1e-12)
    begin, end = cuts[edge, piece], cuts[edge, piece + 1]
    middle = start[edge] + delta[edge] * ((begin + end) / 2)[:, None]  # [M, 2], one cell each
    height = delta[edge, 1] * (end - begin)
    row, column = np.floor(middle[:, 1]).astype(np.int64), np.floor(middle[:, 0]).astype(np.int64)
    keep = (row >= 0) & (row < cells) & (column < cells)
    row, column, height, x = row[keep], column[keep], height[keep], middle[keep, 0]
    left_of_canvas = column < 0
    column = np.maximum(column, 0)
    share = np.where(left_of_canvas, 1.0, column + 1 - x)  # of the own cell that lies right of the piece
    area = np.zeros((cells, cells + 1))
    np.add.at(area, (row, column), height * share)
    np.add.at(area, (row, column + 1), height * (1 - share))
    return np.abs(np.cumsum(area, axis=1)[:, :cells]) >= 0.5 - 1e-9


def _cut_off(polygon: np.ndarray, low: float, high: float) -> np.ndarray:
    """The part of a polygon ``[K, 2]`` within a square, ``[L, 2]``: cut along one side after the other (Sutherland and
    Hodgman). What holds together by it alone is joined along a side, by edges there and back, whose areas cancel."""
    for axis, sign, limit in ((0, -1, low), (0, 1, high), (1, -1, low), (1, 1, high)):
        beyond = sign * (polygon[:, axis] - limit)
        if not (beyond > 0).any():
            continue
        points = []
        for here, there, out, next_out in zip(
            polygon, np.roll(polygon, -1, axis=0), beyond, np.roll(beyond, -1), strict=True
        ):
            if out <= 0:
                points.append(here)
            if (out > 0) != (next_out > 0):
                share = out / 2 / (out / 2 - next_out / 2)  # halves: of the largest numbers a difference is none
                points.append(here * (1 - share) + there * share)
                points[-1][axis] = limit
        polygon = np.array(points).reshape(-1, 2)
    return polygon


def find_contour(canvas: Canvas, method: str = "network", patch_size: int = 16, rescue: bool = True) -> Contour:
    """Find the chest on one canvas.

    Args:
        canvas: from ``read_canvas``: pixels [S, S] uint8 or uint16, bright = dense.
        method: "network", "classical", "prior" or "rectangle".
        patch_size: p, in pixels; S must be a multiple of it.
        rescue: network only: when the first look is not convincing, look again (zoomed, inverted, turned); if that
            does not help, take what the classical method finds, or else the first look, flagged. False returns the
            first look as it is, flagged if unconvincing.

    Returns:
        The contour. A picture with no chest gives a contour too: flagged, unless a rectangle was asked for.

    Raises:
        ArgumentTypeError: not a canvas, or its pixels are not uint8 or uint16.
        ArgumentError: unknown method, or sizes that do not fit.
    """
    _check_canvas(canvas, patch_size)
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    chances = None
    if method == "network":
        polygon, confidence, name, reading = _network(canvas, rescue)
        chances = view_chances(reading.signs)
    elif method == "classical":
        polygon, confidence, name = _classical(canvas)
    elif method == "prior":
        polygon, confidence, name = _prior(canvas), PRIOR_CONFIDENCE, "prior"
    else:
        polygon, confidence, name = _rectangle(canvas, patch_size), PRIOR_CONFIDENCE, "rectangle"
    polygon = np.clip(polygon, 0, canvas.pixels.shape[0]).astype(np.float32)
    inside = rasterize_polygon(polygon, canvas.pixels.shape[0], patch_size)
    view = judge_view(_named_view(canvas), chances, SURE)
    flagged = confidence < ACCEPT and method != "rectangle"
    try:
        borrowed = weakref.ref(canvas)
    except TypeError:  # a tuple with names, say: a notebook shows its contour as text
        borrowed = None
    return Contour(polygon, inside, round(float(confidence), 4), name, bool(flagged), view, borrowed)


def find_view(canvas: Canvas) -> ChestView:
    """Which way a radiograph looks: its header's word, checked by what the contour net saw in its pixels.

    Takes as long as the contour; :func:`find_contour` gives it beside that for nothing.

    Args:
        canvas: from ``read_canvas``.

    Raises:
        ArgumentTypeError, ArgumentError: as :func:`find_contour`.
    """
    _check_canvas(canvas, 1)
    reading = _network(canvas, rescue=True)[3]
    return judge_view(_named_view(canvas), view_chances(reading.signs), SURE)


def _named_view(canvas: Canvas) -> str:
    """The view by the header; "" for none, and for what earlier versions wrote there."""
    named = getattr(canvas, "provenance", {}).get("view", "")
    return named if named in VIEWS else ""


def find_contours(
    canvases: Iterable[Canvas], method: str = "network", patch_size: int = 16, rescue: bool = True
) -> list[Contour]:
    """:func:`find_contour` for each of some canvases, in their order."""
    if hasattr(canvases, "pixels") or not isinstance(canvases, Iterable):
        raise ArgumentTypeError(f"canvases must be a list of Canvas, got {type(canvases).__name__}")
    return [find_contour(canvas, method, patch_size, rescue) for canvas in canvases]


def _check_sizes(size: int, patch_size: int) -> None:
    for name, value in (("size", size), ("patch_size", patch_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ArgumentTypeError(f"{name} must be an int (pixels), got {type(value).__name__}")
        if value < 1:
            raise ArgumentError(f"{name} must be at least 1, got {value}")
    if size % patch_size:
        raise ArgumentError(f"size must be a multiple of patch_size, got {size} and {patch_size}")


def _check_canvas(canvas: Canvas, patch_size: int) -> None:
    pixels, box = getattr(canvas, "pixels", None), getattr(canvas, "valid_box", None)
    if not isinstance(pixels, np.ndarray) or box is None:
        raise ArgumentTypeError(f"canvas must be a Canvas (see read_canvas), got {type(canvas).__name__}")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ArgumentTypeError(f"canvas.pixels must be uint8 or uint16, got {pixels.dtype}; make it with read_canvas")
    if pixels.ndim != 2 or pixels.shape[0] != pixels.shape[1] or pixels.size == 0:
        raise ArgumentError(f"canvas.pixels must be square, [S, S], got {list(pixels.shape)}")
    _check_sizes(pixels.shape[0], patch_size)
    if len(box) != 4:
        raise ArgumentError(f"canvas.valid_box must be (top, left, height, width), got {box!r}")
    top, left, height, width = box
    size = pixels.shape[0]
    if height < 1 or width < 1 or top < 0 or left < 0 or top + height > size or left + width > size:
        raise ArgumentError(f"canvas.valid_box {tuple(box)} does not lie on the canvas of {size} px")


# Views: a box of the canvas, letterboxed into the net's frame, inverted or turned.


@dataclass(frozen=True)
class _View:
    """How a frame was cut from the canvas, to carry polygons back."""

    image: np.ndarray  # [160, 160] float32 grey, 0 on padding
    valid: np.ndarray  # [160, 160] bool
    origin: tuple[float, float]  # canvas x, y of the frame's corner
    scale: float  # canvas px per frame px
    turns: int = 0  # quarter turns, anticlockwise, as np.rot90
    inverted: bool = False

    def to_canvas(self, polygon: np.ndarray) -> np.ndarray:  # [K, 2] frame px -> [K, 2] canvas px
        x, y = polygon[:, 0], polygon[:, 1]
        for _ in range(self.turns):  # undo one anticlockwise turn: (x, y) <- (FRAME - y, x)
            x, y = FRAME - y, x
        return np.stack([x, y], 1) * self.scale + np.array(self.origin)


def _view(canvas: Canvas, box: tuple[int, int, int, int], turns: int = 0, inverted: bool = False) -> _View:
    """Cut a box (top, left, height, width) from the canvas, area-averaged, centred in the frame."""
    top, left, height, width = box
    scale = max(height, width) / FRAME
    rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
    crop = canvas.pixels[top : top + height, left : left + width]
    small = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    small = small.astype(np.float32)
    if crop.dtype == np.uint16:
        small /= 257
    if inverted:
        small = 255 - small
    image, valid = np.zeros((FRAME, FRAME), np.float32), np.zeros((FRAME, FRAME), bool)
    y, x = (FRAME - rows) // 2, (FRAME - columns) // 2
    image[y : y + rows, x : x + columns], valid[y : y + rows, x : x + columns] = small, True
    image, valid = np.rot90(image, turns), np.rot90(valid, turns)
    return _View(image, valid, (left - x * scale, top - y * scale), scale, turns, inverted)


def _look(
    canvas: Canvas, box: tuple[int, int, int, int], turns: int = 0, inverted: bool = False, strange: float = STRANGE
) -> tuple[Reading, np.ndarray | None]:
    view = _view(canvas, box, turns, inverted)
    reading = read_frames(default_runner(), view.image, view.valid, strange)
    return reading, (None if reading.polygon is None else view.to_canvas(reading.polygon))


def _zoom_box(canvas: Canvas, polygon: np.ndarray, factor: float = 1.3) -> tuple[int, int, int, int]:
    """The polygon's bounding box enlarged, cut at the valid box; at least a pixel of it, wherever the polygon lies."""
    top, left, height, width = canvas.valid_box
    low, high = polygon.min(0), polygon.max(0)
    centre, half = (low + high) / 2, (high - low) / 2 * factor
    x0, y0 = np.clip(np.floor(centre - half), (left, top), (left + width - 1, top + height - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(centre + half), (x0 + 1, y0 + 1), (left + width, top + height)).astype(int)
    return int(y0), int(x0), int(y1 - y0), int(x1 - x0)


def _trim_box(canvas: Canvas) -> tuple[int, int, int, int]:
    """The valid box without border rows and columns that show nothing (plain collimation or canvas)."""
    top, left, height, width = canvas.valid_box
    step = max(1, canvas.pixels.shape[0] // 320)
    sample = canvas.pixels[top : top + height : step, left : left + width : step].astype(np.float32)
    floor = 0.15 * float(sample.std()) + 1e-3
    rows, columns = np.flatnonzero(sample.std(1) > floor), np.flatnonzero(sample.std(0) > floor)
    if len(rows) < 8 or len(columns) < 8:
        return canvas.valid_box
    y0, y1, x0, x1 = rows[0] * step, (rows[-1] + 1) * step, columns[0] * step, (columns[-1] + 1) * step
    return int(top + y0), int(left + x0), int(min(height, y1) - y0), int(min(width, x1) - x0)


def _network(canvas: Canvas, rescue: bool) -> tuple[np.ndarray, float, str, Reading]:
    """Polygon on the canvas, confidence, what happened, and the look that was believed.

    That is the first, or the one of the rescue that was accepted, in which an inverted film is as it should be.
    """
    reading, polygon = _look(canvas, canvas.valid_box)
    if reading.confidence >= ACCEPT:
        return polygon, reading.confidence, "network", reading
    if not rescue:
        first = (_prior(canvas), 0.0, "prior") if polygon is None else (polygon, reading.confidence, "network")
        return *first, reading
    best: tuple[Reading, np.ndarray, str] | None = None
    for name, again, found in _second_looks(canvas, polygon):
        if found is not None and (best is None or again.confidence > best[0].confidence):
            best = (again, found, name)
    if best is not None and best[0].confidence >= RESCUE_ACCEPT:
        return best[1], best[0].confidence, f"network:{best[2]}", best[0]
    fallback, confidence, name = _classical(canvas)
    if polygon is not None and confidence < ACCEPT:  # neither convinces: the net is the better guesser
        return polygon, reading.confidence, "network", reading
    return fallback, min(confidence, FALLBACK_CONFIDENCE), name, reading


def _second_looks(canvas: Canvas, polygon: np.ndarray | None):
    """Yield (name, reading, polygon on the canvas or None) of every way to look again."""
    boxes = {}
    if polygon is not None:
        boxes["zoom"] = _zoom_box(canvas, polygon)
    trimmed = _trim_box(canvas)
    if trimmed != tuple(canvas.valid_box):
        boxes["trim"] = trimmed
    for name, box in boxes.items():
        yield (name, *_look(canvas, box, strange=RESCUE_STRANGE))
    base = trimmed
    for name, turns, inverted in (("invert", 0, True), ("rot90", 1, False), ("rot180", 2, False), ("rot270", 3, False)):
        reading, found = _look(canvas, base, turns, inverted, RESCUE_STRANGE)
        yield name, reading, found
        if found is not None and reading.confidence < RESCUE_ACCEPT:
            reading, found = _look(canvas, _zoom_box(canvas, found), turns, inverted, RESCUE_STRANGE)
            yield name, reading, found


def _classical(canvas: Canvas) -> tuple[np.ndarray, float, str]:
    from .contour_classical import match_shape

    view = _view(canvas, canvas.valid_box)
    polygon, confidence = match_shape(view.image, view.valid)
    if polygon is None:
        return _prior(canvas), PRIOR_CONFIDENCE, "prior"
    return view.to_canvas(polygon), confidence, "classical"


def _prior(canvas: Canvas) -> np.ndarray:
    from .contour_classical import prior_polygon

    top, left, height, width = canvas.valid_box
    return prior_polygon() * np.array([width, height]) + np.array([left, top])


def _rectangle(canvas: Canvas, patch_size: int) -> np.ndarray:
    """The published code's box: rows int(.25 g) + 1 up to int(.75 g), columns int(.125 g) + 1 up to int(.75 g)."""
    cells = canvas.pixels.shape[0] // patch_size
    y0, y1, x0, x1 = int(0.25 * cells) + 1, int(0.75 * cells) + 1, int(0.125 * cells) + 1, int(0.75 * cells) + 1
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64) * patch_size
