"""Which attention backend is fastest on which device and shape: what the benchmarks measured (attention_table.json).

The file holds, by the device's name (``torch.cuda.get_device_name``), when and with which versions it was measured and,
by shape class, the fastest backend and the milliseconds of all that ran.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_suffix(".json")
SHORT = 1024  # sequences of at most this length are "short"
DEFAULTS = {"packed": "triton", "dense": "sdpa"}  # of a CUDA device that nobody has measured
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


def shape_class(layout: str, head_dim: int, dtype: torch.dtype, longest: int, training: bool) -> str:
    """The class of shapes that are measured together, for example ``"packed D=64 bf16 short train"``.

    Args:
        layout: ``"packed"`` or ``"dense"``.
        head_dim: D.
        dtype: of the tensors.
        longest: length of the longest sequence of queries or keys.
        training: whether a backward pass follows.
    """
    length, use = ("short" if longest <= SHORT else "long"), ("train" if training else "forward")
    return f"{layout} D={head_dim} {_DTYPES[dtype]} {length} {use}"


def measured(device_name: str) -> dict[str, str]:
    """Shape class to fastest backend on a device; empty if it was not measured."""
    choices = table().get(device_name, {}).get("choices", {})
    return {name: choice["backend"] for name, choice in choices.items()}


def explain(device_name: str, why_not_triton: str = "") -> list[tuple[str, str, str]]:
    """What ``backend="auto"`` takes on a CUDA device: shape class (or layout), backend, and why.

    Args:
        device_name: as in the file.
        why_not_triton: why the Triton kernels cannot run there, if they cannot.
    """
    fallback = f"the Triton kernels are out: {why_not_triton}"
    rows = []
    found = table().get(device_name, {})
    for shape, choice in found.get("choices", {}).items():
        if why_not_triton and choice["backend"] == "triton":
            rows.append((shape, "sdpa", fallback))
            continue
        times = ", ".join(f"{name} {ms:.3g}" for name, ms in sorted(choice["ms"].items(), key=lambda item: item[1]))
        rows.append((shape, choice["backend"], f"measured {found['measured']}, ms: {times}"))
    which = "other shapes" if rows else "all shapes"
    for layout, backend in DEFAULTS.items():
        what = f"{layout}, {which}"
        if why_not_triton and backend == "triton":
            rows.append((what, "sdpa", fallback))
        else:
            rows.append((what, backend, "the default: not measured on this device"))
    return rows


@functools.cache
def table() -> dict[str, Any]:
    """The whole file."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
