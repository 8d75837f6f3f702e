"""The attention over the radiographs of each sentence of a report, as one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.listing import IMAGE_SUFFIXES
from ..errors import MissingDependencyError
from ..files import free_name, written_whole
from ..images.panels import display_levels
from .study_list import Study

MOST_SENTENCES = 11  # of a picture; with the radiographs themselves twelve tiles
COLUMNS = 4
HEAT = (255, 95, 0)  # RGB
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Heiti SC",
    "Arial Unicode MS",
)
_CHINESE = re.compile(r"[\u3000-\u9fff\uf900-\uffef]")


def heat_overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A radiograph under a heat map.

    Args:
        pixels: ``[S, S] uint8``.
        heat: ``[gh, gw] float``, 0 to 1.

    Returns:
        ``[S, S, 3] uint8``, RGB: the radiograph, orange where ``heat`` is 1.
    """
    size = pixels.shape[::-1]
    smooth = np.clip(cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), 0, 1)
    share = (0.75 * smooth)[..., None]
    grey = display_levels(pixels)[pixels][..., None] * 0.85  # white bones would swallow the colour
    return (grey * (1 - share) + np.array(HEAT) * share).astype(np.uint8)


def smoothed(heat: np.ndarray, tokens: int) -> np.ndarray:
    """Weights ``[gh, gw]`` spread by half the width of a visual token, so that a token that few patches went into is no
    brighter for it than one of many; the sum stays but for what leaves the image."""
    sigma = 0.5 * max(1.0, float(np.sqrt(heat.size / tokens)))
    return cv2.GaussianBlur(heat.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def sentence_maps(words: np.ndarray, places: Sequence[Sequence[int]], grid_size: tuple[int, int]) -> np.ndarray:
    """Mean over the words of each sentence: ``[T, V, P]`` to ``[sentences, V, gh, gw]``."""
    maps = [words[list(place)].mean(0) if place else np.zeros(words.shape[1:]) for place in places]
    return np.stack(maps).reshape(len(maps), words.shape[1], *grid_size)


def draw_attention(
    path: Path, views: Sequence[np.ndarray], sentences: Sequence[str], maps: np.ndarray, tokens: int
) -> Path:
    """Write a picture: the radiographs, and for each sentence the radiographs under its attention.

    The colours of each sentence run from 0 to its own largest weight, over all views. Sentences beyond
    ``MOST_SENTENCES`` are left out, and the last caption says how many.

    Args:
        path: PNG to write.
        views: ``[S, S] uint8`` each.
        sentences: their texts; may be none.
        maps: ``[sentences, V, gh, gw]`` weights.
        tokens: visual tokens of a view.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"pictures need {error.name}: pip install 'hdxray_fast[report]'") from error
    shown = list(sentences[:MOST_SENTENCES])
    tiles = 1 + len(shown)
    columns = min(tiles, COLUMNS if len(views) == 1 else COLUMNS // 2)
    rows = -(-tiles // columns)
    wide = 3.4 * len(views)
    figure = Figure(figsize=(wide * columns, 4.3 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("S")  # what room is left over is the caption's
    plain = np.hstack([display_levels(view)[view] for view in views])
    axes[0].imshow(plain, cmap="gray", vmin=0, vmax=255)
    fonts = _fonts(shown)
    axes[0].set_title("radiograph" if len(views) == 1 else f"{len(views)} radiographs", fontsize=10, loc="left")
    for number, (sentence, heat) in enumerate(zip(shown, maps, strict=False), start=1):
        heat = np.stack([smoothed(part, tokens) for part in heat])
        heat = heat / max(float(heat.max()), 1e-12)
        axes[number].imshow(np.hstack([heat_overlay(view, part) for view, part in zip(views, heat, strict=True)]))
        words = sentence if fonts is not None else "(no font for Chinese is installed)"
        more = len(sentences) - len(shown) if number == len(shown) else 0
        title = _wrapped(f"{number}. {words}", 44 * len(views)) + (f"\n(and {more} more sentences)" if more else "")
        axes[number].set_title(title, fontsize=10, loc="left", **({"family": fonts} if fonts else {}))
    with written_whole(path, durable=False) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _fonts(sentences: Sequence[str]) -> list[str] | None:
    """Families for the captions: none in particular (empty) without Chinese; ``None`` if Chinese cannot be written."""
    if not any(_CHINESE.search(sentence) for sentence in sentences):
        return []
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in CHINESE_FONTS if name in known]
    return [*found, "DejaVu Sans"] if found else None


def _wrapped(text: str, width: int, lines: int = 4) -> str:
    """``text`` in at most ``lines`` lines; a Chinese character is as wide as two others."""
    text = text.replace("$", r"\$")  # matplotlib takes it for mathematics
    rows, row, used = [], "", 0
    for piece in re.findall(r"[\u3000-\u9fff\uf900-\uffef]|[^\s\u3000-\u9fff\uf900-\uffef]+|\s+", text):
        size = 2 * len(piece) if _CHINESE.match(piece) else len(piece)
        if used + size > width and row:
            rows.append(row.strip())
            row, used = "", 0
        row, used = row + piece, used + size
    rows.append(row.strip())
    return "\n".join(rows if len(rows) <= lines else [*rows[: lines - 1], rows[lines - 1] + " ..."])


def picture_names(studies: Sequence[Study], pictures: int) -> list[str]:
    """File names of the pictures of the first so many studies, whichever process draws them."""
    stems: set[str] = set()
    return [f"{_file_name(study.place or study.id, stems)}.png" for study in studies[:pictures]]


def _file_name(study: str, taken: set[str]) -> str:
    """The last part of a study's id as a file name, numbered if it is taken."""
    last = Path(study).name
    if Path(study).suffix.lower() in IMAGE_SUFFIXES:
        last = Path(study).stem
    stem = re.sub(r"[^\w.-]+", "_", last).strip("._")[:80] or "study"
    return free_name(stem, taken)
