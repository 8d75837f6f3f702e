"""What is drawn for a sample depends on the seed and the sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hdxray_fast.data.draws import drop_path_keep, mixing_shares

RATES = [0.0, 0.1, 0.5]


def test_samples_draw_the_same_in_any_batch():
    numbers = [7, 3, 2**40, 0]
    kept, shares = drop_path_keep(RATES, 5, numbers), mixing_shares(0.3, 5, numbers)
    assert kept.shape == (3, 2, 4) and kept.dtype == torch.bool
    assert shares.shape == (4,) and shares.dtype == torch.float32
    for place, number in enumerate(numbers):
        assert torch.equal(drop_path_keep(RATES, 5, [number])[..., 0], kept[..., place])
        assert torch.equal(mixing_shares(0.3, 5, [number])[0], shares[place])
    assert not torch.equal(mixing_shares(0.3, 6, numbers), shares)
    assert not torch.equal(drop_path_keep([0.5] * 9, 6, numbers), drop_path_keep([0.5] * 9, 5, numbers))


def test_shares_are_those_asked_for():
    kept = drop_path_keep(RATES, 0, range(4000)).float()
    assert kept[0].all()
    np.testing.assert_allclose(kept.mean(2)[1:], 1 - np.array([[0.1] * 2, [0.5] * 2]), atol=0.03)
    assert abs(np.corrcoef(kept[2])[0, 1]) < 0.05  # the two branches of a block are drawn apart
    shares = mixing_shares(0.4, 0, range(4000)).numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of a Beta distribution


def test_purposes_do_not_share_numbers():
    uniform = np.random.Generator(np.random.Philox(key=[0, 1])).random((9, 2))  # as augmentation would draw
    kept = np.array([drop_path_keep([rate] * 9, 0, [1])[..., 0].numpy() for rate in np.linspace(0, 0.95, 20)])
    assert not np.array_equal(kept.sum(0), (uniform[None] >= np.linspace(0, 0.95, 20)[:, None, None]).sum(0))
