"""The ViT encoder: images in, tokens out. Only the patches that are kept are ever read or computed.

Parameter names and shapes are those of facebookresearch/mae (encoder half), so its checkpoints load as they are. The
``stem64`` presets use the three-layer patch embedding of HD X-ray (https://arxiv.org/abs/2404.17926) with its names.

What an encoder is made of stands in ``trunk``, what it takes in ``intake``; here are the ways through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..ops.compiling import writes_graph
from ..ops.gather import gather_patches
from ..ops.plan import MaskPlan
from ..ops.view import View
from . import dense
from .intake import Intake
from .packing import token_rows
from .pool import mean_pool
from .selection import every_patch


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


class Encoder(Intake):
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

    # --- images to features ------------------------------------------------------------------------------------------
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
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Normalised tokens as timm gives them, ``[B, num_prefix_tokens + P, D]``; arguments as for :meth:`forward`,
        and timm's two, refused as in :meth:`forward_intermediates`.

        Patches that are not kept are zero.
        """
        plan = self._chosen(images, plan, inside, valid)
        images, plan, scale, shift = self._inputs(images, plan, scale, shift, valid)
        _refuse_masks(attn_mask, is_causal)  # of a symbolic trace, which gives them too, the images are named first
        tokens, plan, longest = self._run_blocks(images, plan, scale, shift)
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
        _refuse_masks(attn_mask, is_causal)
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
        **inputs,
    ) -> list:
        """DINO's name for :meth:`forward_intermediates`: ``[B, gh * gw, D]``, with ``reshape`` ``[B, D, gh, gw]``.

        ``inputs`` are its ``plan``, ``scale``, ``shift``, ``inside`` and ``valid``.
        """
        inputs |= {"output_fmt": "NCHW" if reshape else "NLC", "intermediates_only": True, "attn_mask": attn_mask}
        return self.forward_intermediates(images, n, return_prefix_tokens, norm, **inputs)

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

    # --- the parts ---------------------------------------------------------------------------------------------------
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

    def _features(self, tokens: Tokens, plan: MaskPlan | None, pool: str, longest: int) -> Tensor:
        """:meth:`pool_tokens`, of whole images in standard operations where a graph is written."""
        if plan is not None or not writes_graph():
            return self.pool_tokens(tokens, pool, longest)
        x = tokens.values.unflatten(0, (-1, longest))
        return self.fc_norm(dense.pooled(x, pool, self.num_prefix_tokens, getattr(self, "attn_pool", None)))


def _refuse_masks(attn_mask: object, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        name, accepted = ("is_causal", False) if attn_mask is None else ("attn_mask", None)
        raise ArgumentError(f"{name}: is not supported, accepted is {accepted}; a plan says which patches are seen")


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
