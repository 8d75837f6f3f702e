"""Pictures of contours: overlays, what a contour's JSON file holds, and contact sheets."""

from __future__ import annotations

import cv2
import numpy as np

from ..names import escaped
from .canvas import Canvas
from .contour import Contour
from .lettering import write_line
from .panels import FLAGGED_COLOUR
from .view import ChestView

ACCEPTED = (200, 220, 60)  # BGR, turquoise: tells itself apart from grey values and from the flagged colour
FLAGGED = FLAGGED_COLOUR  # orange
TILE = 300  # px, side of a tile's picture


def draw_overlay(canvas: Canvas, contour: Contour, title: str = "") -> np.ndarray:
    """The canvas with the contour's line and its inside patches tinted, and a caption below.

    Args:
        canvas: what the contour was found on.
        contour: of that canvas.
        title: first words of the caption, such as a file's name; long ones are shortened.

    Returns:
        [S + caption, S, 3] uint8, BGR. Accepted contours are turquoise, flagged ones orange, and
        those of what is known to be no frontal chest.
    """
    size = canvas.pixels.shape[0]
    picture = cv2.cvtColor(canvas.grey(), cv2.COLOR_GRAY2BGR)  # [S, S, 3]
    colour = _colour(contour)
    cells = contour.inside.shape[0]
    patch = size // cells
    inside = cv2.resize(contour.inside.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    if patch > 1:  # leave the grid's lines untinted, so that single patches can be counted
        inside[::patch] = 0
        inside[:, ::patch] = 0
    tinted = cv2.addWeighted(picture, 0.82, np.full_like(picture, colour), 0.18, 0)
    picture = np.where(inside[..., None] > 0, tinted, picture)
    line = max(1, round(size / 400))
    corners = np.round((contour.polygon - 0.5) * 16).astype(np.int32)  # cv2 counts from pixel centres
    if len(corners):
        cv2.polylines(picture, [corners], True, colour, line, cv2.LINE_AA, shift=4)
    words = [_elide(title, 60)] if title else []
    sure = [] if contour.method == "rectangle" else [f"confidence {contour.confidence:.2f}"]
    words += [contour.method, *sure, f"inside {contour.inside.mean():.0%}"]
    words += [view_words(contour)] if contour.view.evidence or contour.view.flags else []
    words += ["FLAGGED"] if contour.flagged else []
    return np.vstack([picture, _caption("   ".join(words), size, colour)])


def _colour(contour: Contour) -> tuple[int, int, int]:
    known_other = contour.view.name not in ("frontal", "")  # of which a contour may look as sure
    return FLAGGED if contour.flagged or known_other else ACCEPTED


def view_words(contour: Contour) -> str:
    """The view in a few words: ``lateral 0.97 (pixels)``."""
    view = contour.view
    chance = "" if view.probability is None else f" {view.probability:.2f}"
    told = f"{view.name or 'view unsure'}{chance}" + (f" ({view.evidence})" if view.evidence else "")
    return told + ("!" if "view_contradiction" in view.flags else "")


def _caption(text: str, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    """[height, width, 3] dark strip with one line of text that fits it."""
    height = max(16, round(width * 0.034))
    strip = np.full((height, width, 3), 24, np.uint8)
    write_line(strip, text, max(2, round(width * 0.01)), round(height * 0.72), height * 0.7, colour)
    return strip


def _elide(text: str, letters: int) -> str:
    """The text, its middle left out if it is longer than some letters."""
    return text if len(text) <= letters else f"{text[: letters - letters // 3 - 3]}...{text[-(letters // 3) :]}"


def describe_contour(canvas: Canvas, contour: Contour, source: str, patch_size: int) -> dict:
    """What the JSON file beside an overlay holds; all lengths in canvas pixels."""
    return {
        "source": escaped(source),
        "coordinates": "canvas pixels: x right, y down, from the top left corner",
        "canvas_size": int(canvas.pixels.shape[0]),
        "patch_size": int(patch_size),
        "valid_box": [int(v) for v in canvas.valid_box],
        "polygon": [[round(float(x), 2), round(float(y), 2)] for x, y in contour.polygon],
        "inside_share": round(float(contour.inside.mean()), 6),
        "inside_patches": int(contour.inside.sum()),
        "confidence": contour.confidence,
        "method": contour.method,
        "flagged": contour.flagged,
        "view": contour.view.name,
        "view_evidence": contour.view.evidence,
        "view_probability": contour.view.probability,
        "view_flags": list(contour.view.flags),
        "provenance": {**canvas.provenance, "source": escaped(str(canvas.provenance.get("source", source)))},
    }


def contact_tile(canvas: Canvas, contour: Contour, name: str, tint: bool = True) -> np.ndarray:
    """[TILE + captions, TILE, 3] uint8 BGR overlay for a sheet, drawn at its own size so that lines stay visible.

    Without ``tint`` the inside of the contour keeps its grey levels.
    """
    ratio = TILE / canvas.pixels.shape[0]
    picture = cv2.cvtColor(cv2.resize(canvas.grey(), (TILE, TILE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    colour = _colour(contour)
    if tint:
        inside = cv2.resize(contour.inside.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
        tinted = cv2.addWeighted(picture, 0.85, np.full_like(picture, colour), 0.15, 0)
        picture = np.where(inside[..., None] > 0, tinted, picture)
    if len(contour.polygon):
        corners = np.round((contour.polygon * ratio - 0.5) * 16).astype(np.int32)
        cv2.polylines(picture, [corners], True, colour, 2, cv2.LINE_AA, shift=4)
    state = "FLAGGED " if contour.flagged else ""
    about = f", {view_words(contour)}" if contour.view.name != "frontal" and contour.view != ChestView() else ""
    sure = "" if contour.method == "rectangle" else f" {contour.confidence:.2f}"
    captions = [_elide(name, 34), f"{state}{contour.method}{sure}{about}"]
    return np.vstack([picture, *(_line(text, colour) for text in captions)])


def plain_tile(grey: np.ndarray, *captions: str, colour: tuple[int, int, int] = FLAGGED) -> np.ndarray:
    """A tile like those of :func:`contact_tile`, of a picture ``[H, W] uint8`` alone; captions in ``colour`` (BGR)."""
    picture = cv2.cvtColor(cv2.resize(grey, (TILE, TILE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    return np.vstack([picture, *(_line(_elide(text, 44), colour) for text in captions)])


def _line(text: str, colour: tuple[int, int, int]) -> np.ndarray:
    strip = np.full((18, TILE, 3), 24, np.uint8)
    write_line(strip, text, 4, 13, 13, colour)
    return strip


def headed(sheet: np.ndarray, words: str) -> np.ndarray:
    """A sheet ``[H, W, 3] uint8`` BGR with a line of words above it."""
    strip = np.full((32, sheet.shape[1], 3), 24, np.uint8)
    write_line(strip, words, 8, 22, 20, (235, 235, 235))
    return np.vstack([strip, sheet])


def contact_sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of one size in rows. ``[H, W, 3] uint8`` BGR."""
    columns = min(len(tiles), 4 if len(tiles) <= 12 else 8)
    gap = 6
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 60, np.uint8)
    for k, tile in enumerate(tiles):
        y, x = gap + k // columns * (height + gap), gap + k % columns * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet
