"""Libraries that this room's models are known to."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def transformers():
    """transformers, with a torchvision that imports (see benchmarks/harness/plain_mae.py)."""
    found = pytest.importorskip("transformers")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for op in ("nms", "qnms"):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass
    found.utils.logging.set_verbosity_error()
    return found
