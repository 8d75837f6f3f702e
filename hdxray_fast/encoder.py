"""The ViT encoder: images and a mask plan in, packed tokens out. Only the kept patches are ever read or computed.

Parameter names and shapes are those of facebookresearch/mae (encoder half), so its checkpoints load as they are. The
``stem64`` presets use the three-layer patch embedding of HD X-ray (https://arxiv.org/abs/2404.17926) with its names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError
from .layers import LAYER_NORM_EPS, Block, check_count, init_weights, sincos_positions
from .masking import MaskPlan, plan_all
from .ops.gather import gather_patches

# name: (embed_dim, depth, num_heads)
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
MAX_PATCHES = 2**20  # 16384 x 16384 pixels in patches of 16: a mistyped img_size fails by name, not for want of memory
_STEMS = {"patch16": 16, "stem64": 64}
ENCODERS = {
    f"vit_{size}_{stem}": {"patch_size": patch, "stem": stem, "embed_dim": dim, "depth": depth, "num_heads": heads}
    for stem, patch in _STEMS.items()
    for size, (dim, depth, heads) in _SIZES.items()
}


class Tokens(NamedTuple):
    """Packed tokens of a batch; the class token comes first in each sequence."""

    values: Tensor  # [N_keep + B, D]
    cu_seqlens: Tensor  # [B + 1] int32


class PatchEmbed(nn.Module):
    """One linear layer on the flattened patch; the weight has the shape of MAE's convolution, ``[D, C, p, p]``."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, rows: Tensor) -> Tensor:  # [N, p * p * C] in MAE's order (p row, q column, c) -> [N, D]
        return F.linear(rows, _rows_weight(self.proj), self.proj.bias)


class StemPatchEmbed(nn.Module):
    """HD X-ray's embedding of a 64-px patch: 16-px convolution, 4x4 convolution, 1x1 projection, ReLU between.

    Every stride equals its kernel, so a patch never looks at its neighbours, and each layer is a matrix product on
    gathered rows.
    """

    patch_size = 64

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, embed_dim, 16, stride=16)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 4, stride=4)
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, rows: Tensor) -> Tensor:  # [N, 64 * 64 * C] in the order (p row, q column, c) -> [N, D]
        cells = rows.unflatten(-1, (4, 16, 4, 16, self.in_chans))  # [N, 4, 16, 4, 16, C]
        cells = cells.permute(0, 1, 3, 2, 4, 5).flatten(3)  # -> [N, 4, 4, 16, 16, C] -> [N, 4, 4, 16 * 16 * C]
        cells = F.relu(F.linear(cells, _rows_weight(self.conv1), self.conv1.bias))  # [N, 4, 4, D]
        patches = F.relu(F.linear(cells.flatten(1), _rows_weight(self.conv2), self.conv2.bias))  # [N, D]
        return F.linear(patches, _rows_weight(self.proj), self.proj.bias)


def _rows_weight(conv: nn.Conv2d) -> Tensor:
    return conv.weight.permute(0, 2, 3, 1).flatten(1)  # [D, C, p, p] -> [D, p, p, C] -> [D, p * p * C]


