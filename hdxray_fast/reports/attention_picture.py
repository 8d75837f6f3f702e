"""The attention over the radiographs of each sentence of a report, as one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.listing import IMAGE_SUFFIXES
from ..errors import MissingDependencyError
from ..extras import install
from ..files import free_name, written_whole
from ..images.heat import heat_overlay, heat_scale
from ..images.panels import display_levels
from .study_list import Study

MOST_SENTENCES = 10  # of a picture; with the radiographs themselves and the mean twelve tiles
COLUMNS = 4
LEAST_DIFFERENCE = 0.1  # of even shares, at the full colour: less is no difference to look at
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


def relative_maps(maps: np.ndarray, valid: np.ndarray, tokens: int) -> tuple[np.ndarray, float]:
    """Weights as times an even share of the patches that are no padding.

    They are spread by half the width of a visual token, so that a token that few patches went into is no brighter for
    it than one of many.

    Args:
        maps: ``[sentences, V, gh, gw]`` weights.
        valid: ``[V, gh, gw] bool``, patches that are no padding.
        tokens: visual tokens of a view.

    Returns:
        ``[sentences, V, gh, gw] float32`` with a mean of 1, NaN on the padding; and the share of the weights, before
        they were spread, that lay there.
    """
    inside = np.where(valid, maps, 0).astype(np.float32)
    total = float(maps.sum())
    lost = 1 - float(inside.sum()) / total if total > 0 else 0.0
    spread = np.stack([[_spread(view, good, tokens) for view, good in zip(one, valid, strict=True)] for one in inside])
    even = spread.sum((1, 2, 3), keepdims=True) / max(int(valid.sum()), 1)
    return np.where(valid, spread / np.maximum(even, 1e-12), np.nan).astype(np.float32), max(lost, 0.0)


def _spread(heat: np.ndarray, valid: np.ndarray, tokens: int) -> np.ndarray:
    sigma = 0.5 * max(1.0, float(np.sqrt(heat.size / tokens)))
    sums, room = (
        cv2.GaussianBlur(np.where(valid, layer, 0).astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        for layer in (heat, np.ones_like(heat))
    )
    return np.where(valid, sums / np.maximum(room, 1e-6), 0)


def sentence_maps(words: np.ndarray, places: Sequence[Sequence[int]], grid_size: tuple[int, int]) -> np.ndarray:
    """Mean over the words of each sentence: ``[T, V, P]`` to ``[sentences, V, gh, gw]``."""
    maps = [words[list(place)].mean(0) if place else np.zeros(words.shape[1:]) for place in places]
    return np.stack(maps).reshape(len(maps), words.shape[1], *grid_size)


def draw_attention(
    path: Path,
    views: Sequence[np.ndarray],
    sentences: Sequence[str],
    maps: np.ndarray,
    tokens: int,
    valid: Sequence[np.ndarray] | None = None,
    told: Sequence[str] = (),
) -> Path:
    """Write a picture: the radiographs, the mean attention of all sentences, and how that of each differs from it.

    The sentences of a report look at much the same places, so that their maps look alike; what tells them apart is the
    difference from their mean, in one scale for all. A single sentence has its map alone. Sentences beyond
    ``MOST_SENTENCES`` are left out, and the last caption says how many.

    Args:
        path: PNG to write.
        views: ``[S, S] uint8`` each.
        sentences: their texts; may be none.
        maps: ``[sentences, V, gh, gw]`` weights.
        tokens: visual tokens of a view.
        valid: ``[gh, gw] bool`` each, patches that are no padding; left out, all.
        told: of each view what its caption adds, as that it shows no frontal chest; may be blank.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"pictures need {error.name}: {install('report')}") from error
    greys = [display_levels(view)[view] for view in views]
    head = "radiograph" if len(views) == 1 else f"{len(views)} radiographs"
    head = "\n".join([head, *dict.fromkeys(filter(None, told))])
    pictures = [(head, maps[:0].sum(0), 1.0)]
    shown, fonts = list(sentences[:MOST_SENTENCES]), _fonts(sentences[:MOST_SENTENCES])
    if shown:
        words = shown if fonts is not None else ["(no font for Chinese is installed)"] * len(shown)
        captions = [_wrapped(f"{number}. {text}", 42 * len(views)) for number, text in enumerate(words, start=1)]
        if more := len(sentences) - len(shown):
            captions[-1] += f"\n(and {more} more sentences)"
        heat, lost = relative_maps(maps, np.ones(maps.shape[1:], bool) if valid is None else np.stack(valid), tokens)
        padding = f"\n({lost:.0%} lay on padding, which is left out)" if lost >= 0.005 else ""
        mean = heat.mean(0)
        if len(sentences) == 1:
            pictures.append((captions[0] + padding, mean - 1, _full_colour(mean - 1)))
        else:
            pictures.append((f"mean of all {len(sentences)} sentences{padding}", mean - 1, _full_colour(mean - 1)))
            apart = heat[: len(shown)] - mean
            pictures += [(caption, one, _full_colour(apart)) for caption, one in zip(captions, apart, strict=True)]
    columns = min(len(pictures), COLUMNS if len(views) == 1 else COLUMNS // 2)
    rows = -(-len(pictures) // columns)
    lines = 1 + max(caption.count("\n") for caption, _, _ in pictures)
    size = 3.4 * len(views) * columns + 0.8 * min(len(pictures) - 1, 2), (3.6 + 0.18 * lines) * rows
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("S")  # what room is left over is the caption's
    for axis, (caption, values, full) in zip(axes, pictures, strict=False):
        tinted = [heat_overlay(grey, part, full, smooth=True, unseen=1)
                  for grey, part in zip(greys, values, strict=True)]  # fmt: skip
        axis.imshow(np.hstack(tinted))
        axis.set_title(caption, fontsize=10, loc="left", **({"family": fonts} if fonts else {}))
    if shown:
        _add_scale(figure, axes[1], 1, pictures[1][2], "times an even share of the attention")
    if len(pictures) > 2:
        _add_scale(figure, axes[2:4], 0, pictures[2][2], "difference from the mean, in even shares")
    with written_whole(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.05)
    return path


def _full_colour(values: np.ndarray) -> float:
    """The 99th percentile: one hot patch leaves the others their colours."""
    return max(float(np.nanpercentile(np.abs(values), 99)), LEAST_DIFFERENCE)


def _add_scale(figure, axes, middle: int, full: float, label: str) -> None:
    """A colour bar beside ``axes``: ``middle`` less and more ``full``; shares, of which 1 is even, begin at 0."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    low = max(middle - full, 0) if middle else -full
    colours, norm = ListedColormap(heat_scale((low - middle) / full) / 255), Normalize(low, middle + full)
    place = {"shrink": 0.75, "aspect": 30, "pad": 0.02, "anchor": (0, 0), "panchor": False}
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, **place)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _fonts(sentences: Sequence[str]) -> list[str] | None:
    """Families for the captions: none in particular (empty) without Chinese; ``None`` if Chinese cannot be written."""
    if not any(_CHINESE.search(sentence) for sentence in sentences):
        return []
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in CHINESE_FONTS if name in known]
    return [*found, "DejaVu Sans"] if found else None


def _wrapped(text: str, width: int, lines: int = 5) -> str:
    """``text`` in at most ``lines`` lines; a Chinese character is as wide as two others."""
    text = text.replace("$", r"\$")  # matplotlib takes it for mathematics
    rows, row, used = [], "", 0
    for piece in re.findall(r"[\u3000-\u9fff\uf900-\uffef]|[^\s\u3000-\u9fff\uf900-\uffef]+|\s+", text):
        for part in (piece[start : start + width] for start in range(0, len(piece), width)):  # words without an end
            size = 2 * len(part) if _CHINESE.match(part) else len(part)
            if used + size > width and row:
                rows.append(row.strip())
                row, used = "", 0
            row, used = row + part, used + size
    rows.append(row.strip())
    return "\n".join(rows if len(rows) <= lines else [*rows[: lines - 1], rows[lines - 1] + " ..."])


def picture_names(studies: Sequence[Study], pictures: int) -> list[str]:
    """File names of the pictures of the first so many studies, after their first radiographs, whichever process draws
    them."""
    stems: dict[str, int] = {}
    # they may be written into the folder of the radiographs, which are not drawn over
    return [
        f"{_file_name(study.images[0] if study.images else study.id, stems)}.report.png" for study in studies[:pictures]
    ]


def _file_name(study: str, taken: dict[str, int]) -> str:
    """The last part of a path or id as a file name, numbered if it is taken."""
    last = Path(study).name
    if Path(study).suffix.lower() in IMAGE_SUFFIXES:
        last = Path(study).stem
    stem = re.sub(r"[^\w.-]+", "_", last).strip("._")[:80] or "study"
    return free_name(stem, taken)
