"""Everyone who can compute an attention case: ours, PyTorch's backends, FlexAttention, flash-attn where it is there.

Each gets the layout it likes best (views where layouts agree, copies made beforehand where not), and no mask where none
is needed. A call gives the output, and with training the gradients of q, k and v, each as a function that packs it:
whoever checks a result calls them, whoever times does not.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hdxray_fast as hx
from harness.attention_cases import Inputs
from harness.race import Contender

SDPA = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
OURS, OURS_PACKED, VARLEN = "triton", "triton, packed", "varlen_attn"
UNMASKED = "padded SDPA flash, unmasked (attends to padding: another function)"
PAD_TO = 16  # keys of padded tensors, so that masks are aligned as the kernels want them

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa_name(backend: str, padded: bool = False) -> str:
    return f"padded SDPA {backend}" if padded else f"SDPA {backend}"


def contenders(inputs: Inputs, flex: bool) -> list[Contender]:
    """Those that accept the shape, or say themselves why not.

    Args:
        flex: FlexAttention too, which takes a while to compile.
    """
    shape = inputs.shape
    field = []
    if shape.dense:
        field.append(Contender(OURS, partial(dense, inputs, partial(hx.attention, backend="triton"))))
    field.append(Contender(OURS_PACKED if shape.dense else OURS, partial(packed, inputs, ours_packed(inputs))))
    if shape.dense:
        field += [Contender(sdpa_name(b), partial(dense, inputs, sdpa(SDPA[b]))) for b in SDPA]
    else:
        field += [
            Contender(sdpa_name(b, True), partial(masked, inputs, SDPA[b]), prepare=partial(pad_all, inputs))
            for b in SDPA
        ]
        field.append(
            Contender(UNMASKED, partial(unmasked, inputs), checked=False, prepare=partial(pad_all, inputs)),
        )
    field.append(Contender(VARLEN, partial(packed_later, inputs, varlen)))
    for module in ("flash_attn", "flash_attn_interface"):
        if _importable(module):
            field.append(Contender(f"{module} varlen", partial(packed_later, inputs, partial(flash_attn, module))))
            if shape.dense:
                field.append(Contender(module, partial(dense, inputs, partial(flash_attn_dense, module))))
    if flex:
        if shape.dense:
            field.append(Contender("FlexAttention", partial(dense, inputs, flex_dense)))
        else:
            field.append(Contender("FlexAttention", partial(packed_later, inputs, flex_packed)))
    return field


# --- calls on packed and dense tensors -------------------------------------------------------------------------------
Results = tuple[Callable[[], Tensor], ...]


def packed(inputs: Inputs, attend: Attend) -> Callable[[int], Results]:
    """``call(i)`` on packed rows."""
    return _caller(inputs.sets, attend, inputs.training, lambda t, queries: t)


def packed_later(inputs: Inputs, make: Callable[[Inputs], Attend]) -> Callable[[int], Results]:
    """As `packed`, of a function that is made only when its turn has come (an import, a mask)."""
    return packed(inputs, make(inputs))


def dense(inputs: Inputs, attend: Attend) -> Callable[[int], Results]:
    """``call(i)`` on ``[B, S, H, D]`` views of the packed rows."""
    sets = [tuple(inputs.padded(t, n in (0, 3)) for n, t in enumerate(tensors)) for tensors in inputs.sets]
    return _caller(sets, attend, inputs.training, lambda t, queries: t.flatten(0, 1))


def _caller(
    sets: list[tuple[Tensor, ...]], attend: Attend, training: bool, pack: Callable[[Tensor, bool], Tensor]
) -> Callable[[int], Results]:
    sets = [(*(t.detach().requires_grad_(training) for t in s[:3]), s[3]) for s in sets]

    def call(i: int) -> Results:
        q, k, v, grad = sets[i % len(sets)]
        with torch.set_grad_enabled(training):
            out = attend(q, k, v)
        grads = torch.autograd.grad(out, (q, k, v), grad) if training else ()
        return tuple(partial(pack, t.detach(), n < 2) for n, t in enumerate((out, *grads)))

    return call


def unpacked(results: Results) -> tuple[Tensor, ...]:
    return tuple(pack() for pack in results)


# --- who attends ------------------------------------------------------------------------------------------------------
def ours_packed(inputs: Inputs) -> Attend:
    return partial(
        hx.attention,
        cu_seqlens_q=inputs.cu_q,
        cu_seqlens_k=inputs.cu_k,
        max_seqlen_q=inputs.shape.max_q,
        max_seqlen_k=inputs.shape.max_k,
        backend="triton",
    )


def sdpa(backend: str, mask: Tensor | None = None) -> Attend:
    """PyTorch's scaled_dot_product_attention, held to one backend, on ``[B, S, H, D]``."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return out.transpose(1, 2)

    return attend


