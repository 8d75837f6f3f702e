"""One optimizer step: the gradients of all its forward passes, clipping, AdamW, averaged weights.

Two ways to run it. :class:`StepNow` looks at its numbers before it changes the weights, as is natural where they are at
hand. :class:`StepLater`, for GPUs, never looks: whether a step was finite is decided where it is computed, the host
learns of it when the next step is on its way, and the whole of it can be recorded as a CUDA graph.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..ops.compiled import Compiled
from ..ops.copies import Copies
from .graphs import Graphs, RecordedSteps
from .optimizer import AveragedWeights
from .processes import gradients_stay
from .task import Task

Number = int | float | Tensor
Flags = Callable[[], dict[str, int]]  # by name; what a process wants all of them to know

FLAG = "flag: "  # before the names of flags among a step's numbers


@dataclass
class Parts:
    """What a step works with.

    Attributes:
        accelerator: of the run.
        task: what is trained.
        model: as it is trained, without wrappers.
        called: the model, wrapped for several processes, compiled or not.
        wrapped: the same, to ask for its parameters.
        optimizer: as Accelerate prepared it.
        ema: averaged weights, if any.
        clip_grad: largest gradient norm; 0 for none.
        seed: seeds torch's generator for the step that is run, as often as it has to be begun again.
    """

    accelerator: object
    task: Task
    model: nn.Module
    called: Compiled
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedWeights | None
    clip_grad: float
    seed: Callable[[], None]

    def begin_again(self) -> None:
        """Forget what a step that broke off has left."""
        self.optimizer.zero_grad(set_to_none=True)
        self.seed()

    def gradients(self, micro: list[dict], shares: list[float] | Tensor) -> dict[str, Number]:
        """Gradients of the mean over everything in the step; this process' part of that mean and of what is logged."""
        sums: dict[str, Number] = {}
        for index, batch in enumerate(micro):
            share, last = shares[index], index == len(micro) - 1
            with contextlib.nullcontext() if last else gradients_stay(self.wrapped):
                with self.accelerator.autocast():
                    loss, numbers = self.task.loss(self.called, batch)
                # the gradients of the processes are averaged, hence their number
                self.accelerator.backward(loss * (share * self.accelerator.num_processes))
            for name, value in {"loss": loss.detach(), **numbers}.items():
                sums[name] = sums.get(name, 0) + (value * share if _floating(value) else value)
        return sums

    def clip(self) -> Tensor:
        """Clip the gradients; their norm before that, over all processes."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip_grad or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


@dataclass
class Outcome:
    """What a step gave: numbers over all processes, and whether any of these was asked to stop.

    Attributes:
        loss: the mean over everything in the step.
        norm: of the gradients, before they were clipped.
        numbers: what :meth:`.Task.loss` had logged.
        raised: flags that some of several processes had raised when the step was begun, such as ``stop``.
        finite: the weights were changed; otherwise they are as they were.
        busy: seconds that a GPU worked on it; None where that is not known.
        idle: seconds between the step before and this one on the GPU; None likewise.
    """

    loss: float
    norm: float
    numbers: dict[str, int | float]
    raised: set[str]
    finite: bool
    busy: float | None = None
    idle: float | None = None


class StepNow:
    """Looks at the loss and the gradients before it changes the weights.

    Args:
        parts: what it works with.
        total: sums over all processes.
    """

    def __init__(self, parts: Parts, total: Callable[[dict[str, Number]], dict[str, int | float]]) -> None:
        self.parts, self._total = parts, total

    def run(self, micro: list[dict], rate: float, flags: Flags) -> Callable[[], Outcome]:
        """The step on these batches at this learning rate; what is returned tells how it went, here at once."""
        parts = self.parts
        for group in parts.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        numbers = parts.called.run(partial(self._gradients, micro, flags), parts.begin_again)
        norm = float(parts.clip())
        raised = {name.removeprefix(FLAG) for name, count in numbers.items() if name.startswith(FLAG) and count}
        numbers = {name: value for name, value in numbers.items() if not name.startswith(FLAG)}
        loss = numbers.pop("loss")
        # in fp16 a gradient may overflow: the scaler skips the step and scales the next one down
        finite = math.isfinite(loss) and (math.isfinite(norm) or parts.accelerator.scaler is not None)
        if finite:
            parts.optimizer.step()
            parts.optimizer.zero_grad(set_to_none=True)
            if parts.ema is not None:
                parts.ema.update(parts.model)
        return lambda: Outcome(loss, norm, numbers, raised, finite)

    def _gradients(self, micro: list[dict], flags: Flags) -> dict[str, int | float]:
        counts = [float(self.parts.task.weight(batch)) for batch in micro]
        total = self._total({"count": sum(counts)})["count"]
        shares = [count / total if total else 0.0 for count in counts]
        gradients = self.parts.gradients(micro, shares)
        return self._total({**gradients, **{FLAG + name: value for name, value in flags().items()}})


class StepLater:
    """Never waits: the host learns of a step when it asks, and a step that is not finite changes no weight by itself.

    Nor does any step after it: what is there when the host learns of it is the state before that step.

    Args:
        parts: what it works with. Its optimizer must be ``capturable``.
        graphs: of the device.
        record: record steps as graphs.
        most_micro: forward passes of a step.
        say: told once what cannot be compiled or recorded.
    """

    def __init__(self, parts: Parts, graphs: Graphs, record: bool, most_micro: int, say: Callable[[str], None]) -> None:
        self.parts, self._graphs = parts, graphs
        accelerator, device = parts.accelerator, parts.accelerator.device
        # with several processes the optimizer is Accelerate's wrapper too; a scaler, for which it is there, never is
        self._optimizer = getattr(parts.optimizer, "optimizer", parts.optimizer)
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        groups = len(self._optimizer.param_groups)
        self._settings = torch.zeros(groups + 1, device=device)  # learning rates, and how far the average moves
        self._put_rates_in_place()
        self._shares = torch.ones(most_micro, device=device)
        self._broken = torch.zeros((), device=device)  # 1 from the first step on that is not finite
        self._optimizer.found_inf = self._broken  # fused AdamW leaves everything as it is where this is 1
        self._row: Tensor | None = None
        self._names: list[str] = []
        self._whole: list[bool] = []
        self._ended: torch.cuda.Event | None = None
        self._alone = accelerator.num_processes == 1
        self._flags: Flags = dict
        self._flag_names: list[str] = []
        self._run = RecordedSteps(self._work, graphs, say, parts.begin_again) if record else self._as_it_is

    def _put_rates_in_place(self) -> None:
        for rate, group in zip(self._settings[:-1].unbind(), self._optimizer.param_groups, strict=True):
            group["lr"] = rate

    def run(self, micro: list[dict], rate: float, flags: Flags) -> Callable[[], Outcome]:
        """The step on these batches at this learning rate; what is returned tells how it went, and waits for it."""
        parts = self.parts
        rates = [rate * group.get("lr_scale", 1.0) for group in self._optimizer.param_groups]
        moved = 0.0 if parts.ema is None else parts.ema.next_move()
        began, before = self._mark(), self._ended
        self._to_device(self._settings, [*rates, moved])
        self._share(micro)
        self._flags = flags
        parts.called.run(partial(self._run, micro), parts.begin_again)
        self._ended = ended = self._mark()
        if parts.ema is not None:
            parts.ema.updates += 1
        arriving = Copies((self._row.clone(),), self._row.device)  # the next step writes over the row itself

        def ask() -> Outcome:
            outcome = self._outcome(arriving.wait()[0].tolist())
            if began is not None:
                outcome.busy = began.elapsed_time(ended) / 1000
                outcome.idle = 0.0 if before is None else before.elapsed_time(began) / 1000
            return outcome

        return ask

    def _mark(self) -> torch.cuda.Event | None:
        """This point in the device's time."""
        if not self._settings.is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _share(self, micro: list[dict]) -> None:
        """How much each batch weighs in the step."""
        counts = [self.parts.task.weight(batch) for batch in micro]
        if self._alone and not any(isinstance(count, Tensor) for count in counts):
            total = sum(counts)
            self._to_device(self._shares, [count / total if total else 0.0 for count in counts])
            return
        device = self._shares.device
        held = torch.stack([
            count.to(device, torch.float32)
            if isinstance(count, Tensor)
            else torch.full((), float(count), device=device)
            for count in counts
        ])  # fmt: skip
        total = held.sum() if self._alone else self.parts.accelerator.reduce(held.sum(), "sum")
        self._shares.copy_(torch.where(total > 0, held / total, 0.0))

    def _to_device(self, target: Tensor, values: list[float]) -> None:
        host = torch.tensor(values, dtype=target.dtype, pin_memory=target.is_cuda)
        target.copy_(host, non_blocking=True)

    def _as_it_is(self, micro: list[dict]) -> None:
        self._graphs.run(lambda: self._work(micro))

    def _work(self, micro: list[dict]) -> None:
        """All that the device does; may be recorded, so that everything it leaves is in tensors that stay."""
        parts, device = self.parts, self._shares.device
        numbers = parts.gradients(micro, self._shares)
        norm = parts.clip()
        self._names = list(numbers)
        self._whole = [not _floating(value) for value in numbers.values()]
        flags = {} if self._alone else self._flags()  # a recording would hold on to what they were
        self._flag_names = list(flags)
        held = [*numbers.values(), *flags.values()]
        row = torch.stack([
            value.detach().double()
            if isinstance(value, Tensor)
            else torch.full((), value, dtype=torch.float64, device=device)
            for value in held
        ])  # fmt: skip
        if not self._alone:
            row = parts.accelerator.reduce(row, "sum")
        finite = torch.isfinite(row[self._names.index("loss")]) & torch.isfinite(norm)
        self._broken.copy_(torch.maximum(self._broken, (~finite).float()))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if parts.ema is not None:
            parts.ema.move(parts.model, self._settings[-1] * (1 - self._broken))
        row = torch.cat([row, norm.double().reshape(1)])
        if self._row is None or self._row.shape != row.shape:
            self._row = torch.empty_like(row)
        self._row.copy_(row)

    def _outcome(self, values: list[float]) -> Outcome:
        *values, norm = values
        counts = values[len(self._names) :]
        raised = {name for name, count in zip(self._flag_names, counts, strict=True) if count > 0}
        values = values[: len(self._names)]
        numbers = {
            name: int(value) if whole and math.isfinite(value) else value
            for name, value, whole in zip(self._names, values, self._whole, strict=True)
        }
        loss = numbers.pop("loss")
        return Outcome(loss, norm, numbers, raised, math.isfinite(loss) and math.isfinite(norm))


def _floating(value: Number) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)
