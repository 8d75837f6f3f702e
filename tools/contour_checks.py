"""Pictures that the contour must survive or refuse: damaged radiographs with their moved truth, and no chests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from contour_data import letterbox

from hdxray_fast.images.canvas import Canvas

Picture = tuple[np.ndarray, np.ndarray]  # grey [H, W] uint8, polygon [K, 2] xy in its pixels


def to_canvas(image: np.ndarray, size: int = 1280) -> Canvas:
    """Letterbox a grey image."""
    pixels, box = letterbox(image, size)
    return Canvas(pixels, box, {})


def to_shares(image: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """A polygon in an image's pixels as shares of the letterboxed canvas."""
    side = max(image.shape)
    padding = np.array([side - image.shape[1], side - image.shape[0]]) / 2
    return (polygon + padding) / side


def _clip(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """A convex polygon cut at the picture's border (Sutherland and Hodgman, one border after the other)."""
    box = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    _, cut = cv2.intersectConvexConvex(cv2.convexHull(polygon.astype(np.float32)), box)
    return np.zeros((0, 2), np.float32) if cut is None else cut.reshape(-1, 2)


def clean(rng: np.random.Generator, image: np.ndarray, polygon: np.ndarray) -> Picture:
    return image, polygon


def mirror(rng, image, polygon):
    return np.ascontiguousarray(image[:, ::-1]), (image.shape[1], 0) + polygon * (-1, 1)


def invert(rng, image, polygon):
    return 255 - image, polygon


def rot90(rng, image, polygon):
    return np.ascontiguousarray(np.rot90(image)), np.stack([polygon[:, 1], image.shape[1] - polygon[:, 0]], 1)


def rot270(rng, image, polygon):
    return np.ascontiguousarray(np.rot90(image, 3)), np.stack([image.shape[0] - polygon[:, 1], polygon[:, 0]], 1)


def rot180(rng, image, polygon):
    return np.ascontiguousarray(image[::-1, ::-1]), np.array(image.shape[::-1]) - polygon


def invert_rot90(rng, image, polygon):
    return rot90(rng, 255 - image, polygon)


def tilt(rng, image, polygon):
    angle = float(rng.choice([-1, 1]) * rng.uniform(15, 50))
    h, w = image.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 0.8)
    turned = cv2.warpAffine(image, matrix, (w, h))
    return turned, _clip(polygon @ matrix[:, :2].T + matrix[:, 2], w, h)


def crop(rng, image, polygon):
    h, w = image.shape
    y0, x0 = rng.uniform(0, 0.3, 2) * (h, w)
    y1, x1 = (1 - rng.uniform(0, 0.3, 2)) * (h, w)
    y0, x0, y1, x1 = int(y0), int(x0), int(y1), int(x1)
    return np.ascontiguousarray(image[y0:y1, x0:x1]), _clip(polygon - (x0, y0), x1 - x0, y1 - y0)


def detail(rng, image, polygon):
    h, w = image.shape
    share = rng.uniform(0.3, 0.5)
    y0, x0 = int(rng.uniform(0, 1 - share) * h), int(rng.uniform(0, 1 - share) * w)
    y1, x1 = y0 + int(share * h), x0 + int(share * w)
    return np.ascontiguousarray(image[y0:y1, x0:x1]), _clip(polygon - (x0, y0), x1 - x0, y1 - y0)


def border(rng, image, polygon):
    h, w = image.shape
    grow = rng.uniform(1.4, 2.4)
    big = np.full((int(h * grow), int(w * grow)), float(rng.choice([0, 0, 30, 128, 255])), np.float32)
    if rng.random() < 0.3:
        big += rng.normal(0, 12, big.shape)
    y, x = int(rng.uniform(0, big.shape[0] - h)), int(rng.uniform(0, big.shape[1] - w))
    big[y : y + h, x : x + w] = image
    return np.clip(big, 0, 255).astype(np.uint8), polygon + np.array([x, y])


def noise(rng, image, polygon):
    return np.clip(image + rng.normal(0, rng.uniform(20, 90), image.shape), 0, 255).astype(np.uint8), polygon


def low_contrast(rng, image, polygon):
    low = rng.uniform(0, 200)
    return np.round(low + image / 255.0 * rng.uniform(8, 40)).astype(np.uint8), polygon


def gamma(rng, image, polygon):
    power = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.8, 1.6)))
    return np.round((image / 255.0) ** power * 255).astype(np.uint8), polygon


def blur(rng, image, polygon):
    return cv2.GaussianBlur(image, (0, 0), max(image.shape) * rng.uniform(0.01, 0.05)), polygon


def stretch(rng, image, polygon):
    ratio = np.exp(rng.choice([-1, 1]) * rng.uniform(0.25, 0.6))
    size = (round(image.shape[1] * ratio), image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), polygon * (size[0] / image.shape[1], 1)


