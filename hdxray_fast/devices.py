"""Where a model runs: a device by name, or the best there is."""

from __future__ import annotations

import warnings

import torch

from .errors import ArgumentError


def find_device(device: str | torch.device | None = None) -> torch.device:
    """``device``, or left out a GPU if there is one.

    Raises:
        ArgumentError: PyTorch knows no such device, or has none here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # each backend has its own
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        if reason.startswith("Expected one of"):  # some twenty backends, most of which nobody has
            reason = "no device has this name; cpu is one, and cuda or cuda:1 where there are NVIDIA GPUs"
        raise ArgumentError(f"device: got {str(device)!r}, which cannot be used here ({reason})") from error
    return found


def warn_of_slow_bf16() -> None:
    """Say that this CPU has no instructions for bf16, if it has none: a ViT's forward pass takes 2 times as long there
    as in fp32, its backward pass 10 times (AVX2, one thread)."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.11 and later
    if known and not any(there for name, there in known.items() if "bf16" in name):
        warnings.warn("precision: this CPU has no bf16 instructions, fp32 is several times as fast", stacklevel=3)
