"""From the encoder's patches to the visual tokens that a decoder reads: a stated number per view, views marked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..models.encoder import Tokens
from ..models.layers import CrossBlock
from ..models.packing import image_of_row, token_rows
from ..ops.plan import MaskPlan
from .model_config import grid_side

POOLS = ("grid", "attention")


class ViewTokens(NamedTuple):
    """Tokens of single images, before they are brought to the decoder's width."""

    values: Tensor  # [N, K, D]
    known: Tensor  # [N, K] bool; a cell of the grid that no kept patch lies in is not


class StudyTokens(NamedTuple):
    """What a decoder reads of each study; the views of a study follow each other, the shorter studies are padded."""

    values: Tensor  # [B, S, W]
    mask: Tensor  # [B, S] bool


class Views(NamedTuple):
    """Which study each image belongs to, and the how-manieth of it it is; sorted by both."""

    study: Tensor  # [N] int64
    view: Tensor  # [N] int64
    studies: int
    most: int  # images of the study that has most

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Views:
        study, view = (t.to(device, non_blocking=non_blocking) for t in (self.study, self.view))
        return self._replace(study=study, view=view)

    @classmethod
    def of_counts(cls, counts: list[int]) -> Views:
        """For studies of ``counts[0]``, ``counts[1]`` ... images."""
        study = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        view = torch.cat([torch.arange(count) for count in counts])
        return cls(study, view, len(counts), max(counts, default=0))


def pool_grid(tokens: Tokens, plan: MaskPlan, count: int, num_prefix: int) -> ViewTokens:
    """Means of the kept patches in each cell of a ``sqrt(count)`` x ``sqrt(count)`` grid; nothing is learned.

    Args:
        tokens: of the encoder; prefix tokens are left out.
        plan: the patches they are of.
        count: K, a square number.
        num_prefix: prefix tokens of each image.
    """
    cells = patch_cells(plan.grid_size, count, plan.device)  # [P]
    batch, total = plan.batch_size, plan.keep_ids.shape[0]
    rows, _, _ = token_rows(plan.keep_cu_seqlens, total, num_prefix)
    patches = tokens.values.index_select(0, rows).float()  # [N_keep, D]
    slot = image_of_row(plan.keep_cu_seqlens, total) * count + cells[plan.keep_ids.long()]
    slot = torch.where(torch.arange(total, device=slot.device) < plan.keep_cu_seqlens[-1], slot, batch * count)
    sums = patches.new_zeros(batch * count + 1, patches.shape[1]).index_add(0, slot, patches)[:-1]
    sizes = patches.new_zeros(batch * count + 1).index_add(0, slot, torch.ones_like(slot, dtype=patches.dtype))[:-1]
    values = (sums / sizes.clamp(min=1).unsqueeze(1)).unflatten(0, (batch, count))
    return ViewTokens(values.to(tokens.values.dtype), (sizes > 0).unflatten(0, (batch, count)))


def patch_cells(grid_size: tuple[int, int], count: int, device: torch.device | None = None) -> Tensor:
    """Cell of the pooled grid that each patch lies in, ``[P]`` int64."""
    side = grid_side(count)
    if side > min(grid_size):
        raise ArgumentError(
            f"visual_tokens: got {count}, {grid_size[0]} x {grid_size[1]} patches make no {side} x {side}; "
            f"visual_tokens={min(grid_size) ** 2} and smaller square numbers fit, or images of a larger size"
        )
    rows = torch.arange(grid_size[0], device=device) * side // grid_size[0]
    columns = torch.arange(grid_size[1], device=device) * side // grid_size[1]
    return (rows[:, None] * side + columns).flatten()


