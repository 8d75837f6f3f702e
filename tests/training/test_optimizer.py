"""Averaged weights follow the weights they are an average of, from the first steps on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hdxray_fast.training.optimizer import averaged_weights


def average_of(decay: float, values: list[float]) -> float:
    """The average of a model with one weight that has these values, step after step."""
    model = nn.Linear(1, 1, bias=False).double()
    ema = averaged_weights(model, decay)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
    return float(ema.tensors["weight"])


@pytest.mark.parametrize("decay", [0.999, 0.3])
def test_the_decay_is_warmed_up_as_in_tensorflow(decay):
    values = [float(torch.rand(())) for _ in range(40)]
    expected = values[0]
    for count, value in enumerate(values[1:], 1):
        kept = min(decay, (1 + count) / (10 + count))
        expected = kept * expected + (1 - kept) * value
    assert average_of(decay, values) == pytest.approx(expected, rel=1e-12)


def test_a_short_run_is_not_the_average_of_its_first_step():
    """300 steps at 0.999: without the warm-up, 74 % of the average would be the weights of step 1."""
    assert average_of(0.999, [1.0] + [0.0] * 299) < 1e-9
    assert average_of(0.999, [0.0, *([1.0] * 299)]) == pytest.approx(1.0, abs=1e-9)
