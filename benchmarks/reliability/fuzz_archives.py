"""Five thousand damaged archives through ``prepare``'s listing and unpacking: each must end in rows, within the caps.

    python benchmarks/reliability/fuzz_archives.py --count 5000 --out results/fuzz

Zips (stored, deflate, bzip2, LZMA) and tars (ustar, GNU, pax; plain, gz, bz2, xz) of three small files, in turn. Fields
of headers are rubbish or extreme under a right checksum, bytes of the packed data are wrong, and some ask for what no
reader should do (negative sizes, records of gigabytes). They are listed and read by workers in batches, each with a
whole picture, as folders are. Counts how each archive and each member ended, and what was missing; times each batch;
peak memory is that of this process, which makes the archives too, and of its largest worker (at least this process's,
which it begins as). Archive N is the same in every run with one seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from archive_makers import KINDS, damaged, suffix
from xray_makers import ramp

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.pool import prepared_rows
from hdxray_fast.data.prepared.sources import Source, list_sources
from hdxray_fast.files import written_whole

STOPPED = ("TimeoutError", "MemoryError", "BrokenProcessPool")


def images() -> list[bytes]:
    picture = cv2.imencode(".png", ramp(40, 48))[1].tobytes()
    return [picture, picture[: len(picture) // 2], b"no image at all"]


def write(folder: Path, number: int, seed: int) -> Path:
    kind = KINDS[number % len(KINDS)]
    path = folder / f"{number:06d}{suffix(kind)}"
    path.write_bytes(damaged(kind, images(), np.random.default_rng([seed, number])))
    return path


def kind_of(path: str) -> str:
    return path.rpartition(".")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first archive")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that an archive, or a member, may take")
    parser.add_argument("--max-memory", type=int, default=1024, help="MiB that an archive, or a member, may take")
    parser.add_argument("--out", default="results/fuzz")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    recipe = PrepareConfig(
        ["-"], "-", img_size=64, contour="rectangle", modality="any", view="any", body_part="any"
    ).recipe()
    caps = {"workers": options.workers, "timeout": options.timeout, "max_memory": options.max_memory}
    archives, members, reasons, examples = {kind: Counter() for kind in KINDS}, Counter(), Counter(), []
    seconds, memory = [], {"main_before": peak(resource.RUSAGE_SELF)}
    numbers = range(options.first, options.first + options.count)
    for start in tqdm(numbers[:: options.batch], unit="batch", dynamic_ncols=True):
        with tempfile.TemporaryDirectory(prefix="hdxray-fuzz-") as name:
            folder = Path(name)
            cv2.imwrite(str(folder / "whole.png"), ramp(40, 48))
            batch = [write(folder, n, options.seed) for n in range(start, min(start + options.batch, numbers.stop))]
            began = time.monotonic()
            sources = list_sources([folder], **caps)
            listed = {source.path: source.refused for source in sources if source.path != str(folder / "whole.png")}
            for path in batch:
                refused = listed.get(str(path))
                ended = "listed" if refused == "" else refused or "missing"
                archives[kind_of(path.name)][ended.partition(":")[0]] += 1
                reasons[ended] += bool(refused)
            rows = list(prepared_rows(sources, recipe, None, **caps))
            seconds.append(time.monotonic() - began)
            members.update(row.error or row.status for row in rows if "::" in row.source)
            examples += lost(sources, rows, folder)
    memory["main"], memory["largest_worker"] = peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN)
    from harness.record import commit  # not before: it loads PyTorch, which would be most of the memory

    report = {
        "archives": options.count,
        "first": options.first,
        "seed": options.seed,
        "commit": commit(),
        "caps": {"seconds": options.timeout, "mib": options.max_memory},
        "seconds": round(sum(seconds), 1),
        "longest_batch": {"archives": options.batch, "seconds": round(max(seconds), 1)},
        "endings": {kind: dict(counts.most_common()) for kind, counts in archives.items()},
        "members": dict(members.most_common()),
        "peak_memory_mib": memory,
        "reasons": dict(reasons.most_common(20)),
        "examples": examples,
    }
    with written_whole(out / f"fuzz_archives-{options.first}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if not examples else 1


def peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss >> 10


def lost(sources: list[Source], rows: list, folder: Path) -> list[list[str]]:
    """What should not be: no row for a source, a stopped or dead worker, an error without a name, no good picture."""
    wrong = [[row.source, row.reason] for row in rows if row.error in STOPPED or "while it was read" in row.reason]
    if [row.source for row in rows] != [source.name for source in sources]:
        wrong.append([str(folder), "rows that are not those of the sources"])
    if rows[0].status != "ok":
        wrong.append([rows[0].source, rows[0].reason])
    return wrong


if __name__ == "__main__":
    sys.exit(main())
