"""Where a model runs: a device by name, or the best there is."""

from __future__ import annotations

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
        raise ArgumentError(f"device: got {str(device)!r}, which cannot be used here ({reason})") from error
    return found