def pad_all(inputs: Inputs) -> list[tuple[Tensor, ...]]:
    """All sets as ``[B, S, H, D]``, S a multiple of 16; made beforehand, for a padded model never packs."""
    edge = [-(-n // PAD_TO) * PAD_TO for n in (inputs.shape.max_q, inputs.shape.max_k)]
    return [
        tuple(inputs.padded(t, n in (0, 3), edge[n in (1, 2)]) for n, t in enumerate(tensors))
        for tensors in inputs.sets
    ]


def masked(inputs: Inputs, backend: str, sets: list[tuple[Tensor, ...]]) -> Callable[[int], Results]:
    """Padded SDPA with an additive mask over the padding keys, its results as packed rows."""
    lengths = inputs.cu_k.diff()[:, None]  # [B, 1]
    edge = sets[0][1].shape[1]
    padding = torch.arange(edge, device=lengths.device)[None] >= lengths  # [B, S]
    mask = torch.zeros(padding.shape, device=lengths.device, dtype=inputs.shape.dtype)
    mask = mask.masked_fill(padding, -torch.inf)[:, None, None]  # [B, 1, 1, S]
    mask = mask.expand(-1, inputs.shape.heads, sets[0][0].shape[1], -1)  # [B, H, Sq, S], no copy
    return _caller(sets, sdpa(backend, mask), inputs.training, inputs.packed)


def unmasked(inputs: Inputs, sets: list[tuple[Tensor, ...]]) -> Callable[[int], Results]:
    return _caller(sets, sdpa(SDPA["flash"]), inputs.training, inputs.packed)


def varlen(inputs: Inputs) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    shape = inputs.shape
    return lambda q, k, v: varlen_attn(q, k, v, inputs.cu_q, inputs.cu_k, shape.max_q, shape.max_k)


def flash_attn(module: str, inputs: Inputs) -> Attend:
    function, shape = importlib.import_module(module).flash_attn_varlen_func, inputs.shape
    return lambda q, k, v: _first(function(q, k, v, inputs.cu_q, inputs.cu_k, shape.max_q, shape.max_k))


def flash_attn_dense(module: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _first(importlib.import_module(module).flash_attn_func(q, k, v))


def _first(out: Any) -> Tensor:  # some versions return the log-sum-exp too
    return out[0] if isinstance(out, tuple) else out


def flex_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _compiled_flex()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def flex_packed(inputs: Inputs) -> Attend:
    """FlexAttention over the packed rows of all images, with a block mask that keeps images apart."""
    from torch.nn.attention.flex_attention import create_block_mask

    image_q, image_k = (
        torch.repeat_interleave(torch.arange(len(cu) - 1, device=cu.device), cu.diff(), output_size=n)
        for cu, n in ((inputs.cu_q, sum(inputs.shape.lengths_q)), (inputs.cu_k, sum(inputs.shape.lengths_k)))
    )
    mask = create_block_mask(
        lambda b, h, q, k: image_q[q] == image_k[k],
        None,
        None,
        len(image_q),
        len(image_k),
        device=image_q.device,
        _compile=True,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))  # [N, H, D] -> [1, H, N, D]
        return _compiled_flex()(q, k, v, block_mask=mask)[0].transpose(0, 1)

    return attend


_FLEX: list[Any] = []


def _compiled_flex() -> Any:
    if not _FLEX:
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX.append(torch.compile(flex_attention, dynamic=False))
    return _FLEX[0]


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
