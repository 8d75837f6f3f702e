"""A prepared data set as litdata's chunks: in a fixed random order, by several processes, going on after a stop.

hdxray-fast stream sets/chest --out chunks --part 3/8
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...errors import ConfigError, HDXrayError, TrainingError
from ...files import checksum, flush, make_folder, remove_leftovers, temporary_name, written_whole
from ...locks import locked
from ...regular_files import RUN_JSON, read_json
from ..order import generator
from .config import which_part
from .reading import PreparedSet
from .stream_index import litdata_or_error

CHUNK = 64 << 20  # bytes of a chunk, about; 40 raw images of 1280 x 1280
SEED = 0  # of the order of images
INDEX = "index.json"
WORK, MARK = ".stream", "set.json"  # a folder that is there while chunks are missing, with the index's part of each


def write_stream(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    chunk_bytes: int = CHUNK,
    part: str = "1/1",
    progress: bool = False,
) -> int:
    """A prepared data set as chunks; the same data set gives the same chunks, by however many parts.

    Images lie in a random order, always the same one: those of a chunk, which is read at one time, are of as many
    patients and sources as under a full shuffle. Nothing of the index that names a file or tells patients apart goes
    along. A chunk appears whole or not at all, and what is there is not made again.

    Args:
        folder: of the prepared data set, merged.
        out: an empty folder, or one that this was stopped in; copy it to the object store once ``index.json`` is there.
        chunk_bytes: about how large a chunk is; one is fetched at a time.
        part: ``i/n``, the i-th of n shares of the chunks; whichever part finds all chunks there writes the index.
        progress: show a bar.

    Returns:
        Images in ``out``, once all parts are written; until then 0.

    Raises:
        ConfigError: no prepared data set, ``part``, or ``out`` holds something else or chunks of another data set.
        TrainingError: the disk is full.
        ShardError: an image is damaged.
        MissingDependencyError: litdata is not installed.
    """
    litdata_or_error()
    from tqdm.auto import tqdm

    which, of = which_part(part)
    data, out = PreparedSet(folder, verify=True), Path(out)
    data.check()
    chunks = _Chunks(data, out, chunk_bytes)
    try:
        chunks.begin()
        mine = [number for number in range(which, len(chunks), of) if not chunks.is_there(number)]
        with tqdm(
            total=sum(map(chunks.size_of, mine)), desc="stream", unit="image", disable=not progress, dynamic_ncols=True
        ) as bar:
            for number in mine:
                chunks.write(number)
                bar.update(chunks.size_of(number))
        return len(data) if chunks.finish() else 0
    except HDXrayError:
        raise
    except OSError as error:
        raise TrainingError(
            f"out: {out} cannot be written ({error.strerror or error}); chunks that are there are kept, start again to "
            "go on"
        ) from error


class _Chunks:
    """The chunks of a data set in a folder."""

    def __init__(self, data: PreparedSet, out: Path, chunk_bytes: int) -> None:
        self.data, self.out, self.work = data, out, out / WORK
        self.order = generator(SEED, 0).permutation(len(data))
        self.images = max(1, chunk_bytes // max(1, int(data.column("length").to_numpy().mean())))
        # other pixels, another size of chunks or another release of numpy's generator: no chunk would go with another
        what = f"{checksum(data.folder / 'lookup.arrow')} {data.recipe} {self.images}".encode()
        self.id = hashlib.sha256(what + self.order.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return -(-len(self.data) // self.images)

    def rows(self, number: int) -> np.ndarray:
        return self.order[number * self.images : (number + 1) * self.images]

    def size_of(self, number: int) -> int:
        return len(self.rows(number))

    def path(self, number: int) -> Path:
        return self.out / f"chunk-0-{number}.bin"

    def begin(self) -> None:
        """Mark an empty folder as of this data set, or go on in one that is marked so; other parts may do so too."""
        make_folder(self.out)
        if not self.work.exists():
            if any(path.name != WORK and not path.name.startswith(f".{WORK}.") for path in self.out.iterdir()):
                there = "chunks that are finished" if (self.out / INDEX).exists() else "something"
                raise ConfigError(f"out: {self.out} is not empty, it holds {there}; choose another folder")
            remove_leftovers(self.out)
            self._mark()
        try:
            same = read_json(self.work / MARK, RUN_JSON)["id"] == self.id
        except (OSError, ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise ConfigError(
                f"out: {self.out} holds chunks of another data set, or of another chunk size; choose another folder"
            )
        remove_leftovers(self.work)

    def _mark(self) -> None:
        """The folder of work, with its mark, appears at once; the first of several parts makes it."""
        new = temporary_name(self.work)
        new.mkdir()
        try:
            (new / MARK).write_text(json.dumps({"id": self.id}), encoding="utf-8")
            flush(new / MARK)
            with suppress(OSError):  # it is there
                new.rename(self.work)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def is_there(self, number: int) -> bool:
        return self._entry(number) is not None

    def _entry(self, number: int) -> dict | None:
        """What the index says of a chunk, with how samples are laid out in it; ``None`` if it is to be written."""
        try:
            entry = read_json(self.work / f"{number}.json", RUN_JSON)
            whole = self.path(number).stat().st_size == entry["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if whole else None

    def write(self, number: int) -> None:
        """Under another name first; the file beside it that says so comes last."""
        from litdata.streaming.writer import BinaryWriter

        place = temporary_name(self.work / str(number))
        try:
            writer = BinaryWriter(str(place), chunk_size=self.images, chunk_index=number)
            for at, row in enumerate(self.rows(number).tolist()):
                writer.add_item(at, _as_sample(self.data, row))
            writer.done()
            writer.merge(1)
            index = read_json(place / INDEX, RUN_JSON)
            (entry,) = index["chunks"]
            made = place / entry["filename"]
            size = made.stat().st_size
            flush(made)
            made.replace(self.path(number))
            flush(self.out)
            entry |= {"filename": self.path(number).name}
            with written_whole(self.work / f"{number}.json") as temporary:
                told = {"size": size, "chunk": entry, "config": index["config"]}
                temporary.write_text(json.dumps(told), encoding="utf-8")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def finish(self) -> bool:
        """Write the index if all chunks are there; whether they are."""
        with suppress(FileNotFoundError), locked(self.work / "lock"):  # not there: another part has finished
            entries = [self._entry(number) for number in range(len(self))]
            if None in entries and self.work.exists():
                return False
            if self.work.exists():
                index = {
                    "chunks": [entry["chunk"] for entry in entries],
                    "config": entries[0]["config"],
                    "updated_at": self.id[:16],  # litdata's caches of another set are not taken for this one's
                }
                with written_whole(self.out / INDEX) as temporary:
                    temporary.write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
                shutil.rmtree(self.work, ignore_errors=True)
        return (self.out / INDEX).exists()


def _as_sample(data: PreparedSet, row: int) -> dict:
    sample, recipe = data[row], data.recipe
    return {
        "pixels": data.encoded(row).tobytes(),
        "valid_box": np.asarray(sample.valid_box, np.int32),
        "polygon": np.ascontiguousarray(sample.polygon),
        "inside": np.packbits(sample.inside).tobytes(),
        "tone": np.asarray((sample.scale, sample.shift), np.float64),
        "format": f"{recipe['format']} {recipe['size']} {recipe['bits']}",
    }