def white_out(rng, image, polygon):
    """One hemithorax, or both bases, opaque."""
    h, w = image.shape
    (x0, y0), (x1, y1) = polygon.min(0), polygon.max(0)
    kind = rng.integers(3)
    field = np.zeros((h, w), np.float32)
    middle = int((x0 + x1) / 2)
    rows = slice(int(y0 if kind < 2 else (y0 + y1) / 2), int(y1))
    field[
        rows, slice(int(x0), middle) if kind == 0 else slice(middle, int(x1)) if kind == 1 else slice(int(x0), int(x1))
    ] = 1
    field = cv2.GaussianBlur(field, (0, 0), 0.03 * max(h, w)) * rng.uniform(0.7, 1.0)
    level = np.percentile(image, 85) + rng.normal(0, 4, image.shape)
    return np.clip(image * (1 - field) + level * field, 0, 255).astype(np.uint8), polygon


def occlude(rng, image, polygon):
    image = image.copy()
    h, w = image.shape
    for _ in range(int(rng.integers(1, 4))):
        bh, bw = (rng.uniform(0.15, 0.45, 2) * (h, w)).astype(int)
        y, x = int(rng.uniform(0, h - bh)), int(rng.uniform(0, w - bw))
        image[y : y + bh, x : x + bw] = rng.integers(0, 256)
    return image, polygon


def clipped(rng, image, polygon):
    """Saturated: everything over or under a level is lost."""
    low, high = np.percentile(image, [rng.uniform(0, 50), rng.uniform(60, 100)])
    return np.clip((image.astype(np.float32) - low) / max(1.0, high - low) * 255, 0, 255).astype(np.uint8), polygon


DAMAGES: dict[str, Callable] = {
    f.__name__: f
    for f in (clean, mirror, invert, rot90, rot180, rot270, invert_rot90, tilt, crop, detail, border, noise,
              low_contrast, gamma, blur, stretch, white_out, occlude, clipped)
}  # fmt: skip


def _blank(rng, n):
    return np.full((n, n), int(rng.integers(0, 256)), np.uint8)


def _white_noise(rng, n):
    return np.clip(rng.normal(128, rng.uniform(5, 90), (n, n)), 0, 255).astype(np.uint8)


def _pink_noise(rng, n):
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]
    spectrum = np.fft.rfft2(rng.normal(size=(n, n))) / np.maximum(np.hypot(fy, fx), 1 / n) ** rng.uniform(0.8, 2.2)
    field = np.fft.irfft2(spectrum, s=(n, n))
    return np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8)


def _gradient(rng, n):
    y, x = np.mgrid[:n, :n] / n
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * x + np.sin(angle) * y if rng.random() < 0.5 else np.hypot(x - rng.random(), y - rng.random())
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    return (ramp * 255).astype(np.uint8)


