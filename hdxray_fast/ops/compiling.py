"""What compiled models need to be told, without importing the compiler."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

_standard = threading.local()
F = TypeVar("F", bound=Callable)


def constant_result(function: F) -> F:
    """Have ``torch.compile`` call a function while it traces and keep the answer, since machines do not change.

    As ``torch.compiler.assume_constant_result``, which imports the whole compiler (a second) to set this mark.
    """
    function._dynamo_marked_constant = True
    return function


def writes_graph() -> bool:
    """Whether ``torch.export`` (ONNX's too) or ``torch.jit.trace`` writes down what is computed, for other runtimes.

    These know no operators of this package: whole images are computed by standard ones then. Not told of
    ``torch.export(strict=True)``: the compiler that this goes through answers the question alike for ``torch.compile``
    in some versions.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@contextmanager
def standard_operations(kept: Tensor | None = None) -> Iterator[None]:
    """Have layers compute dense tokens by operations that other runtimes know; see ``models/dense.py``.

    ``kept`` is bool ``[B, S]``: the tokens that are keys of attention; left out, all.
    """
    before = getattr(_standard, "kept", None), takes_standard_operations()
    _standard.kept, _standard.on = kept, True
    try:
        yield
    finally:
        _standard.kept, _standard.on = before


def takes_standard_operations() -> bool:
    """Whether :func:`standard_operations` is in force in this thread."""
    return not torch.compiler.is_dynamo_compiling() and getattr(_standard, "on", False)


def kept_keys() -> Tensor | None:
    """What :func:`standard_operations` was given."""
    return _standard.kept


def not_traced(reason: str) -> Callable[[F], F]:
    """Have ``torch.compile`` call a function outside of its graphs; with ``fullgraph=True`` its error gives the reason.

    As ``torch.compiler.disable``, which imports the whole compiler: here that waits until somebody else has.
    """

    def mark(function: F) -> F:
        untraced: list[Callable] = []

        @functools.wraps(function)
        def called(*args, **options):
            if "torch._dynamo" not in sys.modules:
                return function(*args, **options)
            if not untraced:  # what the function calls is not traced either
                untraced.append(torch.compiler.disable(function, reason=reason))
            return untraced[0](*args, **options)

        called._torchdynamo_disable = True
        called._torchdynamo_disable_msg = reason
        return called

    return mark
