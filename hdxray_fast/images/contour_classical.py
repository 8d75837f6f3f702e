"""The contour without a network: template matching, then a cascade of linear shape regressions; and the prior.

Matching: the mean chest (a 32 x 32 patch of locally equalised grey values, :func:`equalise`) is compared by normalised
cross-correlation with the picture at 9 widths x 9 aspects. The cascade moves the outline, starting from the mean one in
the matched box: each stage projects the picture around the current box on principal components and adds a ridge
regression's answer (the supervised descent of Xiong and De la Torre, CVPR 2013, with one global patch in
place of local descriptors).

The template, the components, the regressions and the prior are averages over the same labelled radiographs as the net's
(docs/contour.md); only the ``rectangle`` method has seen no radiograph.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

TEMPLATE = 32  # px, side of the mean chest
MARGIN = 0.12  # of the box, on each side, that the template shows around the chest
POINTS = 32  # points on the outline, at equal angles seen from the box's centre
PATCH = 24  # px, side of the patch that the cascade looks at
PATCH_MARGIN = 0.2
WIDTHS = np.geomspace(0.42, 1.02, 9)  # box widths tried, as shares of the longer side of the valid box
ASPECTS = np.geomspace(0.62, 1.32, 9)  # box heights / widths tried
BLANK = 2.0  # grey levels of 255: a picture with a smaller deviation shows nothing


def load_shape_model(path: Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of images/contour_shape.npz, or of another file of its kind, as float32."""
    source = path if path is not None else resources.files("hdxray_fast").joinpath("images/contour_shape.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return {key: stored[key].astype(np.float32) for key in stored.files}


@lru_cache(maxsize=1)
def _model() -> dict[str, np.ndarray]:
    return load_shape_model()


def prior_polygon() -> np.ndarray:
    """[32, 2] mean outline as shares (x, y) of the valid box."""
    return _model()["prior"]


def equalise(image: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Cut the valid part from a frame and equalise it locally (CLAHE): float32, about -1..1, and its (x, y) there.

    None if there is nothing to see.
    """
    ys, xs = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    if len(ys) < 16 or len(xs) < 16:
        return None
    crop = image[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    if crop.std() < BLANK:
        return None
    low, high = np.percentile(crop, [1, 99])
    grey = np.clip((crop - low) / max(1e-3, high - low) * 255, 0, 255).astype(np.uint8)
    grey = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(grey)
    return grey.astype(np.float32) / 127.5 - 1, (int(xs[0]), int(ys[0]))


def outline_points(polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A convex polygon [K, 2] as its box [4] (x, y, width, height) and radii [32] at equal angles, in half boxes."""
    low, high = polygon.min(0), polygon.max(0)
    half = np.maximum((high - low) / 2, 1e-3)
    unit = (polygon - (low + high) / 2) / half  # [K, 2] in -1..1
    start, delta = unit, np.roll(unit, -1, axis=0) - unit
    angle = 2 * np.pi * np.arange(POINTS) / POINTS
    ray = np.stack([np.cos(angle), np.sin(angle)], 1)  # [32, 2]
    # start + s delta = r ray: Cramer's rule for every ray and edge
    cross = ray[:, None, 0] * delta[None, :, 1] - ray[:, None, 1] * delta[None, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (start[None, :, 0] * delta[None, :, 1] - start[None, :, 1] * delta[None, :, 0]) / cross
        s = (start[None, :, 0] * ray[:, None, 1] - start[None, :, 1] * ray[:, None, 0]) / cross
    hit = (np.abs(cross) > 1e-9) & (s >= -1e-6) & (s <= 1 + 1e-6) & (r > 0)
    radii = np.where(hit, r, 0).max(1)
    return np.concatenate([low, high - low]), radii


def outline_polygon(box: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The convex hull [K, 2] of the points that :func:`outline_points` describes."""
    angle = 2 * np.pi * np.arange(POINTS) / POINTS
    unit = np.stack([np.cos(angle), np.sin(angle)], 1) * radii[:, None]
    points = np.asarray(box[:2]) + (unit + 1) / 2 * np.asarray(box[2:])
    return cv2.convexHull(points.astype(np.float32))[:, 0]


def normalise(patch: np.ndarray) -> np.ndarray:
    """Zero mean, unit deviation."""
    return (patch - patch.mean()) / (patch.std() + 1e-3)


def box_patch(grey: np.ndarray, box: np.ndarray, side: int, margin: float) -> np.ndarray:
    """[side, side] patch of a box (x, y, w, h) and a margin around it; the border is continued outside the picture."""
    x, y, w, h = box
    sx, sy = w * (1 + 2 * margin) / side, h * (1 + 2 * margin) / side
    if max(sx, sy) > 1.5:  # average before sampling
        grey = cv2.GaussianBlur(grey, (0, 0), sigmaX=max(0.1, 0.4 * sx), sigmaY=max(0.1, 0.4 * sy))
    matrix = np.array([[sx, 0, x - w * margin + sx / 2 - 0.5], [0, sy, y - h * margin + sy / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return normalise(cv2.warpAffine(grey, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def match_template(grey: np.ndarray, model: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """The box (x, y, w, h) in the picture's pixels that looks most like the mean chest, and the correlation there."""
    height, width = grey.shape
    side = max(height, width)
    spread, best = 0.16, (-np.inf, 0.0, None)
    for share in WIDTHS:
        for aspect in ASPECTS:
            w, h = share * side, share * aspect * side
            if w > 1.05 * width or h > 1.05 * height:
                continue
            fx, fy = TEMPLATE / (w * (1 + 2 * MARGIN)), TEMPLATE / (h * (1 + 2 * MARGIN))
            size = max(8, round(width * fx)), max(8, round(height * fy))
            small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
            px, py = round(spread * w * fx) + 1, round(spread * h * fy) + 1
            small = cv2.copyMakeBorder(small, py, py, px, px, cv2.BORDER_REPLICATE)
            if small.shape[0] < TEMPLATE or small.shape[1] < TEMPLATE:
                continue
            score = cv2.matchTemplate(small, model["template"], cv2.TM_CCOEFF_NORMED)
            ys, xs = np.mgrid[: score.shape[0], : score.shape[1]]
            x = (xs - px) / fx + w * MARGIN
            y = (ys - py) / fy + h * MARGIN
            place = np.stack(
                [
                    (x + w / 2) / width,
                    (y + h / 2) / height,
                    np.full_like(x, np.log(w / side)),
                    np.full_like(x, np.log(h / w)),
                ]
            )
            away = (place - model["place_mean"][:, None, None]) / model["place_std"][:, None, None]
            judged = score - 0.012 * (away**2).sum(0)
            k = np.unravel_index(int(np.argmax(judged)), judged.shape)
            if judged[k] > best[0]:
                best = (float(judged[k]), float(score[k]), np.array([x[k], y[k], w, h]))
    if best[2] is None:
        return np.array([0, 0, width, height], np.float64), 0.0
    return best[2], best[1]


def run_cascade(grey: np.ndarray, box: np.ndarray, model: dict[str, np.ndarray]):
    """Refine a box and the mean outline in it: (box [4], radii [32])."""
    shape = np.zeros(model["shape_basis"].shape[0])
    for stage in model["stages"]:  # [components + 1, 4 + shapes]
        answer = np.append(cascade_input(grey, box, shape, model), 1) @ stage
        box, shape = apply_step(box, shape, answer)
    return box, model["shape_mean"] + shape @ model["shape_basis"]


def cascade_input(grey: np.ndarray, box: np.ndarray, shape: np.ndarray, model: dict[str, np.ndarray]) -> np.ndarray:
    """What one stage of the cascade sees: components of the patch around the box, and the current shape."""
    patch = box_patch(grey, box, PATCH, PATCH_MARGIN).ravel() - model["patch_mean"]
    return np.concatenate([model["patch_basis"] @ patch, shape])


def apply_step(box: np.ndarray, shape: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move a box by (dx / w, dy / h, log dw, log dh), held within sane limits, and add to the shape."""
    x, y, w, h = box
    dx, dy, dw, dh = np.clip(answer[:4], -0.35, 0.35)
    cx, cy = x + w / 2 + dx * w, y + h / 2 + dy * h
    w, h = w * np.exp(dw), h * np.exp(dh)
    return np.array([cx - w / 2, cy - h / 2, w, h]), shape + answer[4:]


def match_shape(image: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Find the chest's outline in a frame: ([K, 2] float32 in frame pixels or None, confidence 0..1).

    The confidence is the correlation of the picture in the final box with the mean chest, on a logistic scale where a
    correlation of 0.5 means one half.
    """
    model = _model()
    seen = equalise(image, valid)
    if seen is None:
        return None, 0.0
    grey, (x0, y0) = seen
    box, radii = run_cascade(grey, match_template(grey, model)[0], model)
    template = normalise(model["template"])
    likeness = float((box_patch(grey, box, TEMPLATE, MARGIN) * template).mean())
    polygon = np.clip(outline_polygon(box, radii), 0, grey.shape[::-1])
    confidence = 1 / (1 + np.exp(-12 * (likeness - float(model["likeness_accept"]))))
    return polygon + np.array([x0, y0], np.float32), float(confidence)
