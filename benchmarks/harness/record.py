"""Times ours against the strongest rival in the same run, turn by turn, and keeps the rows of the tables.

A benchmark asks for the `compare` fixture (benchmarks/conftest.py)::

    def test_gather(compare):
        compare("gather, 8 x 1280^2 u8 -> fp32", ours, rival, rival_name="eager patchify + normalise + index", bar=20)

GPU cases run any number of contenders (race.py) and keep a row through `Comparison.of`. Rows go to
``benchmarks/results/<device>/<bench>.json``, and under ``$OUT/results`` as well if that is set; a row of the same case
is replaced, others stay. Figures are written by this module only, never by hand.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.bars import verdict, within_noise
from harness.race import Outcome, best
from hdxray_fast.cli.doctor import cpu_model
from hdxray_fast.data.reader_pool import worker_count

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("hdxray_fast/**/*.py", "csrc/**/*", "benchmarks/*.py", "benchmarks/harness/*.py")
PACKAGES = ("torch", "triton", "numpy", "opencv-python-headless", "timm")


@lru_cache
def device_info(kind: str) -> dict[str, str]:
    """Name (and driver) of the CPU or of the current CUDA device."""
    if kind == "cpu":
        return {"kind": "cpu", "name": f"{cpu_model()}, {worker_count(-1)} cores"}
    import torch

    driver = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return {
        "kind": "cuda",
        "name": torch.cuda.get_device_name(),
        "driver": driver or "unknown",
        "cuda": str(torch.version.cuda),
    }


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


@lru_cache(maxsize=1)
def commit() -> str:
    """Short commit of the checkout, with ``+changes`` if tracked files differ from it.

    A copy of the sources without a history of its own is known by a digest of the files that the figures depend on;
    a repository that happens to surround it says nothing about it.
    """
    head = _answer("git", "rev-parse", "--short", "HEAD")
    top = _answer("git", "rev-parse", "--show-toplevel")
    if not head or not top or Path(top).resolve() != ROOT.resolve():
        files = sorted({path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()})
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
        return f"sources {digest.hexdigest()[:12]}"
    changed = _answer(
        "git",
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "hdxray_fast",
        "csrc",
        "benchmarks/*.py",
        "benchmarks/harness",
    )
    return f"{head}+changes" if changed else head


def _answer(*command: str) -> str:
    """What a command prints, run in the checkout; nothing if it is missing, fails or takes long."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def command_line(words: Sequence[str], root: Path = ROOT) -> str:
    """A command that anyone can paste at the top of a checkout, from the words this process was started with.

    Paths inside `root` are relative to it; options that name a place outside (where a report goes) are left out.
    """
    where, program = f"{root}{os.sep}", Path(words[0])
    if program.name in ("pytest", "py.test") or program.parent.name == "pytest":
        said = ["python", "-m", "pytest"]
    else:
        said = ["python", words[0].replace(where, "")]
    for word in words[1:]:
        word = word.replace(where, "")
        if not re.search(r"(^|=)" + re.escape(os.sep), word) and not word.endswith(f"={root}"):
            said.append(word)
        elif said[-1] in ("-c", "-o"):  # the option that the place belongs to
            said.pop()
    settings = [f"{name}={os.environ[name]}" for name in ("HDXRAY_BENCH",) if os.environ.get(name)]
    return " ".join([*settings, shlex.join(said)])


def spread(samples: list[float]) -> dict[str, float]:
    """Median, quartiles, least value and number of samples."""
    if not samples:
        return {}
    if len(samples) == 1:
        return {"median": samples[0], "q25": samples[0], "q75": samples[0], "min": samples[0], "rounds": 1}
    q25, median, q75 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "q25": q25, "q75": q75, "min": min(samples), "rounds": len(samples)}


@dataclass
class Comparison:
    """One row: what we measured, what the rival measured, and the bar that the ratio is held against.

    Attributes:
        ours, rival: samples, in `unit`; less is better; empty where the run failed.
        bar: least ratio rival / ours that the project promises (None: no promise).
        failed, rival_failed: why there are no samples.
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
    failed: str | None = None
    rival_failed: str | None = None

    @classmethod
    def of(
        cls,
        bench: str,
        case: str,
        outcomes: dict[str, Outcome],
        ours: str,
        rivals: Sequence[str],
        *,
        bar: float | None = None,
        device: str = "cuda",
        extra: dict[str, Any] | None = None,
    ) -> Comparison:
        """The row of a race: ours against the fastest of `rivals` that ran; every outcome is kept in ``extra``."""
        mine, strongest = outcomes[ours], best(outcomes, rivals)
        why_none = "; ".join(f"{name}: {outcomes[name].failed}" for name in rivals if name in outcomes)
        everyone = [
            {
                "name": o.name,
                **({"failed": f"failed: {o.failed}"} if o.failed else spread(o.samples)),
                "relative_error": o.error,
                "peak_mib": None if o.peak_bytes is None else o.peak_bytes / 2**20,
                "setup_seconds": round(o.setup_seconds, 1),
            }
            for o in outcomes.values()
        ]
        return cls(
            bench,
            case,
            mine.samples,
            strongest.samples if strongest else [],
            strongest.name if strongest else " / ".join(rivals),
            bar=bar,
            device=device,
            extra={**(extra or {}), "contenders": everyone},
            failed=mine.failed,
            rival_failed=None if strongest else why_none or "none was run",
        )

    @property
    def ratio(self) -> float | None:
        """How many times more the rival needs, median by median; None if either has no samples, or ours are zero."""
        if not self.ours or not self.rival or not statistics.median(self.ours):
            return None
        return statistics.median(self.rival) / statistics.median(self.ours)

    @property
    def bar_met(self) -> bool | None:
        """Whether the ratio of medians reaches the bar, whatever its noise (`within_noise` tells).

        None without a bar, or where only the rival failed: then nobody knows.
        """
        if self.bar is None or (self.ours and not self.rival):
            return None
        return self.ratio is not None and self.ratio >= self.bar

    def told(self) -> str:
        """The row in a line, for the terminal."""
        ours, rival = spread(self.ours), spread(self.rival)
        ratio = "no ratio" if self.ratio is None else f"{self.ratio:.2f}x"
        row = {"ours": ours, "rival": rival, "bar": self.bar, "bar_met": self.bar_met}
        bar = "" if self.bar is None else f" (bar {self.bar:.3g}: {verdict(row)})"
        return f"{self.case}: {ratio} {self.rival_name}{bar}"

    def row(self) -> dict[str, Any]:
        ours = spread(self.ours) or {"failed": f"failed: {self.failed}"}
        rival = spread(self.rival) or {"failed": f"failed: {self.rival_failed}"}
        return {
            "case": self.case,
            "unit": self.unit,
            "ours": ours,
            "rival": {"name": self.rival_name, **rival},
            "ratio": self.ratio,
            "bar": self.bar,
            "bar_met": self.bar_met,
            "bar_within_noise": within_noise(ours, rival, self.bar),
            "threads": self.threads,
            "device": device_info(self.device),
            "versions": versions(),
            "commit": commit(),
            "command": command_line(sys.argv),
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "extra": self.extra,
        }

    def save(self, results: Path = RESULTS) -> Path:
        """Write the row into its bench's file, in place of an older row of the same case."""
        row = self.row()
        path = self._write(row, results)
        if os.environ.get("OUT"):
            self._write(row, Path(os.environ["OUT"]) / "results")
        return path

    def _write(self, row: dict[str, Any], results: Path) -> Path:
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
