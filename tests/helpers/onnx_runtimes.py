"""ONNX files through the runtimes that people deploy them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

RUNTIMES = ("onnxruntime", "openvino")


def run_onnx(path: Path, images: Tensor, runtime: str = "onnxruntime", **grids: Tensor) -> np.ndarray:
    """The one output of the file at ``path``, float32; skips where the runtime is not installed."""
    feeds = {name: value.numpy() for name, value in {"images": images, **grids}.items()}
    package = pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    if runtime == "onnxruntime":
        (result,) = package.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)
        return result
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # left alone, a processor with bfloat16 computes in that
    return package.Core().compile_model(str(path), "CPU", exact)(feeds)[0]
