"""Attention on the GPU: the whole sequence, ragged visible tokens, and the decoder's queries to them.

Dense cases are 4 images of 6401 tokens (80 x 80 patches and a class token); the packed kernel runs in the same race,
since the model calls that one. Ragged lengths are what the mask plans of 64 synthetic contours keep. Times are of
kernels.
"""

from __future__ import annotations

import pytest
from harness.attention_cases import Inputs, Shape, cross_shape, dense_shape, ragged_shape
from harness.attention_rivals import OURS, OURS_PACKED, SDPA, VARLEN, contenders, sdpa_name, unpacked
from harness.gpu_bench import quick
from harness.race import Outcome
from harness.work import attention_flops

pytestmark = pytest.mark.gpu

SHAPES = {
    "dense 64": lambda: dense_shape(4, 6401, 12, 64),
    "dense 32": lambda: dense_shape(4, 6401, 16, 32),
    "ragged": lambda: ragged_shape(64, 12, 64),
    "cross": lambda: cross_shape(64, 1440, 641, 8, 64),
}


def backend_times(shape: Shape, training: bool, outcomes: dict[str, Outcome]) -> list[dict]:
    """Milliseconds of each of `hx.attention`'s backends, by layout: what its table of choices is made of."""
    packed = {"triton": OURS_PACKED if shape.dense else OURS, "varlen": VARLEN}
    layouts = {"packed": packed}
    if shape.dense and shape.max_q == shape.max_k:
        layouts["dense"] = {"triton": OURS, **{b: sdpa_name(b) for b in SDPA}}
    rows = []
    for layout, names in layouts.items():
        ms = {b: outcomes[n].median * 1e3 for b, n in names.items() if n in outcomes and outcomes[n].samples}
        rows.append(
            {
                "layout": layout,
                "head_dim": shape.head_dim,
                "dtype": str(shape.dtype).removeprefix("torch."),
                "longest": max(shape.max_q, shape.max_k),
                "training": training,
                "ms": ms,
            }
        )
    return rows


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("name", SHAPES)
def test_attention(gpu, name, training):
    shape = SHAPES[name]()
    inputs = Inputs.make(shape, gpu.sets(shape.bytes), training)
    inputs.answer()
    flex = not quick() or (name == "dense 64" and training)  # it compiles for a quarter of a minute each time
    field = contenders(inputs, flex)
    outcomes = gpu.race(field, check=lambda results, _: inputs.error(unpacked(results)), sets=len(inputs.sets))

    flops = attention_flops(shape.lengths_q, shape.lengths_k, shape.heads, shape.head_dim, training)
    extra = {
        "batch": shape.batch,
        "tokens_q": sum(shape.lengths_q),
        "tokens_k": sum(shape.lengths_k),
        "backend_times": backend_times(shape, training, outcomes),
    }
    kind = f"{name} {'training' if training else 'forward'}"
    everyone = [c.name for c in field if c.checked and c.name not in (OURS, OURS_PACKED)]
    if name == "cross":
        rivals, ours = everyone, OURS_PACKED  # the layout the decoder has
    elif shape.dense:
        rivals, ours = [sdpa_name(b) for b in SDPA], OURS
    else:
        rivals, ours = [sdpa_name(b, padded=True) for b in SDPA], OURS
    gpu.row(kind, outcomes, ours, rivals, flops=flops, extra=extra)
    if name == "ragged" and training:
        gpu.row("ragged training varlen", outcomes, ours, [VARLEN], flops=flops, extra=extra)
