"""What a session shows of a canvas and a contour: a line, and in a notebook a picture."""

from __future__ import annotations

import copy
import pickle

import cv2
import numpy as np
import pytest
from toy_radiographs import draw_radiograph

import hdxray_fast as hx


def shown(thing) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(thing._repr_png_(), np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_canvas_shows_its_picture(bits):
    canvas = hx.read_canvas(draw_radiograph(0), size=1280, bits=bits)
    assert repr(canvas) == (
        f"Canvas(1280 x 1280 uint{bits}, source='<array>', valid_box={canvas.valid_box}, "
        f"flags={canvas.provenance['flags']})"
    )
    picture = shown(canvas)
    assert picture.shape == (640, 640, 3)
    small = cv2.resize(canvas.pixels, (640, 640), interpolation=cv2.INTER_AREA) / (1 if bits == 8 else 256)
    assert np.abs(picture[..., 0] - small).mean() < 1
    assert repr(hx.Canvas(np.zeros((32, 32), np.uint8), (0, 0, 32, 32))).startswith("Canvas(32 x 32 uint8, valid_box")


def test_a_contour_shows_itself_on_its_canvas():
    canvas = hx.read_canvas(draw_radiograph(0), size=256)
    contour = hx.find_contour(canvas, method="rectangle")
    inside = int(contour.inside.sum())
    assert repr(contour) == (
        f"Contour(4 points, inside {inside} of 256 patches, confidence={contour.confidence}, method='rectangle', "
        "flagged=False, view='')"
    )
    assert shown(contour).shape[1] == 256 and np.ptp(shown(contour)[:256].astype(int), -1).max() > 60  # the line
    other = pickle.loads(pickle.dumps(contour))
    assert other._repr_png_() is None and repr(other) == repr(contour)
    assert copy.deepcopy(contour).method == "rectangle"
    del canvas
    assert contour._repr_png_() is None  # a list of contours does not keep their canvases alive


def test_canvases_and_contours_can_be_compared_and_put_into_sets():
    first, second = (hx.read_canvas(draw_radiograph(0), size=64) for _ in range(2))
    assert first == first and first != second and len({first, second, first}) == 2
    contours = [hx.find_contour(canvas, method="rectangle") for canvas in (first, second)]
    assert contours[1] in contours and contours[0] != contours[1] and len({*contours}) == 2
