"""Pictures of a training step: what the model was shown, what it made of it, and where it was wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..files import written_whole
from ..terminal import visible
from .lettering import write_line

GUTTER = 12  # pixels between panels
HEADER = 44  # pixels above each panel, for its title
TITLE_COLOUR = (235, 235, 235)
OUTLINE_COLOUR, FLAGGED_COLOUR = (80, 220, 120), (40, 120, 255)


def masked_view(pixels: np.ndarray, keep_ids: np.ndarray, patch_size: int) -> np.ndarray:
    """The canvas with every patch that is not kept painted dark grey.

    Args:
        pixels: ``[S, S] uint8``.
        keep_ids: ``[N] int``, row-major patch ids.
        patch_size: side of a patch, pixels.

    Returns:
        ``[S, S] uint8``.
    """
    grid = pixels.shape[0] // patch_size
    kept = np.zeros(grid * grid, bool)
    kept[keep_ids] = True
    return np.where(_to_pixels(kept.reshape(grid, grid), patch_size), pixels, 48).astype(np.uint8)


def paste_patches(pixels: np.ndarray, ids: np.ndarray, patches: np.ndarray, patch_size: int) -> np.ndarray:
    """The canvas with the patches ``ids`` replaced.

    Args:
        pixels: ``[S, S] uint8``.
        ids: ``[N] int``, row-major patch ids.
        patches: ``[N, p*p] float``, grey levels 0 to 255.
        patch_size: side of a patch, pixels.

    Returns:
        ``[S, S] uint8``.
    """
    grid, p = pixels.shape[0] // patch_size, patch_size
    tiles = pixels.reshape(grid, p, grid, p).transpose(0, 2, 1, 3).reshape(grid * grid, p * p).copy()
    tiles[ids] = np.clip(np.rint(patches), 0, 255).astype(np.uint8)
    return tiles.reshape(grid, grid, p, p).transpose(0, 2, 1, 3).reshape(pixels.shape)


def display_levels(pixels: np.ndarray) -> np.ndarray:
    """Contrast for the eye: the 1st to 99.5th percentile of the grey levels spread over the screen. ``[256] uint8``.

    Black is left out of the percentiles, since padding is black.
    """
    lit = pixels[pixels > 0]
    low, high = np.percentile(lit, (1, 99.5)) if lit.size else (0, 255)
    levels = (np.arange(256) - low) * (255 / max(high - low, 1))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def contour_view(
    pixels: np.ndarray,
    inside: np.ndarray,
    polygon: np.ndarray | None = None,
    colour: tuple[int, int, int] = OUTLINE_COLOUR,
) -> np.ndarray:
    """The canvas with the patches inside the contour tinted and the contour drawn. ``[S, S, 3] uint8`` BGR."""
    view = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    area = _to_pixels(inside, pixels.shape[0] // inside.shape[0])
    tinted = cv2.addWeighted(view, 0.8, np.full_like(view, colour), 0.2, 0)
    view[area] = tinted[area]
    if polygon is None:
        outlines, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    else:
        outlines = [np.rint(polygon).astype(np.int32)]
    cv2.polylines(view, outlines, True, colour, 4, cv2.LINE_AA)
    return view


def error_view(pixels: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Absolute error in grey levels as a heat map, black at 0 and white at 64. ``[S, S, 3] uint8`` BGR."""
    error = cv2.absdiff(pixels, reconstruction).astype(np.float32) * (255 / 64)
    return cv2.applyColorMap(np.clip(error, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)


def reconstruction_panel(
    pixels: np.ndarray,
    inside: np.ndarray,
    keep_ids: np.ndarray,
    predict_ids: np.ndarray,
    patches: np.ndarray,
    *,
    means: np.ndarray | None = None,
    caption: str = "",
    side: int = 640,
) -> np.ndarray:
    """Pictures in a row: original, contour and inside grid, kept patches, reconstruction, error.

    All but the error share one stretch of contrast; the error is in unstretched grey levels. With ``means``, which the
    reconstruction borrows from the original, what they show alone stands before it: what is the model's is the
    difference.

    Args:
        pixels: ``[S, S] uint8`` canvas.
        inside: ``[S/p, S/p] bool``.
        keep_ids, predict_ids: ``[N] int`` row-major patch ids.
        patches: ``[N_predict, p*p] float`` predicted grey levels, 0 to 255.
        means: ``[N_predict] float``, the original's mean in each predicted patch, where mean and contrast are its.
        caption: a line below the pictures.
        side: side of each picture, pixels.

    Returns:
        ``[h, w, 3] uint8`` BGR.
    """
    patch_size = pixels.shape[0] // inside.shape[0]
    reconstruction = paste_patches(pixels, predict_ids, patches, patch_size)
    mean_error = _error_on(pixels, reconstruction, predict_ids, patch_size)
    share = len(keep_ids) / inside.size
    show = display_levels(pixels)
    original = show[pixels]
    views = {
        "original": original,
        f"contour: {inside.mean():.0%} of patches inside": contour_view(original, inside),
        f"shown to the model: {len(keep_ids)} patches ({share:.0%})": masked_view(original, keep_ids, patch_size),
    }
    title = "reconstruction (shown patches kept)"
    if means is not None:
        flat = np.repeat(means[:, None], patch_size**2, axis=1)
        alone = paste_patches(pixels, predict_ids, flat, patch_size)
        error = _error_on(pixels, alone, predict_ids, patch_size)
        views[f"patch means alone, no model: error {error:.1f}"] = show[alone]
        title = "model, mean and contrast the original's"
    views[title] = show[reconstruction]
    views[f"error: mean {mean_error:.1f} of 255 (white = 64)"] = error_view(pixels, reconstruction)
    return tile([_titled(view, title, side) for title, view in views.items()], caption)


def tile(panels: list[np.ndarray], caption: str = "") -> np.ndarray:
    """Panels of equal height side by side, with a caption line below. ``[h, w, 3] uint8`` BGR."""
    gap = np.full((panels[0].shape[0], GUTTER, 3), 24, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    if not caption:
        return row
    strip = np.full((HEADER, row.shape[1], 3), 24, np.uint8)
    _write(strip, caption)
    return np.concatenate([row, strip])


def png_of(picture: np.ndarray) -> bytes:
    """The PNG file of a picture ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""
    done, data = cv2.imencode(".png", picture)
    assert done  # PNG encodes every such array
    return data.tobytes()


def notebook_png(picture: np.ndarray, caption: str = "", side: int = 640) -> bytes:
    """:func:`png_of` a square picture of at most ``side`` pixels, with a line below it."""
    if len(picture) > side:
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return png_of(tile([picture], caption))


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Pictures of equal width below each other. ``[h, w, 3] uint8`` BGR."""
    gap = np.full((GUTTER, rows[0].shape[1], 3), 24, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def write_image(path: str | Path, image: np.ndarray) -> None:
    """PNG by name; a failure to write is an ``OSError`` that names the file."""
    with written_whole(Path(path), durable=False) as temporary:
        temporary.write_bytes(png_of(image))  # cv2.imwrite fails silently, and on non-ASCII paths on Windows


@contextlib.contextmanager
def left_out_if_it_fails(picture: Path) -> Iterator[None]:
    """What goes wrong while a picture or a page is made, as a warning: no number and no weight hangs on it.

    A picture of the same name that was made before is removed.
    """
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # what cannot be written cannot always be removed
            picture.unlink(missing_ok=True)
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(visible(f"{picture}: left out, it cannot be made ({reason})"), stacklevel=3)


def _titled(view: np.ndarray, title: str, side: int) -> np.ndarray:
    if view.ndim == 2:
        view = cv2.cvtColor(view, cv2.COLOR_GRAY2BGR)
    header = np.full((HEADER, side, 3), 24, np.uint8)
    _write(header, title)
    return np.concatenate([header, cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA)])


def _write(strip: np.ndarray, text: str) -> None:
    """Text on one line, shrunk where it would not fit."""
    write_line(strip, text, 10, HEADER - 15, 22, TITLE_COLOUR)


def _to_pixels(grid: np.ndarray, patch_size: int) -> np.ndarray:
    return np.repeat(np.repeat(grid, patch_size, axis=0), patch_size, axis=1)


def _error_on(pixels: np.ndarray, reconstruction: np.ndarray, ids: np.ndarray, patch_size: int) -> float:
    grid = pixels.shape[0] // patch_size
    chosen = np.zeros(grid * grid, bool)
    chosen[ids] = True
    where = _to_pixels(chosen.reshape(grid, grid), patch_size)
    return float(cv2.absdiff(pixels, reconstruction)[where].mean()) if chosen.any() else 0.0
