"""The contour: the net by cv2.dnn against PyTorch, and whole calls of find_contour on 1280² canvases, one thread.

`HDXRAY_TEST_DATA` names the folder of real radiographs; without it the canvases are drawn (same sizes, same times,
but a drawn chest may call for the rescue, so rescue is off there).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from hdxray_fast.images import contour_net
from hdxray_fast.images.canvas import Canvas, read_canvas
from hdxray_fast.images.contour import find_contour

BAR_MS = 16.0  # a call with grid and confidence


def radiographs(count: int = 8) -> list[Canvas]:
    root = os.environ.get("HDXRAY_TEST_DATA")
    if root:
        return [read_canvas(path) for path in sorted((Path(root) / "hd").glob("*.jpg"))[:count]]
    rng = np.random.default_rng(0)
    drawn = [cv2.resize(rng.integers(0, 255, (24, 24)).astype(np.uint8), (1280, 1280)) for _ in range(count)]
    return [Canvas(pixels, (0, 0, 1280, 1280), {}) for pixels in drawn]


def torch_net(weights: dict[str, np.ndarray], frames: torch.Tensor) -> torch.Tensor:
    """The same layers by PyTorch, channels last."""
    values = {"image": frames}
    for name, (inputs, stride, dilation) in contour_net.LAYERS.items():
        parts = [functional.interpolate(values[i[3:]], scale_factor=2) if i[:3] == "up:" else values[i] for i in inputs]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        padding = dilation * (weights[name].shape[-1] // 2)
        x = functional.conv2d(x, weights[name], weights[f"{name}.bias"], stride, padding, dilation)
        values[name] = x.sigmoid() if name == "head" else x.relu_()
    return values["head"]


def test_net(compare):
    runner, frames = contour_net.ContourRunner(), np.random.default_rng(0).normal(size=(2, 160, 160)).astype(np.float32)
    weights = {key: torch.from_numpy(np.asarray(value)) for key, value in contour_net.load_weights().items()}
    weights = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in weights.items()}
    image = torch.from_numpy(frames)[:, None].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        np.testing.assert_allclose(runner(frames)[0], torch_net(weights, image).numpy(), atol=1e-4)
        compare(
            "contour net, an input and its mirror image",
            lambda: runner(frames),
            lambda: torch_net(weights, image),
            rival_name="PyTorch eager, channels last",
            rounds=40,
        )


def test_find_contour(compare):
    canvases, real = radiographs(), "HDXRAY_TEST_DATA" in os.environ
    ours, rival = itertools.cycle(canvases), itertools.cycle(canvases)
    compare(
        "find_contour, 1280² uint8 canvas, grid and confidence",
        lambda: find_contour(next(ours), rescue=real),
        lambda: find_contour(next(rival), "classical"),
        rival_name='method="classical"',
        rounds=40,
        extra={"bar_ms": BAR_MS, "real_radiographs": real},
    )
