"""Whole optimizer steps in CUDA graphs: one a size of batch, recorded at its second step and replayed from then on.

A step of a small model is a thousand launches and more; the host takes longer to ask for them than a GPU to do them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .trees import Path, shape_of, tensors_of, with_tensors

MOST_GRAPHS = 16  # each keeps the addresses of its activations; all share one pool of memory


class Graphs(Protocol):
    """What records work on a device; :class:`CudaGraphs`, or what stands in for it where there is no GPU."""

    def run(self, work: Callable[[], None]) -> None:
        """Do it as it is."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record it without doing it; what is returned does it."""

    def release(self) -> None:
        """Give back the memory of recordings that nobody holds any more."""


class CudaGraphs:
    """CUDA graphs that share a pool of memory, for they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = None

    def run(self, work: Callable[[], None]) -> None:
        # the stream that records: gradients are accumulated on the stream they were first made on
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            work()
        outer.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # the thread that pins the loader's memory calls CUDA meanwhile; it is none of this graph's business
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(outer)  # a recording that fails leaves its own behind
        if self._pool is None:
            self._pool = graph.pool()
        return graph.replay

    def release(self) -> None:
        self._pool = None
        torch.cuda.empty_cache()


def graphs_for(device: torch.device) -> Graphs | None:
    """What records the work of a device, if anything does."""
    return CudaGraphs(device) if device.type == "cuda" else None


@dataclass
class _Recorded:
    """A step of one size: what it reads, and how it is done again."""

    inputs: dict[Path, Tensor]
    replay: Callable[[], None] = lambda: None

    def take(self, batch: Any) -> None:
        """Have the next replay read these."""
        for path, tensor in tensors_of(batch).items():
            self.inputs[path].copy_(tensor)


class RecordedSteps:
    """Calls ``work`` on batches; from the second batch of a size on as a replay of what that one launched.

    Whatever ``work`` decides on the host is decided once a size. It must not wait for the device, and what it makes of
    a batch must go where it is found again: into tensors that outlive it.

    Args:
        work: of the batches of a step, nested as in :mod:`.trees`; of a replay's it sees the tensors alone.
        graphs: records.
        say: told once, in words, that recording failed; all is called as it is from then on.
        recover: called then, before the step is done as it is.
    """

    def __init__(
        self,
        work: Callable[[Any], None],
        graphs: Graphs,
        say: Callable[[str], None],
        recover: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._graphs, self._say, self._recover = work, graphs, say, recover
        self._recorded: dict[Hashable, _Recorded | None] = {}
        self._inputs: dict[Hashable, Tensor] = {}  # what several sizes have in common is there once
        self.works = True

    @property
    def sizes(self) -> int:
        """Number of sizes that have been recorded."""
        return sum(step is not None for step in self._recorded.values())

    def __call__(self, batch: Any) -> None:
        key = shape_of(batch)
        known = key in self._recorded
        if self.works and known:
            self._again(key, batch)
        elif self.works and len(self._recorded) < MOST_GRAPHS:
            self._first(key, batch)
        else:
            self._graphs.run(lambda: self._work(batch))

    def _first(self, key: Hashable, batch: Any) -> None:
        """The first of its size: models are compiled, kernels chosen, optimizer state made."""
        try:
            self._graphs.run(lambda: self._work(batch))
        except torch.OutOfMemoryError as error:
            if not self.sizes:  # no recording holds memory
                raise
            self._give_up(error)
            self._graphs.run(lambda: self._work(batch))
        else:
            self._recorded[key] = None

    def _again(self, key: Hashable, batch: Any) -> None:
        step = self._recorded[key]
        if step is None:
            try:
                step = self._recorded[key] = self._record(batch)
            except Exception as error:  # whatever it is: as it is, the step has been done before
                self._give_up(error)
                self._graphs.run(lambda: self._work(batch))
                return
        step.take(batch)
        step.replay()

    def _record(self, batch: Any) -> _Recorded:
        inputs = {
            path: self._inputs.setdefault((path, shape_of(tensor)), torch.empty_like(tensor))
            for path, tensor in tensors_of(batch).items()
        }
        step = _Recorded(inputs)
        step.take(batch)
        seen = with_tensors(batch, inputs)
        step.replay = self._graphs.record(lambda: self._work(seen))
        return step

    def _give_up(self, error: Exception) -> None:
        first = str(error).strip().split("\n")[0][:200]
        self._say(
            f"steps cannot be recorded as CUDA graphs ({type(error).__name__}: {first}); the run goes on without "
            "(--graph off does not try)"
        )
        self.works = False
        self._recorded.clear()
        self._inputs.clear()
        self._recover()
        self._graphs.release()


def why_not_recorded(late: bool, sharded: bool, processes: int, activations_again: bool, made_for_it: bool) -> str:
    """What keeps the steps of a run from being recorded as graphs; empty if nothing does.

    Args:
        late: the host looks at no value within a step.
        sharded: weights are shared out.
        processes: of the run.
        activations_again: blocks are computed again in the backward pass.
        made_for_it: the task's steps are.
    """
    if sharded:
        return "weights are shared out (FSDP2)"
    if not late:
        return "there is no CUDA GPU"
    if processes > 1:
        return "several processes exchange gradients within a step (DDP)"
    if activations_again:
        return "checkpoint_activations keeps the state of random numbers, which no graph can"
    return "" if made_for_it else "the steps of this task are not made for it"
