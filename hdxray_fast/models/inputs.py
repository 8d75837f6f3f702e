"""What an encoder wants of an image: channels, the plan of the patches to look at, scale and shift, decided here alone.

radiographs ──as_batch──▶ batch ──encoder_inputs──▶ images, plan, scale, shift ──▶ encoder
                                ──view_of─────────▶ view, where there is one ─────▶
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..ops.plan import MaskPlan
from ..ops.view import View
from .encoder import Encoder
from .selection import selected_patches

GRIDS = ("inside", "valid")  # of a batch: what plans are made of


class Pictured(Protocol):
    """A radiograph as it was read: see :class:`hdxray_fast.data.radiographs.Radiograph`."""

    pixels: np.ndarray  # [S, S] uint8
    inside: np.ndarray  # [S / patch_size, S / patch_size] bool, patches of the chest
    valid: np.ndarray  # [S / patch_size, S / patch_size] bool, patches that are no padding
    scale: float
    shift: float


@dataclass(frozen=True)
class Looks:
    """Which patches an encoder looks at, without the encoder: for workers that read images and make plans of them.

    Attributes:
        keep, margin, grid_size, patch_size, contour: as of the encoder.
    """

    keep: str
    margin: int
    grid_size: tuple[int, int]
    patch_size: int
    contour: str = "network"

    @classmethod
    def of(cls, encoder: Encoder, keep: str | None = None) -> Looks:
        """Those of ``encoder``, with ``keep`` instead of its own if there is one."""
        return cls(keep or encoder.keep, encoder.margin, encoder.grid_size, encoder.patch_size, encoder.contour)

    def plan(self, images: Tensor, inside: Tensor | None, valid: Tensor | None) -> MaskPlan | None:
        """As :func:`patches_to_keep`; ``images [B, C, S, S]`` are not checked."""
        if self.keep == "all":
            return None
        return selected_patches(
            self.keep, images, self.grid_size, self.patch_size, inside, valid, self.margin, self.contour
        )


class EncoderInputs(NamedTuple):
    """The arguments of :meth:`.Encoder.encode`, and of the models built on it, in their order.

    Attributes:
        images: ``[B, C, S, S]``, of the dtype of the pixels; the channels are views of one.
        plan: of the patches to look at; ``None`` for all.
        scale: ``[B] float32``, ``pixels * scale + shift`` is what the encoder was trained on; ``None`` where it knows
            by itself.
        shift: likewise.
    """

    images: Tensor
    plan: MaskPlan | None
    scale: Tensor | None
    shift: Tensor | None


def as_batch(radiographs: Sequence[Pictured], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Radiographs of one size as a batch.

    Returns:
        ``pixels [B, 1, S, S] uint8``, ``scale`` and ``shift`` ``[B] float32`` on ``device``; ``inside`` and ``valid``
        ``[B, gh, gw] bool`` on the CPU, where plans are made. A GPU is not waited for.
    """
    device = torch.device(device)
    pinned = device.type == "cuda"
    pixels = torch.empty(len(radiographs), 1, *radiographs[0].pixels.shape, dtype=torch.uint8, pin_memory=pinned)
    np.stack([item.pixels for item in radiographs], out=pixels.squeeze(1).numpy())
    batch = {"pixels": pixels}
    for name in GRIDS:
        batch[name] = torch.from_numpy(np.stack([getattr(item, name) for item in radiographs]))
    for name in ("scale", "shift"):
        numbers = [getattr(item, name) for item in radiographs]
        batch[name] = torch.tensor(numbers, dtype=torch.float32, pin_memory=pinned)
    return sent_batch(batch, device)


def sent_batch(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch of the host on ``device``, but for what plans are made of: ``inside`` and ``valid`` stay on the host.

    From page-locked memory, which a ``DataLoader`` with ``pin_memory=True`` gives, a GPU is not waited for.
    """
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name not in GRIDS else value
        for name, value in batch.items()
    }


def encoder_inputs(encoder: Encoder, batch: Mapping[str, Tensor], keep: str | None = None) -> EncoderInputs:
    """What ``encoder`` is shown of a batch.

    Args:
        encoder: its ``in_chans``, ``keep``, ``margin`` and ``normalisation`` decide.
        batch: ``pixels [B, 1, S, S]``, ``inside`` and ``valid`` ``[B, gh, gw] bool``, ``scale`` and ``shift``
            ``[B] float32``, those of the patches that are no padding. Where there is a ``plan`` it stands (None: all
            patches), and ``inside`` and ``valid`` are not asked for; otherwise, where the pixels are on a GPU, leave
            them on the host: plans are made there, and the GPU is not waited for. Further entries are passed over.
        keep: ``"all"``, ``"valid"`` or ``"contour"`` instead of the encoder's.

    Raises:
        ArgumentError: the images are not of the encoder's size.
    """
    images = all_channels(encoder, batch["pixels"])
    if "plan" in batch:
        plan = batch["plan"]
    else:
        plan = patches_to_keep(encoder, images, batch["inside"], batch["valid"], keep)
    return EncoderInputs(images, plan, *own_scale(encoder, batch))


def view_of(batch: Mapping[str, Tensor]) -> View | None:
    """What the pixels of a batch are to be seen through: its ``affine`` and ``table``, if it has them."""
    return View(batch["affine"], batch["table"]) if "affine" in batch else None


def all_channels(encoder: Encoder, pixels: Tensor) -> Tensor:
    """``[B, 1, S, S]`` as ``[B, in_chans, S, S]``, without a copy."""
    return pixels.expand(-1, encoder.in_chans, -1, -1)


def own_scale(encoder: Encoder, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``scale`` and ``shift`` of a batch where each image has its own, as in pre-training; else the encoder's stand."""
    if encoder.normalisation == "per_image":
        return batch["scale"], batch["shift"]
    return None, None


def patches_to_keep(
    encoder: Encoder, images: Tensor, inside: Tensor | None, valid: Tensor | None, keep: str | None = None
) -> MaskPlan | None:
    """The plan of the patches of ``images [B, C, S, S]`` to look at; ``None`` for all of them.

    Args:
        encoder: tells which, unless ``keep`` does.
        inside: bool ``[B, gh, gw]``, patches of the chest; ``None`` looks for them in the images.
        valid: bool ``[B, gh, gw]``, patches that are no padding; ``None`` for all.
        keep: ``"all"``, ``"valid"`` or ``"contour"``.
    """
    looks = Looks.of(encoder, keep)
    if looks.keep != "all":
        encoder.check_images(images)
    return looks.plan(images, inside, valid)


def standardised(encoder: Encoder, batch: Mapping[str, Tensor]) -> Tensor:
    """``pixels`` of a batch as the encoder was trained on, ``[B, 1, S, S] float32``."""
    scale, shift = own_scale(encoder, batch)
    if scale is None:
        scale, shift = encoder.pixel_scale(batch["pixels"])
    scale, shift = (v.reshape(-1, 1, 1, 1) if isinstance(v, Tensor) else v for v in (scale, shift))
    return batch["pixels"].float() * scale + shift
