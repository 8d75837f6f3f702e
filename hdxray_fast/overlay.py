"""Pictures of contours: an overlay and a JSON file per radiograph, and contact sheets of all of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from .canvas import Canvas, read_canvas
from .contour import METHODS, Contour, find_contour
from .errors import ArgumentError, ArgumentTypeError, HDXrayError
from .quarantine import write_quarantine

ACCEPTED = (200, 220, 60)  # BGR, turquoise: tells itself apart from grey values and from the flagged colour
FLAGGED = (40, 120, 255)  # orange
SHEET = 48  # tiles on one contact sheet
TILE = 300  # px, side of a tile's picture


def draw_overlay(canvas: Canvas, contour: Contour, title: str = "") -> np.ndarray:
    """The canvas with the contour's line and its inside patches tinted, and a caption below.

    Args:
        canvas: what the contour was found on.
        contour: of that canvas.
        title: first words of the caption, such as a file's name; long ones are shortened, and what is not ASCII
            becomes "?".

    Returns:
        [S + caption, S, 3] uint8, BGR. Accepted contours are turquoise, flagged ones orange.
    """
    size = canvas.pixels.shape[0]
    grey = canvas.pixels if canvas.pixels.dtype == np.uint8 else (canvas.pixels >> 8).astype(np.uint8)
    picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)  # [S, S, 3]
    colour = FLAGGED if contour.flagged else ACCEPTED
    cells = contour.inside.shape[0]
    patch = size // cells
    inside = cv2.resize(contour.inside.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    inside[::patch] = 0  # leave the grid's lines untinted, so that single patches can be counted
    inside[:, ::patch] = 0
    tinted = cv2.addWeighted(picture, 0.82, np.full_like(picture, colour), 0.18, 0)
    picture = np.where(inside[..., None] > 0, tinted, picture)
    line = max(1, round(size / 400))
    corners = np.round((contour.polygon - 0.5) * 16).astype(np.int32)  # cv2 counts from pixel centres
    if len(corners):
        cv2.polylines(picture, [corners], True, colour, line, cv2.LINE_AA, shift=4)
    words = [_elide(title, 60)] if title else []
    words += [contour.method, f"confidence {contour.confidence:.2f}", f"inside {contour.inside.mean():.0%}"]
    words += ["FLAGGED"] if contour.flagged else []
    return np.vstack([picture, _caption("   ".join(words), size, colour)])


def _caption(text: str, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    """[height, width, 3] dark strip with one line of text that fits it."""
    text = text.encode("ascii", "replace").decode()
    height = max(16, round(width * 0.034))
    strip = np.full((height, width, 3), 24, np.uint8)
    scale, stroke, margin = height / 40, max(1, round(height / 28)), max(2, round(width * 0.01))
    (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    while wide > width - 2 * margin and scale > 0.02:  # letters are rounded to whole pixels: no closed form
        scale *= 0.95
        (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        stroke = 1
    at = (margin, (height + round(tall * 0.9)) // 2)
    cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, stroke, cv2.LINE_AA)
    return strip


def _elide(text: str, letters: int) -> str:
    """The text, its middle left out if it is longer than some letters."""
    return text if len(text) <= letters else f"{text[: letters - letters // 3 - 3]}...{text[-(letters // 3) :]}"


def describe_contour(canvas: Canvas, contour: Contour, source: str, patch_size: int) -> dict:
    """What the JSON file beside an overlay holds; all lengths in canvas pixels."""
    return {
        "source": source,
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
        "provenance": canvas.provenance,
    }


def write_contours(
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    method: str = "network",
    size: int = 1280,
    patch_size: int = 16,
    progress: bool = True,
) -> dict:
    """Find the contour of each radiograph and write it down.

    For every readable file ``NAME.contour.png`` (overlay) and ``NAME.contour.json`` are written to `out`, where NAME is
    the file's stem, numbered when several files share it; then ``contacts.png`` (``contacts-2.png`` ... beyond 48).
    Unreadable files are reported on stderr with the reason, listed in ``unreadable.csv``, and skipped.

    Args:
        paths: files, of any format that ``read_canvas`` takes.
        out: folder for the results; made if missing.
        method: as in ``find_contour``.
        size: side of the canvas in pixels.
        patch_size: side of a patch in pixels.
        progress: show a progress bar and the list of unreadable files on stderr.

    Returns:
        ``written``: source path -> overlay's path; ``flagged``: source paths whose contour is not to be relied on;
        ``failed``: source path -> reason; ``contacts``: paths of the contact sheets.

    Raises:
        ArgumentError: no paths, an unknown method, sizes that do not fit, or `out` is not a folder.
        ArgumentTypeError: `paths` is not a list of paths.
    """
    sources = _as_paths(paths)
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if size < 1 or patch_size < 1 or size % patch_size:
        raise ArgumentError(f"size must be a positive multiple of patch_size, got {size} and {patch_size}")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArgumentError(f"out must be a folder, {out} is a file") from error
    except OSError as error:
        raise ArgumentError(f"out must be a folder that can be written to, {out} is not ({error.strerror})") from error
    summary: dict = {"written": {}, "flagged": [], "failed": {}, "contacts": []}
    taken: set[str] = set()
    tiles: list[np.ndarray] = []
    unreadable: list[tuple[str, str, str]] = []
    for source in _with_progress(sources, progress):
        try:
            canvas = read_canvas(source, size=size)
            contour = find_contour(canvas, method, patch_size)
        except (HDXrayError, OSError) as error:
            summary["failed"][source] = str(getattr(error, "reason", error))
            unreadable.append((source, type(error).__name__, summary["failed"][source]))
            continue
        name = _free_name(Path(source).stem or "image", taken)
        picture = draw_overlay(canvas, contour, Path(source).name)
        record = describe_contour(canvas, contour, source, patch_size)
        (folder / f"{name}.contour.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        summary["written"][source] = str(_write_png(folder / f"{name}.contour.png", picture))
        if contour.flagged:
            summary["flagged"].append(source)
        tiles.append(contact_tile(canvas, contour, name))
        if len(tiles) == SHEET:
            summary["contacts"].append(_write_sheet(folder, tiles, summary["contacts"], sources))
            tiles = []
    if tiles:
        summary["contacts"].append(_write_sheet(folder, tiles, summary["contacts"], sources))
    write_quarantine(folder / "unreadable.csv", unreadable)
    if progress:
        _report(summary, folder)
    return summary


def _as_paths(paths: Iterable[str | os.PathLike]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    try:
        sources = [os.fspath(path) for path in paths]
    except TypeError as error:
        raise ArgumentTypeError(f"paths must be a list of files, got {type(paths).__name__}: {error}") from error
    if not sources:
        raise ArgumentError("paths is empty: give at least one radiograph")
    return list(dict.fromkeys(str(source) for source in sources))


def _with_progress(sources: list[str], progress: bool) -> Iterator[str]:
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:  # a nicety: the pictures are written without it
            return iter(sources)
        return iter(tqdm(sources, desc="contours", unit="image", file=sys.stderr))
    return iter(sources)


def _report(summary: dict, folder: Path) -> None:
    for source, reason in summary["failed"].items():
        print(f"unreadable: {source}: {reason}", file=sys.stderr)
    print(
        f"{len(summary['written'])} contours in {folder}, {len(summary['flagged'])} of them flagged; "
        f"{len(summary['failed'])} files unreadable",
        file=sys.stderr,
    )


def _free_name(stem: str, taken: set[str]) -> str:
    """The stem, numbered if it is taken; upper and lower case count as the same, as on some file systems."""
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return name


def _write_png(path: Path, picture: np.ndarray) -> Path:
    done, data = cv2.imencode(".png", picture)
    if not done:
        raise OSError(f"{path}: the picture could not be encoded")
    path.write_bytes(data.tobytes())  # cv2.imwrite would fail silently, and on non-ASCII paths on Windows
    return path


def contact_tile(canvas: Canvas, contour: Contour, name: str) -> np.ndarray:
    """[TILE + captions, TILE, 3] uint8 BGR overlay for a sheet, drawn at its own size so that lines stay visible."""
    ratio = TILE / canvas.pixels.shape[0]
    grey = canvas.pixels if canvas.pixels.dtype == np.uint8 else (canvas.pixels >> 8).astype(np.uint8)
    picture = cv2.cvtColor(cv2.resize(grey, (TILE, TILE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    colour = FLAGGED if contour.flagged else ACCEPTED
    inside = cv2.resize(contour.inside.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    tinted = cv2.addWeighted(picture, 0.85, np.full_like(picture, colour), 0.15, 0)
    picture = np.where(inside[..., None] > 0, tinted, picture)
    if len(contour.polygon):
        corners = np.round((contour.polygon * ratio - 0.5) * 16).astype(np.int32)
        cv2.polylines(picture, [corners], True, colour, 2, cv2.LINE_AA, shift=4)
    state = "FLAGGED " if contour.flagged else ""
    captions = [_elide(name, 34), f"{state}{contour.method} {contour.confidence:.2f}"]
    return np.vstack([picture, *(_line(text, colour) for text in captions)])


def _line(text: str, colour: tuple[int, int, int]) -> np.ndarray:
    strip = np.full((18, TILE, 3), 24, np.uint8)
    text = text.encode("ascii", "replace").decode()
    cv2.putText(strip, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return strip


def _write_sheet(folder: Path, tiles: list[np.ndarray], written: list[str], sources: list[str]) -> str:
    """Write one contact sheet beside those written; a radiograph of that name in the same folder is never replaced."""
    kept = {os.path.realpath(path) for path in (*written, *sources)}
    names = ("contacts.png" if page == 1 else f"contacts-{page}.png" for page in range(1, 3 + len(kept)))
    path = next(folder / name for name in names if os.path.realpath(folder / name) not in kept)
    return str(_write_png(path, contact_sheet(tiles)))


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
