"""Pictures show the pixels they claim to show."""

from __future__ import annotations

import cv2
import numpy as np

from hdxray_fast.images.panels import (
    contour_view,
    error_view,
    masked_view,
    paste_patches,
    reconstruction_panel,
    stack,
    write_image,
)


def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)


def test_pasted_patches_land_at_their_ids_and_nowhere_else():
    pixels = canvas()
    out = paste_patches(pixels, np.array([5]), np.full((1, 256), 300.0), 16)  # row 1, column 1; clipped to 255
    assert (out[16:32, 16:32] == 255).all()
    out[16:32, 16:32] = pixels[16:32, 16:32]
    assert np.array_equal(out, pixels)


def test_true_patches_give_the_original_and_no_error():
    pixels = canvas()
    tiles = pixels.reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, 256)
    out = paste_patches(pixels, np.arange(16), tiles.astype(float), 16)
    assert np.array_equal(out, pixels)
    assert np.unique(error_view(pixels, out).reshape(-1, 3), axis=0).shape[0] == 1


def test_masked_view_keeps_only_kept_patches():
    pixels = canvas()
    view = masked_view(pixels, np.array([0]), 16)
    assert np.array_equal(view[:16, :16], pixels[:16, :16]) and (view[16:] == 48).all()


def test_contour_view_tints_inside_only():
    inside = np.zeros((4, 4), bool)
    inside[1:3, 1:3] = True
    view = contour_view(canvas(), inside)
    assert (view[:8, :8, 0] == view[:8, :8, 1]).all() and (view[28:36, 28:36, 0] != view[28:36, 28:36, 1]).any()


def test_panel_has_five_pictures_and_a_caption(tmp_path):
    pixels, inside = canvas(), np.ones((4, 4), bool)
    keep, predict = np.arange(2), np.arange(2, 16)
    panel = reconstruction_panel(pixels, inside, keep, predict, np.zeros((14, 256)), caption="c" * 400, side=100)
    assert panel.shape == (100 + 2 * 44, 5 * 100 + 4 * 12, 3)
    means = np.linspace(0, 255, 14)
    more = reconstruction_panel(pixels, inside, keep, predict, np.zeros((14, 256)), means=means, side=64)
    assert more.shape == (64 + 44, 6 * 64 + 5 * 12, 3)
    alone = more[44:, 3 * 76 : 3 * 76 + 64, 0].reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, 256)
    assert (np.ptp(alone[2:], axis=1) == 0).all() and (np.diff(alone[2:, 0].astype(int)) >= 0).all()
    assert np.ptp(alone[0]) > 100  # shown patches are as they are
    assert stack([panel, panel]).shape == (2 * panel.shape[0] + 12, panel.shape[1], 3)
    write_image(tmp_path / "panel.png", panel)
    assert np.array_equal(cv2.imread(str(tmp_path / "panel.png")), panel)
