"""A prepared data set as litdata's chunks: in a fixed random order, by several processes, going on after a stop.

hdxray-fast stream sets/chest --out chunks --part 3/8
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...errors import ConfigError, HDXrayError, TrainingError
from ...files import checksum, flush, make_folder, remove_leftovers, temporary_name, written_whole
from ...locks import locked
from ...names import require_utf8
from ...parquet_files import read_parquet
from ...progress import progress_bar
from ...regular_files import RUN_JSON, open_regular, read_json
from ..order import generator
from .config import which_part
from .index import INDEX as TABLE
from .index import LOOKUP
from .index_files import IndexFiles
from .reading import Prepared, PreparedSet
from .shards import FORMAT, FORMAT_VERSION, SETTINGS, arrow, chunk_name, schema, write_json
from .stream_index import FIELDS, litdata_or_error
from .worker import OK

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
            Where all is there already, nothing is done.
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
    require_utf8(out, "out")
    litdata_or_error()
    which, of = which_part(part)
    data, out = PreparedSet(folder, verify=True), Path(out)
    data.check()
    chunks = _Chunks(data, out, chunk_bytes)
    try:
        chunks.begin()
        mine = [number for number in range(which, len(chunks), of) if not chunks.is_there(number)]
        if chunks.are_finished():  # by another part, maybe while this one looked
            return len(data)
        with progress_bar(sum(map(chunks.size_of, mine)), "stream", show=progress) as bar:
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
    """The chunks of a data set in a folder.

    ``index.json`` is litdata's. ``settings.json``, ``lookup.arrow`` and ``index.parquet`` say where images lie in the
    chunks, so that a local copy of them is a prepared data set too.
    """

    def __init__(self, data: PreparedSet, out: Path, chunk_bytes: int) -> None:
        self.data, self.out, self.work = data, out, out / WORK
        self.order = generator(SEED, 0).permutation(len(data))
        self.inside_share = data.column("inside_share").to_numpy()
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
        return self.out / chunk_name(number)

    def facts(self, number: int) -> Path:
        return self.work / f"{number}.parquet"

    def are_finished(self) -> bool:
        """Whether all of these chunks are there with their index, which comes last."""
        if not (self.out / INDEX).exists():
            return False
        try:
            told = read_json(self.out / SETTINGS, RUN_JSON)
            size = sum(self.path(number).stat().st_size for number in range(len(self)))
            return (told["id"], told["bytes"]) == (self.id, size)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def begin(self) -> None:
        """Mark an empty folder as of this data set, or go on in one that is marked so; other parts may do so too."""
        make_folder(self.out)
        if self.are_finished():
            shutil.rmtree(self.work, ignore_errors=True)  # of a process that was killed while it removed this
            return
        if not self.work.exists():
            if any(path.name != WORK and not path.name.startswith(f".{WORK}.") for path in self.out.iterdir()):
                there = "something"
                if (self.out / INDEX).exists():
                    there = "chunks that are finished, and not those of this data set in this chunk size"
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
            whole = self.path(number).stat().st_size == entry["size"] and self.facts(number).is_file()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if whole else None

    def write(self, number: int) -> None:
        """Under another name first; the file beside it that says so comes last."""
        from litdata.streaming.writer import BinaryWriter

        place, facts = temporary_name(self.work / str(number)), []
        try:
            writer = BinaryWriter(str(place), chunk_size=self.images, chunk_index=number)
            for at, row in enumerate(self.rows(number).tolist()):
                sample, encoded = self.data[row], self.data.encoded(row)
                writer.add_item(at, _as_sample(sample, encoded, self.data.recipe))
                facts.append(self._fact(number, at, row, sample, encoded))
            writer.done()
            writer.merge(1)
            index = read_json(place / INDEX, RUN_JSON)
            (entry,) = index["chunks"]
            made = place / entry["filename"]
            _find_pixels(made, facts)
            size = made.stat().st_size
            flush(made)
            made.replace(self.path(number))
            flush(self.out)
            with written_whole(self.facts(number)) as temporary:
                pa = arrow()
                pa.parquet.write_table(pa.Table.from_pylist(facts, schema=schema()), temporary)
            with written_whole(self.work / f"{number}.json") as temporary:
                entry |= {"filename": self.path(number).name}
                told = {"size": size, "chunk": entry, "config": index["config"]}
                temporary.write_text(json.dumps(told), encoding="utf-8")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _fact(self, number: int, at: int, row: int, sample: Prepared, encoded: np.ndarray) -> dict:
        """What a prepared data set keeps of an image, without what names it or tells patients apart."""
        return {
            "source": f"{self.path(number).name}[{at}]",
            "status": OK,
            "shard": number,
            "length": len(encoded),
            "crc32": int(self.data.checksums()[row]),
            "valid_box": list(sample.valid_box),
            "polygon": sample.polygon.ravel(),
            "inside": np.packbits(sample.inside).tobytes(),
            "inside_share": float(self.inside_share[row]),
            "scale": sample.scale,
            "shift": sample.shift,
        }

    def finish(self) -> bool:
        """Write the index if all chunks are there; whether they are."""
        with suppress(FileNotFoundError), locked(self.work / "lock"):  # not there: another part has finished
            entries = [self._entry(number) for number in range(len(self))]
            if None in entries and self.work.exists():
                return False
            if self.work.exists():
                self._write_lookup(sum(entry["size"] for entry in entries))
                index = {
                    "chunks": [entry["chunk"] for entry in entries],
                    "config": entries[0]["config"],
                    "updated_at": self.id[:16],  # litdata's caches of another set are not taken for this one's
                }
                with written_whole(self.out / INDEX) as temporary:
                    temporary.write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
                shutil.rmtree(self.work, ignore_errors=True)
        return (self.out / INDEX).exists()

    def _write_lookup(self, size: int) -> None:
        with (
            written_whole(self.out / LOOKUP) as lookup,
            written_whole(self.out / TABLE) as table,
            IndexFiles(table, lookup) as files,
        ):
            for number in range(len(self)):
                files.add(read_parquet(self.facts(number)).drop_columns(["status", "reason", "left_out"]))
        settings = {"format": FORMAT, "format_version": FORMAT_VERSION, "recipe": self.data.recipe, "chunks": True}
        sums = {name: checksum(self.out / name) for name in (LOOKUP, TABLE)}
        settings |= {"id": self.id, "images": len(self.data), "bytes": size, "checksums": sums}
        write_json(self.out / SETTINGS, settings)


def _as_sample(sample: Prepared, encoded: np.ndarray, recipe: dict) -> dict:
    return {
        "pixels": encoded.tobytes(),
        "valid_box": np.asarray(sample.valid_box, np.int32),
        "polygon": np.ascontiguousarray(sample.polygon),
        "inside": np.packbits(sample.inside).tobytes(),
        "tone": np.asarray((sample.scale, sample.shift), np.float64),
        "format": f"{recipe['format']} {recipe['size']} {recipe['bits']}",
    }


def _find_pixels(chunk: Path, facts: list[dict]) -> None:
    """Add to the facts of a chunk's images where their pixels begin in it; each is read back and compared.

    litdata's layout: the number of items, where each begins and the last ends, then the items: the sizes of its fields,
    of which pixels are the first, and the fields (all numbers ``uint32``, little-endian).
    """
    with open_regular(chunk) as stream:
        starts = np.frombuffer(stream.read(4 * (len(facts) + 1)), "<u4")[1:]
        for start, fact in zip(starts.tolist(), facts, strict=True):
            fact["offset"] = start + 4 * len(FIELDS)
            stream.seek(fact["offset"])
            if zlib.crc32(stream.read(fact["length"])) != fact["crc32"]:
                raise TrainingError(f"{chunk}: is not laid out as this package knows it; take another litdata release")
