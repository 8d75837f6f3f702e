"""The Triton kernels in Triton's interpreter, in processes of their own: which path runs is settled on import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_interpreter import needs_interpreter

pytestmark = needs_interpreter
HELPERS = Path(__file__).parents[1] / "helpers"
ATTENTION, MIXTURES = HELPERS / "triton_attention_cases.py", HELPERS / "triton_mixture_cases.py"


@pytest.mark.parametrize(
    ("files", "marked", "named"),
    [
        ([ATTENTION], "not slow", "ragged_cross"),
        ([ATTENTION, MIXTURES], "not slow", "not ragged_cross"),
        pytest.param([ATTENTION], "slow", "", marks=pytest.mark.slow),
    ],
    ids=["shapes of attention", "rest", "slow"],
)
def test_kernels_in_the_interpreter(files, marked, named):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=5", *map(str, files)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command += ["-m", marked, "-k", named]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-10000:] + found.stderr[-2000:]
    assert " passed" in found.stdout
