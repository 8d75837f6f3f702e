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

PICTURED = 4  # radiographs of a picture
SIDE = 480  # of each of its panels, pixels
EARLY = 1000  # steps in which a model that starts anew hardly draws an edge


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


def how_to_read(step: int, norm_pix_loss: bool) -> str:
    """What the columns of a picture are and what to expect of them at ``step``, in a line below it."""
    given = "the hidden patches' mean grey, which is given; " if norm_pix_loss else ""
    expected = (
        "after few steps it fills in a blur, edges of heart and ribs come with thousands"
        if step < EARLY
        else "edges of heart and ribs should be there, noise and fine lines never are"
    )
    return (
        f"from the left: the film; its chest contour; the patches that the model sees; {given}what it fills in for the "
        f"hidden ones; how far off that is (white: far). {expected[0].upper()}{expected[1:]}."
    )


@torch.no_grad()
def reconstruction_picture(
    model: MaskedAutoencoder, sample: dict[str, Tensor], plan: MaskPlan, caption: str
) -> np.ndarray:
    """Original, contour, kept patches, reconstruction and error side by side; with ``norm_pix_loss`` the patch means,
    which the reconstruction borrows with the contrast, stand alone before it.

    Args:
        model: is put into evaluation mode for it, and back.
        sample: a batch of one: ``pixels [1, 1, S, S] uint8``, ``inside [1, S/p, S/p] bool``, ``scale`` and
            ``shift`` ``[1] float32``.
        plan: what is kept and what is predicted.
        caption: line under the picture.

    Returns:
        ``[H, W, 3] uint8`` BGR.
    """
    training = model.training
    model.eval()
    try:
        levels, means = predicted_levels(model, sample, plan)
    finally:  # a run goes on without a picture that fails
        model.train(training)
    return reconstruction_panel(
        sample["pixels"][0, 0].cpu().numpy(),
        sample["inside"][0].cpu().numpy(),
        plan.keep_ids.cpu().numpy(),
        plan.predict_ids.cpu().numpy(),
        levels.cpu().numpy(),
        means=None if means is None else means.cpu().numpy(),
        caption=caption,
        side=SIDE,
    )


@torch.no_grad()
def predicted_levels(
    model: MaskedAutoencoder, sample: dict[str, Tensor], plan: MaskPlan
) -> tuple[Tensor, Tensor | None]:
    """Predicted patches as grey levels, ``[N_predict, p*p] float32``, and what each has of the original.

    With ``norm_pix_loss`` the model predicts normalised patches; mean and deviation are then taken from the original,
    as MAE's own visualisation does, and the means ``[N_predict] float32`` are given too; otherwise ``None``.
    """
    scale, shift = sample["scale"], sample["shift"]
    levels = model(sample["pixels"], plan, scale, shift).pred.float()  # [N_predict, p*p]
    if model.norm_pix_loss:
        target = gather_patches(sample["pixels"], plan, scale=scale, shift=shift, which="predict")
        means = target.mean(1, keepdim=True)
        levels = levels * (target.var(1, keepdim=True) + 1e-6).sqrt() + means
        return (levels - shift[0]) / scale[0], (means[:, 0] - shift[0]) / scale[0]
    return (levels - shift[0]) / scale[0], None
