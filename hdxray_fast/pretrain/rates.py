"""How fast a device takes training steps: as measured, or estimated and said to be.

The package brings a table of measured steps (``planning_table.json``, written by ``benchmarks/plan_table.py``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import ConfigError
from .gpus import DEVICES, is_kind
from .shape import Shape

SHARE_OF_PEAK = 0.25  # what a step is taken to reach where nothing was measured


@dataclass(frozen=True)
class Rate:
    """Images a second of one device, and where the figure comes from."""

    images_per_second: float
    source: str
    measured: bool


@lru_cache(maxsize=1)
def table() -> dict:
    """Measured steps (``steps``), the cost of preparing (``prepare``) and sizes on disk (``stored_share``)."""
    return json.loads(Path(__file__).with_name("planning_table.json").read_text(encoding="utf-8"))


def device_rate(kind: str, shape: Shape, flops: float, precision: str) -> Rate:
    """Images a second of one device: from a measured step of the same model if there is one, scaled by FLOPs; from
    another model's arithmetic rate on that device; from the device's peak."""
    found = [step for step in table()["steps"] if is_kind(step["device"], kind) and step["precision"] == precision]
    alike = [step for step in found if (step["model"], step["decoder"]) == (shape.model, shape.decoder)]
    decoders = [step for step in found if step["decoder"] == shape.decoder]
    for steps, what in ((alike, "measured"), (decoders, "estimate"), (found, "estimate")):
        if steps:
            best = min(steps, key=lambda step: abs(math.log(step["flops"] / flops)))
            of = f"{best['model']}, {best['decoder']} decoder, {best['precision']} on {best['device']}"
            if what == "measured":
                source = f"measured: {of}; scaled by FLOPs"
            else:
                source = f"estimate: at the FLOP/s measured of {of}"
            return Rate(best["flops"] / best["seconds"] / flops, source, what == "measured")
    if kind == "cpu":
        raise ConfigError(f"gpu: no step on a CPU was measured in {precision}; take precision=fp32")
    peak = DEVICES[kind][0] / (1 if precision == "bf16" else 8)
    return Rate(
        SHARE_OF_PEAK * peak / flops,
        f"estimate: {SHARE_OF_PEAK:.0%} of {peak / 1e12:.0f} TFLOP/s; no step was measured on this device in "
        f"{precision}",
        False,
    )
