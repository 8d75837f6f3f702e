"""What of a patch's feature comes from its place alone, whatever tissue lies there.

An encoder of a masked auto-encoder carries the place of each patch to the end, for the decoder to paint there: half of
the variance of the features of the one that comes along, so that colours and likeness would show the place before the
tissue. That vision transformers do so, and that a feature is nearly the sum of the two, is of "Denoising Vision
Transformers" (arXiv 2401.02957), which fits both by gradient descent; here the place is what is left on average when
the tissue changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.encoder import Encoder
from ..models.inputs import encoder_inputs
from ..models.selection import sent
from ..ops.mask_plan import plan_all

VIEWS = 16  # what is left of the tissue is a 16th of its variance
AT_ONCE = 1600  # patches: a quarter of a canvas of 1280 pixels, for attention costs their square


@dataclass(frozen=True)
class Film:
    """A radiograph on its canvas.

    Attributes:
        pixels: ``[S, S] uint8``.
        valid_box: top, left, height and width of what is no padding, pixels.
        scale: as of :class:`hdxray_fast.data.radiographs.Radiograph`; ``shift`` likewise.
    """

    pixels: np.ndarray
    valid_box: tuple[int, int, int, int]
    scale: float
    shift: float


@torch.no_grad()
def position_features(
    encoder: Encoder,
    films: Sequence[Film],
    places: np.ndarray,
    device: torch.device,
    seen: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """The mean feature at each place over films that were moved about, so that other tissue lies there each time.

    Each view is a film that fills the canvas, mirrored at its edges as often as need be, and moved by another share of
    its height and width. The shares are those of a lattice, so that the same films give the same.

    Args:
        encoder: in evaluation mode.
        films: of more than ``VIEWS``, so many at even distances are moved about.
        places: ``[N] int64``, row-major, those that the encoder looks at in any of the films.
        seen: called after each view.

    Returns:
        ``[gh * gw, D] float32``, row-major; 0 at other places.
    """
    height, width = encoder.grid_size
    count = height * width
    order = np.random.default_rng(0)
    total = torch.zeros(count, encoder.num_features, device=device)
    for number in range(VIEWS):
        film = films[number * len(films) // VIEWS]
        pixels = torch.from_numpy(moved(film, (number + 0.5) / VIEWS, (7 * number % VIEWS + 0.5) / VIEWS))
        batch = {"pixels": pixels[None, None].to(device)}
        for name in ("scale", "shift"):
            batch[name] = torch.tensor([getattr(film, name)], dtype=torch.float32, device=device)
        for some in np.array_split(order.permutation(places), -(-len(places) // AT_ONCE)):
            ids = torch.from_numpy(np.sort(some))  # as a plan has them
            chosen = torch.zeros(count, dtype=torch.bool)
            chosen[ids] = True
            plan = sent(plan_all(chosen.view(1, height, width), encoder.patch_size), device)
            total.index_add_(0, ids.to(device), _patches(encoder, *encoder_inputs(encoder, {**batch, "plan": plan})))
        seen()
    return (total / VIEWS).cpu().numpy()


def moved(film: Film, down: float, right: float) -> np.ndarray:
    """A canvas that a film fills, mirrored at its edges, moved by shares of twice its height and width.

    Returns:
        ``[S, S] uint8``.
    """
    top, left, height, width = film.valid_box
    rows = top + _mirrored(film.pixels.shape[0], height, down)
    columns = left + _mirrored(film.pixels.shape[1], width, right)
    return film.pixels[np.ix_(rows, columns)]


def _mirrored(count: int, length: int, share: float) -> np.ndarray:
    """So many places of a strip that goes on as its mirror image, then as itself, from that share of both on."""
    at = (np.arange(count) + round(2 * length * share)) % (2 * length)
    return np.where(at < length, at, 2 * length - 1 - at)


def _patches(encoder: Encoder, *inputs) -> Tensor:
    """Features of the patches alone, ``[N, D] float32``, in the order of their places."""
    return encoder.encode(*inputs).values[encoder.num_prefix_tokens :].float()
