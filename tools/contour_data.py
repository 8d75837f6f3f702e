"""Images, masks and augmentation for training the contour net: a letterboxed frame of 160 px, as a small pyramid."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

FRAME = 160  # px, side of the net's input; its output grid is half of it
LEVELS = (208, 160, 112)  # px, sides of the stored pyramid: zooming in needs more than 160, zooming out aliases from it


@dataclass
class Sample:
    """One radiograph in the net's letterboxed frame."""

    name: str
    patient: str
    fold: int  # 0..4, or -1 for an unlabelled image
    valid_box: tuple[float, float, float, float]  # (top, left, height, width) as shares of the frame
    images: dict[int, np.ndarray]  # level -> [level, level] float32 0..255, padding 0
    truth: dict[int, np.ndarray] = field(default_factory=dict)  # level -> [level, level, 2] float32 (hull, lungs)
    polygon: np.ndarray | None = None  # [K, 2] float32 xy as shares of the frame: the hull of all three mask bits
    licence: str = ""
    path: str = ""
    url: str = ""


def letterbox(image: np.ndarray, size: int, interpolation: int | None = None) -> tuple[np.ndarray, tuple]:
    """Centre an image on a [size, size] canvas of zeros; returns it and (top, left, height, width) in canvas pixels."""
    h, w = image.shape[:2]
    scale = size / max(h, w)
    nh, nw = max(1, round(h * scale)), max(1, round(w * scale))
    if interpolation is None:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image, (nw, nh), interpolation=interpolation)
    top, left = (size - nh) // 2, (size - nw) // 2
    canvas = np.zeros((size, size, *image.shape[2:]), image.dtype)
    canvas[top : top + nh, left : left + nw] = resized
    return canvas, (top, left, nh, nw)


def hull_of(mask: np.ndarray) -> np.ndarray:
    """[K, 1, 2] int32 convex hull (x, y) of all set pixels of a mask."""
    ys, xs = np.nonzero(mask)
    return cv2.convexHull(np.stack([xs, ys], 1).astype(np.int32))


def pyramid(image: np.ndarray) -> tuple[dict[int, np.ndarray], tuple]:
    """The letterboxed image at every level, and its valid box as shares of the frame."""
    levels = {}
    for size in LEVELS:
        canvas, _ = letterbox(image, size)
        levels[size] = canvas.astype(np.float32)
    _, box = letterbox(image, 1280)
    return levels, tuple(v / 1280 for v in box)


