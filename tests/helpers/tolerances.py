"""The float tolerance rule of the tests."""

from __future__ import annotations


def assert_two_times_rule(out, same_dtype, ref32, tiny: float = 1e-6) -> None:
    """|out - ref32| <= 2 * max|same-dtype PyTorch - ref32| + tiny: within twice PyTorch's own error in that dtype."""
    out, same_dtype, ref32 = (t.detach().double() for t in (out, same_dtype, ref32))
    allowed = 2 * (same_dtype - ref32).abs().max().item() + tiny
    worst = (out - ref32).abs().max().item()
    assert worst <= allowed, f"worst error {worst:.3e} exceeds {allowed:.3e}"
