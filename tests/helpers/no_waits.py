"""What stands in for a GPU where batches are only answered: who looks at a value there without waiting for it is told.

Tensors are on the "device" that were sent there or computed from such. They lie on the CPU, so that everything can be
computed, and whoever looks at their values fails, but for :class:`hdxray_fast.models.inference.Copies`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from copy import deepcopy

import torch
from recorded_graph import WAITS, storage, tensors
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hdxray_fast.models import inference
from hdxray_fast.models.inputs import sent_batch
from hdxray_fast.models.selection import sent
from hdxray_fast.ops.attention import attention
from hdxray_fast.ops.mask_plan import plan_masks
from hdxray_fast.ops.plan import MaskPlan

LOOKS = {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__", "__iter__"}


class Waited(AssertionError):
    """A value on the device was looked at."""


class _Computed(TorchDispatchMode):
    """Results of operators on device tensors are there, too."""

    def __init__(self, device: StandIn) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        device, given = self.device, (args, kwargs or {})
        there = device.holds(given)
        if there and func._schema.name in WAITS:
            raise Waited(func._schema.name)
        with device.paused():  # what an operator does inside is the CPU's way of doing it
            result = func(*args, **(kwargs or {}))
        if there:
            device.put(result)
        return result


class _Looks(TorchFunctionMode):
    """Python's ways to look at a tensor."""

    def __init__(self, device: StandIn) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in LOOKS and self.device.holds(args[:1]):
            raise Waited(func.__name__)
        return func(*args, **(kwargs or {}))


class StandIn:
    """The device.

    Attributes:
        events: ``("begun", n)`` when the answer to batch ``n`` was launched, ``("asked", n)`` when it was waited for.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self._there: dict[int, torch.Tensor] = {}  # kept alive: an address is not given away again
        self._paused = 0

    def put(self, value) -> None:
        self._there.update({storage(tensor): tensor for tensor in tensors(value)})

    def holds(self, value) -> bool:
        return not self._paused and any(storage(tensor) in self._there for tensor in tensors(value))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def sent(self, value, device):
        with self.paused():
            there = deepcopy(value) if isinstance(value, MaskPlan) else value.clone()
        self.put(list(vars(there).values()) if isinstance(value, MaskPlan) else there)
        return there

    def sent_batch(self, batch, device):
        moved = sent_batch(batch, device)
        return {
            k: v if k in ("inside", "valid") or not isinstance(v, torch.Tensor) else self.sent(v, device)
            for k, v in moved.items()
        }

    def attention(self, *tensors, **options):
        """On the CPU it looks at ``cu_seqlens``, to check them and to split by them; tests of it know of GPUs."""
        with self.paused():
            found = attention(*tensors, **options)
        self.put(found)
        return found

    def plan_masks(self, *grids, **options):
        """Without bounds per image a plan that is made on a GPU is waited for: its sizes are not known before."""
        if self.holds((grids, options)):
            raise Waited("plan_masks")
        return plan_masks(*grids, **options)

    def copies(self, values, device):
        return _Copies(self, values)


class _Copies:
    def __init__(self, device: StandIn, values) -> None:
        self.device, self.number = device, sum(what == "begun" for what, _ in device.events)
        device.events.append(("begun", self.number))
        with device.paused():
            self.values = tuple(value.clone() for value in values)

    def wait(self):
        self.device.events.append(("asked", self.number))
        return self.values


@contextlib.contextmanager
def stand_in(monkeypatch) -> Iterator[StandIn]:
    """The device in use by all rooms; within, looking at what is there fails."""
    device = StandIn()
    replaced = {
        sent: device.sent,
        sent_batch: device.sent_batch,
        attention: device.attention,
        plan_masks: device.plan_masks,
        inference.Copies: device.copies,
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("hdxray_fast"):
            for attribute, value in list(vars(module).items()):
                for original, instead in replaced.items():
                    if value is original:
                        monkeypatch.setattr(module, attribute, instead)
    monkeypatch.setattr(inference, "answers_late", lambda _: True)
    with _Looks(device), _Computed(device):
        yield device


def late_order(count: int) -> list[tuple[str, int]]:
    """The events of ``count`` batches, each asked for when the next one is under way."""
    order: list[tuple[str, int]] = []
    for number in range(count):
        order += [("begun", number), *([("asked", number - 1)] if number else [])]
    return order + ([("asked", count - 1)] if count else [])
