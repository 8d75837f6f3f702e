"""Checks that cost a wait for the GPU, off unless asked for."""

from __future__ import annotations

from ..errors import ArgumentTypeError

_on = False


class debug_checks:  # reads as a function, and as a block: `with debug_checks():`
    """Look at the values of patch ids and ``cu_seqlens`` on GPUs too, and raise the errors that the CPU raises.

    On CPU tensors these are always checked. On GPU tensors a check has to wait for the GPU, so none is made by default:
    ids out of range then give rows of zeros, and a bound too small for a plan made on the GPU clips it. Turn the checks
    on while looking for a mistake, for a block or for good::

        with hx.debug_checks():
            loss, _ = model(images, plan)

        hx.debug_checks(True)   # from here on
        hx.debug_checks(False)

    They hold for the whole process, compiled models included, but not inside CUDA graphs.
    """

    def __init__(self, on: bool = True) -> None:
        global _on
        if not isinstance(on, bool):
            raise ArgumentTypeError(f"on: got {type(on).__name__}, accepted is a bool")
        self._before, _on = _on, on

    def __enter__(self) -> debug_checks:
        return self

    def __exit__(self, *error: object) -> None:
        global _on
        _on = self._before


def checks_are_on() -> bool:
    """Whether GPU values are looked at."""
    return _on
