"""Whether Triton's interpreter runs here."""

from __future__ import annotations

import numpy as np
import pytest

try:
    import triton
except ImportError:
    triton = None


def _why_not() -> str:
    if triton is None:
        return "Triton is not installed (it comes with CUDA builds of PyTorch for Linux)"
    if triton.__version__.startswith("3.6") and not _one_number_is_a_scalar():
        return f"the interpreter of Triton 3.6 needs NumPy below 2.4, here is {np.__version__}"
    return ""


def _one_number_is_a_scalar() -> bool:
    """Whether NumPy makes an int of an array that holds one number, as it did before 2.4."""
    try:
        return int(np.zeros(1)) == 0
    except TypeError:
        return False


needs_interpreter = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "it runs")
