"""What a model makes of one radiograph: predicted patches as grey levels, and the picture that shows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..images.panels import reconstruction_panel
from ..models.mae import MaskedAutoencoder
from ..ops.gather import gather_patches
from ..ops.plan import MaskPlan


def prune_pictures(folder: Path, keep: int) -> None:
    """Remove all pictures but the newest ``keep``, and the first from step 1, 2, 4, 8... on.

    So some twenty are left of a million steps, and they tell of the beginning as well as of the end.

    Args:
        folder: of pictures called ``step_00000123.png``; what is called otherwise stays.
        keep: 0 keeps all.
    """
    steps = sorted(int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"step_(\d+)\.png", path.name)))
    firsts: dict[int, int] = {}
    for step in steps:
        firsts.setdefault(step.bit_length(), step)
    for step in steps[:-keep] if keep else []:
        if step not in firsts.values():
            (folder / f"step_{step:08d}.png").unlink(missing_ok=True)


@torch.no_grad()
def reconstruction_picture(
    model: MaskedAutoencoder, sample: dict[str, Tensor], plan: MaskPlan, caption: str
) -> np.ndarray:
    """Original, contour, kept patches, reconstruction and error side by side.

    Args:
        model: is put into evaluation mode for it, and back.
        sample: a batch of one: ``pixels [1, 1, S, S] uint8``, ``inside [1, S/p, S/p] bool``, ``scale`` and
            ``shift`` ``[1] float32``.
        plan: what is kept and what is predicted.
        caption: line under the picture; how the prediction is shown is added to it.

    Returns:
        ``[H, W, 3] uint8`` BGR.
    """
    training = model.training
    model.eval()
    levels = predicted_levels(model, sample, plan)
    model.train(training)
    borrowed = "each predicted patch carries the original's mean and contrast"
    return reconstruction_panel(
        sample["pixels"][0, 0].cpu().numpy(),
        sample["inside"][0].cpu().numpy(),
        plan.keep_ids.cpu().numpy(),
        plan.predict_ids.cpu().numpy(),
        levels.cpu().numpy(),
        caption=f"{caption}; {borrowed if model.norm_pix_loss else 'raw prediction'}",
    )


@torch.no_grad()
def predicted_levels(model: MaskedAutoencoder, sample: dict[str, Tensor], plan: MaskPlan) -> Tensor:
    """Predicted patches as grey levels, ``[N_predict, p*p] float32``.

    With ``norm_pix_loss`` the model predicts normalised patches; mean and deviation are then taken from the original,
    as MAE's own visualisation does.
    """
    scale, shift = sample["scale"], sample["shift"]
    levels = model(sample["pixels"], plan, scale, shift).pred.float()  # [N_predict, p*p]
    if model.norm_pix_loss:
        target = gather_patches(sample["pixels"], plan, scale=scale, shift=shift, which="predict")
        levels = levels * (target.var(1, keepdim=True) + 1e-6).sqrt() + target.mean(1, keepdim=True)
    return (levels - shift[0]) / scale[0]
