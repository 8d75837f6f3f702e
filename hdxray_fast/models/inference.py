"""A model over many batches: in which precision, compiled or not, and answers that come back while the next are made.

A GPU works through what it is told while the host reads on. Whoever asks for an answer at once makes the host wait for
the GPU, and then the GPU for the host; so what came of a batch is asked for when the next one is under way.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..devices import warn_of_slow_bf16
from ..errors import ArgumentError
from ..ops.compiled import Compiled
from ..ops.copies import Copies
from ..ops.plan import MaskPlan

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "on", "off")
# Compiling pays where it saves more than it takes. On an H200 it took 46 s and saved 31 ms of a pre-training step of
# 32 images (benchmarks/results/nvidia-h200/gpu_mae_compiled.json), of which a forward pass is about a third: 46 s are
# back after some 140,000 images. That is of a tenth of the patches; where more are looked at they are back sooner, but
# inference by itself was not measured.
ENOUGH_IMAGES = 150_000

T = TypeVar("T")


def find_precision(precision: str, device: torch.device) -> str:
    """``"fp32"`` or ``"bf16"``: what ``precision`` means on ``device``; ``"auto"`` is bf16 on GPUs that have it.

    Raises:
        ArgumentError: it is none of ``"auto"``, ``"fp32"``, ``"bf16"``.
    """
    check_word("precision", precision, PRECISIONS)
    if precision != "auto":
        if precision == "bf16" and device.type == "cpu":
            warn_of_slow_bf16()
        return precision
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """A block in which models compute in ``precision``, of :func:`find_precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def check_word(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise an ArgumentError that begins with ``name`` unless ``value`` is one of ``accepted``."""
    if value not in accepted:
        raise ArgumentError(f"{name}: got {value!r}, accepted are {', '.join(map(repr, accepted))}")


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards, each part of ``model`` is in training or evaluation mode as it was before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class Inference:
    """A model made ready to run over many batches, without gradients.

    Args:
        model: is put in evaluation mode and on ``device``.
        device: where it runs.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"`` (autocast).
        compile: ``"on"``, ``"off"``, or ``"auto"``: on a GPU, for at least ``ENOUGH_IMAGES`` images.

    Attributes:
        precision: ``"fp32"`` or ``"bf16"``.

    Raises:
        ArgumentError: a word is none of those accepted.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, *, precision: str = "auto", compile: str = "auto"
    ) -> None:
        check_word("compile", compile, COMPILE)
        self.device, self.precision = device, find_precision(precision, device)
        self.model = model.eval().to(device)
        self._compile, self._called = compile, Compiled(self.model, False, self._say)

    @property
    def compiles(self) -> bool:
        """Whether the next whole batch goes through the compiler."""
        return self._called.compiles

    def expect(self, images: int) -> None:
        """Say how many images will come: whether to compile is decided here."""
        pays = self._compile == "auto" and self.device.type == "cuda" and images >= ENOUGH_IMAGES
        if (pays or (self._compile == "on" and images)) and not self.compiles:
            self._called = Compiled(self.model, True, self._say)

    @torch.no_grad()
    def __call__(self, *inputs: Any, whole: bool = True) -> Tensor:
        """What the model gives, float32 where it computes in bf16; a GPU is not waited for.

        ``whole=False``: a batch of another size than most, the last one, which is not worth compiling for once more.
        """
        with autocast(self.precision, self.device):
            found = self._compiled(inputs) if whole and self.compiles else self.model(*inputs)
        return found.float()

    def _compiled(self, inputs: tuple) -> Tensor:
        inputs = tuple(_of_one_graph(value) if isinstance(value, MaskPlan) else value for value in inputs)
        return self._called.run(lambda: self._called(*inputs), lambda: None)

    def _say(self, words: str) -> None:
        self._compile = "off"
        warnings.warn(words, stacklevel=2)


def _of_one_graph(plan: MaskPlan) -> MaskPlan:
    """Batches keep different numbers of patches, and would be compiled for twice: once for a bound, once for any.

    So the bound is what a grid can hold at most; beyond what an image keeps it costs blocks that end at once.
    """
    return replace(plan, max_keep=plan.grid_size[0] * plan.grid_size[1]).mark_dynamic()


def answers_late(device: torch.device) -> bool:
    """Whether a device works on by itself while the host does something else."""
    return device.type != "cpu"


def one_late(
    batches: Iterable[T], compute: Callable[[T], tuple[Tensor, ...]], device: torch.device
) -> Iterator[tuple[T, tuple[Tensor, ...]]]:
    """Each batch with what ``compute`` gives for it, on the host, in order.

    On a GPU it is waited for when the next batch is under way; on the CPU it is there at once.

    Args:
        batches: anything that ``compute`` takes.
        compute: gives tensors on ``device``, and reads none of them.
        device: where it runs.
    """
    before: tuple[T, Copies] | None = None
    for batch in batches:
        begun = batch, Copies(compute(batch), device)
        if not answers_late(device):
            yield batch, begun[1].wait()
            continue
        if before is not None:
            yield before[0], before[1].wait()
        before = begun
    if before is not None:
        yield before[0], before[1].wait()