class Encoder(nn.Module):
    """Vision transformer over packed tokens; see :func:`create_encoder`.

    Attributes:
        img_size: ``(height, width)`` in pixels.
        patch_size: edge of a patch in pixels.
        grid_size: ``(height, width)`` in patches.
        embed_dim, num_features: width of a token.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        stem: str = "patch16",
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        for option, value in (("patch_size", patch_size), ("embed_dim", embed_dim), ("depth", depth)):
            check_count(option, value)
        if (
            isinstance(mlp_ratio, bool)
            or not isinstance(mlp_ratio, int | float)
            or not 1 <= embed_dim * mlp_ratio < 2**31
        ):
            raise ArgumentError(f"mlp_ratio: got {mlp_ratio!r}, accepted is a number above 0")
        if in_chans not in (1, 3):
            raise ArgumentError(f"in_chans: got {in_chans!r}, accepted are 1 and 3")
        height, width = _height_width(img_size, patch_size)
        if stem == "stem64" and patch_size != StemPatchEmbed.patch_size:
            raise ArgumentError(f"patch_size: got {patch_size}, the stem64 embedding has patches of 64 pixels")
        self.img_size = (height, width)
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.grid_size = (height // patch_size, width // patch_size)
        self.embed_dim = self.num_features = embed_dim
        self.patch_embed = (
            StemPatchEmbed(in_chans, embed_dim) if stem == "stem64" else PatchEmbed(patch_size, in_chans, embed_dim)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(embed_dim, self.grid_size), requires_grad=False)  # [1, 1 + P, D]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] uint8, uint16 or float
        plan: MaskPlan | None = None,
        scale: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
    ) -> Tokens:
        """Encode the patches that ``plan`` keeps (all of them without a plan).

        Args:
            images: ``[B, C, H, W]``, any dtype that :func:`hdxray_fast.gather_patches` reads.
            plan: which patches are kept; its grid must be the encoder's.
            scale: the network sees ``pixel * scale + shift``; a number, or float32 ``[B]``.
            shift: see ``scale``.

        Returns:
            Normalised tokens ``[N_keep + B, D]`` with their ``cu_seqlens``; the class token is first in each sequence.
        """
        plan = self._plan(images, plan)
        tokens = self.embed(images, plan, scale, shift)
        x = tokens.values
        for block in self.blocks:
            x = block(x, tokens.cu_seqlens, plan.max_keep + 1)
        return Tokens(self.norm(x), tokens.cu_seqlens)

    def forward_maps(
        self, images: Tensor, plan: MaskPlan, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0
    ) -> tuple[list[Tensor], Tensor]:
        """As :meth:`forward`, with the tokens at every depth.

        Returns:
            ``depth + 1`` maps ``[N_keep + B, D]`` and their ``cu_seqlens [B + 1]`` int32: the embedded patches, the
            output of every block but the last, and the normalised output of the last, which is what
            :meth:`forward` returns.
        """
        plan = self._plan(images, plan)
        tokens = self.embed(images, plan, scale, shift)
        maps = [tokens.values]
        for block in self.blocks:
            maps.append(block(maps[-1], tokens.cu_seqlens, plan.max_keep + 1))
        maps[-1] = self.norm(maps[-1])
        return maps, tokens.cu_seqlens

    def embed(self, images: Tensor, plan: MaskPlan, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Tokens:
        """Kept patches as tokens with positions, class tokens put in front of each sequence."""
        rows = gather_patches(images, plan, scale=scale, shift=shift, out_dtype=self._rows_dtype(images.device))
        positions = self.pos_embed[0]  # [1 + P, D]
        patches = self.patch_embed(rows) + positions.index_select(0, plan.keep_ids + 1)  # [N_keep, D]
        patch_rows, cls_rows, cu_seqlens = token_rows(plan.keep_cu_seqlens, patches.shape[0])
        cls = (self.cls_token[0] + positions[:1]).to(patches.dtype).expand(plan.batch_size, -1)  # [B, D]
        values = patches.new_empty(patches.shape[0] + plan.batch_size, self.embed_dim)
        values = values.index_copy(0, patch_rows, patches).index_copy(0, cls_rows, cls)
        return Tokens(values, cu_seqlens)

    def _plan(self, images: Tensor, plan: MaskPlan | None) -> MaskPlan:
        expected = (self.in_chans, *self.img_size)
        if not isinstance(images, Tensor):
            raise ArgumentTypeError(f"images: got {type(images).__name__}, accepted is a torch.Tensor [B, C, H, W]")
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ArgumentError(
                f"images: got shape {list(images.shape)}, this encoder takes [B, {', '.join(map(str, expected))}]; "
                "create it with the img_size and in_chans of the images"
            )
        if plan is None:
            valid = torch.ones(images.shape[0], *self.grid_size, dtype=torch.bool)
            return plan_all(valid, patch_size=self.patch_size).to(images.device)
        if not isinstance(plan, MaskPlan):
            raise ArgumentTypeError(f"plan: got {type(plan).__name__}, accepted is a MaskPlan (see plan_masks) or None")
        if tuple(plan.grid_size) != self.grid_size or plan.patch_size != self.patch_size:
            raise ArgumentError(
                f"plan: is for a {plan.grid_size[0]} x {plan.grid_size[1]} grid of {plan.patch_size}-px patches, "
                f"this encoder has a {self.grid_size[0]} x {self.grid_size[1]} grid of {self.patch_size}-px patches"
            )
        if plan.batch_size != images.shape[0]:
            raise ArgumentError(f"plan: is for {plan.batch_size} images, images has {images.shape[0]}")
        return plan

    def _rows_dtype(self, device: torch.device) -> torch.dtype:
        """What the first matrix product computes in, so that the gathered rows are written once in the right dtype."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.cls_token.dtype


