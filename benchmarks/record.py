"""Times ours against the strongest rival in the same run, turn by turn, and keeps the rows of README's table.

A benchmark asks for the `compare` fixture (benchmarks/conftest.py)::

    def test_gather(compare):
        compare("gather, 8 x 1280^2 u8 -> fp32", ours, rival, rival_name="eager patchify + normalise + index", bar=20)

Rows go to ``benchmarks/results/<device>/<bench>.json``; a row of the same case is replaced, others stay. Figures
are written by this module only, never by hand.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdxray_fast.env import cpu_model, usable_cores

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "numpy", "opencv-python-headless", "timm")


def device_info(kind: str) -> dict[str, str]:
    """Name (and driver) of the CPU or of the current CUDA device."""
    if kind == "cpu":
        return {"kind": "cpu", "name": f"{cpu_model()}, {usable_cores()} cores"}
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0].strip()
    return {"kind": "cuda", "name": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str]:
    import hdxray_fast

    found = {"hdxray-fast": hdxray_fast.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short commit of the checkout, with ``+changes`` if tracked files differ from it."""
    here = Path(__file__).parent.parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "hdxray_fast", "csrc", "benchmarks/*.py")
    return f"{head}+changes" if changed else head


def spread(samples: list[float]) -> dict[str, float]:
    """Median, quartiles, least value and number of samples."""
    if len(samples) == 1:
        return {"median": samples[0], "q25": samples[0], "q75": samples[0], "min": samples[0], "rounds": 1}
    q25, median, q75 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "q25": q25, "q75": q75, "min": min(samples), "rounds": len(samples)}


@dataclass
class Comparison:
    """One row: what we measured, what the rival measured, and the bar that the ratio is held against.

    Attributes:
        ours, rival: samples, in `unit`; less is better.
        bar: least ratio rival / ours that the project promises (None: no promise).
    """

    bench: str
    case: str
    ours: list[float]
    rival: list[float]
    rival_name: str
    unit: str = "s"
    bar: float | None = None
    threads: int = 1
    device: str = "cpu"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times more the rival needs, median by median."""
        return statistics.median(self.rival) / statistics.median(self.ours)

    def row(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "unit": self.unit,
            "ours": spread(self.ours),
            "rival": {"name": self.rival_name, **spread(self.rival)},
            "ratio": self.ratio,
            "bar": self.bar,
            "bar_met": None if self.bar is None else self.ratio >= self.bar,
            "threads": self.threads,
            "device": device_info(self.device),
            "versions": versions(),
            "commit": commit(),
            "command": " ".join(["pytest", *sys.argv[1:]]),
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "extra": self.extra,
        }

    def save(self, results: Path = RESULTS) -> Path:
        """Write the row into its bench's file, in place of an older row of the same case."""
        row = self.row()
        path = results / slug(row["device"]["name"]) / f"{self.bench}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        rows = [r for r in rows if r["case"] != self.case] + [row]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"bench": self.bench, "rows": sorted(rows, key=lambda r: r["case"])}, indent=1) + "\n"
        )
        return path


def once(call: Callable[[], Any], inner: int) -> float:
    """Seconds of one call, over `inner` calls in a row (for calls too short for the clock)."""
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner
