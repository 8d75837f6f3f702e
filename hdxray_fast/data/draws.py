"""What is drawn for each sample while a model trains: a function of the seed and the sample's own number.

So a step draws the same however its images are split over batches and processes, and a resumed run has no random state
to restore. Each purpose has a stream of its own, apart from those of order and augmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

DROP_PATH, MIXUP = 1, 2  # the uppermost word of Philox' counter; order and augmentation have 0


def drop_path_keep(rates: Sequence[float], seed: int, numbers: Iterable[int]) -> Tensor:
    """Which branches of which images stochastic depth keeps: ``[depth, 2, B]`` bool, for ``Encoder.encode``.

    Args:
        rates: of each block, 0 to below 1.
        seed: of the run.
        numbers: ``B`` counts of the samples, see ``draw`` of :class:`.RadiographDataset`.
    """
    uniform = [_stream(seed, number, DROP_PATH).random((len(rates), 2)) for number in numbers]
    return torch.from_numpy(np.stack(uniform, axis=-1) >= np.asarray(rates)[:, None, None])


def mixing_shares(alpha: float, seed: int, numbers: Iterable[int]) -> Tensor:
    """The share that each image keeps of itself in mixup, from Beta(``alpha``, ``alpha``): ``[B]`` float32."""
    return torch.tensor([_stream(seed, number, MIXUP).beta(alpha, alpha) for number in numbers], dtype=torch.float32)


def _stream(seed: int, number: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]))
