"""What comes in: images, plan and grids, checked against the encoder, and the scale and shift that are filled in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ..errors import ArgumentError, ArgumentTypeError
from ..ops.compiling import writes_graph
from ..ops.plan import MaskPlan, as_plain, dtype_names
from .grey_levels import scale_of_levels, warn_of_range
from .selection import checked_grid, selected_patches
from .transform import Transform
from .trunk import Trunk


class Intake(Trunk):
    """A trunk that takes images: the arguments of a call, checked and filled in, before any layer sees them."""

    dynamic_img_size = False
    _range_seen = False  # of float images: looked at until a warning was given, on a GPU the first ones

    # --- for those who make inputs -----------------------------------------------------------------------------------
    def normalise(self, images: Tensor, valid: Tensor | None = None, white: float | None = None) -> Tensor:
        """Images as this encoder was trained on them, for those who keep float images; integers need no such step.

        Args:
            images: ``[B, C, H, W]``, of an integer dtype or of floats from 0 to ``white``, bright = dense.
            valid: bool ``[B, gh, gw]``, patches that hold any of the radiograph, over which ``"per_image"`` takes mean
                and deviation; left out, all.
            white: largest value of the range; left out, 1 for floats, 255 for uint8 and 65535 for uint16. Integers that
                are normalised ``"per_image"`` need none, however few of their bits they use.

        Returns:
            ``[B, C, H, W] float32``.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
        """
        images = self.check_images(images)
        if images.dtype == torch.bool or images.is_complex():
            raise ArgumentError(f"images: got dtype {dtype_names([images.dtype])}, accepted are integers and floats")
        if white is not None and not white > 0:
            raise ArgumentError(f"white: got {white}, accepted is a number above 0")
        levels = images.float()
        if images.is_floating_point() or self.normalisation != "per_image":  # else it is their own levels that count
            levels = levels * (255.0 / (_white_of(images.dtype) if white is None else white))
        scale, shift = scale_of_levels(levels, self._valid_grid(images, valid), self.normalisation, 255.0)
        if isinstance(scale, Tensor):
            scale, shift = (value[:, None, None, None] for value in (scale, shift))
        return levels * scale + shift

    def kept_patches(
        self,
        images: Tensor,  # [B, C, H, W]
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
    ) -> Tensor:
        """The patches that ``keep`` chooses, bool ``[B, gh, gw]``: what an exported graph takes as ``keep``.

        Arguments and errors are those of :meth:`forward`.
        """
        plan = self._chosen(images, None, inside, valid)
        images, *_ = self._inputs(images, plan, 1.0, 0.0)
        if plan is None:
            return torch.ones(images.shape[0], *self.grid_of(images), dtype=torch.bool, device=images.device)
        return plan.keep_grid()

    def transform(self) -> Transform:
        """What brings one picture to what this encoder takes, ``[C, S, S] float32``, for a data set or ``Compose``.

        It takes paths, PIL images, arrays and tensors, and makes the canvas that :func:`hdxray_fast.embed` makes.
        """
        return Transform(self.config)

    def pixel_scale(self, images: Tensor, valid: Tensor | None = None) -> tuple[float | Tensor, float | Tensor]:
        """``(scale, shift)`` that normalise ``images``: the identity for float images.

        ``"per_image"`` takes mean and deviation over the ``valid`` patches (bool ``[B, gh, gw]``), or over all.
        """
        if images.is_floating_point():
            if not self._range_seen and not torch.compiler.is_compiling() and not writes_graph():
                self._range_seen = warn_of_range(images, self.normalisation) or images.device.type != "cpu"
            return 1.0, 0.0
        white = 255.0 if images.dtype == torch.uint8 else 65535.0
        return scale_of_levels(images, self._valid_grid(images, valid), self.normalisation, white)

    def check_images(self, images: Tensor) -> Tensor:
        """The images as a plain tensor, or an error that names them unless they have the shape this encoder takes."""
        if not isinstance(images, Tensor):
            raise ArgumentTypeError(f"images: got {type(images).__name__}, accepted is a torch.Tensor [B, C, H, W]")
        if images.dim() != 4 or images.shape[1] != self.in_chans or not self._takes_size(*images.shape[2:]):
            sides = "H, W" if self.dynamic_img_size else ", ".join(map(str, self.img_size))
            more = f" with multiples of {self.patch_size} for H and W" if self.dynamic_img_size else ""
            raise ArgumentError(
                f"images: got shape {list(images.shape)}, this encoder takes [B, {self.in_chans}, {sides}]{more}; "
                "create it with the img_size and in_chans of the images"
            )
        if self.pos_embed.dtype == torch.float64 and images.dtype != torch.float64:  # of these their own is named
            raise ArgumentError("dtype: the weights are float64, accepted are float32, bfloat16 and float16")
        if not torch.compiler.is_compiling() and unpack_dual(images).tangent is not None:
            raise NotImplementedError("forward-mode differentiation of the encoder is not there; reverse mode is")
        return as_plain(images)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """``(height, width)`` of ``images [B, C, H, W]`` in patches: ``grid_size``, unless ``dynamic_img_size``."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    # --- for the encoder's calls -------------------------------------------------------------------------------------
    def _chosen(self, images, plan, inside, valid) -> MaskPlan | None:
        """The plan, or where there is none that of the patches which ``keep`` says: None for every patch.

        It is asked first of all: a compiled encoder leaves its graph here, and what follows is one graph.
        """
        if plan is not None or self.keep == "all":
            return plan
        images = self.check_images(images)
        return selected_patches(
            self.keep, images, self.grid_of(images), self.patch_size, inside, valid, self.margin, self.contour
        )

    def _inputs(self, images, plan, scale, shift, valid=None):
        """Images, plan (None for every patch), scale and shift, checked and filled in."""
        images = self.check_images(images)
        if plan is not None:
            self._check_plan(images, plan)
        if scale is None and shift is None:
            scale, shift = self.pixel_scale(images, valid)
        return images, plan, 1.0 if scale is None else scale, 0.0 if shift is None else shift

    def _valid_grid(self, images: Tensor, valid: Tensor | None) -> Tensor | None:
        return None if valid is None else checked_grid("valid", valid, (len(images), *self.grid_of(images)))

    def _takes_size(self, height: int, width: int) -> bool:
        if not self.dynamic_img_size:
            return (height, width) == self.img_size
        return min(height, width) >= self.patch_size and not (height % self.patch_size or width % self.patch_size)

    def _check_plan(self, images: Tensor, plan: MaskPlan) -> None:
        if not isinstance(plan, MaskPlan):
            raise ArgumentTypeError(f"plan: got {type(plan).__name__}, accepted is a MaskPlan (see plan_masks) or None")
        height, width = self.grid_of(images)
        if tuple(plan.grid_size) != (height, width) or plan.patch_size != self.patch_size:
            whose = "images have" if self.dynamic_img_size else "this encoder has"
            raise ArgumentError(
                f"plan: is for a {plan.grid_size[0]} x {plan.grid_size[1]} grid of {plan.patch_size}-px patches, "
                f"{whose} a {height} x {width} grid of {self.patch_size}-px patches"
            )
        if plan.batch_size != images.shape[0]:
            raise ArgumentError(f"plan: is for {plan.batch_size} images, images has {images.shape[0]}")


def _white_of(dtype: torch.dtype) -> float:
    """The value of white in images that do not say it."""
    if dtype.is_floating_point:
        return 1.0
    if dtype not in (torch.uint8, torch.uint16):
        raise ArgumentError(f"white: left out, and {dtype_names([dtype])} does not tell it; give the largest value")
    return float(torch.iinfo(dtype).max)
