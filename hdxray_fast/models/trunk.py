"""The trunk of an encoder: its weights, the positions of a grid, one block run, tokens laid out on the grid.

What an encoder is made of, and what may be set on it later. What comes in is checked in ``intake``, above this;
``encoder``, above both, goes through the blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError
from ..ops import autocast
from ..ops.compiling import standard_operations, writes_graph
from ..ops.plan import MaskPlan
from .encoder_config import EncoderConfig
from .layers import Block, init_weights
from .packing import to_grid, token_rows
from .patch_embed import build_patch_embed
from .pool import AttentionPool
from .positions import resample_positions, set_positions, sincos_positions


class Trunk(nn.Module):
    """The layers that a config describes; attributes are those of :class:`.Encoder`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        self.img_size, self.in_chans, self.patch_size = c.img_size, c.in_chans, c.patch_size
        self.grid_size = c.grid_size
        self.embed_dim = self.num_features = c.embed_dim
        self.num_prefix_tokens = int(c.class_token) + c.reg_tokens
        self.learned_positions, self.normalisation = c.learned_positions, c.normalisation
        self.grad_checkpointing = False

        self.patch_embed = build_patch_embed(c.stem, c.patch_size, c.in_chans, c.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim)) if c.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, c.reg_tokens, c.embed_dim)) if c.reg_tokens else None
        table = sincos_positions(c.embed_dim, self.grid_size, class_token=c.class_token)  # [1, class_token + P, D]
        table = table.to(torch.get_default_device(), torch.get_default_dtype())  # as torch makes the layers
        set_positions(self, "pos_embed", table, c.learned_positions)
        self.blocks = nn.ModuleList(
            Block(c.embed_dim, c.num_heads, c.mlp_ratio, c.qkv_bias, c.layer_scale, c.norm_eps) for _ in range(c.depth)
        )
        norm = nn.LayerNorm(c.embed_dim, eps=c.norm_eps)
        self.norm, self.fc_norm = (nn.Identity(), norm) if c.fc_norm else (norm, nn.Identity())
        if c.pool == "attention":
            self.attn_pool = AttentionPool(c.embed_dim, c.num_heads)
        self.apply(init_weights)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    # --- what can be set later; kept in the config, which is what is saved -------------------------------------------
    @property
    def keep(self) -> str:
        return self.config.keep

    @keep.setter
    def keep(self, value: str) -> None:
        self.config = replace(self.config, keep=value)

    @property
    def margin(self) -> int:
        return self.config.margin

    @margin.setter
    def margin(self, value: int) -> None:
        self.config = replace(self.config, margin=value)

    @property
    def contour(self) -> str:
        return self.config.contour

    @contour.setter
    def contour(self, value: str) -> None:
        self.config = replace(self.config, contour=value)

    @property
    def pool(self) -> str | None:
        return self.config.pool

    @pool.setter
    def pool(self, value: str | None) -> None:
        if value != self.config.pool and "attention" in (value, self.config.pool):
            raise ArgumentError(
                f"pool: got {value!r} in an encoder with {self.config.pool!r}; attention pooling has weights, create "
                "the encoder with it"
            )
        self.config = replace(self.config, pool=value)

    @property
    def saved_config(self) -> EncoderConfig:
        """The settings that a folder of this encoder holds."""
        return self.config

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: fixed positions are made anew, learned ones resampled (bicubic).

        The size belongs to the encoder, not to a call: where threads share one, set ``dynamic_img_size`` instead.
        """
        config = replace(self.config, img_size=img_size)
        grid = config.grid_size
        if config == self.config:
            return
        frozen = not self.pos_embed.requires_grad
        table = self._table_of(grid).detach().to(self.pos_embed)
        set_positions(self, "pos_embed", table, self.learned_positions)
        if frozen:
            self.pos_embed.requires_grad_(False)
        self.config, self.img_size, self.grid_size = config, config.img_size, grid

    def set_drop_path(self, rate: float = 0.0) -> None:
        """Stochastic depth while training: ``rate`` in the last block, rising to it from 0 in the first."""
        if not 0 <= rate < 1:
            raise ArgumentError(f"drop_path: got {rate}, accepted is a share from 0 to below 1")
        for index, block in enumerate(self.blocks):
            block.drop_path = rate * index / max(1, len(self.blocks) - 1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block again in the backward pass instead of keeping what it needs."""
        self.grad_checkpointing = enable

    # --- its tokens --------------------------------------------------------------------------------------------------
    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.cls_token is not None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone."""
        return {"pos_embed", "cls_token", "reg_token", "attn_pool.query"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which block, for learning rates that decay with depth: timm's
        ``create_optimizer_v2(model, layer_decay=)`` asks for it."""
        return {
            "stem": r"^cls_token|^reg_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|^fc_norm|^attn_pool", (99999,))],
        }

    def positions(self, grid_size: tuple[int, int]) -> Tensor:
        """Positions of a grid, ``[1, class_token + P, D]``: the encoder's own, made anew or resampled for another.

        They are in the dtype of the weights, of which a fixed table is none: sharding may give these another.
        """
        return self._table_of(grid_size).to(self._weights_dtype())

    def _table_of(self, grid_size: tuple[int, int]) -> Tensor:
        if grid_size == self.grid_size:
            return self.pos_embed
        if self.learned_positions:
            return resample_positions(self.pos_embed, self.grid_size, grid_size)
        return sincos_positions(self.embed_dim, grid_size, "embed_dim", self.has_class_token, self.pos_embed.device)

    def add_prefix(self, patches: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
        """Embedded patches ``[B, P, D]`` of whole images with their positions, behind the prefix tokens.

        ``grid_size`` is theirs, left out the encoder's; gives ``[B, num_prefix_tokens + P, D]``.
        """
        patches = patches + self.positions(grid_size or self.grid_size)[:, int(self.has_class_token) :]
        if not self.num_prefix_tokens:
            return patches
        prefix = self._prefix().to(patches.dtype).expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1)

    def _prefix(self) -> Tensor:  # [num_prefix_tokens, D]
        tokens = []
        if self.cls_token is not None:
            tokens.append(self.cls_token[0] + self.pos_embed[0, :1].to(self._weights_dtype()))
        if self.reg_token is not None:
            tokens.append(self.reg_token[0])
        return torch.cat(tokens)

    def _embed_images(self, images: Tensor, scale: float | Tensor, shift: float | Tensor) -> Tensor:  # -> [B, P, D]
        """Embedded patches of whole images, in standard operations."""
        scale, shift = (v[:, None, None, None] if isinstance(v, Tensor) and v.dim() else v for v in (scale, shift))
        return self.patch_embed((images.float() * scale + shift).to(self._rows_dtype(images.device)))

    def _rows_dtype(self, device: torch.device) -> torch.dtype:
        """What the first matrix product computes in, so that the gathered rows are written once in the right dtype."""
        if autocast.is_on(device.type):
            return torch.get_autocast_dtype(device.type)
        return self._weights_dtype()

    def _weights_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.patch_embed.parameters() if p.is_floating_point()), self.pos_embed.dtype)

    # --- a block, and what blocks made -------------------------------------------------------------------------------
    def _run(
        self,
        block: Block,
        x: Tensor,
        cu_seqlens: Tensor | None,
        longest: int,
        plan: MaskPlan | None,
        drop_path_keep: Tensor | None = None,
    ) -> Tensor:
        if isinstance(block, nn.Identity):  # a block that was taken out
            return block(x)
        if cu_seqlens is None and writes_graph():
            with standard_operations():
                return block(x, None, None, None, drop_path_keep)
        equal_lengths = plan is not None and plan.equal_counts[0]
        arguments = (x, cu_seqlens, longest, None, drop_path_keep, equal_lengths)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def on_grid(self, x: Tensor, plan: MaskPlan | None, longest: int) -> tuple[Tensor, Tensor]:
        """Prefix tokens ``[B, num_prefix_tokens, D]`` and patches on the full grid ``[B, P, D]``, zero where not kept.

        Args:
            x: tokens that the encoder made with ``plan``: packed, or ``[B, S, D]``.
            plan: ``None`` if every patch was kept.
            longest: tokens of the longest sequence.
        """
        prefix = self.num_prefix_tokens
        if plan is None:
            x = x.view(-1, longest, self.embed_dim)
            return x[:, :prefix], x[:, prefix:]
        patches = plan.grid_size[0] * plan.grid_size[1]
        patch_rows, prefix_rows, _ = token_rows(plan.keep_cu_seqlens, plan.keep_ids.shape[0], prefix)
        grid = to_grid(x.index_select(0, patch_rows), plan.keep_ids, plan.keep_cu_seqlens, patches)
        return x.index_select(0, prefix_rows).unflatten(0, (plan.batch_size, prefix)), grid

    def tokens_on_grid(self, x: Tensor, plan: MaskPlan | None, longest: int) -> Tensor:
        """Both parts of :meth:`on_grid` in one, ``[B, num_prefix_tokens + P, D]``."""
        return torch.cat(self.on_grid(x, plan, longest), dim=1)
