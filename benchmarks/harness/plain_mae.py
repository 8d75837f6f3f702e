"""The rival: a masked auto-encoder as facebookresearch/mae lays it out, written from the paper (arXiv 2111.06377).

Everything is done the usual way: a convolution embeds all patches, argsort of noise picks the kept ones, mask tokens
join them in a self-attention decoder over the whole grid, and the loss patchifies the whole image. Blocks come from
timm (whose attention is PyTorch's SDPA), or with ``blocks="torch"`` from the few lines below, for parity tests where
timm is missing. Parameter names and shapes are those of published MAE checkpoints.
"""

from __future__ import annotations

import importlib
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def import_timm():
    """timm's vision transformer module; None if timm is not installed."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A torchvision wheel built for another torch cannot load its C++ ops, and then fails to register shape
        # functions for two of them. timm needs neither: with their schemas declared, torchvision imports.
        for op in ("nms", "qnms"):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass
    try:
        return importlib.import_module("timm.models.vision_transformer")
    except ImportError:
        return None


class TorchAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x [B, H, N, Dh]
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class TorchMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TorchBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TorchAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = TorchMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TorchPatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def sincos_2d(dim: int, grid_size: tuple[int, int]) -> Tensor:
    """Positions as MAE computes them, with a zero row for the class token, ``[1, 1 + gh * gw, dim]``."""

    def encode(half: int, position: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(half // 2, dtype=np.float64) / (half / 2.0))
        angle = np.einsum("m,d->md", position.reshape(-1), omega)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    grid_w, grid_h = np.meshgrid(np.arange(grid_size[1], dtype=np.float32), np.arange(grid_size[0], dtype=np.float32))
    patches = np.concatenate([encode(dim // 2, grid_w), encode(dim // 2, grid_h)], axis=1)  # w goes first
    return torch.from_numpy(np.concatenate([np.zeros([1, dim]), patches])).float()[None]


class PlainMAE(nn.Module):
    """Masked auto-encoder with a ViT encoder and a self-attention decoder."""

    def __init__(
        self,
        img_size: tuple[int, int] = (1280, 1280),
        patch_size: int = 16,
        in_chans: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = True,
        blocks: str = "timm",
    ) -> None:
        super().__init__()
        if blocks == "timm":
            vit = import_timm()
            if vit is None:
                raise ImportError("the plain MAE is written with timm blocks: pip install timm")
            self.patch_embed = vit.PatchEmbed(img_size, patch_size, in_chans, embed_dim)
            block = partial(vit.Block, mlp_ratio=4.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        else:
            self.patch_embed = TorchPatchEmbed(patch_size, in_chans, embed_dim)
            block = TorchBlock
        self.patch_size, self.in_chans, self.norm_pix_loss = patch_size, in_chans, norm_pix_loss
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid_size), requires_grad=False)
        self.blocks = nn.ModuleList(block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid_size), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def patchify(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, P, p * p * C]
        (gh, gw), p = self.grid_size, self.patch_size
        x = images.reshape(images.shape[0], self.in_chans, gh, p, gw, p)
        return torch.einsum("nchpwq->nhwpqc", x).reshape(images.shape[0], gh * gw, p**2 * self.in_chans)

    def random_masking(self, x: Tensor, num_keep: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, dim = x.shape
        noise = torch.rand(batch, length, device=x.device) if noise is None else noise
        ids_shuffle = torch.argsort(noise, dim=1)  # small is kept
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        ids_keep = ids_shuffle[:, :num_keep]
        kept = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, dim))
        mask = torch.ones(batch, length, device=x.device)
        mask[:, :num_keep] = 0
        return kept, torch.gather(mask, 1, ids_restore), ids_restore

    def forward_encoder(self, images: Tensor, num_keep: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, num_keep, noise)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((cls, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x = self.decoder_embed(x)
        mask_tokens = self.mask_token.repeat(x.shape[0], ids_restore.shape[1] + 1 - x.shape[1], 1)
        patches = torch.cat([x[:, 1:], mask_tokens], dim=1)
        patches = torch.gather(patches, 1, ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        target = self.patchify(images)
        if self.norm_pix_loss:
            mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
            target = (target - mean) / (var + 1.0e-6) ** 0.5
        loss = ((pred - target) ** 2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def forward(
        self, images: Tensor, num_keep: int, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, prediction ``[B, P, p * p * C]``, mask ``[B, P]`` (1 is masked), latent ``[B, 1 + num_keep, D]``."""
        latent, mask, ids_restore = self.forward_encoder(images, num_keep, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(images, pred, mask), pred, mask, latent
