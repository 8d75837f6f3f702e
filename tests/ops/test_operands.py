"""Operators called with arguments that do not fit: refused by name in a process of its own, where a crash is seen."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_samples import SAMPLES, operator
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import needs_interpreter

import hdxray_fast as hx
from hdxray_fast.ops import native

FUZZ = Path(__file__).parents[1] / "helpers" / "operator_fuzz.py"
needs_core = pytest.mark.skipif(native.core is None, reason=f"the native core is not built: {native.why_missing}")


def fuzz(*names: str, **environment: str) -> dict[str, int]:
    """What became of the calls; fails with the call that crashed."""
    command = [sys.executable, str(FUZZ), *names]
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), *sys.path]))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths} | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts["other"] == 0, done.stdout[-3000:]
    return counts


@needs_core
def test_no_call_crashes_and_none_runs_on_what_does_not_fit():
    assert fuzz()["refused"] > 2000


@needs_interpreter
def test_nor_do_the_triton_kernels():
    assert fuzz("attention", "attention_backward", "mix_maps_backward", TRITON_INTERPRET="1")["refused"] > 400


@needs_core
def test_loss_gradient_of_one_row_and_many_ids_is_refused():
    ids, cu = torch.arange(4096, dtype=torch.int32), torch.tensor([0, 4096], dtype=torch.int32)
    arguments = torch.rand(1, 1, 1024, 1024), torch.rand(1, 256), ids, cu, None, None, torch.tensor(1.0)
    with pytest.raises(hx.ArgumentError, match=r"pred: got shape \(1, 256\), accepted for 4096 ids"):
        operator("reconstruction_loss_backward")(*arguments, 1.0, 0.0, 16, True)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_stand_ins_refuse_tensors_of_other_sizes(name):
    """What a compiler and ``torch.export`` ask instead of the operator is held to the same."""
    first, *rest = SAMPLES[name]()[0]
    other = [first[0][:1], *first[1:]] if isinstance(first, list) else first.detach()[None]
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(hx.HDXrayError):
        operator(name)(other, *rest)


@needs_core
def test_strided_ids_give_what_contiguous_ones_give():
    images, ids, cu, *rest = SAMPLES["gather_patches"]()[0]
    strided = [torch.stack([vector, vector + 99], 1)[:, 0] for vector in (ids, cu)]
    assert torch.equal(
        operator("gather_patches")(images, *strided, *rest), operator("gather_patches")(images, ids, cu, *rest)
    )