def _height_width(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ArgumentTypeError(f"img_size: got {img_size!r}, accepted is an int or (height, width)")
    if min(sides) < patch_size or sides[0] % patch_size or sides[1] % patch_size:
        raise ArgumentError(
            f"img_size: got {sides[0]} x {sides[1]}, accepted are positive multiples of patch_size {patch_size}"
        )
    if (sides[0] // patch_size) * (sides[1] // patch_size) > MAX_PATCHES:
        raise ArgumentError(
            f"img_size: got {sides[0]} x {sides[1]}, accepted are up to {MAX_PATCHES} patches of {patch_size} pixels"
        )
    return sides[0], sides[1]


def token_rows(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where patches and class tokens go when each of the packed sequences gets a class token in front.

    Args:
        cu_seqlens: ``[B + 1]`` int32, of the patches alone.
        total: number of rows (a Python int, so that no device has to be waited for); those past ``cu_seqlens[-1]``,
            a plan's slack, stay behind all sequences.

    Returns:
        ``patch_rows [total]`` int64, ``cls_rows [B]`` int64, and the new ``cu_seqlens [B + 1]`` int32.
    """
    image = image_of_row(cu_seqlens, total)
    patch_rows = torch.arange(1, total + 1, device=cu_seqlens.device) + image
    with_cls = cu_seqlens + torch.arange(cu_seqlens.shape[0], device=cu_seqlens.device, dtype=torch.int32)
    return patch_rows, with_cls[:-1].long(), with_cls


def image_of_row(cu_seqlens: Tensor, total: int) -> Tensor:
    """Image number of each packed row, int64 ``[total]``; the last image's for rows past ``cu_seqlens[-1]``."""
    rows = torch.arange(total, device=cu_seqlens.device, dtype=torch.int32)
    images = torch.searchsorted(cu_seqlens[1:], rows, right=True)
    return images.clamp_(max=cu_seqlens.shape[0] - 2)


def create_encoder(
    name: str = "vit_small_patch16", img_size: int | tuple[int, int] = 1280, in_chans: int = 1, **overrides: int | float
) -> Encoder:
    """Build an encoder from the presets' table.

    Args:
        name: one of :func:`list_encoders`.
        img_size: edge in pixels, or ``(height, width)``; multiples of the patch size.
        in_chans: 1 or 3.
        **overrides: ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio`` or (without stem) ``patch_size`` in place of
            the preset's.

    Raises:
        ArgumentError: unknown name or override, or sizes that do not fit together.
    """
    if not isinstance(name, str) or name not in ENCODERS:
        raise ArgumentError(f"name: got {name!r}, accepted are {', '.join(list_encoders())}")
    accepted = {"embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size"}
    if unknown := sorted(set(overrides) - accepted):
        raise ArgumentError(f"{unknown[0]}: is no option of an encoder, accepted are {', '.join(sorted(accepted))}")
    return Encoder(img_size=img_size, in_chans=in_chans, **{**ENCODERS[name], **overrides})


def list_encoders() -> list[str]:
    """Names that :func:`create_encoder` and :func:`hdxray_fast.create_mae` accept."""
    return list(ENCODERS)
