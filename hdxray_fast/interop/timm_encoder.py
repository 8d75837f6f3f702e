"""An encoder that is a model of timm: its verbs around this package's encoder of whole images, and a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchDropout
from torch import Tensor, nn

from ..classify.classifier import Classifier, ClassifierConfig
from ..errors import ArgumentError, CheckpointError
from ..models import dense
from ..models.encoder import Encoder
from ..models.encoder_config import EncoderConfig
from ..models.layers import init_weights
from ..models.positions import sincos_positions
from ..ops.compiling import writes_graph
from ..weights.adapt import split_positions

POOLS = ("", "token", "avg", "max", "avgmax", "map")
NOT_HERE = ("keep", "margin", "pool")  # timm hands over pixels alone, and calls pooling global_pool
OURS = {field.name for field in fields(EncoderConfig)} - {"stem", *NOT_HERE}
POOL_OF_PROBE = {"token": "cls", "avg": "mean"}  # what timm's pooling is called in the head of a linear probe


class TimmEncoder(Encoder):
    """:class:`hdxray_fast.models.encoder.Encoder` as timm's training scripts expect a model.

    Args:
        config: the encoder's settings; ``pool`` is ``"attention"`` for ``global_pool="map"`` and otherwise ``None``.
        num_classes: outputs of the head; 0 for none.
        global_pool: ``"token"``, ``"avg"``, ``"max"``, ``"avgmax"`` (half of both), ``"map"`` or ``""`` (tokens).
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 in the first.
        proj_drop_rate: dropout after each block's attention, and within and after its MLP.
        pos_drop_rate: dropout of the embedded tokens with their positions.
        patch_drop_rate: share of the patches that an image loses while the model trains.
        dynamic_img_size: take images of other multiples of the patch size too; see :class:`.Encoder`.
        dynamic_img_pad: and of any size: float images are padded with zeros, at the right and the bottom.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        global_pool: str,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(config)
        if dynamic_img_pad and not dynamic_img_size:
            raise ArgumentError("dynamic_img_pad: got True, accepted is that with dynamic_img_size=True alone")
        self.dynamic_img_size, self.dynamic_img_pad = bool(dynamic_img_size), bool(dynamic_img_pad)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head_hidden_size = self.num_features
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _head(self.num_features, num_classes)
        self.pos_drop = nn.Dropout(pos_drop_rate) if pos_drop_rate else nn.Identity()
        prefix = self.num_prefix_tokens
        self.patch_drop = PatchDropout(patch_drop_rate, prefix) if patch_drop_rate else nn.Identity()
        for block in self.blocks if proj_drop_rate else ():
            block.attn.proj_drop, block.mlp.drop = nn.Dropout(proj_drop_rate), nn.Dropout(proj_drop_rate)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.num_features, "reduction": self.patch_size}
            for i in range(config.depth)
        ]
        self.set_drop_path(drop_path_rate)

    @property
    def saved_config(self) -> EncoderConfig:
        """With the pooling that timm calls ``avg``, which the config here knows nothing of."""
        return replace(self.config, pool="mean") if self.global_pool == "avg" else self.config

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm writes beside the weights it saves: how such a model is built again, from no other file."""
        return self.__dict__.get("_built_by", {})

    @_model_args.setter
    def _model_args(self, options: dict[str, Any]) -> None:
        if self.load_report is not None:  # it is as its weights were saved, which the options do not tell
            told = {n: v for n, v in options.items() if n not in ("weights", "init_values")}
            options = {n: getattr(self.config, n) for n in OURS} | told
        self.__dict__["_built_by"] = options

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        attn_mask: None = None,
        is_causal: bool = False,
        valid: Tensor | None = None,  # [B, gh, gw] bool
    ) -> Tensor:  # [B, num_classes], without head [B, D]
        """Logits; features with ``num_classes=0``; tokens with ``global_pool=""`` as well.

        Args:
            x: as for :meth:`.Encoder.forward`.
            attn_mask, is_causal: are refused, as by :meth:`.Encoder.forward_intermediates`.
            valid: patches that are no padding, over which integer images are normalised; left out, all. All patches
                are looked at either way.
        """
        return self.forward_head(self.forward_features(x, attn_mask=attn_mask, is_causal=is_causal, valid=valid))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens ``[B, num_prefix_tokens + P, D]`` to logits, or to what the head sees."""
        x = self.head_drop(self._pooled(x))
        return x if pre_logits else self.head(x)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.global_pool == "token":
            return self.fc_norm(x[:, 0])
        if self.global_pool in ("avg", "max", "avgmax"):
            return self.fc_norm(_reduced(x[:, self.num_prefix_tokens :], self.global_pool))
        if self.global_pool == "map":
            if writes_graph():
                return self.fc_norm(dense.attention_pooled(self.attn_pool, x))
            cu_seqlens = x.shape[1] * torch.arange(x.shape[0] + 1, dtype=torch.int32, device=x.device)
            return self.fc_norm(self.attn_pool(x.flatten(0, 1), cu_seqlens, x.shape[1]))
        return self.fc_norm(x)

    @wraps(Encoder.forward_intermediates)  # refused while patch_drop_rate leaves holes in the maps
    def forward_intermediates(self, *args: Any, **kwargs: Any) -> list | tuple | dict:
        if self._drops_patches():
            raise ArgumentError(
                "patch_drop_rate: while it drops patches there are no whole maps; call model.eval() or create the "
                "model without it"
            )
        return super().forward_intermediates(*args, **kwargs)

    def _drops_patches(self) -> bool:
        return self.patch_drop.training and not isinstance(self.patch_drop, nn.Identity)

    def _start(self, images, plan, scale, shift, view=None) -> tuple[Tensor, Tensor | None, int]:
        x, cu_seqlens, longest = super()._start(images, plan, scale, shift, view)
        x = self.pos_drop(x)
        if not self._drops_patches():
            return x, cu_seqlens, longest
        if cu_seqlens is not None:
            raise ArgumentError("plan: says which patches are seen; create the model without patch_drop_rate")
        x = self.patch_drop(x)
        return x, None, x.shape[1]

    def _inputs(self, images, *args: Any, **kwargs: Any):
        return super()._inputs(self._padded(images) if self.dynamic_img_pad else images, *args, **kwargs)

    def _padded(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> whole patches
        if not isinstance(images, Tensor) or images.dim() != 4:
            return images  # what is wrong with it is said later
        height, width = images.shape[2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if not bottom and not right:
            return images
        if not images.is_floating_point():
            raise ArgumentError(
                f"images: got {images.dtype} of {height} x {width} pixels; dynamic_img_pad pads normalised float "
                f"images, accepted of others are multiples of {self.patch_size}"
            )
        return F.pad(images, (0, right, 0, bottom))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for another number of classes, and if wanted another pooling."""
        if global_pool is not None and global_pool != self.global_pool:
            check_pool(global_pool, self.config.class_token)
            if global_pool == "map":
                raise ArgumentError(
                    f"global_pool: got 'map' in a model with {self.global_pool!r}; attention pooling has weights, "
                    "create the model with it"
                )
            if self.global_pool == "map":
                del self.attn_pool
                self.config = replace(self.config, pool=None)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes).to(self.pos_embed)

    def to_classifier(
        self, classes: Sequence[str], thresholds: Sequence[float] | None = None, *, multiclass: bool = False
    ) -> Classifier:
        """A :class:`.Classifier` with copies of the weights, for :func:`hdxray_fast.predict` and ``save_classifier``.

        It normalises files as ``normalisation`` says, which is right if the model was trained on images of
        :meth:`transform` or :meth:`normalise`, and not on those of timm's own mean and deviation.

        Args:
            classes: a name for each output of the head, in its order.
            thresholds: a class is called present from this probability on; left out, 0.5.
            multiclass: exactly one class of each image holds: the head was trained with a softmax.

        Raises:
            ArgumentError: there is no head, it has another number of outputs, or its pooling is none of ``"avg"`` and
                ``"token"``.
        """
        if not self.num_classes or len(classes) != self.num_classes:
            raise ArgumentError(f"classes: got {len(classes)} names, the head has {self.num_classes} outputs")
        if thresholds is not None and len(thresholds) != len(classes):
            raise ArgumentError(f"thresholds: got {len(thresholds)}, accepted is one for each of the classes")
        if self.global_pool not in POOL_OF_PROBE:
            raise ArgumentError(
                f"global_pool: got a model with {self.global_pool!r}, accepted are {' and '.join(POOL_OF_PROBE)}: of "
                "the others no head of a classifier is made"
            )
        encoder = Encoder(replace(self.config, depth=len(self.blocks))).to(self.pos_embed)
        encoder.load_state_dict({n: t for n, t in self.state_dict().items() if not n.startswith("head.")})
        names, limits = list(classes), list(thresholds or ())
        config = ClassifierConfig(names, "probe", multiclass, POOL_OF_PROBE[self.global_pool], thresholds=limits)
        classifier = Classifier(encoder, config).to(self.pos_embed)
        classifier.head.fc.load_state_dict(self.head.state_dict())
        return classifier.train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        name = f"{prefix}pos_embed"
        if name in state_dict and not self.learned_positions and self._is_fixed(state_dict[name]):
            own = sincos_positions(self.embed_dim, self.grid_size, class_token=self.has_class_token)
            state_dict = {**state_dict, name: own.to(state_dict[name])}  # whatever the size of images it was saved at
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _is_fixed(self, table: Tensor) -> bool:
        if table.is_meta or table.dim() != 3 or table.shape[2] != self.embed_dim:
            return False
        try:
            return split_positions(table.float().cpu(), (int(self.has_class_token),), (None,), "weights")[2]
        except CheckpointError:
            return False

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Take images of another size; the patch size stays."""
        if patch_size not in (None, self.patch_size, (self.patch_size, self.patch_size)):
            raise ArgumentError(f"patch_size: got {patch_size}, this model has {self.patch_size}")
        if img_size is not None:
            super().set_input_size(img_size if isinstance(img_size, int) else tuple(img_size))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one of ``indices``, which are returned counted from 0; without its head the
        model gives tokens.
        """
        depth = len(self.blocks)
        wanted = (
            list(range(depth - indices, depth))
            if isinstance(indices, int)
            else [i + depth if i < 0 else i for i in indices]
        )
        if not wanted or not all(0 <= i < depth for i in wanted):
            raise ArgumentError(f"indices: got {indices!r}, accepted are blocks 0 to {depth - 1} (or -{depth} to -1)")
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return wanted


def _reduced(patches: Tensor, how: str) -> Tensor:  # [B, P, D] -> [B, D]
    if how == "avgmax":
        return 0.5 * (patches.mean(dim=1) + patches.amax(dim=1))
    return patches.amax(dim=1) if how == "max" else patches.mean(dim=1)


def _head(num_features: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    init_weights(head)
    return head


def check_pool(global_pool: str, class_token: bool) -> None:
    if global_pool not in POOLS:
        raise ArgumentError(f"global_pool: got {global_pool!r}, accepted are {', '.join(map(repr, POOLS))}")
    if global_pool == "token" and not class_token:
        raise ArgumentError("global_pool: got 'token', but class_token is False; accepted are all others")
