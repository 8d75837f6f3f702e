"""A prepared data set: an index, and pixels read from the shards when they are asked for."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ...errors import ArgumentError, ConfigError
from ...images.view import VIEWS
from ...names import SURROGATE, escaped, unescaped
from ...parquet_files import read_parquet
from ...regular_files import RUN_JSON, read_json, reason_of
from .lookup import read_lookup
from .shard_files import ShardFiles
from .shards import FORMAT, LOOKUP_ROWS, SETTINGS, ChunkFolder, ShardError, ShardFolder, arrow, read_settings
from .worker import PATCH

LOOKUP = "lookup.arrow"
GAP = 1 << 16  # bytes between two images of a shard that are read along rather than passed over


class Prepared(NamedTuple):
    """One image of a prepared data set.

    Attributes:
        pixels: ``[S, S] uint8 | uint16``, memory of its own.
        valid_box: (top, left, height, width) in pixels, where the radiograph lies on the canvas.
        polygon: ``[K, 2] float32``, the contour in canvas pixels.
        inside: ``[S/16, S/16] bool``, patches of the chest.
        scale, shift: ``pixel * scale + shift`` has mean 0 and deviation 1 over the radiograph.
    """

    pixels: np.ndarray
    valid_box: tuple[int, int, int, int]
    polygon: np.ndarray
    inside: np.ndarray
    scale: float
    shift: float


class PreparedSet:
    """Random access to what ``hdxray-fast prepare`` wrote.

    ``data[i]`` is a :class:`Prepared`: ``pixels [S, S]`` uint8 or uint16, ``valid_box``, ``polygon``, ``inside`` (bool
    ``[S / 16, S / 16]``), ``scale`` and ``shift``; ``len(data)`` counts images.

    Processes that fork or pickle it share the pages of contours, and keep 36 bytes an image of their own. Shards are
    read, never mapped: one that is cut short, or a disk or server that fails, is an error that names it. The latest
    used stay open: at most 4096, and half of the files that a process may have open.

    Args:
        folder: of the data set.
        verify: check each image's checksum as it is read (an image of 1280 x 1280 takes about 1 ms more).

    Attributes:
        folder: of the data set.
        size: canvas side, pixels.
        recipe: settings that it was made with.

    Raises:
        ConfigError: the folder is no prepared data set, or its parts are not merged.
        ShardError: reading an image whose shard is missing or damaged, or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, verify: bool = False) -> None:
        self.folder, self.verify = Path(folder), verify
        settings = read_settings(self.folder)
        self.recipe = settings["recipe"]
        self.size = self.recipe["size"]
        if SURROGATE.search(str(self.folder)):
            raise ConfigError(
                f"{escaped(self.folder)}: has a name that is not UTF-8, where Arrow opens no file; rename the folder"
            )
        path = self.folder / LOOKUP
        if not os.path.lexists(path):
            raise ConfigError(
                f"{path}: is missing; once all parts are prepared, hdxray-fast merge {self.folder} writes it"
            )
        arrow()
        try:
            table, batches = read_lookup(path, self.size)
            self._lookup = table
            numbers = [table.column(name).to_numpy() for name in ("shard", "offset", "length", "crc32")]
            self._scale, self._shift = (table.column(name).to_numpy() for name in ("scale", "shift"))
            boxes = [batch.column("valid_box").flatten().to_numpy() for batch in batches]
            self._polygons, self._insides = (
                [batch.column(name) for batch in batches] for name in ("polygon", "inside")
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: is damaged ({reason_of(error)}); hdxray-fast merge {self.folder} writes it again"
            ) from error
        self._shard, self._offset, self._length, self._crc32 = numbers
        self._box = np.concatenate([np.empty(0, np.int32), *boxes]).reshape(-1, 4)
        chunks = settings.get("chunks", False)
        self._shards = ChunkFolder(self.folder) if chunks else ShardFolder(self.folder / "shards")
        self._files = ShardFiles(self._shards)

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, row: int) -> Prepared:
        return self.read(row)

    def read(self, row: int, out: np.ndarray | None = None) -> Prepared:
        """An image, its pixels in ``out`` if given: ``[S, S]`` of the set's type, in C order.

        Those of a ``raw`` set are read straight into it; an error may leave part of them there.

        Raises:
            ArgumentError: ``out`` is another array.
            ShardError: the shard is missing or damaged, or cannot be read.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a data set of {len(self)} images")
        row %= len(self)
        batch, place = divmod(row, LOOKUP_ROWS)
        polygon = self._polygons[batch][place].values.to_numpy().reshape(-1, 2)
        inside = inside_grid(self._insides[batch][place].as_buffer(), self.size)
        box = tuple(int(v) for v in self._box[row])
        return Prepared(self.pixels(row, out), box, polygon, inside, float(self._scale[row]), float(self._shift[row]))

    def pixels(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        """``[S, S]``, read or decoded, into ``out`` if given."""
        if out is not None:
            self._check_out(out)
        straight = out is not None and self.recipe["format"] == "raw" and out.nbytes == int(self._length[row])
        data = self.encoded(row, out.reshape(-1).view(np.uint8) if straight else None)
        try:
            pixels = decode(data, self.recipe)
        except ArgumentError as error:
            path = self._shards.pixels(int(self._shard[row]))
            raise ShardError(f"{path}: the image of row {row} is damaged ({error}); {self._shards.remake}") from error
        if out is None:
            return pixels
        if not straight:
            np.copyto(out, pixels)
        return out

    def _check_out(self, out: np.ndarray) -> None:
        shape, dtype = (self.size, self.size), np.dtype("<u2" if self.recipe["bits"] == 16 else "u1")
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise ArgumentError(f"out: got {out.dtype} {out.shape}, accepted is {dtype} {shape} in C order, writable")

    def encoded(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        """``[length] uint8``, in ``out`` if given: the image as it lies in its shard."""
        number, start, length = int(self._shard[row]), int(self._offset[row]), int(self._length[row])
        data = np.empty(length, np.uint8) if out is None else out
        if self._fill(number, start, data) != length:
            raise ShardError(
                f"{self._shards.pixels(number)}: ends before the image of row {row}; {self._shards.remake}"
            )
        if self.verify and zlib.crc32(data) != int(self._crc32[row]):
            raise ShardError(f"{self._shards.pixels(number)}: the image of row {row} is damaged; {self._shards.remake}")
        return data

    def _fill(self, number: int, start: int, out: np.ndarray) -> int:
        """From a shard; how many bytes, fewer if it ends before."""
        return self._files.read(number, start, out)

    def extents(self, rows: np.ndarray) -> list[tuple[Path, int, int]]:
        """Where images lie, ``rows [n] int64``, those that follow each other in a shard joined: file, first byte,
        end."""
        shards, starts = self._shard[rows], self._offset[rows]
        ends = starts + self._length[rows]
        between = starts[1:] - ends[:-1]
        new = np.flatnonzero((shards[1:] != shards[:-1]) | (between < 0) | (between > GAP)) + 1
        firsts = np.concatenate([np.arange(min(1, len(rows))), new])
        lasts = np.append(new, len(rows))[: len(firsts)] - 1
        places = zip(shards[firsts].tolist(), starts[firsts].tolist(), ends[lasts].tolist(), strict=True)
        return [(self._shards.pixels(number), start, end) for number, start, end in places]

    fetchers = 1  # threads that read ahead

    def bring(self, path: Path) -> bool:
        """Have the shard at ``path`` here, before a part of it is read ahead; whether it had to be fetched."""
        return False

    def touch(self, rows: np.ndarray) -> None:
        """These images are about to be read: what has to make room is something else."""

    def run_starts(self) -> np.ndarray | None:
        """The first row of each piece of the set that is read at one time, ``[n] int64``; ``None`` if it has none."""
        chunked = isinstance(self._shards, ChunkFolder)
        return np.flatnonzero(np.diff(self._shard, prepend=-1)) if chunked else None

    def check(self) -> None:
        """Look whether every shard is there and long enough, without reading it.

        Raises:
            ShardError: the first that is not.
        """
        numbers, place = np.unique(self._shard, return_inverse=True)
        ends = np.zeros(len(numbers), np.int64)
        np.maximum.at(ends, place, self._offset + self._length)
        for number, end in zip(numbers.tolist(), ends.tolist(), strict=True):
            path = self._shards.pixels(number)
            found = path.stat().st_size if path.exists() else 0
            if found < end:
                raise ShardError(f"{path}: has {found} bytes, at least {end} belong there; {self._shards.remake}")

    @cached_property
    def index(self):
        """The Parquet index as a pyarrow table, read when it is first asked for."""
        return self._read_index(None)

    def column(self, name: str):
        """A column of the index as a pyarrow array, by row."""
        if name in self._lookup.column_names:
            return self._lookup.column(name)
        return self._read_index([name]).column(name)

    @cached_property
    def _sources(self):
        return self.column("source")

    def _read_index(self, columns: list[str] | None):
        pa = arrow()
        path = self.folder / "index.parquet"
        try:
            table = read_parquet(path, columns)
            table.validate(full=True)
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ConfigError(
                f"{path}: is missing or damaged ({reason_of(error)}); hdxray-fast merge {self.folder} writes it again"
            ) from error

    def shares(self) -> tuple[float, float]:
        """Mean share of a canvas inside the contour, and mean share of its patches that are no padding."""
        inside, valid = self.shares_by_image()
        return float(inside.mean()), float(valid.mean())

    def shares_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image, the share of a canvas inside the contour and the share of its patches that are no padding.

        Two ``[N] float64``.
        """
        top, left, height, width = self._box.T.astype(np.int64)
        rows = -(-(top + height) // PATCH) - top // PATCH
        columns = -(-(left + width) // PATCH) - left // PATCH
        patches = (self.size // PATCH) ** 2
        inside = np.rint(self.column("inside_share").to_numpy().astype(np.float64) * patches)  # it is kept as float32
        return inside / patches, rows * columns / patches

    def source(self, row: int) -> str:
        """Name of the source of a row, for errors and reports."""
        return unescaped(self._sources[row].as_py())

    def sources(self) -> list[str]:
        """Names of all sources, by row."""
        return [unescaped(name) for name in self._sources.to_pylist()]

    def hashes(self) -> list[str]:
        """Of each image, the hash of its stored pixels, to find duplicates; empty where it is not known."""
        return [digest or "" for digest in self.column("pixel_sha256").to_pylist()]

    def checksums(self) -> np.ndarray:
        """Of each image, the CRC-32 of its canvas as it is stored, ``[N] uint32``: all of it, while hashes of stored
        pixels are of some rows."""
        return self._crc32

    def stamp(self, row: int) -> tuple[int, int]:
        """Bytes that an image takes in its shard, and their CRC-32."""
        return int(self._length[row]), int(self._crc32[row])

    def about(self, row: int) -> tuple[float, bool, str, str]:
        """Of an image, the confidence of its contour, whether that is flagged, the hash of its stored pixels, its view.

        NaN, False and ``""`` where the set does not tell.
        """
        confidence, flagged, digest, view = (column[row].as_py() for column in self._about)
        known = view if view in VIEWS else ""  # earlier versions wrote the words of headers there
        return float("nan") if confidence is None else confidence, bool(flagged), digest or "", known

    @cached_property
    def _about(self) -> list:
        return self._read_index(["confidence", "flagged", "pixel_sha256", "view"]).columns

    def subset(self, rows: Sequence[int], names: Sequence[str] | None = None) -> PreparedSubset:
        """Some of the images in an order of their own, called by ``names``, or else as their sources are."""
        return PreparedSubset(self, rows, [self.source(row) for row in rows] if names is None else names)

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "verify": self.verify}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


class PreparedSubset:
    """Some images of a prepared data set, numbered anew; read like the whole of it.

    Args:
        images: the data set.
        rows: of it, in the order of the subset.
        names: where each image comes from, as the user named it.
    """

    def __init__(self, images: PreparedSet, rows: Sequence[int], names: Sequence[str]) -> None:
        self.images, self.rows, self._names = images, np.asarray(rows, np.int64), list(names)

    @property
    def size(self) -> int:
        """Canvas side, pixels."""
        return self.images.size

    @property
    def recipe(self) -> dict:
        """Settings that the data set was made with."""
        return self.images.recipe

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Prepared:
        return self.read(place)

    def read(self, place: int, out: np.ndarray | None = None) -> Prepared:
        """As :meth:`PreparedSet.read`."""
        return self.images.read(int(self.rows[place]), out)

    def extents(self, places: np.ndarray) -> list[tuple[Path, int, int]]:
        """As :meth:`PreparedSet.extents`."""
        rows = self.rows[places]
        return self.images.extents(rows[rows >= 0])  # what a cache has lost lies nowhere

    @property
    def fetchers(self) -> int:
        """As :attr:`PreparedSet.fetchers`."""
        return self.images.fetchers

    def bring(self, path: Path) -> bool:
        """As :meth:`PreparedSet.bring`."""
        return self.images.bring(path)

    def touch(self, places: np.ndarray) -> None:
        """As :meth:`PreparedSet.touch`."""
        self.images.touch(self.rows[places])

    def run_starts(self) -> np.ndarray | None:
        """As :meth:`PreparedSet.run_starts`."""
        starts = self.images.run_starts()
        if starts is None:
            return None
        return np.flatnonzero(np.diff(np.searchsorted(starts, self.rows, "right"), prepend=-1))

    def source(self, place: int) -> str:
        """As :meth:`PreparedSet.source`."""
        return self._names[place]

    def sources(self) -> list[str]:
        """As :meth:`PreparedSet.sources`."""
        return list(self._names)

    def key(self, place: int) -> str:
        """32 hexadecimal digits that tell an image, as it was prepared, from all others."""
        recipe, row = self.images.recipe, int(self.rows[place])
        told = [self.images.source(row), *self.images.stamp(row), recipe["size"], recipe["contour"]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def column(self, name: str):
        """As :meth:`PreparedSet.column`, but for ``source``, which is as it was when the data set was made."""
        return self.images.column(name).take(arrow().array(self.rows))

    def hashes(self) -> list[str]:
        """As :meth:`PreparedSet.hashes`."""
        found = self.images.hashes()
        return [found[row] for row in self.rows]

    def checksums(self) -> np.ndarray:
        """As :meth:`PreparedSet.checksums`."""
        return self.images.checksums()[self.rows]

    def shares_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`PreparedSet.shares_by_image`."""
        inside, valid = self.images.shares_by_image()
        return inside[self.rows], valid[self.rows]

    def subset(self, places: Sequence[int]) -> PreparedSubset:
        """Some of these."""
        return PreparedSubset(self.images, self.rows[list(places)], [self._names[place] for place in places])


def decode(data: bytes | np.ndarray, recipe: dict) -> np.ndarray:
    """Pixels ``[S, S]`` from what :func:`hdxray_fast.data.prepared.worker.encode` made.

    Raises:
        ArgumentError: the data are not a picture of the recipe's size and depth.
    """
    size, dtype = recipe["size"], np.dtype("<u2" if recipe["bits"] == 16 else "u1")
    flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    if recipe["format"] == "raw":
        if flat.nbytes != size * size * dtype.itemsize:
            raise ArgumentError(f"data: {flat.nbytes} bytes, accepted are {size * size * dtype.itemsize}")
        return flat.view(dtype).reshape(size, size)
    pixels = cv2.imdecode(flat, cv2.IMREAD_UNCHANGED) if len(flat) else None
    if pixels is None or pixels.shape != (size, size) or pixels.dtype != dtype:
        raise ArgumentError(f"data: are no {recipe['format']} of {size} x {size} pixels of {recipe['bits']} bits")
    return pixels


def inside_grid(packed, size: int) -> np.ndarray:
    """``[S/16, S/16] bool`` from its packed bits, bytes or a buffer."""
    side = size // PATCH
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=side * side).reshape(side, side).astype(bool)


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether a folder is a prepared data set, finished or not; also one whose settings are lost or damaged, which
    whoever opens it is told."""
    folder = Path(folder)
    try:
        found = read_json(folder / SETTINGS, RUN_JSON)
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found.get("format") == FORMAT
    return (folder / LOOKUP).is_file() or ((folder / "shards").is_dir() and (folder / "sources.parquet").is_file())