def load_labelled(root: Path) -> list[Sample]:
    """Radiographs with radiologist masks (`index.csv`, columns image, mask, patient, license)."""
    samples = []
    with open(root / "index.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        image = cv2.imread(str(root / row["image"]), cv2.IMREAD_GRAYSCALE)
        bits = cv2.imread(str(root / row["mask"]), cv2.IMREAD_UNCHANGED)
        if image is None or bits is None:
            raise OSError(f"{root / row['image']}: image or mask cannot be read")
        if bits.shape != image.shape:
            bits = cv2.resize(bits, image.shape[::-1], interpolation=cv2.INTER_NEAREST)
        hull = hull_of(bits)
        filled = cv2.fillConvexPoly(np.zeros(image.shape, np.float32), hull, 1.0)
        lungs = ((bits & 3) > 0).astype(np.float32)
        levels, box = pyramid(image)
        both = np.stack([filled, lungs], -1)
        truth = {size: letterbox(both, size, cv2.INTER_AREA)[0] for size in LEVELS}
        scale = 1.0 / max(image.shape)
        # pixel centres lie at +0.5; +0.5 also covers the far half of the border pixels well enough
        polygon = (hull[:, 0, :] + 0.5) * scale + np.array([box[1], box[0]])
        samples.append(
            Sample(
                row["image"],
                row["patient"],
                0,
                box,
                levels,
                truth,
                polygon.astype(np.float32),
                row["license"],
                str(root / row["image"]),
                row.get("url", ""),
            )
        )
    # balanced folds by patient: the patients with most images first, each to the emptiest fold, ties by the hash
    count = {}
    for sample in samples:
        count[sample.patient] = count.get(sample.patient, 0) + 1
    filled_folds, where = [0] * 5, {}
    for patient in sorted(count, key=lambda p: (-count[p], zlib.crc32(f"contour-{p}".encode()))):
        where[patient] = int(np.argmin(filled_folds))
        filled_folds[where[patient]] += count[patient]
    for sample in samples:
        sample.fold = where[sample.patient]
    return samples


def load_unlabelled(folders: list[Path]) -> list[Sample]:
    """Every JPEG of the folders, without truth."""
    samples = []
    for folder in folders:
        for path in sorted(folder.glob("*.jpg")):
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is None:
                continue
            levels, box = pyramid(image)
            samples.append(Sample(path.name, path.name, -1, box, levels, path=str(path)))
    return samples


def standardise(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the valid pixels; padding becomes 0, the mean."""
    inside = image[valid]
    return np.where(valid, (image - inside.mean()) / (inside.std() + 1e-3), 0).astype(np.float32)


def valid_mask(box: tuple, size: int = FRAME) -> np.ndarray:
    """[size, size] bool, True on the radiograph (box: shares of the frame)."""
    top, left, height, width = (round(v * size) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    mask = np.zeros((size, size), bool)
    mask[top:height, left:width] = True
    return mask


def _affine(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """A random [2, 3] map from a pyramid level of `size` px to the frame, and its zoom."""
    zoom = float(np.exp(rng.uniform(np.log(0.6), np.log(1.25))))
    if rng.random() < 0.1:
        zoom *= 0.85
    aspect = float(np.exp(rng.normal(0, 0.09)))
    angle = np.deg2rad(rng.normal(0, 6) if rng.random() < 0.85 else rng.uniform(-22, 22))
    shear = rng.normal(0, 0.04)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = np.cos(angle), np.sin(angle)
    linear = np.array([[c, -s], [s, c]]) @ np.array([[1, shear], [0, 1]])
    linear = linear @ np.diag([flip * zoom * np.sqrt(aspect), zoom / np.sqrt(aspect)]) * (FRAME / size)
    slack = max(0.05, (1 - zoom) * 0.5) * FRAME
    shift = rng.uniform(-slack, slack, 2)
    centre = np.array([size / 2, size / 2])
    offset = np.array([FRAME / 2, FRAME / 2]) + shift - linear @ centre
    # cv2's pixel centres are at integers: p' = L (p + .5) + t - .5
    offset = offset + linear @ np.array([0.5, 0.5]) - 0.5
    return np.hstack([linear, offset[:, None]]), zoom


def _smooth(rng: np.random.Generator, cells: int) -> np.ndarray:
    """[FRAME, FRAME] smooth random field, about N(0, 1)."""
    return cv2.resize(rng.normal(size=(cells, cells)).astype(np.float32), (FRAME, FRAME), interpolation=cv2.INTER_CUBIC)


def _photometric(rng: np.random.Generator, x: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Change grey values of a 0..1 image; the truth stays as it is."""
    if rng.random() < 0.8:
        x = np.clip(x, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.4)))
    if rng.random() < 0.5:  # shading
        x = x * np.exp(0.25 * rng.random() * _smooth(rng, int(rng.integers(2, 4))))
    if rng.random() < 0.35:  # local contrast, as radiography post-processing does
        sigma = float(rng.uniform(6, 30))
        low = cv2.GaussianBlur(x, (0, 0), sigma)
        x = low * rng.uniform(0.3, 1.0) + (x - low) * rng.uniform(0.6, 2.0)
    if rng.random() < 0.15:
        lo, hi = np.percentile(x, [rng.uniform(0, 8), rng.uniform(92, 100)])
        x = np.clip((x - lo) / (hi - lo + 1e-3), 0, 1)
    if rng.random() < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 1.6)))
    if rng.random() < 0.4:
        x = x + rng.normal(0, rng.uniform(0.005, 0.09), x.shape)
    if rng.random() < 0.4:  # white-out: consolidation or effusion, brightest towards the base
        ys, xs = np.nonzero(hull > 0.5)
        if len(ys):
            for _ in range(int(rng.integers(1, 4))):
                k = rng.integers(len(ys))
                size = rng.uniform(6, 34, 2)
                yy, xx = np.mgrid[:FRAME, :FRAME]
                blob = np.exp(-(((yy - ys[k]) / size[0]) ** 2 + ((xx - xs[k]) / size[1]) ** 2))
                level = np.percentile(x, rng.uniform(60, 97))
                x = x + blob * rng.uniform(0.3, 1.0) * (level - x) * (1 + 0.2 * _smooth(rng, 12))
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):  # cut-outs, letters, plates, cables
        h, w = rng.integers(3, 26, 2)
        top, left = rng.integers(0, FRAME - h), rng.integers(0, FRAME - w)
        x[top : top + h, left : left + w] = rng.uniform(0, 1.1)
    if rng.random() < 0.2:
        p, q = (tuple(int(v) for v in rng.integers(0, FRAME, 2)) for _ in range(2))
        x = cv2.line(np.ascontiguousarray(x, np.float32), p, q, float(rng.uniform(0.6, 1.2)), int(rng.integers(1, 3)))
    return x


