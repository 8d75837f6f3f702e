"""Decoders: encoder tokens and a mask plan in, predicted patches out.

``SelfDecoder`` is MAE's (https://arxiv.org/abs/2111.06377): mask tokens join the visible ones and all attend to all.
``CrossDecoder`` is CrossMAE's (https://arxiv.org/abs/2401.14391): each predicted patch is a query that attends to the
visible tokens only, so the cost is proportional to the number of predicted patches and not to the square of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..ops import debug, native
from ..ops.mixture import mix_maps
from ..ops.plan import MaskPlan
from .layers import LAYER_NORM_EPS, Block, CrossBlock, Queries, init_weights
from .packing import image_of_row, token_rows
from .positions import set_positions, sincos_positions


class SelfDecoder(nn.Module):
    """MAE's decoder over kept and predicted patches; parameter names are those of facebookresearch/mae.

    A sequence is the class token, then kept and predicted patches in grid order. With a plan that predicts every masked
    patch (``predict=1``) these are all valid patches, which is MAE. With ``predict < 1`` the masked patches that are
    not predicted are left out of the sequence: their mask tokens would carry nothing but a position.
    """

    default_predict = 1.0

    def __init__(
        self,
        encoder_dim: int,
        grid_size: tuple[int, int],
        patch_values: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = sincos_positions(embed_dim, grid_size, "decoder_embed_dim")  # [1, 1 + P, D]
        set_positions(self, "decoder_pos_embed", table.to(torch.get_default_device()))
        self.decoder_blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(embed_dim, patch_values)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, maps: list[Tensor], cu_seqlens: Tensor, plan: MaskPlan) -> Tensor:
        """Predict the patches of ``plan.predict_ids``.

        Args:
            maps: feature maps of the encoder, each ``[N_keep + B, encoder_dim]``; this decoder reads the last one.
            cu_seqlens: ``[B + 1]`` int32, of the maps.
            plan: the plan that the encoder worked on; no patch is both kept and predicted.

        Returns:
            ``[N_predict, p * p * C]`` in the order of ``plan.predict_ids``.

        Raises:
            ArgumentError: a patch is both; on a GPU it is noticed under ``debug_checks`` only.
        """
        encoder_rows, predict_rows, position_rows, cu_seqlens = _sequence_rows(plan)
        tokens = self.decoder_embed(maps[-1]).to(self.mask_token.dtype)  # [N_keep + B, D]
        x = self.mask_token[0].expand(position_rows.shape[0], -1).index_copy(0, encoder_rows, tokens)  # [M, D]
        x = x + self.decoder_pos_embed[0].to(self.mask_token.dtype).index_select(0, position_rows)
        max_seqlen, equal = 1 + sum(plan.longest), plan.equal_counts[1]
        for block in self.decoder_blocks[:-1]:
            x = block(x, cu_seqlens, max_seqlen, equal_lengths=equal)
        predicted = Queries(predict_rows, plan.predict_cu_seqlens, plan.longest[1])
        # nobody asks for its other rows
        x = self.decoder_blocks[-1](x, cu_seqlens, max_seqlen, predicted, equal_lengths=equal)
        return self.decoder_pred(self.decoder_norm(x))


def _sequence_rows(plan: MaskPlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of the decoder's packed sequences (class token, then kept and predicted patches in grid order).

    A plan's slack (rows past the end of ``cu_seqlens``) goes behind all sequences, each row to a place of its own.

    Returns:
        Row of each encoder token ``[N_keep + B]``, row of each predicted patch ``[N_predict]``, position of each row
        ``[M]`` (0 is the class token's), all int64, and ``cu_seqlens [B + 1]`` int32; ``M = N_keep + N_predict + B``.
    """
    batch, patches = plan.batch_size, plan.grid_size[0] * plan.grid_size[1]
    n_keep, n_predict = plan.keep_ids.shape[0], plan.predict_ids.shape[0]
    device = plan.keep_ids.device
    cu_seqlens = plan.keep_cu_seqlens + plan.predict_cu_seqlens
    cu_seqlens = cu_seqlens + torch.arange(batch + 1, device=device, dtype=torch.int32)

    keep_image, keep_real, keep_past = _real_rows(plan.keep_cu_seqlens, n_keep)
    predict_image, predict_real, predict_past = _real_rows(plan.predict_cu_seqlens, n_predict)
    # cells of the batch's grids laid end to end, and one more for slack
    keep_cells = torch.where(keep_real, keep_image * patches + plan.keep_ids, batch * patches)
    predict_cells = torch.where(predict_real, predict_image * patches + plan.predict_ids, batch * patches)

    # the rank of a cell among the used ones is its row, before the class tokens are counted
    used = torch.zeros(batch * patches + 1, dtype=torch.int32, device=device)
    used = used.index_fill(0, keep_cells, 1).index_fill(0, predict_cells, 1)
    _check_disjoint(plan, used[:-1])
    rank = used.cumsum(0) - 1
    first_slack = cu_seqlens[-1] + keep_past
    keep_rows = torch.where(keep_real, rank[keep_cells] + keep_image + 1, first_slack)
    first_slack = cu_seqlens[-1] + (n_keep - plan.keep_cu_seqlens[-1]) + predict_past
    predict_rows = torch.where(predict_real, rank[predict_cells] + predict_image + 1, first_slack)

    patch_tokens, cls_tokens, _ = token_rows(plan.keep_cu_seqlens, n_keep)  # rows in the encoder's packing
    rows = torch.empty(n_keep + batch, dtype=torch.int64, device=device)
    rows = rows.index_copy(0, patch_tokens, keep_rows).index_copy(0, cls_tokens, cu_seqlens[:-1].long())
    positions = torch.zeros(n_keep + n_predict + batch, dtype=torch.int64, device=device)
    positions = positions.index_copy(0, keep_rows, plan.keep_ids.long() + 1)
    positions = positions.index_copy(0, predict_rows, plan.predict_ids.long() + 1)
    return rows, predict_rows, positions, cu_seqlens


