"""Mutated index files of prepared data sets: each is refused by name or read as it was, and the process lives.

By hand: ``python tests/helpers/index_fuzz.py --count 5000`` tells what became of them, seconds and peak memory. What
was being read is on standard error, so that the last line names a file that crashed.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from prepared_helpers import make_folder, prepare

from hdxray_fast.data.prepared.index import merge
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.shards import ShardFolder
from hdxray_fast.errors import HDXrayError

NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, -1, -8, -(2**31))


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """Some bytes changed: bits turned, numbers of 4 or 8 bytes put in place of others, cut, doubled or moved."""
    found = bytearray(data)
    for _ in range(int(draw.integers(1, 5))):
        if len(found) < 32:
            break
        place = int(draw.integers(0, len(found) - 16))
        how = int(draw.integers(0, 7))
        if how < 2:
            found[place] ^= 1 << int(draw.integers(0, 8))
        elif how < 5:  # offsets and lengths are aligned
            size = 4 if how == 2 else 8
            place -= place % size
            value = NUMBERS[int(draw.integers(0, len(NUMBERS)))] if draw.random() < 0.7 else int(draw.integers(0, 4096))
            found[place : place + size] = struct.pack("<q", value)[:size]
        elif how == 5:
            length = int(draw.integers(1, 64))
            found[place : place + length] = found[place + length : place + 2 * length] or b"\0"
        else:
            del found[len(found) - int(draw.integers(1, 64)) :]
    return bytes(found)


def read_all(folder: Path) -> None:
    """Open a data set and touch everything its index says."""
    data = PreparedSet(folder)
    for row in range(len(data)):
        try:
            sample = data[row]
            assert sample.inside.sum() >= 0 and np.isfinite(sample.polygon.sum()) in (True, False)
            data.encoded(row).sum()
        except HDXrayError:
            continue
    data.check()
    data.hashes(), data.sources(), data.checksums().sum(), data.shares_by_image()


def read_facts(folder: Path) -> None:
    for name in ShardFolder(folder / "shards").read_facts(0).column_names:
        ShardFolder(folder / "shards").read_facts(0).column(name).to_pylist()


# file of a data set, what reads it
READERS: dict[str, Callable[[Path], object]] = {
    "lookup.arrow": read_all,
    "index.parquet": read_all,
    "shards/00000.parquet": read_facts,
    "settings.json": read_all,
    "sources.parquet": merge,
}
SHARES = {"lookup.arrow": 5, "index.parquet": 1, "shards/00000.parquet": 2, "settings.json": 1, "sources.parquet": 1}


def fuzz(count: int, seed: int = 0) -> collections.Counter:
    """What became of so many files, by file and outcome."""
    counts: collections.Counter = collections.Counter()
    plan = [name for name, share in SHARES.items() for _ in range(share)]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        prepare([make_folder(root / "films")], root / "whole", shard_size=16)
        shutil.copytree(root / "whole", root / "set")
        for number in range(count):
            name, draw = plan[number % len(plan)], np.random.default_rng([seed, number])
            data = (root / "whole" / name).read_bytes()
            path = root / "set" / name
            path.unlink(missing_ok=True)
            path.write_bytes(mutated(data, draw))
            print(seed, number, name, file=sys.stderr)
            try:
                READERS[name](root / "set")
                outcome = "read"
            except HDXrayError:
                outcome = "refused"
            except Exception as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            counts[name, outcome] += 1
            path.unlink(missing_ok=True)
            path.write_bytes(data)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    start = time.perf_counter()
    found = fuzz(options.count, options.seed)
    for (name, outcome), times in sorted(found.items()):
        print(f"{times:6d} {name}: {outcome}")
    foreign = sum(times for (_, outcome), times in found.items() if outcome not in ("read", "refused"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{options.count} files, {time.perf_counter() - start:.0f} s, {memory} MiB at most, {foreign} foreign errors")
