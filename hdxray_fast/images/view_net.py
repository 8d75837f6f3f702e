"""Frontal, lateral, or no chest radiograph, by what the contour net saw: a logistic regression on its signs.

The signs are those of :func:`.contour_net.describe`, of the look that the contour is taken from; the
regression itself is a product of 65 numbers with three. Trained by ``tools/train_view.py``, measured in
docs/contour.md.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

SURE = (0.6, 0.7, 0.6)  # chances from which frontal, lateral and other are believed; under them nothing is known


@cache
def _weights() -> dict[str, np.ndarray]:
    source = resources.files("hdxray_fast").joinpath("images/view_net.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def view_chances(signs: np.ndarray, net: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Chances of frontal, lateral and other, ``[..., 3] float64``, that add up to 1.

    Args:
        signs: ``[..., 65] float32``, from ``describe()``.
        net: the regression; left out, the one of the package.
    """
    net = net or _weights()
    logits = np.clip((signs - net["mean"]) / net["deviation"], -4, 4).astype(np.float64) @ net["weight"] + net["bias"]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
