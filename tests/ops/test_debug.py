"""The switch for checks that wait for a GPU, and what it does to the values of GPU tensors (seen on the CPU)."""

from __future__ import annotations

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.ops import debug, native


@pytest.fixture(autouse=True)
def _off_afterwards():
    yield
    hx.debug_checks(False)


def test_a_block_and_a_switch():
    assert not debug.checks_are_on()
    with hx.debug_checks():
        assert debug.checks_are_on()
        with hx.debug_checks(False):
            assert not debug.checks_are_on()
        assert debug.checks_are_on()
    assert not debug.checks_are_on()
    hx.debug_checks(True)
    assert debug.checks_are_on()
    hx.debug_checks(False)
    assert not debug.checks_are_on()


def test_a_block_left_by_an_error_restores_too():
    with pytest.raises(KeyError), hx.debug_checks():
        raise KeyError
    assert not debug.checks_are_on()


def test_on_is_a_bool():
    with pytest.raises(hx.ArgumentTypeError, match="on: got int"):
        hx.debug_checks(1)
    assert not debug.checks_are_on()


class OnGPU:
    """Enough of a GPU tensor: what the checks ask of one, with values that only `.cpu()` gives away."""

    device = torch.device("cuda", 0)

    def __init__(self, *values: int) -> None:
        self.values = torch.tensor(values, dtype=torch.int32)
        self.fetched = 0

    def cpu(self) -> torch.Tensor:
        self.fetched += 1
        return self.values


@pytest.mark.parametrize(
    ("ids", "cu", "says"),
    [
        ((0, 3, 1), (0, 2, 3), None),
        ((0, 3, 1, 0, 0), (0, 2, 3), None),  # slack
        ((0, 3, 1, 99), (0, 2, 3), None),  # whatever slack holds
        ((0, 0), (0, 0, 0), None),
        ((0, 9, 1), (0, 2, 3), r"plan\.keep_ids: entry 1 is 9, accepted are ids in \[0, 9\)"),
        ((3, 0, 1), (0, 2, 3), r"plan\.keep_ids: must be strictly ascending"),
        ((0, 3, 1), (0, 2, 4), r"plan\.keep_cu_seqlens: must end at the number of ids, 3, or before it, got 4"),
        ((0, 3, 1), (0, 2, -1), r"plan\.keep_cu_seqlens: must not fall"),
        ((0, 3, 1), (1, 2, 3), r"plan\.keep_cu_seqlens: must start at 0"),
    ],
)
def test_gpu_values_are_looked_at_only_when_asked(ids, cu, says):
    ids, cu = OnGPU(*ids), OnGPU(*cu)
    native.check_packed_values(ids, cu, 9, "keep")
    assert ids.fetched == cu.fetched == 0
    with hx.debug_checks():
        if says is None:
            native.check_packed_values(ids, cu, 9, "keep")
        else:
            with pytest.raises(hx.ArgumentError, match=says):
                native.check_packed_values(ids, cu, 9, "keep")
    assert ids.fetched == cu.fetched == 1
