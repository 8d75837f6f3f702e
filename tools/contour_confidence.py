"""Fit the confidence: a logistic regression that tells good outlines from bad ones by the net's signs."""

from __future__ import annotations

import cv2
import numpy as np
from contour_checks import DAMAGES, not_a_chest, to_canvas, to_shares
from contour_data import Sample

from hdxray_fast.images.contour import _view, rasterize_polygon
from hdxray_fast.images.contour_net import STRANGE, ContourRunner, read_frames, strangeness_of

SIZE = 480  # px, side of the pictures that are damaged
HARD = ("tilt", "white_out", "white_out", "detail")  # kinds that the fit sees more of
GOOD = 0.85  # IoU from which an outline is good


def read_small(path: str) -> np.ndarray:
    """A radiograph with its long side at SIZE."""
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    scale = SIZE / max(image.shape)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean grids."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def collect(
    runner: ContourRunner, samples: list[Sample], seed: int, rounds: int
) -> tuple[np.ndarray, np.ndarray, list]:
    """Signs [N, D], IoU [N] (0 where there is no chest) and kinds of many damaged pictures.

    Samples without a polygon are given the outline that the runner finds on the undamaged picture, if it is sharp.
    """
    rng = np.random.default_rng(seed)
    signs, scores, kinds, radiographs = [], [], [], []
    names = [*DAMAGES, *HARD]

    def look(image: np.ndarray, polygon: np.ndarray | None, kind: str) -> None:
        canvas = to_canvas(image, SIZE)
        view = _view(canvas, canvas.valid_box)
        reading = read_frames(runner, view.image, view.valid)
        score = 0.0
        if reading.polygon is not None and polygon is not None and len(polygon) > 2:
            truth = rasterize_polygon(to_shares(image, polygon) * 1280, 1280)
            score = overlap(rasterize_polygon(reading.polygon * (1280 / 160), 1280), truth)
        signs.append(reading.signs)
        scores.append(score)
        kinds.append(kind)

    for sample in samples:
        image = read_small(sample.path)
        side, polygon = max(image.shape), sample.polygon
        if polygon is None:
            canvas = to_canvas(image, SIZE)
            view = _view(canvas, canvas.valid_box)
            reading = read_frames(runner, view.image, view.valid)
            if reading.polygon is None or reading.signs[0] < 0.93 or reading.signs[2] < 0.92:
                continue
            polygon = reading.polygon / 160
        # shares of the letterboxed frame -> the picture's pixels
        polygon = polygon * side - [(side - image.shape[1]) / 2, (side - image.shape[0]) / 2]
        radiographs.append(image)
        repeat = rounds * 3 if sample.polygon is not None else rounds
        for k in range(repeat):
            kind = names[int(rng.integers(len(names)))] if k else "clean"
            damaged, moved = DAMAGES[kind](rng, image, polygon)
            if min(damaged.shape) >= 32:
                look(damaged, moved, kind)
        for _ in range(2):
            kind, picture = not_a_chest(rng, radiographs, SIZE)
            look(picture, None, kind)
    return np.stack(signs), np.array(scores), kinds


def fit(
    signs: np.ndarray, scores: np.ndarray, kinds: list[str], decay: float = 10.0, bad_weight: float = 2.5
) -> dict[str, np.ndarray]:
    """Weights of the logistic regression (iteratively reweighted least squares), as the runner reads them."""
    good = scores >= GOOD
    mean, deviation = signs[good].mean(0), signs[good].std(0) + 1e-4
    scaled = (signs - mean) / deviation
    precision = np.linalg.inv(np.cov(scaled[good].T) + 0.1 * np.eye(signs.shape[1]))
    strange = np.minimum(strangeness_of(scaled, precision), 3 * STRANGE)
    x = np.hstack([np.clip(scaled, -4, 4), strange[:, None], np.ones((len(signs), 1))])
    y = (scores >= GOOD).astype(float)
    # near the limit either answer will do; a bad one that passes is worse than a good one looked at twice
    weight = np.clip(np.abs(scores - GOOD) / 0.1, 0.1, 1) * np.where(y > 0, 1.0, bad_weight)
    weight *= np.where(np.array(kinds) == "clean", 2.0, 1.0)
    beta = np.zeros(x.shape[1])
    penalty = decay * np.eye(len(beta))
    penalty[-1, -1] = 0
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        hessian = (x * (weight * np.maximum(p * (1 - p), 1e-5))[:, None]).T @ x + penalty
        step = np.linalg.solve(hessian, x.T @ (weight * (y - p)) - penalty @ beta)
        beta += step / max(1.0, np.abs(step).max())
    return {
        "confidence.weight": beta[:-1].astype(np.float32),
        "confidence.bias": np.float32(beta[-1]),
        "confidence.mean": mean.astype(np.float32),
        "confidence.deviation": deviation.astype(np.float32),
        "confidence.precision": precision.astype(np.float32),
    }


def blank_confidence(signs: int = 65) -> dict[str, np.ndarray]:
    """A confidence that says one half to everything: for a runner whose signs are to be collected."""
    return {
        "confidence.weight": np.zeros(signs + 1, np.float32),
        "confidence.bias": np.float32(0),
        "confidence.mean": np.zeros(signs, np.float32),
        "confidence.deviation": np.ones(signs, np.float32),
        "confidence.precision": np.zeros((signs, signs), np.float32),
    }
