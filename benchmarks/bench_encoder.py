"""Encoding whole radiographs, ViT-S/16 at 1280 x 1280: every patch, and the patches of the chest alone, against timm.

Contours come from the radiographs in ``$HDXRAY_TEST_DATA/hd`` where that is set, otherwise from an ellipse as large as
a mean chest; the row says which. Contour finding itself is timed in bench_contour.py (7 ms an image) and is not in
these figures: it is done once, where files are read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_mae import memory_mib, title
from harness.pixel_cases import canvases
from harness.plain_mae import import_timm

import hdxray_fast as hx
from hdxray_fast.models.presets import ENCODERS

NAME = "vit_small_patch16"
IMAGES = 5  # an image a call, in turn


def inside_grids() -> tuple[torch.Tensor, str]:
    """``[N, 80, 80] bool`` and where they come from."""
    root = os.environ.get("HDXRAY_TEST_DATA")
    if root and (folder := Path(root) / "hd").is_dir():
        from hdxray_fast.data.listing import list_images

        files = list_images(folder)[:: max(1, len(list_images(folder)) // IMAGES)][:IMAGES]
        return torch.from_numpy(np.stack([hx.find_contour(hx.read_canvas(file)).inside for file in files])), "real"
    y, x = np.mgrid[:80, :80]
    return torch.from_numpy(((y - 41) / 31) ** 2 + ((x - 40) / 30) ** 2 < 1)[None], "ellipse"


def inference(kind: str):
    """A call that encodes one image: ``kind`` is "timm", "all" or "contour"."""
    images = canvases(1)
    if kind == "timm":
        preset = {key: ENCODERS[NAME][key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
        model = import_timm().VisionTransformer(img_size=1280, in_chans=1, num_classes=0, **preset).eval()

        def call() -> torch.Tensor:
            return model.forward_features(images.float() * (1 / 127.5) - 1.0)
    else:
        model = hx.create_encoder(NAME, keep=kind, pool="mean").eval()
        inside, _ = inside_grids()
        turn = iter(range(10**9))

        def call() -> torch.Tensor:
            grid = inside[next(turn) % len(inside)][None]
            return model(images, None, 1 / 127.5, -1.0, inside=grid)

    def encode() -> None:
        with torch.inference_mode():
            call()

    return encode


@pytest.fixture(autouse=True)
def _needs_timm() -> None:
    if import_timm() is None:
        pytest.skip("the rival is timm's ViT, and timm is not installed")


@pytest.mark.parametrize(("keep", "bar"), [("all", 1.0), ("contour", 2.0)])
def test_inference(compare, keep, bar):
    inside, source = inside_grids()
    what = "every patch" if keep == "all" else "chest patches and a margin of 1"
    compare(
        f"encoder {title(NAME)}, one 1280² image, {what}, fp32",
        inference(keep),
        inference("timm"),
        rival_name="timm ViT, every patch",
        bar=bar,
        rounds=IMAGES,
        warmup=1,
        extra={"contours": source, "images": len(inside), "inside_share": round(float(inside.float().mean()), 3)},
    )


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_peak_memory(compare, keep):
    ours, rival = measure_memory(keep), measure_memory("timm")
    what = "every patch" if keep == "all" else "chest patches and a margin of 1"
    compare.values(
        f"peak memory increase of encoding, {title(NAME)}, {what}",
        ours["call_mib"],
        rival["call_mib"],
        rival_name="timm ViT, every patch",
        unit="MiB",
        extra={"ours": ours, "rival": rival},
    )


def measure_memory(kind: str) -> dict[str, int]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, __file__, kind], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report_memory(kind: str) -> None:
    torch.set_num_threads(1)
    encode = inference(kind)
    encode()
    between = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    encode()
    print(json.dumps({"between_calls_mib": between, "call_mib": memory_mib("VmHWM") - between}))


if __name__ == "__main__":
    report_memory(sys.argv[1])
