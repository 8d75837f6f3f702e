"""The sizes of an auto-encoder, and what follows from them by the formulas of :mod:`.pretrain.work`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ops.mask_ratio import masked_patches, round_half_up
from . import work

if TYPE_CHECKING:
    from .plan_config import PlanConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of an auto-encoder that FLOPs and memory follow from; ``cast``: weights kept a second time in bf16."""

    model: str
    decoder: str
    patches: int
    patch_values: int
    dim: int
    depth: int
    decoder_dim: int
    decoder_depth: int
    default_predict: float
    parameters: int
    cast: int

    @classmethod
    def of(cls, config: PlanConfig) -> Shape:
        import torch

        from ..models.mae import create_mae

        config = config.filled_in()
        with torch.device("meta"):  # shapes alone: nothing is allocated
            model = create_mae(
                config.model,
                decoder=config.decoder,
                img_size=config.img_size,
                decoder_embed_dim=config.decoder_embed_dim,
                decoder_depth=config.decoder_depth,
            )
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        encoder = model.encoder
        return cls(
            model=config.model,
            decoder=config.decoder,
            patches=math.prod(encoder.grid_size),
            patch_values=encoder.patch_size**2,
            dim=encoder.embed_dim,
            depth=len(encoder.blocks),
            decoder_dim=config.decoder_embed_dim,
            decoder_depth=config.decoder_depth,
            default_predict=model.default_predict,
            parameters=sum(p.numel() for p in trained.values()),
            cast=sum(p.numel() for name, p in trained.items() if p.ndim > 1 and "fc2" not in name),
        )

    def counts(self, inside: float, valid: float, config: PlanConfig) -> tuple[int, int]:
        """Kept and predicted patches of a canvas with these shares inside the contour and without padding."""
        n_valid = round(valid * self.patches)
        n_inside = min(round(inside * self.patches), n_valid)
        masked = sum(masked_patches(n_inside, n_valid - n_inside, config.ratio_inside, config.ratio_outside))
        share = self.default_predict if config.predict is None else config.predict
        return n_valid - masked, round_half_up(share, masked)

    def flops(self, kept: int, predicted: int, again: bool = False) -> float:
        """Of a training step over one image; ``again``: with each block's forward pass done twice."""
        sizes = (self.dim, self.decoder_dim, self.decoder_depth, self.patch_values)
        if self.decoder == "cross":
            rest = work.cross_decoder_flops(kept + 1, predicted, *sizes, maps=self.depth + 1)
        else:
            rest = work.self_decoder_flops(kept + 1, kept + predicted + 1, *sizes)
        step = 3.0 * (work.encoder_flops(kept + 1, self.dim, self.depth, self.patch_values) + rest)
        if not again:
            return step
        if self.decoder == "cross":
            block = work.cross_block_flops(kept + 1, predicted, self.dim, self.decoder_dim)
        else:
            block = work.block_flops(kept + predicted + 1, self.decoder_dim)
        return step + self.depth * work.block_flops(kept + 1, self.dim) + self.decoder_depth * block

    def step_bytes(self, kept: int, predicted: int, batch: int, half: bool, again: bool = False) -> float:
        """Activations of a step, and in bf16 copies of the weights; ``again``: blocks keep their inputs, and one at a
        time what it needs."""
        visible, sizes = kept + 1, (self.dim, self.decoder_dim, self.decoder_depth, half)
        if self.decoder == "cross":
            rest = work.cross_decoder_kept(visible, predicted, *sizes, maps=self.depth + 1, again=again)
            block = work.cross_block_kept(visible, predicted, self.decoder_dim, half)
            weights = 6 * self.decoder_dim**2 + 2 * self.dim * self.decoder_dim
        else:
            rest = work.self_decoder_kept(visible, visible + predicted, *sizes, again=again)
            block = work.block_kept(visible + predicted, self.decoder_dim, half)
            weights = 8 * self.decoder_dim**2
        image = work.encoder_kept(visible, self.dim, self.depth, half, again) + rest
        if not again:
            return batch * image + 2.0 * self.cast * half
        product = 2 if half else 4
        ends = visible * (self.patch_values * product + 4 * self.dim) + predicted * self.decoder_dim * (4 + product)
        blocks = (block, weights), (work.block_kept(visible, self.dim, half), 8 * self.dim**2)
        return batch * (image + ends) + max(batch * size + 2.0 * cast * half for size, cast in blocks)
