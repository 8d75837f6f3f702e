"""Ten thousand damaged files through the workers of ``prepare``: each must end in a canvas or a named error.

    python benchmarks/reliability/fuzz.py --count 10000 --out results/fuzz

Seeds are a real radiograph and patterns in every raster format, and pydicom's own test files (every transfer syntax)
as far as they can be read whole; mutations are bit flips, truncations, rubbish and extreme numbers in headers, lost and
doubled pieces. Every second file is a container taken apart at its segments and put together wrongly
(``tests/helpers/container_fuzz.py``); besides, decompression bombs and files that are no image. Counts how each ended,
how many workers died or were stopped, the longest time of a file and the memory of workers and main process. File N is
the same in every run with one seed, so ``--first`` and ``--count`` cut a long run into parts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from container_fuzz import containers, restructured, with_head
from fuzz_makers import mutate, rasters
from harness.record import commit
from xray_makers import png_chunk

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.pool import prepared_rows
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.prepared.worker import Row
from hdxray_fast.errors import HDXrayError, UnforeseenReadError
from hdxray_fast.files import written_whole
from hdxray_fast.images.canvas import read_canvas

UNFORESEEN = UnforeseenReadError.__name__  # of no kind that the readers name: a fault of ours
LARGEST_SEED = 400_000  # bytes; larger ones are slow, not different


def seeds() -> dict[str, bytes]:
    """Whole files that can be read, by name."""
    import pydicom.data
    from pydicom.data import get_testdata_file

    found = dict(rasters())
    folder = Path(pydicom.data.__file__).parent / "test_files"
    for path in sorted(folder.glob("*.dcm")):
        if path.stat().st_size <= LARGEST_SEED:
            found[path.name] = path.read_bytes()
    real = get_testdata_file("RG1_UNCR.dcm", download=False)  # of pydicom-data
    if real is not None:
        pixels = read_canvas(real, size=512).pixels
        for suffix in (".png", ".jpg", ".tiff", ".webp"):
            found[f"radiograph{suffix}"] = cv2.imencode(suffix, pixels)[1].tobytes()
    return {name: data for name, data in found.items() if is_readable(data)}


def is_readable(data: bytes) -> bool:
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        try:
            read_canvas(stream.name, size=64, any_modality=True)
        except HDXrayError:
            return False
    return True


def hostile(rng: np.random.Generator) -> bytes:
    """No mutation of anything: bombs, and files that are no image."""
    kind = rng.integers(6)
    if kind == 0:  # a PNG that declares 60000 x 60000 pixels
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100_000)))
    if kind == 1:  # a PNG whose data inflate to far more than it declares
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(20_000_000), 9))
    if kind == 2:
        return rng.bytes(int(rng.integers(0, 5000)))
    if kind == 3:
        return b"%PDF-1.7\n" + rng.bytes(300)
    if kind == 4:
        return b"PK\x03\x04" + rng.bytes(300)
    return b"image,label\n" * int(rng.integers(1, 100))


def cases(folder: Path, whole: dict[str, bytes], numbers: range, seed: int) -> Iterator[Source]:
    """Files, written as they are asked for and few at a time."""
    with tempfile.TemporaryDirectory() as scratch:
        taken_apart = containers(Path(scratch))
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        name = "hostile"
        if number % 20 == 19:
            data = hostile(rng)
        elif number % 2:
            name, (head, stream) = list(taken_apart.items())[number // 2 % len(taken_apart)]
            name, data = f"{name}-apart", with_head(head, restructured(stream, rng))
        else:
            name, data = list(whole.items())[number // 2 % len(whole)]
            data = mutate(data, rng)
        path = folder / f"{number:06d}-{Path(name).stem}.bin"
        path.write_bytes(data)
        yield Source(str(path))


def memory(field: str) -> list[int]:
    """``VmRSS`` (resident now) or ``VmHWM`` (most that ever was) of each worker, MiB."""
    sizes = []
    for child in multiprocessing.active_children():
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes += [int(line.split()[1]) >> 10 for line in lines if line.startswith(field)]
    return sizes


def outcome(row: Row) -> str:
    """The kind of an ending: the name of the error, without what it says."""
    if row.status != "unreadable":
        return row.status
    for words, name in (("takes longer", "stopped: time"), ("died", "worker died")):
        if words in row.reason:
            return name
    return row.reason.partition(":")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=320, help="canvas side, pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that a file may take")
    parser.add_argument("--max-memory", type=int, default=2048, help="MiB that a file may take")
    parser.add_argument("--out", default="results/fuzz")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    recipe = PrepareConfig(["-"], str(out), img_size=options.size, modality="any", view="any", body_part="any").recipe()
    endings, families, examples, residents, peak, slowest = Counter(), {}, {}, [], 0, (0.0, "")
    whole = seeds()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hdxray-fuzz-") as folder:
        rows = prepared_rows(
            cases(Path(folder), whole, range(options.first, options.first + options.count), options.seed), recipe,
            b"key", workers=options.workers,
            timeout=options.timeout, max_memory=options.max_memory,
        )  # fmt: skip
        for number, row in enumerate(tqdm(rows, total=options.count, unit="file", dynamic_ncols=True)):
            endings[outcome(row)] += 1
            family = Path(row.source).stem.partition("-")[2]
            families.setdefault(family, Counter())["canvas" if row.status == "ok" else "named error"] += 1
            slowest = max(slowest, (row.seconds, Path(row.source).name))
            if outcome(row) in (UNFORESEEN, "worker died", "stopped: time"):
                examples.setdefault(outcome(row), []).append([Path(row.source).name, row.reason])
                (out / Path(row.source).name).write_bytes(Path(row.source).read_bytes())
            Path(row.source).unlink()
            if number % 200 == 199:
                residents.append(memory("VmRSS"))
                peak = max(peak, *memory("VmHWM"))
    report = {
        "files": sum(endings.values()),
        "first": options.first,
        "seed": options.seed,
        "seeds": len(whole),
        "commit": commit(),
        "seconds": round(time.monotonic() - began, 1),
        "endings": dict(endings.most_common()),
        "caps": {"seconds": options.timeout, "mib": options.max_memory},
        "slowest": {"seconds": round(slowest[0], 2), "file": slowest[1]},
        "worker_memory_mib": {"first": residents[:1], "last": residents[-1:], "peak": peak},
        "main_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "families": families,
        "examples": examples,
    }
    with written_whole(out / f"fuzz-{options.first}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if not examples else 1


if __name__ == "__main__":
    sys.exit(main())
