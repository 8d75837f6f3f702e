"""Every registered operator with arguments that do not fit: each call is refused by name, and the process lives.

``python tests/helpers/operator_fuzz.py`` prints a line for each call that ran although nothing says that it may, or
that failed by an error of somebody else. With ``TRITON_INTERPRET=1`` the Triton kernels are called too, on the CPU.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from typing import Any

import torch
from attention_helpers import cumulate
from operator_samples import SAMPLES, operator
from torch import Tensor

from hdxray_fast.errors import HDXrayError
from hdxray_fast.ops import attention

LONGER = {"one row more", "4096 rows more", "flat"}
RESIZED = {*LONGER, "one row fewer", "no rows", "narrower", "wider"} - {"flat"}
VALUES = {"negative", "far negative", "too large", "falling"}
# What may run, by operator and argument: rows behind cu_seqlens[-1] are slack, any number of mixtures is a number of
# mixtures, rows are scaled one by one up to the last entry (held within them) of cu_seqlens, whatever the others are.
# Ids turned round stay ascending where images have one each.
MAY_RUN = {
    ("gather_patches", "ids"): {*LONGER, "falling"},
    ("gather_patches_backward", "ids"): {"falling"},
    ("view_patches", "ids"): {*LONGER, "falling"},
    ("attention", "q"): {*LONGER, "no rows"} - {"flat"},  # none without cu_seqlens: no queries
    ("attention", "cu_seqlens_k"): {"falling"},  # of no keys at all
    ("attention_backward", "cu_seqlens_k"): {"falling"},
    ("attention_backward", "lse"): {"no rows"},  # not needed where it is worked out again
    ("mix_maps", "weights"): {"one row fewer", "one row more", "4096 rows more"},
    ("scale_loss_gradient", "grad_pred"): RESIZED,
    ("scale_loss_gradient", "cu_seqlens"): {*LONGER, *VALUES, "one row fewer"},
}


def changed_tensors(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of another size, dtype, layout, place or, of integers, other values."""
    plain = value.detach()
    if plain.ndim and plain.shape[0]:
        yield "one row fewer", plain[:-1].clone()
        yield "one row more", torch.cat([plain, plain[-1:]])
        yield "4096 rows more", torch.cat([plain, plain[-1:].expand(4096, *plain.shape[1:])])
        yield "no rows", plain[:0].clone()
    if plain.ndim > 1:
        yield "narrower", plain[..., :-1].clone()
        yield "wider", torch.cat([plain, plain[..., -1:]], -1)
        yield "turned", plain.transpose(0, 1).clone()
    yield "flat", torch.cat([plain.flatten(), plain.flatten()[:1]])
    yield "one dimension more", plain[None].clone()
    yield "a number", plain.new_zeros(()) if plain.ndim else plain.new_zeros(2)
    for dtype in (torch.int64, torch.complex64, torch.bool):
        yield str(dtype), plain.to(dtype)
    yield "without values", plain.to("meta")
    if plain.dtype == torch.int32:
        yield "negative", plain - 1
        yield "far negative", plain - 2**31 + 9
        yield "too large", plain + 2**31 - 99
        if plain.numel() > 1:
            yield "falling", plain.flip(0)


def changed_values(value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, words, dtypes and lists that no operator takes in this place."""
    if isinstance(value, (bool, float)):
        return
    if isinstance(value, int):
        wrong = (-1, -(2**40))
    elif isinstance(value, str):
        wrong = ("nonsense", "")
    elif isinstance(value, torch.dtype):
        wrong = (torch.int64, torch.complex64, torch.uint8)
    elif isinstance(value, list) and value and isinstance(value[0], int):
        wrong = ([], value[:-1], [*value, 1], [-side for side in value], [2**40] * len(value), [0] * len(value))
    else:
        return
    for one in wrong:
        yield repr(one), one


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield from changed_tensors(value)
    elif isinstance(value, list) and value and isinstance(value[0], Tensor):
        yield "none", []
        for place in (0, len(value) - 1):
            for words, tensor in changed_tensors(value[place]):
                yield f"{place}: {words}", [*value[:place], tensor, *value[place + 1 :]]
    else:
        yield from changed_values(value)


def triton_samples(name: str) -> list[tuple]:
    """Of the attention operators, arguments that the Triton kernels take, with ``cu_seqlens`` and without."""
    q, k, v = torch.randn(3, 8, 2, 32).unbind()
    ragged = (cumulate([3, 0, 5]), cumulate([4, 2, 2]), 5, 4)
    samples = []
    for sides in (ragged, (None, None, 4, 4)):
        if name == "attention":
            samples.append((q, k, v, *sides, 0.3, "triton", True))
        else:
            out, lse = operator("attention")(q, k, v, *sides, 0.3, "triton", True)
            samples.append((torch.randn_like(out), q, k, v, out, lse, *sides, 0.3, "triton"))
    return samples


def outcomes(name: str) -> Iterator[tuple[str, str, str]]:
    """Of each call: the argument that was changed, how, and ``refused``, ``ran`` or the foreign error."""
    names = [argument.name for argument in operator(name).default._schema.arguments]
    samples = SAMPLES[name]()
    if name.startswith("attention") and not attention.why_not_triton("cpu"):
        samples = triton_samples(name)
    for sample in samples:
        for place, argument in enumerate(names[: len(sample)]):
            for words, value in mutations(sample[place]):
                given = [a.detach() if isinstance(a, Tensor) else a for a in sample]
                given[place] = value
                print(name, argument, words, file=sys.stderr)  # the last line is what crashed
                try:
                    operator(name)(*given)
                except HDXrayError:
                    yield argument, words, "refused"
                except Exception as error:
                    if "exceeds triton maximum tensor numel" in str(error):  # as many mixtures as no tile holds
                        yield argument, words, "refused"
                        continue
                    yield argument, words, f"{type(error).__name__}: {str(error)[:150]}"
                else:
                    fine = words in MAY_RUN.get((name, argument), ())
                    yield argument, words, "may run" if fine else "ran"


if __name__ == "__main__":
    faulthandler.enable()
    torch.manual_seed(0)
    counts = dict.fromkeys(("refused", "may run", "other"), 0)
    for name in sys.argv[1:] or SAMPLES:
        for argument, words, outcome in outcomes(name):
            counts[outcome if outcome in counts else "other"] += 1
            if outcome not in counts:
                print(name, argument, words, "->", outcome)
    print(counts)
