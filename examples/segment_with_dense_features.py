"""Dense features into a small segmentation head: the encoder stays as it is, the head learns.

    python examples/segment_with_dense_features.py

Shown on synthetic chests whose lungs are to be found; put your own images and masks in place of `synthetic`.
Needs: pip install '.[train]'
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hdxray_fast as hx


class SegmentationHead(nn.Module):
    """Maps of several blocks, each projected, summed, and brought to the size of the image."""

    def __init__(self, num_features: int, num_maps: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(num_features, width, 1) for _ in range(num_maps))
        self.mix = nn.Sequential(nn.BatchNorm2d(width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:  # each [B, D, gh, gw] -> [B, classes, H, W]
        x = sum(project(m) for project, m in zip(self.project, maps, strict=True))
        return F.interpolate(self.classify(self.mix(x)), size=size, mode="bilinear", align_corners=False)


def synthetic(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Toy chests ``[B, 1, S, S] uint8`` and their lungs ``[B, S, S]`` (0 or 1)."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((side, side)) / side
    images, masks = [], []
    for _ in range(count):
        x, y, size = rng.uniform(0.45, 0.55), rng.uniform(0.45, 0.55), rng.uniform(0.8, 1.1)
        body = ((columns - x) / 0.42) ** 2 + ((rows - y) / 0.47) ** 2 < size
        lungs = np.zeros_like(body)
        for sign in (-1, 1):
            lungs |= ((columns - x + sign * 0.18) / 0.12) ** 2 + ((rows - y) / 0.28) ** 2 < size
        image = 40 + 140 * body - 90 * (lungs & body) + rng.normal(0, 8, body.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        masks.append(lungs & body)
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks)).long()


def main(weights: str = "pretrained", img_size: int = 512, count: int = 8, steps: int = 60) -> float:
    """Dice of the lungs on images that the head has not seen."""
    torch.manual_seed(0)
    encoder = hx.create_encoder(weights=weights, img_size=img_size).eval()
    images, masks = synthetic(count + 4, img_size)
    depth = len(encoder.blocks)
    blocks = [depth // 4, depth // 2, depth - 1]

    with torch.no_grad():  # the encoder does not learn, so its maps are computed once
        maps = encoder.forward_intermediates(images, indices=blocks, norm=True, intermediates_only=True)

    head = SegmentationHead(encoder.num_features, len(blocks), classes=2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(steps):
        loss = F.cross_entropy(head([m[:count] for m in maps], (img_size, img_size)), masks[:count])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    head.eval()
    with torch.no_grad():
        found = head([m[count:] for m in maps], (img_size, img_size)).argmax(dim=1)
    truth = masks[count:]
    dice = 2 * (found & truth).sum().item() / max(1, (found.sum() + truth.sum()).item())
    print(f"Dice of the lungs on {len(truth)} other images: {dice:.3f}")
    return dice


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights",
        default="pretrained",
        help="model folder, or published weights; left out, the encoder of the package",
    )
    parser.add_argument("--img-size", type=int, default=512)
    main(**vars(parser.parse_args()))
