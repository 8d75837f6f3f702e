"""Thousands of images through ``prepare``: memory of the main process and of its workers must stay flat.

    python benchmarks/reliability/soak.py --images 4000 --out results/soak

Reports resident memory along the way and the slope of a straight line through its last four fifths, MiB per 1,000
images, beside the scatter around that line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from harness.record import commit
from pydicom.data import get_testdata_file
from toy_radiographs import draw_radiograph
from xray_makers import dicom

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.run import run_prepare
from hdxray_fast.data.prepared.worker import Row
from hdxray_fast.images.canvas import read_canvas

EVERY = 50


def make_sources(folder: Path, count: int) -> None:
    """PNG, JPEG and DICOM files of several sizes, hard links to 24 of them, one in twelve damaged."""
    folder.mkdir()
    real = get_testdata_file("RG1_UNCR.dcm", download=False)  # of pydicom-data
    chest = None if real is None else read_canvas(real, size=700).pixels
    rng = np.random.default_rng(0)
    for number in range(24):
        height, width = 600 + 20 * (number % 5), 600 + 25 * (number % 4)
        if chest is None:
            pixels = draw_radiograph(number, height, width)
        else:
            pixels = np.clip(chest[:height, :width] + rng.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)
        path = folder / f"{number:06d}{('.png', '.jpg', '.dcm')[number % 3]}"
        if path.suffix == ".dcm":
            dicom(path, pixels)
        else:
            cv2.imwrite(str(path), pixels)
        if number % 12 == 7:
            path.write_bytes(path.read_bytes()[:-2000])
    first = sorted(folder.iterdir())
    for number in range(24, count):
        os.link(first[number % 24], folder / f"{number:06d}{first[number % 24].suffix}")


def resident(pid: int) -> float:
    """MiB that belong to a process alone or with others."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def slope(samples: list[float]) -> dict[str, float]:
    """Of the last four fifths: MiB per 1,000 images, and the scatter around the line."""
    late = np.asarray(samples[len(samples) // 5 :])
    at = np.arange(len(late)) * EVERY / 1000
    fitted = np.polyfit(at, late, 1)
    scatter = float(np.std(late - np.polyval(fitted, at)))
    return {"mib_per_1000_images": round(float(fitted[0]), 3), "scatter_mib": round(scatter, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="results/soak")
    options = parser.parse_args()
    mine, workers, seen = [], [], 0

    def watch(row: Row) -> None:
        nonlocal seen
        seen += 1
        if seen % EVERY == 0:
            mine.append(resident(os.getpid()))
            sizes = [resident(child.pid) for child in multiprocessing.active_children()]
            workers.append(max(sizes, default=0.0))

    with tempfile.TemporaryDirectory(prefix="hdxray-soak-") as root:
        make_sources(Path(root) / "xrays", options.images)
        config = PrepareConfig(
            [str(Path(root) / "xrays")], str(Path(root) / "set"), img_size=options.size, workers=options.workers,
            shard_size=128, keep_duplicates=True,
        )  # fmt: skip
        began = time.monotonic()
        summary = run_prepare(config, on_row=watch).summary
    report = {
        "images": seen,
        "good": summary["images"],
        "unreadable": summary["unreadable"],
        "seconds": round(time.monotonic() - began),
        "main": {"first": round(mine[0]), "last": round(mine[-1]), **slope(mine)},
        "largest_worker": {"first": round(workers[0]), "last": round(workers[-1]), **slope(workers)},
        "samples": {"main": [round(v) for v in mine], "largest_worker": [round(v) for v in workers]},
        "commit": commit(),
    }
    target = Path(options.out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
