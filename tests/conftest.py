"""Shared fixtures: a fixed seed, the optional folder of real radiographs, and the float tolerance rule."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hdxray_fast.ops import native as _native


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=_native.core.vector_paths() if _native.core else [])
def vector_path(request):
    """Each vector path of the native core that this machine can run, in turn."""
    before = _native.core.vector_path()
    _native.core.set_vector_path(request.param)
    yield request.param
    _native.core.set_vector_path(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real radiographs named by HDXRAY_TEST_DATA; tests that need it skip without it."""
    root = os.environ.get("HDXRAY_TEST_DATA")
    if not root:
        pytest.skip(
            "HDXRAY_TEST_DATA is not set: this test measures on real radiographs that are not part of the project"
        )
    path = Path(root)
    if not path.is_dir():
        pytest.skip(f"HDXRAY_TEST_DATA={root} is not a folder")
    return path


def assert_two_times_rule(out, same_dtype, ref32, tiny: float = 1e-6) -> None:
    """|out - ref32| <= 2 * max|same-dtype PyTorch - ref32| + tiny: within twice PyTorch's own error in that dtype."""
    out, same_dtype, ref32 = (t.detach().double() for t in (out, same_dtype, ref32))
    allowed = 2 * (same_dtype - ref32).abs().max().item() + tiny
    worst = (out - ref32).abs().max().item()
    assert worst <= allowed, f"worst error {worst:.3e} exceeds {allowed:.3e}"


def draw_radiograph(seed: int, height: int = 150, width: int = 130) -> np.ndarray:
    """A toy chest, [height, width] uint8: bright body, two dark lungs, noise. For plumbing, never for accuracy."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 40, np.uint8)
    cx, cy = width // 2 + int(rng.integers(-4, 5)), height // 2 + int(rng.integers(-4, 5))
    cv2.ellipse(image, (cx, cy), (width * 2 // 5, height * 9 // 20), 0, 0, 360, 190, -1)
    for side in (-1, 1):
        cv2.ellipse(image, (cx + side * width // 6, cy), (width // 9, height // 4), 0, 0, 360, 80, -1)
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """Folder of five toy radiographs as PNG."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(5):
        cv2.imwrite(str(folder / f"{seed}.png"), draw_radiograph(seed))
    return folder


@pytest.fixture(scope="session")
def plain_mae():
    """The plain MAE of the benchmarks, and with it timm (``plain_mae.import_timm()``)."""
    source = Path(__file__).parent.parent / "benchmarks" / "plain_mae.py"
    if not source.is_file():
        pytest.skip("benchmarks/plain_mae.py is not here (an installed copy of the tests without the repository)")
    spec = importlib.util.spec_from_file_location("plain_mae", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
