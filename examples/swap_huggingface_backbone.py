"""Swap the backbone of a Hugging Face project: the project's code stays, the folder it loads changes.

    python examples/swap_huggingface_backbone.py --backbone my_encoder   # a folder of this package, or a repository

Without `--backbone` it goes from a small ViT to a small encoder of this package, both untrained, on synthetic images.
Needs: pip install '.[hf]'
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTImageProcessor, ViTModel

import hdxray_fast as hx  # the one line that is new: it makes AutoModel know our folders


class Project(nn.Module):
    """A classifier as projects write it: nothing here knows which backbone it is."""

    def __init__(self, backbone: str | Path, num_labels: int) -> None:
        super().__init__()
        self.processor = AutoImageProcessor.from_pretrained(backbone)
        self.backbone = AutoModel.from_pretrained(backbone)
        self.classifier = nn.Linear(self.backbone.config.hidden_size, num_labels)

    def forward(self, images: list[Image.Image]) -> Tensor:
        inputs = self.processor(images, return_tensors="pt")
        return self.classifier(self.backbone(**inputs).last_hidden_state.mean(dim=1))


def train(project: Project, images: list[Image.Image], labels: Tensor, steps: int) -> float:
    optimizer = torch.optim.AdamW(project.parameters(), lr=1e-3)
    project.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(project(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def small_backbones(folder: Path, img_size: int) -> tuple[Path, Path]:
    """A ViT of transformers and an encoder of this package, saved as each side saves its models."""
    before, after = folder / "before", folder / "after"
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    ViTModel(ViTConfig(image_size=img_size, **shape)).save_pretrained(before)
    ViTImageProcessor(size={"height": img_size, "width": img_size}).save_pretrained(before)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=img_size, depth=2, embed_dim=48, num_heads=3)
    hx.save_model(encoder, after)
    return before, after


def main(backbone: str | None = None, img_size: int = 128, steps: int = 10) -> dict[str, float]:
    """Loss of the project after a few steps, with each backbone."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = torch.arange(6) % 2
    pixels = [rng.normal(80 + 60 * label, 20, (150, 130)).clip(0, 255).astype(np.uint8) for label in labels.tolist()]
    images = [Image.fromarray(p).convert("RGB") for p in pixels]

    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        before, after = small_backbones(Path(folder), img_size)
        for name, where in {"before": before, "after": backbone or after}.items():
            project = Project(where, num_labels=2)
            losses[name] = train(project, images, labels, steps)
            print(f"{name}: {type(project.backbone).__name__}, loss {losses[name]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="folder or repository with an encoder of this package")
    main(**vars(parser.parse_args()))
