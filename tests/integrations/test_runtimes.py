"""ONNX Runtime and OpenVINO: the exported encoder and classifier answer as PyTorch does, for any batch."""

from __future__ import annotations

import pytest
import torch
from integrations_helpers import same

import hdxray_fast as hx


@pytest.fixture(params=["onnxruntime", "openvino"])
def run(request, timm):
    """``run(path, images)``: the first output of a graph."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: make integrations")
    runtime = pytest.importorskip(request.param, reason=f"{request.param} is not installed: make integrations")

    def onnx_runtime(path, images):
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])

    def open_vino(path, images):  # which by itself computes in bf16 where the processor can
        model = runtime.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return torch.from_numpy(model(images.numpy())[0])

    return onnx_runtime if request.param == "onnxruntime" else open_vino


@pytest.mark.parametrize("output", ["features", "tokens", "map"])
def test_encoder(run, pair, tmp_path, output):
    hx.export_onnx(pair.ours, tmp_path / "encoder.onnx", output=output)
    for batch in (1, 3):
        images = torch.rand(batch, 1, 64, 64) * 2 - 1
        with torch.no_grad():
            if output == "features":
                expected = pair.plain(images)
            else:
                tokens = pair.plain.forward_features(images)
                expected = tokens if output == "tokens" else tokens[:, 1:].mT.unflatten(2, (4, 4))
        same(run(tmp_path / "encoder.onnx", images), expected)
