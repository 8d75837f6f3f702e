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
    with source.open("rb") as handle, np.load(handle) as stored:
        return {name: stored[name] for name in stored.files}


def view_chances(signs: np.ndarray) -> np.ndarray:  # [65] f32, from describe()
    """Chances of frontal, lateral and other, ``[3] float64``, that add up to 1."""
    net = _weights()
    logits = np.clip((signs - net["mean"]) / net["deviation"], -4, 4).astype(np.float64) @ net["weight"] + net["bias"]
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()