def _check_disjoint(plan: MaskPlan, used: Tensor) -> None:
    """That no cell is kept and predicted, which would move the rows of all images behind it."""
    if torch.compiler.is_compiling() or type(used) is not Tensor or native.is_wrapped(used):
        return
    if used.device.type != "cpu" and not debug.checks_are_on():  # it would wait for the GPU
        return
    both, kept, predicted = (x.cpu().numpy() for x in (used, plan.keep_cu_seqlens, plan.predict_cu_seqlens))
    if both.sum() != kept[-1] + predicted[-1]:
        raise ArgumentError("plan: predicts patches that it keeps, which decoder='self' cannot; decoder='cross' can")


def _real_rows(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image of each row, whether it belongs to a sequence, and how far it lies past the last one, each ``[total]``."""
    past = torch.arange(total, device=cu_seqlens.device) - cu_seqlens[-1]
    return image_of_row(cu_seqlens, total), past < 0, past


class CrossDecoder(nn.Module):
    """CrossMAE's decoder: queries at the predicted patches attend to the encoder's tokens, never to each other.

    Each block attends to its own learned mixture of the encoder's feature maps (``wfm``, the paper's inter-block
    attention), normalised by its own ``dec_norms``. As in the published code the embedded input may be one of the maps,
    and here it is; unlike there the last map is the encoder's normalised output, so that the norm an encoder is used
    with is trained.
    """

    default_predict = 0.25

    def __init__(
        self,
        encoder_dim: int,
        grid_size: tuple[int, int],
        patch_values: int,
        num_maps: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.wfm = nn.Parameter(torch.empty(depth, num_maps))
        self.dec_norms = nn.ModuleList(nn.LayerNorm(encoder_dim, eps=LAYER_NORM_EPS) for _ in range(depth))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = sincos_positions(embed_dim, grid_size, "decoder_embed_dim")  # [1, 1 + P, D]
        set_positions(self, "decoder_pos_embed", table.to(torch.get_default_device()))
        self.decoder_blocks = nn.ModuleList(
            CrossBlock(encoder_dim, embed_dim, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(embed_dim, patch_values)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.wfm, std=num_maps**-0.5)  # a mixture starts with the variance of one map

    def forward(self, maps: list[Tensor], cu_seqlens: Tensor, plan: MaskPlan) -> Tensor:
        """Predict the patches of ``plan.predict_ids``.

        Args:
            maps: ``num_maps`` feature maps of the encoder, each ``[N_keep + B, encoder_dim]``.
            cu_seqlens: ``[B + 1]`` int32, of the maps.
            plan: the plan that the encoder worked on.

        Returns:
            ``[N_predict, p * p * C]`` in the order of ``plan.predict_ids``.
        """
        positions = self.decoder_pos_embed[0].to(self.mask_token.dtype)
        x = self.mask_token[0] + positions.index_select(0, plan.predict_ids + 1)  # [N_predict, D]
        mixtures = mix_maps(maps, self.wfm)  # [depth, N_keep + B, De]
        for block, norm, mixture in zip(self.decoder_blocks, self.dec_norms, mixtures.unbind(), strict=True):
            y = norm(mixture)  # [N_keep + B, De]
            longest = plan.longest[1], plan.longest[0] + 1
            x = block(x, y, plan.predict_cu_seqlens, cu_seqlens, *longest, plan.equal_counts[1])
        return self.decoder_pred(self.decoder_norm(x))
