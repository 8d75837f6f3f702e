"""A model under ``torch.compile``, for as long as compiling works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Compiled:
    """Calls a model through ``torch.compile`` until that fails, and as it is from then on.

    Args:
        model: to be called.
        wanted: whether to compile it at all.
        say: told once, in words, that compiling failed.
    """

    def __init__(self, model: nn.Module, wanted: bool, say: Callable[[str], None]) -> None:
        self.model, self._say = model, say
        self._compiled = torch.compile(model) if wanted else None

    @property
    def compiles(self) -> bool:
        """Whether the next call goes through the compiler."""
        return self._compiled is not None

    def __call__(self, *args: Any, **options: Any) -> Any:
        called = self.model if self._compiled is None else self._compiled  # its truth would be its length
        return called(*args, **options)

    def run(self, work: Callable[[], Any], again: Callable[[], None]) -> Any:
        """``work()``, which calls this forwards and backwards; where compiling fails, ``again()``, and work without.

        Raises:
            Exception: whatever else ``work`` raises.
        """
        if not self.compiles:
            return work()
        from torch._dynamo.exc import TorchDynamoException  # not where nothing is compiled: it takes a second

        try:
            return work()
        except TorchDynamoException as error:  # what a model raises by itself is none
            self._compiled = None
            first = str(error).strip().split("\n")[0][:200]
            self._say(f"the model could not be compiled ({type(error).__name__}: {first}); the run goes on without")
        again()
        return work()