class VisualTokens(nn.Module):
    """Resampler, projection and view embeddings.

    Args:
        dim: D, width of the encoder.
        width: W, width of the decoder.
        count: K, visual tokens of a view.
        pool: ``"grid"``: means over the cells of a square grid. ``"attention"``: K learned queries attend to all
            patches (https://arxiv.org/abs/2204.14198, section 3.1.1, with one layer).
        max_views: views of a study that have an embedding.
        num_heads: of the attention pool.
        scale: standard deviation of what comes out at first; that of the word embeddings.
    """

    def __init__(
        self, dim: int, width: int, count: int, pool: str, max_views: int, num_heads: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ArgumentError(f"pool: got {pool!r}, accepted are {', '.join(map(repr, POOLS))}")
        self.count, self.pool, self.max_views = count, pool, max_views
        if pool == "grid":
            grid_side(count)
        else:
            self.queries = nn.Parameter(torch.randn(count, dim))
            self.attend = CrossBlock(dim, dim, num_heads, 4.0)
        self.register_buffer("centre", torch.zeros(count if pool == "grid" else 1, dim))
        self.register_buffer("spread", torch.ones(dim))
        self.project = nn.Linear(dim, width)
        self.view_embed = nn.Parameter(0.02 * torch.randn(max_views, width))
        self.norm = nn.LayerNorm(width)
        nn.init.constant_(self.norm.weight, scale)

    @torch.no_grad()
    def standardise(self, images: Iterable[tuple[Tensor, Tensor]]) -> None:
        """From now on subtract what a frozen encoder says of every image, and bring the rest to deviation 1.

        Most of a token tells its place, not its image; what is left when the mean over images is taken away tells
        images apart. With ``pool="grid"`` the mean is each cell's own.

        Args:
            images: ``(values [n, D], known [n])`` of the training images, ``n`` cells or patches; at least two, or
                nothing changes.
        """
        count = sums = squares = number = 0
        for values, known in images:
            values, known = values.double(), known.double().unsqueeze(1)
            kept = values * known
            if self.pool == "attention":
                kept, squared, known = kept.sum(0, True), (kept * values).sum(0, True), known.sum(0, True)
            else:
                squared = kept * values
            count, sums, squares, number = count + known, sums + kept, squares + squared, number + 1
        if number < 2:
            return
        centre = sums / count.clamp(min=1)
        own = (squares - count * centre.square()).sum(0) / count.sum()  # [D] variance about the cells' means
        mean = sums.sum(0) / count.sum()
        whole = squares.sum(0) / count.sum() - mean.square()
        self.centre.copy_(centre)
        self.spread.copy_(torch.maximum(own, 0.0025 * whole).clamp(min=1e-8).sqrt())

    def _standardised(self, values: Tensor) -> Tensor:  # [..., D]
        return (values - self.centre) / self.spread

    def resample(self, tokens: Tokens, plan: MaskPlan, num_prefix: int) -> ViewTokens:
        """Tokens of single images, ``[N, K, D]``."""
        if self.pool == "grid":
            return pool_grid(tokens, plan, self.count, num_prefix)
        batch, device = plan.batch_size, tokens.values.device
        queries = self.queries.repeat(batch, 1).to(tokens.values.dtype)  # [N * K, D]
        one_each = self.count * torch.arange(batch + 1, dtype=torch.int32, device=device)
        longest = plan.longest[0] + num_prefix
        values = self._standardised(tokens.values).to(queries.dtype)
        pooled = self.attend(queries, values, one_each, tokens.cu_seqlens, self.count, longest)
        known = torch.ones(batch, self.count, dtype=torch.bool, device=device)
        return ViewTokens(pooled.unflatten(0, (batch, self.count)), known)

    def forward(self, tokens: ViewTokens, views: Views) -> StudyTokens:
        """Views in the decoder's width, marked and joined by study.

        Raises:
            ArgumentError: a study has more views than there are embeddings.
        """
        most = views.most
        if most > self.max_views:
            raise ArgumentError(f"views: a study has {most} images, this model reads {self.max_views} (max_views)")
        values = self._standardised(tokens.values) if self.pool == "grid" else tokens.values
        x = self.norm(self.project(values) + self.view_embed[views.view].unsqueeze(1))  # [N, K, W]
        values = x.new_zeros(views.studies, most, *x.shape[1:])  # [B, V, K, W]
        mask = tokens.known.new_zeros(views.studies, most, self.count)
        values = values.index_put((views.study, views.view), x).flatten(1, 2)
        mask = mask.index_put((views.study, views.view), tokens.known).flatten(1, 2)
        return StudyTokens(values, mask)

    @torch.no_grad()
    def shares(self, tokens: Tokens, plan: MaskPlan, num_prefix: int) -> list[Tensor]:
        """How each visual token is made up of the grid's patches: ``[K, P]`` float32 for each image, on the CPU.

        Rows sum to 1, to less where prefix tokens were attended to, or to 0 for a cell without patches.
        """
        patches, found = plan.grid_size[0] * plan.grid_size[1], []
        bounds, starts = plan.keep_cu_seqlens.tolist(), tokens.cu_seqlens.tolist()
        for image in range(plan.batch_size):
            ids = plan.keep_ids[bounds[image] : bounds[image + 1]].long()
            if self.pool == "grid":
                cells = patch_cells(plan.grid_size, self.count, ids.device)[ids]
                kept = (torch.arange(self.count, device=ids.device)[:, None] == cells).float()  # [K, N_keep]
                kept = kept / kept.sum(1, keepdim=True).clamp(min=1)
            else:
                kept = self._weights(tokens.values[starts[image] : starts[image + 1]])[:, num_prefix:]
            share = torch.zeros(self.count, patches)
            share[:, ids.cpu()] = kept.cpu()
            found.append(share)
        return found

    def _weights(self, values: Tensor) -> Tensor:
        """Attention of the queries to one image's tokens, mean over heads: ``[N, D]`` to ``[K, N]``."""
        attn = self.attend.cross_attn
        q = attn.q(self.attend.norm1(self.queries)).unflatten(-1, (attn.num_heads, -1))  # [K, H, Dh]
        k = attn.kv(self._standardised(values.float())).unflatten(-1, (2, attn.num_heads, -1))[:, 0]  # [N, H, Dh]
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        return scores.softmax(-1).mean(0)
