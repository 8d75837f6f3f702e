"""FLOPs of the operators, for ``torch.utils.flop_counter.FlopCounterMode``, counted as it counts PyTorch's own.

That is two for a multiplication and an addition of a matrix product, and nothing for what is no product: gathering
pixels and the loss count nothing. Attention has two products forward, and five backward, since a fused kernel computes
the scores again. The pairs of a query and a key are those that ``cu_seqlens`` say, which waits for a GPU; where there
are no values to read (on ``meta``, on fake tensors), sequences are taken to be equally long.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

from torch import Tensor

_COUNTER = "torch.utils.flop_counter"
_FORWARD, _BACKWARD = 2, 5  # products: Q K^T and P V; Q K^T again, dO V^T, dS K, dS^T Q, P^T dO
_formulas: list[tuple[list, Callable]] = []


def count_attention(forward, backward) -> None:
    """Have the attention's operators counted (``torch.ops.<library>.<name>`` each)."""

    def of_forward(q, k, v, *rest, out_val=None, **_) -> int:
        return _attention(_FORWARD, q, k, *rest[:4])

    def of_backward(grad_out, q, k, v, out, lse, *rest, out_val=None, **_) -> int:
        return _attention(_BACKWARD, q, k, *rest[:4])

    _count([forward], of_forward)
    _count([backward], of_backward)


def count_mixture(forward, backward) -> None:
    """Have mixtures of maps counted: one product of the weights with all maps forward, two backward."""

    def of_forward(maps, weights, *rest, out_val=None, **_) -> int:
        return 2 * weights.numel() * maps[0].numel()

    def of_backward(grads, maps, weights, out_val=None, **_) -> int:
        return 2 * of_forward(maps, weights)

    _count([forward], of_forward)
    _count([backward], of_backward)


def count_nothing(*operators) -> None:
    """Say that operators have no products, so that nobody looks for them."""
    _count(list(operators), lambda *_, **__: 0)


def _attention(
    products: int,
    q: Tensor,  # [N, H, D]
    k: Tensor,  # [Nk, H, D]
    cu_seqlens_q: Tensor | None,  # [B + 1] int32; None: sequences of max_seqlen_q and max_seqlen_k rows each
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> int:
    rows, heads, head_dim = q.shape
    if cu_seqlens_q is None:
        pairs = rows * max_seqlen_k
    elif type(cu_seqlens_q) is Tensor and not cu_seqlens_q.is_meta:
        pairs = int((cu_seqlens_q.diff().long() * cu_seqlens_k.diff().long()).sum())
    else:
        pairs = rows * k.shape[0] // max(1, cu_seqlens_q.shape[0] - 1)
    return products * 2 * heads * head_dim * pairs


# --- telling PyTorch --------------------------------------------------------------------------------------------------
def _count(operators: list, formula: Callable) -> None:
    _formulas.append((operators, formula))
    if _COUNTER in sys.modules:
        _tell(sys.modules[_COUNTER])


def _tell(counter) -> None:
    while _formulas:
        operators, formula = _formulas.pop()
        counter.register_flop_formula(operators, get_raw=True)(formula)


class _WhenImported(MetaPathFinder):
    """Tells PyTorch's counter as soon as somebody imports it: it imports Triton, which who does not count can spare."""

    def find_spec(self, fullname, path, target=None):
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        load = spec.loader.exec_module

        def load_and_tell(module) -> None:
            load(module)
            _tell(module)

        spec.loader.exec_module = load_and_tell
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _WhenImported())
