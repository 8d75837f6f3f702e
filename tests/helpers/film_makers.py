"""Toy films with anatomy of their own, and what public data sets do to films."""

from __future__ import annotations

import cv2
import numpy as np


def draw_film(patient: int, exposure: int = 0, side: int = 400) -> np.ndarray:
    """A chest film, ``[side, side] uint8``. Another patient has other ribs, lungs and heart; in another exposure each
    part of a patient lies a little elsewhere."""
    body, pose = np.random.default_rng(patient), np.random.default_rng([patient, exposure, 1])
    image = np.full((side, side), 30, np.float32)

    def ellipse(x, y, wide, tall, tilt, grey, loose=0.03):
        layer = np.zeros((side, side), np.float32)
        across, down = pose.normal(0, loose, 2)
        centre = (int((x + across) * side), int((y + down) * side))
        cv2.ellipse(layer, centre, (int(wide * side), int(tall * side)), tilt, 0, 360, 1, -1)
        image[...] += grey * cv2.GaussianBlur(layer, (0, 0), side / 120)

    ellipse(0.5, 0.55, 0.42, 0.5, 0, 130, loose=0.02)
    for way in (-1, 1):
        ellipse(0.5 + way * body.uniform(0.16, 0.2), 0.5, *body.uniform((0.1, 0.22), (0.14, 0.3)), way * 6, -90)
        for rib in range(8):
            x, y = 0.5 + way * 0.18 + body.normal(0, 0.01), 0.25 + 0.07 * rib + body.normal(0, 0.02)
            ellipse(x, y, 0.12, body.uniform(0.006, 0.012), way * body.uniform(10, 30), body.uniform(20, 45))
    ellipse(0.53, 0.62, *body.uniform((0.09, 0.1), (0.15, 0.16)), 30, 60)
    for _ in range(30):
        place, size = body.uniform(0.2, 0.8, 2), body.uniform(0.01, 0.04, 2)
        ellipse(*place, *size, body.uniform(0, 90), body.normal(0, 30))
    noise = np.random.default_rng([patient, exposure, 2]).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def trimmed(film: np.ndarray, top: float = 0.03, bottom: float = 0.0, left: float = 0.03, right: float = 0.0):
    """Without these shares of its sides."""
    rows, columns = film.shape
    return film[int(top * rows) : rows - int(bottom * rows), int(left * columns) : columns - int(right * columns)]


def compressed(film: np.ndarray, quality: int) -> np.ndarray:
    """As JPEG gives it back."""
    return cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def scaled(film: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(film, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def windowed(film: np.ndarray, low: float = 2, high: float = 98) -> np.ndarray:
    """The greys between two percentiles stretched over all, the others cut off."""
    black, white = np.percentile(film, (low, high))
    return np.clip((film - black) * (255 / (white - black)), 0, 255).astype(np.uint8)


COPIES = {
    "JPEG 95": lambda film: compressed(film, 95),
    "JPEG 70": lambda film: compressed(film, 70),
    "scaled 0.75": lambda film: compressed(scaled(film, 0.75), 90),
    "scaled 0.5": lambda film: compressed(scaled(film, 0.5), 90),
    "windowed": windowed,
    "gamma 0.6": lambda film: (255 * (film / 255) ** 0.6).astype(np.uint8),
    "negative": lambda film: 255 - film,
    "trimmed on two sides": trimmed,
    "trimmed on all sides": lambda film: trimmed(film, 0.03, 0.03, 0.03, 0.03),
    "padded": lambda film: cv2.copyMakeBorder(film, 0, 0, 60, 60, cv2.BORDER_CONSTANT),
    "all at once": lambda film: compressed(scaled(windowed(trimmed(film, 0.02, 0.01, 0, 0.03)), 0.5), 75),
}
