"""Batches as they come (dicts, lists, dataclasses of tensors), taken apart and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

Path = tuple[str | int, ...]


def tensors_of(value: Any, path: Path = ()) -> dict[Path, Tensor]:
    """All tensors within ``value``, by where they are."""
    if isinstance(value, Tensor):
        return {path: value}
    found: dict[Path, Tensor] = {}
    for name, part in _parts(value):
        found.update(tensors_of(part, (*path, name)))
    return found


def with_tensors(value: Any, tensors: Mapping[Path, Tensor], path: Path = ()) -> Any:
    """``value`` with the tensors of :func:`tensors_of` replaced.

    Entries of a dict that hold no tensor are left out: they are facts of this one batch.
    """
    if isinstance(value, Tensor):
        return tensors[path]
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v is None or tensors_of(v)}
        return {k: with_tensors(v, tensors, (*path, k)) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([with_tensors(v, tensors, (*path, i)) for i, v in enumerate(value)])
    if dataclasses.is_dataclass(value):
        parts = {k: with_tensors(v, tensors, (*path, k)) for k, v in _parts(value) if tensors_of(v)}
        return dataclasses.replace(value, **parts)
    return value


def shape_of(value: Any) -> Hashable:
    """What two batches share for which the same kernels are launched in the same way."""
    if isinstance(value, Tensor):
        return tuple(value.shape), tuple(value.stride()), value.dtype
    if isinstance(value, dict):
        return tuple((k, shape_of(v)) for k, v in value.items() if v is None or tensors_of(v))
    parts = _parts(value)
    if parts:
        return type(value).__name__, tuple((k, shape_of(v)) for k, v in parts)
    return value


def _parts(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []
