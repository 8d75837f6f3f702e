"""What stands in for CUDA graphs on a machine without a GPU: every operator's call is recorded, and made again.

As in a CUDA graph, what Python decides is decided once, recording changes nothing, waiting for a value is an error, and
what a graph made on its way is gone after it.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hdxray_fast.ops.attention import attention

WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique",
    "aten::_unique2",
)
BY_INDEX = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors(value) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def refuse_waits(func, args) -> None:
    """Raise a RuntimeError, as a CUDA graph that is recorded does, if a GPU would be waited for."""
    name = func._schema.name
    by_mask = name in BY_INDEX and any(t is not None and t.dtype == torch.bool for t in args[1])
    if name in WAITS or by_mask:
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


class NoWaits(TorchDispatchMode):
    """Within, whatever would wait for a GPU is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        refuse_waits(func, args)
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Records calls; what they write is put back by :meth:`undo`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.made, self.before = [], {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse_waits(func, args)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    if storage(tensor) not in self.made:
                        self.before.append((tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        given = {storage(tensor) for tensor in tensors((args, kwargs))}
        self.made.update({storage(t): t for t in tensors(result) if storage(t) not in given})
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        self.before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, recorded in self.calls:
                for old, new in zip(tensors(recorded), tensors(func(*args, **kwargs)), strict=True):
                    assert old.shape == new.shape
                    if storage(old) != storage(new):
                        old.copy_(new)
            for tensor in self.made.values():  # memory that all graphs share
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)


class RecordedGraphs:
    """Takes the place of :class:`hdxray_fast.training.graphs.CudaGraphs`.

    Attributes:
        recorded: number of recordings.
        replayed: number of replays.
    """

    def __init__(self, device: torch.device) -> None:
        self.recorded = self.replayed = 0

    def run(self, work) -> None:
        work()

    def record(self, work):
        recorder, drawn = Recorder(), torch.get_rng_state()
        try:
            with recorder:
                work()
        finally:
            recorder.undo()
            torch.set_rng_state(drawn)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay

    def release(self) -> None:
        self.recorded = 0


class WatchedGraphs(RecordedGraphs):
    """Of steps that are not recorded: nothing in them may wait."""

    def run(self, work) -> None:
        with NoWaits():
            work()


def attention_as_on_a_gpu(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k=None, max_seqlen_q, max_seqlen_k=None, equal_lengths=False
):
    """One operator, where the CPU's path reads lengths on the host."""
    if cu_seqlens_q is None:  # dense
        return attention(q, k, v)
    sides = (cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k)
    if not (max_seqlen_q and max_seqlen_k):
        raise RuntimeError("a length that nobody tells is looked up, for which some backends wait")
    sides = (*sides, max_seqlen_q, max_seqlen_k)
    return torch.ops.hdxray_fast.attention(q, k, v, *sides, q.shape[-1] ** -0.5, "sdpa", False)[0]
