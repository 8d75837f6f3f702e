"""Runs triton_attention_cases.py in a process of its own: Triton's interpreter is chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_interpreter import needs_interpreter

pytestmark = needs_interpreter
CASES = Path(__file__).parents[1] / "helpers" / "triton_attention_cases.py"


@pytest.mark.parametrize(
    "part",
    [
        ("not slow", "ragged_cross"),
        ("not slow", "compilation or opcheck or schedule or nothing"),
        ("not slow", "not (ragged_cross or compilation or opcheck or schedule or nothing)"),
        pytest.param(("slow", ""), marks=pytest.mark.slow),
    ],
    ids=["shapes", "operator and schedule", "rest", "slow"],
)
def test_kernels_in_the_interpreter(part):
    marked, named = part
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=5", str(CASES)]
    command += ["-m", marked, "-k", named]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-10000:] + found.stderr[-2000:]
    assert " passed" in found.stdout
