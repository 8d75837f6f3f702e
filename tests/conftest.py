"""Shared fixtures: a fixed seed, the optional folder of real radiographs, and the float tolerance rule."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_encoders import tiny_of
from toy_radiographs import draw_radiograph

from hdxray_fast.ops import native


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def two_blocks():
    """Tiny encoders of this process have 2 blocks: for tests of what goes on around a training."""
    with tiny_of(2):
        yield


@pytest.fixture(params=native.core.vector_paths() if native.core else [])
def vector_path(request):
    """Each vector path of the native core that this machine can run, in turn."""
    before = native.core.vector_path()
    native.core.set_vector_path(request.param)
    yield request.param
    native.core.set_vector_path(before)


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
    source = Path(__file__).parent.parent / "benchmarks" / "harness" / "plain_mae.py"
    if not source.is_file():
        pytest.skip("benchmarks/harness/plain_mae.py is not here (tests without the repository)")
    spec = importlib.util.spec_from_file_location("plain_mae", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def timm(plain_mae):
    """timm, and with it a torchvision that imports beside any build of torch, which transformers needs too."""
    if plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    return pytest.importorskip("timm")
