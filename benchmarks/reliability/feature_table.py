"""Memory and CPU time of a feature table: made of parts, taken up after a kill, opened again, one row more.

    python benchmarks/reliability/feature_table.py --rows 100000 --width 192

Each step runs in a process of its own; its peak is beside what the process takes before it begins. Rows are random;
the table lies in a temporary folder, and goes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = ("make", "parts again", "nothing new", "one row more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--per_part", type=int, default=64, help="rows that are appended at once, as embed does")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measure(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            out = Path(folder) / "features.parquet"
            words = [sys.executable, __file__, "--step", step, "--out", str(out)]
            words += [f"--{name}={getattr(given, name)}" for name in ("rows", "width", "per_part")]
            found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            size = f"file {out.stat().st_size / 2**20:.0f} MiB" if out.exists() else "no file yet"
            print(f"{step}: {found['peak']:.0f} MiB more at the peak, {found['cpu']:.1f} s of CPU; {size}")


def measure(given: argparse.Namespace) -> dict:
    """One step; MiB and seconds."""
    import numpy as np
    import pyarrow.parquet  # noqa: F401

    from hdxray_fast.features.embedding import Embeddings
    from hdxray_fast.features.feature_table import FeatureTable
    from hdxray_fast.features.stamps import Stamp

    def rows(first: int, count: int) -> Embeddings:
        random = np.random.default_rng(first)
        return Embeddings(
            random.standard_normal((count, given.width), np.float32),
            [f"/data/radiographs/{row:09d}.png" for row in range(first, first + count)],
            random.random(count, np.float32),
            np.zeros(count, bool),
            [f"{row:064x}" for row in range(first, first + count)],
            np.full(count, 6400, np.int32),
        )

    names = [f"/data/radiographs/{row:09d}.png" for row in range(given.rows)]
    before, begun = _peak(), _cpu()
    table = FeatureTable(given.out, {"weights": "0"}, given.width)
    plan = table.plan(names, 1)
    table.end_share(plan)
    if given.step == "make":
        for first in range(0, given.rows, given.per_part):
            some = rows(first, min(given.per_part, given.rows - first))
            table.append(some, dict.fromkeys(some.sources, Stamp(1, 1)))
    elif given.step == "one row more":
        some = rows(given.rows, 1)
        names += some.sources
        table.append(some, dict.fromkeys(some.sources, Stamp(1, 1)))
    if given.step == "make":  # killed before it was joined
        return {"peak": _peak() - before, "cpu": _cpu() - begun}
    table.join(plan, names, lambda: table.finish(names))
    return {"peak": _peak() - before, "cpu": _cpu() - begun}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
