"""Where a classifier looked: one number per patch for one class of one image, and words for what the number is.

What can be shown honestly differs by head:

- ``label-query``: the attention of the class's query in the head's last block, mean over heads.
- ``attention``: the attention of the pooling query, mean over heads; the same for every class.
- ``linear`` and ``probe`` on the class token: the attention of the class token in the encoder's last block, mean over
  heads; the same for every class.
- ``linear`` and ``probe`` on the mean of the patches: nothing attends. A patch's share in the logit is shown, less that
  of the mean patch: exact for a probe, to first order where a LayerNorm lies between.

Attention tells where values were read from, not why a decision was made.

A model that looks nowhere in particular has maps too, of differences that mean nothing. A map stands out from such if
the patches that speak for the class move the logit by ``LEAST_MOVED`` together (a probability by at most 0.025: by less
than anybody would decide by), or if attention goes further than ``LEAST_SHARE`` from an even share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.radiographs import Radiograph
from ..models.attention_weights import captured_inputs, query_weights
from ..models.inputs import as_batch, encoder_inputs, patches_to_keep
from ..ops.plan import MaskPlan
from ..terminal import counted, first_names
from .classifier import Classifier
from .heads import AttentionHead, LabelQueryHead

LEAST_MOVED = 0.1  # logits, over all patches that are for the class together
MOST_OUTSIDE = 0.5  # of a map; more outside the chest contour is told
LEAST_SHARE = 0.1  # of an even share of the attention, at the 99th percentile of the patches


@dataclass(frozen=True)
class PatchMap:
    """A number per patch.

    Attributes:
        values: ``[gh, gw] float32``; NaN where the encoder did not look.
        signed: positive speaks for the class and negative against it; otherwise values are shares of attention.
        words: what the values are.
        outside: share of what is positive, padding included, that lies outside the chest contour; ``None`` where no
            contour is known.
    """

    values: np.ndarray
    signed: bool
    words: str
    outside: float | None = None

    @property
    def shown(self) -> np.ndarray:
        """``[gh, gw]``, 0 in the mean: logits, or even shares beyond the even one."""
        looked = np.isfinite(self.values)
        if self.signed:
            return self.values
        return self.values * (looked.sum() / max(float(self.values[looked].sum()), 1e-12)) - 1

    @property
    def strength(self) -> float:
        """From 1 on the map stands out from that of a model that looks nowhere in particular."""
        seen = self.shown[np.isfinite(self.values)]
        if self.signed:
            return float(seen[seen > 0].sum()) / LEAST_MOVED
        return _far(seen) / LEAST_SHARE

    @property
    def full(self) -> float:
        """Of ``shown``, the value to draw in full colour: the 99th percentile of the sizes, but of a map that does not
        stand out as much more as it would take to."""
        far = _far(self.shown[np.isfinite(self.values)])
        return far / min(self.strength, 1.0) if far > 0 and self.strength > 0 else 1.0

    @property
    def off_chest(self) -> str:
        """In words, that most of a map that stands out lies outside the contour; blank if not, or not known."""
        if self.outside is None or self.outside <= MOST_OUTSIDE or self.strength < 1:
            return ""
        return f"{self.outside:.0%} of it lies outside the chest contour".replace("%", " %")

    def on_film(self, film: Radiograph) -> PatchMap:
        """Without the padding, which an encoder with ``keep="all"`` looks at as well, and with ``outside``."""
        evidence = np.clip(np.nan_to_num(self.values), 0, None)
        known = film.inside.any() and not film.flagged and evidence.sum() > 0
        outside = float(evidence[~film.inside].sum() / evidence.sum()) if known else None
        return replace(self, values=np.where(film.valid, self.values, np.nan).astype(np.float32), outside=outside)


def describe_off_chest(maps: Sequence[tuple[str, str]]) -> str:
    """How many maps lie mostly off the chest, as ``off_chest`` of each says behind the name of its film; blank if none
    does."""
    off = [name for name, told in maps if told]
    if not off:
        return ""
    words = f"{len(off)} of {counted(len(maps), 'heat map')} {'lies' if len(off) == 1 else 'lie'} mostly"
    of_whom = first_names(list(dict.fromkeys(off)))
    return f"warning: {words} outside the chest contour: look at them before you trust the answers ({of_whom})"


def _far(values: np.ndarray) -> float:
    return float(np.percentile(np.abs(values), 99)) if len(values) else 0.0


def patch_map(
    model: Classifier,
    column: int,
    images: Tensor,  # [1, C, S, S]
    plan: MaskPlan | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> PatchMap:
    """The map of one class of one image; arguments as for :class:`hdxray_fast.classify.classifier.Classifier`."""
    encoder, head = model.encoder, model.head
    if plan is None:
        plan = patches_to_keep(encoder, images, None, None)
    if isinstance(head, LabelQueryHead):
        source, query = head.cross_blocks[-1].cross_attn, column
        words = "attention of the disease's query"
    elif isinstance(head, AttentionHead):
        source, query = head.attn_pool.attn, 0
        words = "attention of the pooling query (the same for every class)"
    elif head.pool == "cls":
        source, query = encoder.blocks[-1].attn, 0
        words = "attention of the class token (the same for every class)"
    else:
        rows = _contributions(model, column, images, plan, scale, shift)
        exact = isinstance(head.norm, nn.Identity) and isinstance(encoder.fc_norm, nn.Identity)
        words = f"share in the logit{'' if exact else ', to first order'}"
        return PatchMap(_on_grid(model, rows - rows.mean(), plan), True, words)
    with torch.no_grad(), captured_inputs(source) as calls:
        model(images, plan, scale, shift)
        rows = query_weights(source, calls[-1], query)[encoder.num_prefix_tokens :]
    return PatchMap(_on_grid(model, rows, plan), False, words)


def film_inputs(model: Classifier, film: Radiograph) -> tuple:
    """What :func:`patch_map` takes of a radiograph, for all of its classes."""
    return encoder_inputs(model.encoder, as_batch([film], model.encoder.pos_embed.device))


def film_map(model: Classifier, column: int, film: Radiograph) -> PatchMap:
    """The map of one class of a radiograph, without its padding."""
    return patch_map(model, column, *film_inputs(model, film)).on_film(film)


def maps_differ(model: Classifier) -> bool:
    """Whether each class has a map of its own."""
    head = model.head
    return isinstance(head, LabelQueryHead) or not (isinstance(head, AttentionHead) or head.pool == "cls")


def _contributions(model: Classifier, column: int, images, plan, scale, shift) -> Tensor:
    """Gradient times token, summed over channels, of each patch: ``[N]``."""
    with torch.no_grad():
        tokens = model.encoder.encode(images, plan, scale, shift)
    with torch.enable_grad():
        values = tokens.values.detach().requires_grad_()
        logit = model.classify(type(tokens)(values, tokens.cu_seqlens))[0, column]
        (gradient,) = torch.autograd.grad(logit, values)
    return (gradient * values.detach()).sum(-1)[model.encoder.num_prefix_tokens :]


def _on_grid(model: Classifier, rows: Tensor, plan: MaskPlan | None) -> np.ndarray:
    grid = np.full(model.encoder.grid_size, np.nan, np.float32)
    ids = np.arange(grid.size) if plan is None else plan.keep_ids.cpu().numpy()
    grid.ravel()[ids] = rows.float().cpu().numpy()[: len(ids)]
    return grid