def augment(rng: np.random.Generator, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """One augmented ([160, 160] float32 standardised input, [2, 80, 80] float32 soft targets)."""
    size = LEVELS[0]
    matrix, zoom = _affine(rng, size)
    level = next((s for s in reversed(LEVELS) if s >= zoom * FRAME * 0.95), LEVELS[0])
    if level != size:
        ratio = size / level  # map level px -> size px first
        shift = np.array([ratio / 2 - 0.5] * 2)
        matrix = np.hstack([matrix[:, :2] * ratio, (matrix[:, 2] + matrix[:, :2] @ shift)[:, None]])
    # the radiograph's own frame: letterbox padding, or collimation borders of some grey that belong to the picture
    warp = lambda a, border: cv2.warpAffine(  # noqa: E731
        a, matrix, (FRAME, FRAME), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )
    content = valid_mask(sample.valid_box, level).astype(np.float32)
    image, content, truth = warp(sample.images[level] / 255, 0), warp(content, 0), warp(sample.truth[level], (0, 0))
    x = _photometric(rng, image, truth[..., 0])
    valid = content > 0.5
    kind = rng.random()
    if kind < 0.45:  # the border is part of the picture: any grey, sometimes noise or a smooth shade
        grey = rng.choice([0.0, rng.uniform(0, 0.3), rng.uniform(0, 1.0), 1.0])
        border = np.full_like(x, grey)
        if rng.random() < 0.3:
            border = border + rng.normal(0, 0.04, x.shape) + 0.1 * _smooth(rng, 3)
        x = np.where(valid, x, border)
        valid = np.ones_like(valid)
        if rng.random() < 0.7:  # and the picture itself is letterboxed
            cut = round(float(rng.uniform(0, 0.14)) * FRAME)
            if rng.random() < 0.5:
                valid[:cut], valid[FRAME - cut :] = False, False
            else:
                valid[:, :cut], valid[:, FRAME - cut :] = False, False
    elif kind < 0.75:  # mirror the outside in: more tissue than was exposed
        x = (
            cv2.warpAffine(
                sample.images[level] / 255,
                matrix,
                (FRAME, FRAME),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            if sample.valid_box[2] > 0.97 and sample.valid_box[3] > 0.97
            else x
        )
        valid = np.ones_like(valid) if sample.valid_box[2] > 0.97 and sample.valid_box[3] > 0.97 else valid
    if valid.sum() < 400:
        valid = np.ones_like(valid)
    truth = truth * valid[..., None]  # what is cut off cannot be outlined
    target = cv2.resize(truth, (FRAME // 2, FRAME // 2), interpolation=cv2.INTER_AREA)
    return standardise(x.astype(np.float32), valid), np.clip(target.transpose(2, 0, 1), 0, 1)
