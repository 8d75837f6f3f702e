"""What an image of a prepared set costs that is not in the page cache: bytes from the disk, CPU time, files opened.

    python benchmarks/reliability/cold_reads.py --folder /a/disk --out benchmarks/results/<device>/cold_reads.json

Batches of 16 in random order by `PreparedLoader`, of synthetic sets, which are removed afterwards. Cold: the system is
told to forget the pages of all shards first. Bytes are those that the kernel fetched for this process
(`/proc/self/io`), CPU time is user and system time of this process with all its threads; Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.prepared_case import chest_set, repeated_set
from harness.record import commit

from hdxray_fast.data.prepared.loader import PreparedLoader
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.files import written_whole

BATCH = 16
CASES = {  # format, side, images in the set, images in a shard, images read, cold
    "raw, cold": ("raw", 1280, 1024, 256, 128, True),
    "raw, in the page cache": ("raw", 1280, 1024, 256, 128, False),
    "jpeg, cold": ("jpeg", 1280, 1024, 256, 128, True),
    "jpeg, in the page cache": ("jpeg", 1280, 1024, 256, 128, False),
    "raw of 64², 4,096 shards, in the page cache": ("raw", 64, 8192, 2, 4096, False),
}
opened = 0


def count_opens(event: str, _: tuple) -> None:
    """An audit hook of Python: every file that is opened from here on."""
    global opened
    opened += event == "open"


def forget(folder: Path) -> None:
    """Have the system drop a set's pixels from the page cache."""
    for path in (folder / "shards").glob("*.bin"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not on the disk yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read() -> int:
    """That the kernel fetched from disks for this process."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(folder: Path, images: int, cold: bool, rounds: int = 3) -> dict:
    """Medians over rounds, an image: ``bytes_read``, ``cpu_ms`` and ``opens``."""
    data = PreparedSet(folder)
    rng, found = np.random.default_rng(0), []
    rows = rng.permutation(len(data))[:images]
    for number in range(rounds + 1):
        if cold:
            rows = rng.permutation(len(data))[:images]
            data = PreparedSet(folder)  # the system keeps what is mapped
            forget(folder)
        before = bytes_read(), cpu_seconds(), opened
        for _ in PreparedLoader(data, rows.reshape(-1, BATCH).tolist()):
            pass
        after = bytes_read(), cpu_seconds(), opened
        if number:  # the first brings the images into the page cache where they are to be
            found.append([(new - old) / images for new, old in zip(after, before, strict=True)])
    read, cpu, opens = np.median(found, axis=0).tolist()
    return {"images": images, "bytes_read": round(read), "cpu_ms": round(1000 * cpu, 3), "opens": round(opens, 3)}


def table(results: dict[str, dict]) -> str:
    """As Markdown."""
    lines = ["| set | image, MB | read from the disk, MB | CPU time, ms | files opened |", "|---|---|---|---|---|"]
    for name, row in results.items():
        size, read = row["image_bytes"] / 1e6, row["bytes_read"] / 1e6
        lines.append(f"| {name} | {size:.2f} | {read:.2f} | {row['cpu_ms']:.2f} | {row['opens']:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where sets of up to 2 GB are made, on the disk to be measured")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    sys.addaudithook(count_opens)
    results = {}
    root = Path(tempfile.mkdtemp(prefix="cold_reads_", dir=options.folder))
    try:
        for name, (kind, size, images, shard_size, read, cold) in CASES.items():
            made = root / f"{kind}-{size}"
            if not made.exists():
                shutil.rmtree(root, ignore_errors=True)  # one set at a time
                root.mkdir()
                few = chest_set(root, 8, size, contour="rectangle", workers=0, kind=kind)
                repeated_set(few, made, images, shard_size)
            length = int(np.mean(PreparedSet(made).column("length").to_numpy()))
            results[name] = {"image_bytes": length, **measured(made, read, cold)}
            print(name, results[name], file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(table(results))
    if options.out:
        content = {"results": results, "commit": commit()}
        with written_whole(options.out) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
