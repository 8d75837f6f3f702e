"""Fit the shape model of the classical method: template, outline components, cascade of ridge regressions, prior."""

from __future__ import annotations

import numpy as np
from contour_data import Sample, valid_mask

from hdxray_fast.images import contour_classical as classical

SHAPES = 8  # components of the outline
COMPONENTS = 60  # components of the patch
STAGES = 5
STARTS = 24  # starts per image (half of them mirrored) for each stage


def _mirror(grey: np.ndarray, polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flipped = polygon.copy()
    flipped[:, 0] = grey.shape[1] - flipped[:, 0]
    return np.ascontiguousarray(grey[:, ::-1]), flipped[::-1]


def _pictures(samples: list[Sample]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(grey, box [4], radii [32]) of every sample and its mirror image."""
    pictures = []
    for sample in samples:
        seen = classical.equalise(sample.images[160], valid_mask(sample.valid_box))
        if seen is None:
            continue
        grey, origin = seen
        polygon = sample.polygon * 160 - np.array(origin)
        for g, p in ((grey, polygon), _mirror(grey, polygon)):
            pictures.append((g, *classical.outline_points(p)))
    return pictures


def _ridge(inputs: np.ndarray, answers: np.ndarray, weight: float) -> np.ndarray:
    x = np.hstack([inputs, np.ones((len(inputs), 1))])
    scale = x.std(0) + 1e-6
    scale[-1] = 1
    x = x / scale
    penalty = weight * len(x) * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(x.T @ x + penalty, x.T @ answers) / scale[:, None]


def _principal(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = rows.mean(0)
    _, _, basis = np.linalg.svd(rows - mean, full_matrices=False)
    return mean, basis[:count]


def fit(samples: list[Sample], seed: int = 0, ridge: float = 3.0) -> dict[str, np.ndarray]:
    """The model's arrays, as `hdxray_fast.images.contour_classical` uses them."""
    rng = np.random.default_rng(seed)
    pictures = _pictures(samples)
    boxes, radii = np.stack([p[1] for p in pictures]), np.stack([p[2] for p in pictures])
    sizes = np.array([p[0].shape[::-1] for p in pictures], float)  # [N, 2] width, height
    place = np.stack(
        [(boxes[:, 0] + boxes[:, 2] / 2) / sizes[:, 0], (boxes[:, 1] + boxes[:, 3] / 2) / sizes[:, 1],
         np.log(boxes[:, 2] / sizes.max(1)), np.log(boxes[:, 3] / boxes[:, 2])], 1)  # fmt: skip
    template = np.mean([classical.box_patch(g, b, classical.TEMPLATE, classical.MARGIN) for g, b, _ in pictures], 0)
    shape_mean, shape_basis = _principal(radii, SHAPES)
    shapes = (radii - shape_mean) @ shape_basis.T  # [N, SHAPES]
    half = outline_in_valid_box(boxes, radii, sizes)
    model = {
        "template": template.astype(np.float32),
        "place_mean": place.mean(0),
        "place_std": np.maximum(place.std(0), 0.03),
        "shape_mean": shape_mean,
        "shape_basis": shape_basis,
        "prior": half,
        "likeness_accept": np.float32(0.5),
    }
    # starts of the first stage: what the matching gives (its errors are the ones to correct), shaken
    starts = []
    for index, (grey, box, _) in enumerate(pictures):
        matched = classical.match_template(grey, model)[0]
        for k in range(STARTS):
            base = matched if k % 3 < 2 else box
            step = np.concatenate([rng.normal(0, 0.06, 2), rng.normal(0, 0.09, 2)])
            starts.append((index, classical.apply_step(base, np.zeros(SHAPES), np.append(step, np.zeros(SHAPES)))))
    patches = np.stack([classical.box_patch(pictures[i][0], s[0], classical.PATCH, classical.PATCH_MARGIN).ravel()
                        for i, s in starts])  # fmt: skip
    model["patch_mean"], model["patch_basis"] = _principal(patches, COMPONENTS)
    stages = []
    for _ in range(STAGES):
        inputs = np.stack([classical.cascade_input(pictures[i][0], s[0], s[1], model) for i, s in starts])
        answers = np.stack([_step_to(s, boxes[i], shapes[i]) for i, s in starts])
        stages.append(_ridge(inputs, answers, ridge))
        starts = [
            (i, classical.apply_step(*s, np.append(x, 1) @ stages[-1]))
            for (i, s), x in zip(starts, inputs, strict=True)
        ]
    model["stages"] = np.stack(stages)
    return {key: np.asarray(value, np.float32) for key, value in model.items()}


def _step_to(state: tuple[np.ndarray, np.ndarray], box: np.ndarray, shape: np.ndarray) -> np.ndarray:
    (x, y, w, h), current = state
    centre = ((box[0] + box[2] / 2 - x - w / 2) / w, (box[1] + box[3] / 2 - y - h / 2) / h)
    return np.concatenate([centre, np.log([box[2] / w, box[3] / h]), shape - current])


def outline_in_valid_box(boxes: np.ndarray, radii: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[32, 2]: the outline whose box and radii are the means, as shares of the valid box."""
    low, extent = (boxes[:, :2] / sizes).mean(0), (boxes[:, 2:] / sizes).mean(0)
    angle = 2 * np.pi * np.arange(classical.POINTS) / classical.POINTS
    unit = np.stack([np.cos(angle), np.sin(angle)], 1) * radii.mean(0)[:, None]
    return low + (unit + 1) / 2 * extent


def store(model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as they are shipped: half precision."""
    return {key: value.astype(np.float16) for key, value in model.items()}
