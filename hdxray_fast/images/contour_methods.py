"""How a chest contour can be found: the names, for :mod:`.images.contour` and for settings, which need no more."""

from __future__ import annotations

from typing import Literal, get_args

ContourMethod = Literal["network", "classical", "prior", "rectangle"]
METHODS: tuple[str, ...] = get_args(ContourMethod)
