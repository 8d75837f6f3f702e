"""Shared fixtures: a fixed seed, the optional folder of real radiographs, and the float tolerance rule."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
    try:
        import torch
    except ImportError:  # pragma: no cover - torch is a hard dependency, canvas tests alone do not need it
        return
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real radiographs named by HDXRAY_TEST_DATA; tests that need it skip without it."""
    root = os.environ.get("HDXRAY_TEST_DATA")
    if not root:
        pytest.skip("HDXRAY_TEST_DATA is not set: this test measures on real radiographs that are not part of the project")
    path = Path(root)
    if not path.is_dir():
        pytest.skip(f"HDXRAY_TEST_DATA={root} is not a folder")
    return path


def assert_two_times_rule(out, same_dtype, ref32, tiny: float = 1e-6) -> None:
    """|out - ref32| <= 2 * max|same-dtype PyTorch - ref32| + tiny: as accurate as PyTorch in that dtype, within a factor."""
    out, same_dtype, ref32 = (t.detach().double() for t in (out, same_dtype, ref32))
    allowed = 2 * (same_dtype - ref32).abs().max().item() + tiny
    worst = (out - ref32).abs().max().item()
    assert worst <= allowed, f"worst error {worst:.3e} exceeds {allowed:.3e}"
