"""What a config asks for is held against the file of weights beside it, before anything of that size is made.

A ``config.json`` of a few bytes can ask for a model that no machine can hold. The weights say how large a model is: of
a safetensors file the header alone is read, of a model built without values its shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..errors import CheckpointError, HDXrayError
from ..regular_files import check_tensors, read_json, reason_of, what_else
from .data_only import settings_in

# A model may have more numbers than its file: positions that are computed, weights stored once and used twice, a head
# that begins anew. What does not fit by a few tensors is named tensor by tensor when it is loaded.
TIMES, BESIDE = 2, 1 << 24


class Stored(NamedTuple):
    """How much a file of weights holds."""

    tensors: int
    numbers: int

    @property
    def room(self) -> int:
        """Numbers that a model of these weights has at most."""
        return TIMES * self.numbers + BESIDE


def stored_in(*paths: Path) -> Stored:
    """How many tensors and numbers safetensors files hold, or the shards that an index lists in their place.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    parts = [_in_file(file) for path in paths for file in _files(path)]
    return Stored(sum(part.tensors for part in parts), sum(part.numbers for part in parts))


def check_room(
    source: str | Path,
    stored: Stored,
    build: Callable[[], nn.Module],
    blocks: Mapping[str, int],
    tables: Mapping[str, int] = {},
) -> None:
    """Refuse a model that is far larger than the weights it is for.

    Args:
        source: where its sizes stand, for the error.
        stored: the weights.
        build: makes it; called on the meta device, once ``blocks`` and ``tables`` are known to fit.
        blocks: numbers of blocks by the names of their settings: each has a tensor at least.
        tables: numbers in what ``build`` computes on the CPU all the same.

    Raises:
        CheckpointError: names what is too large.
    """
    for name, count in blocks.items():
        if isinstance(count, int) and count > stored.tensors:
            raise CheckpointError(_too_deep(source, name, count, stored))
    for name, count in tables.items():
        if count > stored.room:
            raise CheckpointError(_too_large(source, name, count, stored))
    try:
        with torch.device("meta"):
            model = build()
    except HDXrayError:
        raise
    except (RuntimeError, OverflowError, MemoryError) as error:  # sizes that no tensor can have
        raise CheckpointError(f"{source}: asks for sizes that no model has ({reason_of(error)[:200]})") from error
    held = [*model.parameters(), *model.buffers()]
    asked = sum(tensor.numel() for tensor in held)
    if asked > stored.room:
        largest = max(held, key=lambda tensor: tensor.numel())
        raise CheckpointError(_too_large(source, f"a tensor of {list(largest.shape)}", asked, stored))


def check_transformers_config(folder: Path, stored: Stored) -> None:
    """Refuse a ``config.json`` of transformers that asks for more blocks or positions than its weights can be of.

    Raises:
        CheckpointError: names the setting, or the file is damaged.
    """
    path = folder / "config.json"
    for settings in settings_in(path):
        for name, count in settings.items():
            if name in _BLOCKS and isinstance(count, int) and count > stored.tensors:
                raise CheckpointError(_too_deep(path, name, count, stored))
        # some compute them number by number
        rows, width = settings.get("max_position_embeddings"), settings.get("d_model")
        if isinstance(rows, int) and isinstance(width, int) and rows * width > stored.room:
            raise CheckpointError(_too_large(path, f"max_position_embeddings {rows}", rows * width, stored))


# names that transformers' configs have for the number of blocks
_BLOCKS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers", "decoder_layers")


def _too_deep(source: str | Path, name: str, count: int, stored: Stored) -> str:
    return f"{source}: asks for {name} {count}, the weights beside it have {stored.tensors} tensors"


def _too_large(source: str | Path, what: str, numbers: int, stored: Stored) -> str:
    return (
        f"{source}: asks for {what}, {numbers:.3g} numbers in all, the weights beside it hold {stored.numbers:.3g}; "
        "they are of another model, or the file was changed"
    )


def index_of(path: Path) -> Path:
    """The index of shards that may lie in place of a safetensors file."""
    return path.with_name(f"{path.name}.index.json")


def are_there(path: Path) -> bool:
    """Whether there is this safetensors file, or an index of shards in its place."""
    return path.is_file() or index_of(path).is_file()


def shards_of(index: Path) -> dict[str, str]:
    """The files that an index of shards names, by tensor.

    Raises:
        CheckpointError: it is damaged, or names a file that is not beside it.
    """
    try:
        places = read_json(index)["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no index of shards ({reason_of(error)})") from error
    if foreign := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index}: names a file outside its folder ({str(foreign[0])[:80]!r})")
    return places


def _files(path: Path) -> list[Path]:
    index = index_of(path)
    if path.is_file() or not index.is_file():
        return [path]
    return [index.with_name(name) for name in sorted(set(shards_of(index).values()))]


def _in_file(path: Path) -> Stored:
    from safetensors import SafetensorError, safe_open

    tensors = numbers = 0
    try:
        check_tensors(path)
        with safe_open(path, "np") as file:  # maps the file and reads its header
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                tensors += 1
                numbers += math.prod(part.get_shape()) * _NUMBERS.get(part.get_dtype(), 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {what_else(path) or 'is missing'}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({reason_of(error)})") from error
    return Stored(tensors, numbers)


# weights of four bits are packed into whole numbers
_NUMBERS = {"U8": 2, "I8": 2, "I16": 4, "U16": 4, "I32": 8, "U32": 8, "I64": 16, "U64": 16}
