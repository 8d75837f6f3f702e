"""The curves of a run: few points of many, in the picture that lies in its folder."""

from __future__ import annotations

import math

import cv2
import pytest
from tiny_training import train

from hdxray_fast.training.curves import MOST, Curve, Curves

pytest.importorskip("matplotlib")


def test_a_long_curve_is_held_in_few_points_with_its_means():
    curve = Curve()
    for step in range(1, 100_001):
        curve.add(step, 2.0 * step)
    steps, values = curve.copy()
    assert MOST / 2 <= len(steps) < MOST
    assert values == pytest.approx([2 * step for step in steps])
    assert steps[0] == pytest.approx(32.5) and steps[-1] > 99_900  # means of 64
    assert sum(values) / len(values) == pytest.approx(sum(steps) / len(steps) * 2)


def test_what_is_no_number_is_left_out(tmp_path):
    curves = Curves(tmp_path / "curves.png")
    curves.add_all({"step": step, "loss": value} for step, value in enumerate((1.0, math.nan, None, "x", 2.0)))
    assert curves.taken()["loss"] == ([0.0, 4.0], [1.0, 2.0])
    curves.draw(curves.taken())
    height, width, _ = cv2.imread(str(tmp_path / "curves.png")).shape
    assert width == 1500 and height in (459, 460)  # matplotlib's releases round differently


def test_a_picture_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path):
    curves = Curves(tmp_path / "gone" / "curves.png")
    curves.add_all({"step": step, "loss": 1.0} for step in (1, 2))
    with pytest.warns(UserWarning, match="is not drawn") as told:
        curves.draw(curves.taken())
    assert len(told) == 1
    curves.draw(curves.taken())  # a second warning would be an error


def test_a_run_draws_its_curves_and_a_resumed_one_those_from_its_start(tmp_path):
    pytest.importorskip("accelerate")
    training, _ = train(tmp_path, steps=4)
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    losses = training.curves.taken()["loss"]
    assert losses[0] == [1.0, 2.0, 3.0, 4.0]
    (tmp_path / "curves.png").unlink()
    (tmp_path / "checkpoints" / "step_00000004" / "state.json").unlink()
    with pytest.warns(UserWarning, match="falling back"):
        resumed, _ = train(tmp_path, steps=4, resume="auto")
    assert resumed.curves.taken()["loss"] == losses and (tmp_path / "curves.png").exists()
