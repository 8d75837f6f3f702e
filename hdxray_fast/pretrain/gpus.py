"""The GPUs that a plan knows by name, and what their makers say of them."""

from __future__ import annotations

# Dense bf16 peak, FLOP/s, and memory, GiB, as their makers state them
DEVICES = {
    "a100": (312e12, 80),
    "h100": (989e12, 80),
    "h200": (989e12, 141),
    "b200": (2250e12, 180),
    "l40s": (362e12, 48),
    "a6000": (155e12, 48),
    "rtx4090": (165e12, 24),
}


def is_kind(device: str, kind: str) -> bool:
    """Whether a device's name is of a kind of :data:`DEVICES`; "cpu" is any that is none."""
    letters = "".join(device.lower().split()).replace("-", "")
    kinds = [name for name in DEVICES if name in letters]
    return kind in kinds if kinds else kind == "cpu"