def _text(rng, n):
    page = np.full((n, n), 255, np.uint8)
    for line in range(int(rng.integers(3, 18))):
        words = "".join(rng.choice(list("abcdefghij  KLMNOP 0123456789"), int(rng.integers(5, 40))))
        cv2.putText(page, words, (int(rng.uniform(0, n / 4)), int((line + 1) * n / 18)), cv2.FONT_HERSHEY_SIMPLEX,
                    n / 900 * rng.uniform(0.6, 2), 0, 1 + n // 400)  # fmt: skip
    return page if rng.random() < 0.5 else 255 - page


def _checks(rng, n):
    cell = int(rng.integers(4, n // 3))
    y, x = np.mgrid[:n, :n] // cell
    return (((x + y) % 2) * 255).astype(np.uint8)


def _phantom(rng, n):
    """Ellipses on a body ellipse: what a slice, a limb or a skull looks like from far."""
    image = np.full((n, n), float(rng.choice([0, 0, 20, 220])), np.float32)
    body = (rng.uniform(0.2, 0.48, 2) * n).astype(int)
    cv2.ellipse(
        image,
        (n // 2, n // 2),
        [int(v) for v in body],
        float(rng.uniform(0, 180)),
        0,
        360,
        float(rng.uniform(60, 200)),
        -1,
    )
    for _ in range(int(rng.integers(0, 9))):
        at = (n / 2 + rng.normal(0, 0.5, 2) * body).astype(int)
        axes = np.maximum(2, rng.uniform(0.04, 0.5, 2) * body).astype(int)
        cv2.ellipse(image, [int(v) for v in at], [int(v) for v in axes], float(rng.uniform(0, 180)), 0, 360,
                    float(rng.uniform(0, 255)), -1)  # fmt: skip
    image = cv2.GaussianBlur(image, (0, 0), n * rng.uniform(0.002, 0.03))
    return np.clip(image + rng.normal(0, rng.uniform(0, 12), (n, n)), 0, 255).astype(np.uint8)


def _slice(rng, n):
    """An axial slice of a trunk: a bright rim, two dark halves or none, a vertebra, a table below."""
    image = np.full((n, n), float(rng.choice([0, 0, 10])), np.float32)
    a, b = int(rng.uniform(0.3, 0.49) * n), int(rng.uniform(0.22, 0.42) * n)
    middle = n // 2

    def ellipse(x, y, p, q, grey, angle=0.0):
        cv2.ellipse(image, (int(x), int(y)), (max(2, int(p)), max(2, int(q))), angle, 0, 360, float(grey), -1)

    ellipse(middle, middle, a, b, rng.uniform(60, 150))
    ellipse(middle, middle, a * 0.9, b * 0.88, rng.uniform(100, 190))
    if rng.random() < 0.7:
        dark = rng.uniform(0, 70)
        for side in (-1, 1):
            ellipse(middle + side * 0.45 * a, middle, a * rng.uniform(0.25, 0.42), b * rng.uniform(0.5, 0.8), dark)
    for _ in range(int(rng.integers(0, 8))):
        x, y = middle + rng.normal(0, 0.4) * a, middle + rng.normal(0, 0.4) * b
        ellipse(
            x, y, a * rng.uniform(0.03, 0.35), b * rng.uniform(0.03, 0.35), rng.uniform(60, 230), rng.uniform(0, 180)
        )
    ellipse(middle, middle + 0.62 * b, a * 0.14, b * 0.18, rng.uniform(200, 255))
    if rng.random() < 0.5:
        cv2.ellipse(image, (middle, int(middle + 0.6 * b)), (a, int(0.6 * b)), 0, 20, 160, 120, 2)
    image = cv2.GaussianBlur(image, (0, 0), n * rng.uniform(0.002, 0.012))
    return np.clip(image + rng.normal(0, rng.uniform(0, 15), (n, n)), 0, 255).astype(np.uint8)


def _bars(rng, n):
    """Long bright bones on soft tissue: limbs and spines."""
    image = np.full((n, n), float(rng.uniform(0, 60)), np.float32)
    angle = rng.normal(0, 0.3)
    for _ in range(int(rng.integers(1, 4))):
        x = rng.uniform(0.25, 0.75) * n
        dx = np.tan(angle) * n / 2
        for width, grey in (
            (rng.uniform(0.2, 0.5), rng.uniform(60, 140)),
            (rng.uniform(0.05, 0.15), rng.uniform(140, 255)),
        ):
            cv2.line(image, (int(x - dx), 0), (int(x + dx), n), float(grey), int(width * n))
    image = cv2.GaussianBlur(image, (0, 0), n * rng.uniform(0.005, 0.03))
    return np.clip(image + rng.normal(0, 6, (n, n)), 0, 255).astype(np.uint8)


def _shuffled(rng, n, image):
    """A radiograph's tiles in the wrong order."""
    k = int(rng.integers(2, 6))
    image = cv2.resize(image, (n // k * k, n // k * k), interpolation=cv2.INTER_AREA)
    tiles = [t for row in np.split(image, k) for t in np.split(row, k, axis=1)]
    order = rng.permutation(len(tiles))
    return np.block([[tiles[order[r * k + c]] for c in range(k)] for r in range(k)])


NOT_CHESTS: dict[str, Callable] = {
    f.__name__.strip("_"): f
    for f in (_blank, _white_noise, _pink_noise, _gradient, _text, _checks, _phantom, _slice, _bars)
}


def not_a_chest(rng: np.random.Generator, radiographs: list[np.ndarray], n: int = 480) -> tuple[str, np.ndarray]:
    """One picture without a chest, [n, n] uint8, and its kind."""
    kind = str(rng.choice([*NOT_CHESTS, "phantom", "slice", "pink_noise", "shuffled", "shuffled"]))
    if kind == "shuffled":
        return kind, _shuffled(rng, n, radiographs[rng.integers(len(radiographs))])
    return kind, NOT_CHESTS[kind](rng, n)


def dicom_pictures() -> list[tuple[str, np.ndarray]]:
    """(kind, grey [H, W] uint8) of pydicom's own test files that are no chest radiographs; empty without pydicom."""
    folders = []
    for package, below in (("pydicom", "data/test_files"), ("data_store", "data")):  # data_store: pydicom-data's files
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            folders.append(Path(spec.origin).parent / below)
    if not folders:
        return []
    import pydicom

    pictures = []
    for path in sorted(str(path) for folder in folders for path in folder.glob("*.dcm")):
        try:
            dataset = pydicom.dcmread(path, force=True)
            kind, frames = str(dataset.get("Modality", "")), dataset.pixel_array
        except Exception:  # many of these files are broken on purpose, or need codecs that are not installed
            continue
        if kind not in ("CT", "MR", "US", "NM", "XA", "OT", "RTDOSE") and "RG3" not in path:
            continue
        samples = int(dataset.get("SamplesPerPixel", 1))
        frame = frames[0] if int(dataset.get("NumberOfFrames", 1) or 1) > 1 else frames
        grey = frame.astype(np.float32).mean(-1) if samples > 1 else frame.astype(np.float32)
        if grey.ndim != 2 or min(grey.shape) < 16:
            continue
        grey = (grey - grey.min()) / max(1e-6, float(np.ptp(grey))) * 255
        pictures.append((f"DICOM {kind}" if "RG3" not in path else "DICOM leg", grey.astype(np.uint8)))
    return pictures
