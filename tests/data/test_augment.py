"""RandAugment for radiographs: never mirrored, never cut, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.data.augment import OPERATIONS, RandAugment

SIZE = 96


def radiograph() -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    grain = np.random.default_rng(0).normal(0, 8, (SIZE, SIZE))
    return (120 + 60 * np.sin(x / 9) * np.cos(y / 13) + grain).clip(0, 255).astype(np.uint8)


def test_nothing_is_mirrored_and_everything_stays_a_picture():
    rng = np.random.default_rng(0)
    for _ in range(300):
        affine, tone = RandAugment(operations=4, magnitude=1.0).draw(rng, SIZE)
        assert affine.shape == (2, 3)
        assert 0.5 < np.linalg.det(affine[:, :2]) < 2  # neither mirrored nor squeezed flat
        moved = cv2.warpAffine(radiograph(), affine, (SIZE, SIZE))
        changed = tone(moved)
        assert changed.dtype == np.uint8
        assert changed.shape == (SIZE, SIZE)
        assert changed.std() > 8  # something is left to see


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 1.0])
def test_each_operation_keeps_the_order_of_grey_levels_or_the_centre(name, strength):
    change = OPERATIONS[name](strength, 1280, np.random.default_rng(0))
    if isinstance(change, np.ndarray):
        centre = change @ np.array([640, 640, 1])
        assert np.abs(centre[:2] - 640).max() <= 128
        if strength == 0:
            np.testing.assert_allclose(change, np.eye(3), atol=1e-12)
        return
    image = radiograph()
    changed = change(image)
    assert np.corrcoef(image.ravel(), changed.ravel())[0, 1] > 0.8  # bright stays bright: density keeps its sign
    np.testing.assert_array_equal(changed, change(image))
    if strength == 0:
        assert np.abs(changed.astype(int) - image).max() <= 1
    elif abs(strength) == 1:
        assert np.abs(changed.astype(int) - image).mean() > 0.5


def test_the_draw_is_a_function_of_the_generator():
    image = radiograph()
    results = []
    for seed in (3, 3, 4):
        affine, tone = RandAugment(3, 0.8).draw(np.random.default_rng(seed), SIZE)
        results.append(tone(cv2.warpAffine(image, affine, (SIZE, SIZE))))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_no_operations_change_nothing():
    affine, tone = RandAugment(0).draw(np.random.default_rng(0), SIZE)
    np.testing.assert_array_equal(affine, np.eye(3)[:2])
    np.testing.assert_array_equal(tone(radiograph()), radiograph())


def test_bad_settings_are_named():
    with pytest.raises(hx.ArgumentError, match=r"^operations: "):
        RandAugment(len(OPERATIONS) + 1)
    with pytest.raises(hx.ArgumentError, match=r"^magnitude: "):
        RandAugment(magnitude=1.5)
