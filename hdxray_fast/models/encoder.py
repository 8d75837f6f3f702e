"""The ViT encoder: images in, tokens out. Only the patches that are kept are ever read or computed.

Parameter names and shapes are those of facebookresearch/mae (encoder half), so its checkpoints load as they are. The
``stem64`` presets use the three-layer patch embedding of HD X-ray (https://arxiv.org/abs/2404.17926) with its names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError, ArgumentTypeError
from ..ops import autocast
from ..ops.compiling import standard_operations, writes_graph
from ..ops.gather import gather_patches
from ..ops.plan import MaskPlan, as_plain
from ..ops.view import View
from . import dense
from .encoder_config import EncoderConfig
from .grey_levels import scale_of_levels, warn_of_range
from .layers import Block, init_weights
from .packing import to_grid, token_rows
from .patch_embed import build_patch_embed
from .pool import AttentionPool, mean_pool
from .positions import resample_positions, set_positions, sincos_positions
from .selection import checked_grid, every_patch, selected_patches
from .transform import Transform


class Tokens(NamedTuple):
    """Packed tokens of a batch; class and register tokens come first in each sequence."""

    values: Tensor  # [N_keep + B * num_prefix_tokens, D]
    cu_seqlens: Tensor  # [B + 1] int32


class Depths(NamedTuple):
    """What the blocks of an encoder made of a batch."""

    tokens: Tokens  # normalised
    states: list[Tensor]  # depth + 1, not normalised: packed [N, D], or [B, S, D] where every patch was kept
    plan: MaskPlan | None  # None if every patch was kept
    longest: int  # of the sequences


class Encoder(nn.Module):
    """Vision transformer; see :func:`hdxray_fast.create_encoder`.

    Attributes:
        img_size: ``(height, width)`` in pixels.
        dynamic_img_size: also take images of other multiples of the patch size: each call has the positions of its own
            grid, fixed ones made for it, learned ones resampled (bicubic). Off at first; can be set, and is not saved.
        patch_size: edge of a patch in pixels.
        grid_size: ``(height, width)`` in patches.
        embed_dim, num_features: width of a token.
        num_prefix_tokens: class and register tokens in front of an image's patches.
        keep: which patches it looks at when no plan is given: ``"all"``, ``"valid"`` or ``"contour"``; can be set.
        margin: patches around the chest that ``"contour"`` keeps as well; can be set.
        contour: how contours are found where nobody gives them; that of the training; can be set.
        pool: ``None``, ``"cls"``, ``"mean"`` or ``"attention"``; can be set.
        normalisation: ``"per_image"`` or ``(mean, std)`` of pixels on [0, 1]; how integer images are normalised when
            no ``scale`` is given.
        config: the settings that build this encoder again.
        load_report: what became of the weights it was created with (a :class:`.LoadReport`), if any.
    """

    load_report: object | None = None
    dynamic_img_size = False

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        self.img_size, self.in_chans, self.patch_size = c.img_size, c.in_chans, c.patch_size
        self.grid_size = c.grid_size
        self.embed_dim = self.num_features = c.embed_dim
        self.num_prefix_tokens = int(c.class_token) + c.reg_tokens
        self.learned_positions, self.normalisation = c.learned_positions, c.normalisation
        self.grad_checkpointing = False
        self._range_seen = False  # of float images: looked at until a warning was given, on a GPU the first ones

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

    # --- what can be set later; kept in the config, which is what is saved -----------------------------------------
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

    # --- images to features ---------------------------------------------------------------------------------------
    def forward(
        self,
        images: Tensor,  # [B, C, H, W] uint8, uint16 or float
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        *,
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
    ) -> Tokens | Tensor:
        """Encode the patches that ``plan`` keeps; without a plan those that ``keep`` says.

        Args:
            images: ``[B, C, H, W]``, any dtype that :func:`hdxray_fast.gather_patches` reads.
            plan: which patches are kept; its grid must be the encoder's.
            scale: the network sees ``pixel * scale + shift``; a number, or float32 ``[B]``. Left out, float images are
                taken as they are, and integer images are normalised as ``normalisation`` says, ``"per_image"`` over
                the patches that are ``valid``.
            shift: see ``scale``.
            inside: patches of the chest, for ``keep="contour"``; left out, contours are looked for in the images.
            valid: patches that are no padding; left out, all.

        Returns:
            Without ``pool``: normalised tokens ``[N_keep + B * num_prefix_tokens, D]`` with their ``cu_seqlens``.
            With ``pool``: features ``[B, D]``.
        """
        plan = self._chosen(images, plan, inside, valid)
        tokens, plan, longest = self._encode(images, plan, scale, shift, valid)
        return tokens if self.pool is None else self._features(tokens, plan, self.pool, longest)

    def pool_tokens(self, tokens: Tokens, pool: str, max_seqlen: int | None = None) -> Tensor:
        """One feature per image, ``[B, D]``, from tokens of this encoder.

        Args:
            tokens: as :meth:`forward` gives them without ``pool``.
            pool: ``"cls"``, ``"mean"`` (of the patches) or, in an encoder built with it, ``"attention"``.
            max_seqlen: length of the longest sequence, if it is known.
        """
        if pool == "cls" and self.cls_token is not None:
            return self.fc_norm(tokens.values.index_select(0, tokens.cu_seqlens[:-1]))
        if pool == "mean":
            return self.fc_norm(mean_pool(*tokens, self.num_prefix_tokens))
        if pool == "attention" and self.pool == "attention":
            return self.fc_norm(self.attn_pool(*tokens, max_seqlen))
        raise ArgumentError(
            f"pool: got {pool!r}, accepted are 'mean', 'cls' with a class token, and 'attention' in an encoder built "
            "with pool='attention'"
        )

    def encode(
        self,
        images: Tensor,
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        drop_path_keep: Tensor | None = None,  # [depth, 2, B] bool
        view: View | None = None,
    ) -> Tokens:
        """Normalised tokens of the patches that ``plan`` keeps (all without one), whatever ``keep`` says.

        Args:
            images, plan, scale, shift: as for :meth:`forward`.
            drop_path_keep: which images keep the attention and the MLP of each block while it trains, where stochastic
                depth is set; left out, torch's generator draws them.
            view: see the images through these maps and tables; plan, scale and shift are then of the view.

        Raises:
            ArgumentError: images, plan and view do not fit the encoder or each other, or ``scale`` is left out with a
                view of integer images whose scale is their own.
        """
        own = view is not None and scale is None and shift is None and self.normalisation == "per_image"
        if own and not images.is_floating_point():
            raise ArgumentError(
                "scale: is needed with a view, for the image as it is has another mean and deviation than what is "
                "seen of it; RadiographDataset(views=True) gives scale and shift of the view"
            )
        images, plan, scale, shift = self._inputs(images, plan, scale, shift)
        return self._run_blocks(images, plan, scale, shift, drop_path_keep, view)[0]

    def forward_features(
        self,
        images: Tensor,
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        *,
        inside: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Normalised tokens as timm gives them, ``[B, num_prefix_tokens + P, D]``; arguments as for :meth:`forward`.

        Patches that are not kept are zero.
        """
        plan = self._chosen(images, plan, inside, valid)
        tokens, plan, longest = self._encode(images, plan, scale, shift, valid)
        return self.tokens_on_grid(tokens.values, plan, longest)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: None = None,
        is_causal: bool = False,
        *,
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        inside: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> list | tuple[Tensor, list] | dict[str, Tensor | list]:
        """Outputs of some blocks on the full grid, with timm's arguments and meanings.

        Args:
            images: as for :meth:`forward`.
            indices: blocks, counted from 0 or from the end; an int takes that many from the end; ``None`` takes all.
            return_prefix_tokens: give ``(map, prefix [B, num_prefix_tokens, D])`` for each block.
            norm: apply the final norm to each.
            stop_early: leave out the blocks after the last one asked for.
            output_fmt: ``"NCHW"`` for ``[B, D, gh, gw]``, ``"NLC"`` for ``[B, gh * gw, D]``.
            intermediates_only: give the list alone.
            output_dict: give a dictionary: ``image_features`` (unless ``intermediates_only``),
                ``image_intermediates``, and with ``return_prefix_tokens`` ``image_intermediates_prefix``.
            attn_mask, is_causal: are refused; images attend to themselves alone, and ``plan`` says to which patches.
            plan, scale, shift, inside, valid: as for :meth:`forward`.

        Returns:
            ``(features, intermediates)`` with features as from :meth:`forward_features`, or the list alone. Patches
            that are not kept are zero.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ArgumentError(f"output_fmt: got {output_fmt!r}, accepted are 'NCHW' and 'NLC'")
        if attn_mask is not None or is_causal:
            name, accepted = ("is_causal", False) if attn_mask is None else ("attn_mask", None)
            raise ArgumentError(f"{name}: is not supported, accepted is {accepted}; a plan says which patches are seen")
        wanted = _block_indices(indices, len(self.blocks))
        plan = self._chosen(images, plan, inside, valid)
        images, plan, scale, shift = self._inputs(images, plan, scale, shift, valid)
        x, cu_seqlens, longest = self._start(images, plan, scale, shift)
        grid_size = self.grid_of(images)
        intermediates, prefixes = [], []
        for index, block in enumerate(self.blocks):
            if stop_early and index > max(wanted):
                break
            x = self._run(block, x, cu_seqlens, longest, plan)
            if index in wanted:
                prefix, grid = self.on_grid(self.norm(x) if norm else x, plan, longest)
                if output_fmt == "NCHW":
                    grid = grid.unflatten(1, grid_size).permute(0, 3, 1, 2)  # [B, P, D] -> [B, D, gh, gw]
                intermediates.append(grid)
                prefixes.append(prefix)
        features = None if intermediates_only else self.tokens_on_grid(self.norm(x), plan, longest)
        if output_dict:
            out = {"image_intermediates": intermediates}
            out |= {"image_intermediates_prefix": prefixes} if return_prefix_tokens and self.num_prefix_tokens else {}
            return out if intermediates_only else out | {"image_features": features}
        if return_prefix_tokens:
            intermediates = list(zip(intermediates, prefixes, strict=True))
        return intermediates if intermediates_only else (features, intermediates)

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | list[int] | tuple[int, ...] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: None = None,
    ) -> list:
        """DINO's name for :meth:`forward_intermediates`: ``[B, gh * gw, D]``, with ``reshape`` ``[B, D, gh, gw]``."""
        form = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(
            images, n, return_prefix_tokens, norm, output_fmt=form, intermediates_only=True, attn_mask=attn_mask
        )

    def forward_maps(
        self,
        images: Tensor,
        plan: MaskPlan,
        scale: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
        view: View | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """As :meth:`forward`, with the tokens at every depth, and images seen through a view if there is one.

        Returns:
            ``depth + 1`` maps ``[N_keep + B, D]`` and their ``cu_seqlens [B + 1]`` int32: the embedded patches, the
            output of every block but the last, and the normalised output of the last, which is what
            :meth:`forward` returns.
        """
        images = self.check_images(images)
        self._check_plan(images, plan)
        tokens = self.embed(images, plan, scale, shift, view)
        maps = [tokens.values]
        for block in self.blocks:
            maps.append(self._run(block, maps[-1], tokens.cu_seqlens, plan.longest[0] + self.num_prefix_tokens, plan))
        maps[-1] = self.norm(maps[-1])
        return maps, tokens.cu_seqlens

    def embed(
        self,
        images: Tensor,
        plan: MaskPlan,
        scale: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
        view: View | None = None,
    ) -> Tokens:
        """Kept patches as tokens with positions, prefix tokens put in front of each sequence."""
        rows = gather_patches(images, plan, scale, shift, self._rows_dtype(images.device), view=view)
        first = int(self.has_class_token)
        positions = self.positions(tuple(plan.grid_size))[0].index_select(0, plan.keep_ids + first)
        patches = self.patch_embed(rows) + positions  # [N_keep, D]
        patch_rows, prefix_rows, cu_seqlens = token_rows(plan.keep_cu_seqlens, patches.shape[0], self.num_prefix_tokens)
        if not self.num_prefix_tokens:
            return Tokens(patches, cu_seqlens)
        prefix = self._prefix().to(patches.dtype).repeat(plan.batch_size, 1)  # [B * num_prefix_tokens, D]
        values = patches.new_empty(patches.shape[0] + prefix.shape[0], self.embed_dim)
        values = values.index_copy(0, patch_rows, patches).index_copy(0, prefix_rows, prefix)
        return Tokens(values, cu_seqlens)

    # --- what goes in -----------------------------------------------------------------------------------------------
    def normalise(self, images: Tensor, valid: Tensor | None = None, white: float | None = None) -> Tensor:
        """Images as this encoder was trained on them, for those who keep float images; integers need no such step.

        Args:
            images: ``[B, C, H, W]``, of an integer dtype or of floats from 0 to ``white``, bright = dense.
            valid: bool ``[B, gh, gw]``, patches that hold any of the radiograph, over which ``"per_image"`` takes mean
                and deviation; left out, all.
            white: largest value of the range; left out, that of the integer dtype, and 1 for floats.

        Returns:
            ``[B, C, H, W] float32``.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
        """
        images = self.check_images(images)
        if white is None:
            white = 1.0 if images.is_floating_point() else float(torch.iinfo(images.dtype).max)
        if not white > 0:
            raise ArgumentError(f"white: got {white}, accepted is a number above 0")
        levels = images.float() * (255.0 / white)
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

    # --- timm's verbs -----------------------------------------------------------------------------------------------
    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.cls_token is not None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone."""
        return {"pos_embed", "cls_token", "reg_token", "attn_pool.query"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block again in the backward pass instead of keeping what it needs."""
        self.grad_checkpointing = enable

    def set_drop_path(self, rate: float = 0.0) -> None:
        """Stochastic depth while training: ``rate`` in the last block, rising to it from 0 in the first."""
        if not 0 <= rate < 1:
            raise ArgumentError(f"drop_path: got {rate}, accepted is a share from 0 to below 1")
        for index, block in enumerate(self.blocks):
            block.drop_path = rate * index / max(1, len(self.blocks) - 1)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: fixed positions are made anew, learned ones resampled (bicubic).

        The size belongs to the encoder, not to a call: where threads share one, set ``dynamic_img_size`` instead.
        """
        config = replace(self.config, img_size=img_size)
        grid = config.grid_size
        if config == self.config:
            return
        table = self._table_of(grid).detach().to(self.pos_embed)
        set_positions(self, "pos_embed", table, self.learned_positions)
        self.config, self.img_size, self.grid_size = config, config.img_size, grid

    def forward_hidden(
        self,
        images: Tensor,
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        *,
        inside: Tensor | None = None,
        valid: Tensor | None = None,
        all_depths: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens, a feature of each image, and what lies between them and the pixels; arguments as for :meth:`forward`.

        Args:
            all_depths: give the embedded patches and the output of each block too, not normalised.

        Returns:
            ``(tokens [B, num_prefix_tokens + P, D], features [B, D], hidden)``: normalised tokens, zero for patches
            that are not kept; features pooled as ``pool`` says, without one from the class token, or in an encoder
            without it the mean of the kept patches; ``depth + 1`` tensors like the tokens, or none.
        """
        tokens, states, plan, longest = self.encode_depths(
            images, plan, scale, shift, inside=inside, valid=valid, all_depths=all_depths
        )
        pool = self.pool or ("mean" if self.cls_token is None else "cls")
        last, *hidden = (self.tokens_on_grid(x, plan, longest) for x in (tokens.values, *states))
        return last, self._features(tokens, plan, pool, longest), hidden

    def encode_depths(
        self,
        images: Tensor,
        plan: MaskPlan | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        *,
        inside: Tensor | None = None,
        valid: Tensor | None = None,
        all_depths: bool = True,
    ) -> Depths:
        """Packed tokens, and with ``all_depths`` what lies between them and the pixels; arguments as for
        :meth:`forward`."""
        plan = self._chosen(images, plan, inside, valid)
        images, plan, scale, shift = self._inputs(images, plan, scale, shift, valid)
        states: list[Tensor] = []
        tokens, plan, longest = self._run_blocks(images, plan, scale, shift, states=states if all_depths else None)
        return Depths(tokens, states, plan, longest)

    # --- the parts --------------------------------------------------------------------------------------------------
    def _encode(self, images, plan, scale, shift, valid) -> tuple[Tokens, MaskPlan | None, int]:
        """Tokens, the plan (None if every patch was kept), and the length of the longest sequence."""
        images, plan, scale, shift = self._inputs(images, plan, scale, shift, valid)
        return self._run_blocks(images, plan, scale, shift)

    def _run_blocks(
        self, images, plan, scale, shift, drop_path_keep=None, view=None, states: list[Tensor] | None = None
    ) -> tuple[Tokens, MaskPlan | None, int]:
        """As :meth:`_encode`, of checked inputs; ``states`` gets the embedded tokens and the output of each block."""
        x, cu_seqlens, longest = self._start(images, plan, scale, shift, view)
        if states is not None:
            states.append(x)
        for index, block in enumerate(self.blocks):
            drawn = None if drop_path_keep is None else drop_path_keep[index]
            x = self._run(block, x, cu_seqlens, longest, plan, drawn)
            if states is not None:
                states.append(x)
        return self._packed(self.norm(x), cu_seqlens), plan, longest

    @staticmethod
    def _packed(x: Tensor, cu_seqlens: Tensor | None) -> Tokens:
        """Dense tokens ``[B, S, D]``, which have no ``cu_seqlens``, as packed ones: the view of them costs nothing."""
        if cu_seqlens is None:
            cu_seqlens = x.shape[1] * torch.arange(x.shape[0] + 1, dtype=torch.int32, device=x.device)
            x = x.flatten(0, 1)
        return Tokens(x, cu_seqlens)

    def _start(self, images, plan, scale, shift, view=None) -> tuple[Tensor, Tensor | None, int]:
        """Embedded tokens: packed ``[N, D]`` with cu_seqlens, or dense ``[B, S, D]`` without if there is no plan."""
        if plan is not None:
            tokens = self.embed(images, plan, scale, shift, view)
            return tokens.values, tokens.cu_seqlens, plan.longest[0] + self.num_prefix_tokens
        grid_size = self.grid_of(images)
        if writes_graph() and view is None:
            x = self.add_prefix(self._embed_images(images, scale, shift), grid_size)
            return x, None, x.shape[1]
        plan = every_patch(images.shape[0], grid_size, self.patch_size, images.device)
        rows = gather_patches(images, plan, scale, shift, self._rows_dtype(images.device), view=view)
        patches = self.patch_embed(rows, (images.shape[0], *grid_size))
        x = self.add_prefix(patches.unflatten(0, (images.shape[0], plan.max_keep)), grid_size)
        return x, None, x.shape[1]

    def _embed_images(self, images: Tensor, scale: float | Tensor, shift: float | Tensor) -> Tensor:  # -> [B, P, D]
        """Embedded patches of whole images, in standard operations."""
        scale, shift = (v[:, None, None, None] if isinstance(v, Tensor) and v.dim() else v for v in (scale, shift))
        return self.patch_embed((images.float() * scale + shift).to(self._rows_dtype(images.device)))

    def _features(self, tokens: Tokens, plan: MaskPlan | None, pool: str, longest: int) -> Tensor:
        """:meth:`pool_tokens`, of whole images in standard operations where a graph is written."""
        if plan is not None or not writes_graph():
            return self.pool_tokens(tokens, pool, longest)
        x = tokens.values.unflatten(0, (-1, longest))
        return self.fc_norm(dense.pooled(x, pool, self.num_prefix_tokens, getattr(self, "attn_pool", None)))

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

    # --- what comes in ----------------------------------------------------------------------------------------------
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

    def _valid_grid(self, images: Tensor, valid: Tensor | None) -> Tensor | None:
        return None if valid is None else checked_grid("valid", valid, (len(images), *self.grid_of(images)))

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

    def _takes_size(self, height: int, width: int) -> bool:
        if not self.dynamic_img_size:
            return (height, width) == self.img_size
        return min(height, width) >= self.patch_size and not (height % self.patch_size or width % self.patch_size)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """``(height, width)`` of ``images [B, C, H, W]`` in patches: ``grid_size``, unless ``dynamic_img_size``."""
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

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

    def _rows_dtype(self, device: torch.device) -> torch.dtype:
        """What the first matrix product computes in, so that the gathered rows are written once in the right dtype."""
        if autocast.is_on(device.type):
            return torch.get_autocast_dtype(device.type)
        return self._weights_dtype()

    def _weights_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.patch_embed.parameters() if p.is_floating_point()), self.pos_embed.dtype)

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


def _block_indices(indices: int | list[int] | tuple[int, ...] | None, depth: int) -> set[int]:
    if indices is None:
        return set(range(depth))
    counted = [indices] if isinstance(indices, int) else list(indices) if isinstance(indices, Iterable) else [None]
    if not all(isinstance(index, int) for index in counted):
        raise ArgumentTypeError(f"indices: got {indices!r}, accepted are an int, a list of ints and None")
    wanted = range(depth - indices, depth) if isinstance(indices, int) else [i + depth if i < 0 else i for i in counted]
    if not wanted or not all(0 <= i < depth for i in wanted):
        raise ArgumentError(f"indices: got {indices!r}, accepted are blocks 0 to {depth - 1} (or -{depth} to -1)")
    return set(wanted)
