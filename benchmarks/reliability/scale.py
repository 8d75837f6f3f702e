"""What each step on a prepared data set costs at 10^4, 10^5 and 10^6 images: CPU seconds and memory.

    python benchmarks/reliability/scale.py --images 10000 100000 --out results/scale

The sets are synthetic, in the package's own format and with next to no pixels (benchmarks/harness/synthetic_set.py): 6
GB of disk at 10^6, in a folder of its own that is removed. Each step runs in a process of its own, one after the other;
of it are reported the CPU seconds that it and its workers took after all was imported, and by how much the peak of its
memory is above what it had then. ``retry`` finds that all files which could not be read can be read now.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness.record import commit
from harness.synthetic_set import config_of, make_manifest, make_set, make_tree

MIB = 1 << 20


class Steps:
    """Each method is a step: it imports what it needs, and gives back what is then measured.

    Args:
        root: folder with ``tree``, ``list.csv`` and ``set``.
    """

    def __init__(self, root: Path) -> None:
        self.tree, self.manifest, self.out = root / "tree", root / "list.csv", root / "set"

    def list_folder(self) -> Callable[[], object]:
        from hdxray_fast.data.prepared.sources import list_sources

        return lambda: list_sources([self.tree])

    def list_manifest(self) -> Callable[[], object]:
        from hdxray_fast.data.prepared.sources import list_sources

        return lambda: list_sources([self.manifest])

    def merge(self) -> Callable[[], object]:
        import matplotlib.figure  # noqa: F401  (of the summary's picture)

        from hdxray_fast.data.prepared.index import merge

        return lambda: merge(self.out)

    def rerun(self, **settings) -> Callable[[], object]:
        import matplotlib.figure  # noqa: F401
        import tqdm.auto  # noqa: F401

        from hdxray_fast.data.prepared.run import run_prepare

        return lambda: run_prepare(config_of(self.out, self.tree, **settings), progress=False)

    def plan(self) -> Callable[[], object]:
        import hdxray_fast.data.prepared.reading  # noqa: F401
        from hdxray_fast.pretrain.plan_config import PlanConfig
        from hdxray_fast.pretrain.planning import plan

        return lambda: plan(PlanConfig(data=str(self.out)))

    def open(self) -> Callable[[], object]:
        import pyarrow.parquet  # noqa: F401

        from hdxray_fast.data.prepared.reading import PreparedSet

        return lambda: PreparedSet(self.out)

    def check(self) -> Callable[[], object]:
        images = self.open()()
        return lambda: images.check()

    def draw_splits(self) -> Callable[[], object]:
        from hdxray_fast.data.splits import fill_splits

        images = self.open()()

        def draw() -> list[str]:
            patients = images.column("patient").to_pylist()
            return fill_splits([""] * len(patients), patients, 0.1, 0.1, 0)

        return draw

    def first_batch(self) -> Callable[[], object]:
        from torch.utils.data import BatchSampler, RandomSampler

        from hdxray_fast.data.prepared.loader import PreparedLoader

        opened = self.open()

        def read() -> object:
            images = opened()
            return next(iter(PreparedLoader(images, BatchSampler(RandomSampler(images), 32, drop_last=True))))

        return read

    def retry(self) -> Callable[[], object]:
        return self.rerun(retry=True)


# `merge` makes what the others read; `retry` changes it
STEPS = (
    "list_folder",
    "list_manifest",
    "merge",
    "rerun",
    "plan",
    "open",
    "check",
    "draw_splits",
    "first_batch",
    "retry",
)


def measured(action: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of this process and its children, and MiB of memory beyond what it has, of an action."""
    before, held = _seconds(), _peak()
    kept = action()
    report = {"cpu_seconds": round(_seconds() - before, 2), "peak_mib": round((_peak() - held) / MIB)}
    del kept
    return report


def _seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak() -> int:
    """Of this process's own memory, bytes: maps of files are the page cache's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("scale.py reads /proc, which only Linux has")


def of_size(count: int, steps: list[str], root: Path) -> list[dict]:
    """Rows of the table for sets of so many images."""
    make_tree(root / "tree", count)
    make_manifest(root / "list.csv", root / "tree", count)
    make_set(root / "set", root / "tree", count)
    rows = []
    for step in steps:
        command = [sys.executable, __file__, "--step", step, "--root", str(root)]
        done = subprocess.run(command, capture_output=True, text=True)
        words = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
        row = {"step": step, "images": count, **(json.loads(words[0]) if words else {"failed": done.stderr[-400:]})}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folder", help="where the sets are made; that of temporary files by default")
    parser.add_argument("--out", default="results/scale")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        os.environ["OMP_NUM_THREADS"] = "1"
        print(json.dumps(measured(getattr(Steps(Path(options.root)), options.step)())))
        return 0
    rows = []
    for count in options.images:
        root = Path(tempfile.mkdtemp(prefix="hdxray-scale-", dir=options.folder))
        try:
            rows += of_size(count, options.steps, root)
        finally:
            shutil.rmtree(root)
    target = Path(options.out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "scale.json").write_text(json.dumps({"rows": rows, "commit": commit()}, indent=1) + "\n")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
