"""Features and probabilities on a GPU: those of the CPU, and no batch is waited for but where its answer is read."""

from __future__ import annotations

from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.features.embedding import Embedder
from hdxray_fast.models.inference import Copies

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def encoder(keep: str):
    torch.manual_seed(1)
    return hx.create_encoder("vit_tiny_patch16", img_size=128, depth=2, keep=keep, pool="mean").eval()


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (150, 90 + 20 * i), dtype=np.uint8) for i in range(7)]


@contextmanager
def waiting_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("keep", ["all", "valid", "contour"])
def test_features_are_those_of_the_cpu_without_a_wait(images, keep):
    expected = hx.embed(images, encoder(keep), batch_size=2, device="cpu")
    on_gpu = encoder(keep)
    hx.embed(images, on_gpu, batch_size=2, device="cuda", precision="fp32")  # kernels are loaded, which waits
    with waiting_is_an_error():
        found = hx.embed(images, on_gpu, batch_size=2, device="cuda", precision="fp32")
    np.testing.assert_allclose(found.features, expected.features, rtol=2e-2, atol=2e-2)
    np.testing.assert_array_equal(found.kept, expected.kept)


def test_bf16_is_what_a_gpu_takes_by_itself(images):
    job = Embedder(encoder("contour"), device="cuda")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert job.precision == ("bf16" if has_bf16 else "fp32")
    found = hx.embed(images, encoder("contour"), device="cuda")
    exact = hx.embed(images, encoder("contour"), device="cuda", precision="fp32")
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, exact.features, rtol=0.1, atol=0.1)


def test_copies_are_of_the_values_when_they_were_made():
    device = torch.device("cuda", torch.cuda.current_device())
    values = torch.arange(4.0, device=device)
    copies = Copies((values,), device)
    values += 1
    (found,) = copies.wait()
    assert found.tolist() == [0, 1, 2, 3] and not found.is_cuda


@pytest.mark.parametrize("keep", ["valid", "contour"])
def test_pictures_of_features_are_those_of_the_cpu(images, tmp_path, keep):
    for number, image in enumerate(images[:3]):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    made = {
        device: hx.draw_features(
            tmp_path, encoder("valid"), tmp_path / device, at=(64, 64), keep=keep, device=device
        ).pictures
        for device in ("cpu", "cuda")
    }
    for source, path in made["cuda"].items():
        found, expected = (cv2.imread(str(one)).astype(int) for one in (path, made["cpu"][source]))
        assert np.abs(found - expected).mean() < 2
