"""What compiled models need to be told, without importing the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


def constant_result(function: F) -> F:
    """Have ``torch.compile`` call a function while it traces and keep the answer, since machines do not change.

    As ``torch.compiler.assume_constant_result``, which imports the whole compiler (a second) to set this mark.
    """
    function._dynamo_marked_constant = True
    return function


def not_traced(reason: str) -> Callable[[F], F]:
    """Have ``torch.compile`` call a function between two graphs; with ``fullgraph=True`` its error gives the reason.

    As ``torch.compiler.disable``, which imports the whole compiler to set these marks.
    """

    def mark(function: F) -> F:
        function._torchdynamo_disable = True
        function._torchdynamo_disable_msg = reason
        return function

    return mark
