"""What the one process of a part that all rows come to takes for an image, and what files that hang cost a part.

    python benchmarks/reliability/prepare_writer.py --images 1500 --out results/prepare_writer

The workers' reader takes no time: it gives the row of one picture for every file (``--picture``, by default a drawn
one), "unreadable" for every fiftieth, so that images are moved in their shards as they are in practice. Of each format:
CPU milliseconds of the main process for an image, the images a second that a part could have by them with any number of
workers, and the bytes that came through the pool's pipe for an image. Then, with a reader that sleeps 20 ms for each
file, the seconds from the first row to the last of ``--hanging`` files, without and with three that hang for 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import sys
import tempfile
import time
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
import prepare_writer
from harness.record import commit
from toy_radiographs import draw_radiograph

from hdxray_fast.data.prepared import pool, run, worker
from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.sources import Source

LIMIT = 5.0  # seconds that a file may take where some hang


@lru_cache(maxsize=1)
def made(path: str) -> worker.Row:
    return pickle.loads(Path(path).read_bytes())


def answer(source: Source, recipe: dict, key: bytes | None) -> worker.Row:
    """In a worker: what the file's name tells."""
    what = Path(source.path).stem.partition("-")[2]
    if what == "hangs":
        time.sleep(600)
    if what == "cut":
        return worker.Row(source.name, "unreadable", "cut")
    row = made(os.environ["ROW"])
    time.sleep(float(os.environ.get("SLEEP", 0)))
    return worker.Row(source.name, row.status, row.reason, row.data, dict(row.facts))


def prepared(picture: str, names: list[str], **settings) -> dict[str, float]:
    """Of a part of such files, counted from its 20th row on, when all workers are there."""
    rows: list[tuple[float, float, int]] = []
    received, usual = [0], Connection._recv_bytes

    def counted(self, *arguments):
        data = usual(self, *arguments)
        received[0] += len(data.getbuffer())
        return data

    def note(row: worker.Row) -> None:
        rows.append((time.perf_counter(), time.process_time(), received[0]))

    with tempfile.TemporaryDirectory(dir=os.environ.get("FOLDER")) as folder:
        xrays = Path(folder) / "xrays"
        xrays.mkdir()
        for number, name in enumerate(names):
            (xrays / f"{number:06d}-{name}.png").touch()
        config = PrepareConfig([str(xrays)], f"{folder}/set", workers=2, contour="rectangle", **settings)
        row = worker.prepare_source(Source(picture), config.recipe(), None)
        os.environ["ROW"] = f"{folder}/row"
        Path(os.environ["ROW"]).write_bytes(pickle.dumps(row))
        Connection._recv_bytes = counted
        try:
            counts = run.run_prepare(config, progress=False, on_row=note).counts
        finally:
            Connection._recv_bytes = usual
    wall, cpu, passed = ((last - first) / (len(rows) - 20) for first, last in zip(rows[19], rows[-1], strict=True))
    return {
        "ok": counts["ok"], "seconds": round(wall * (len(rows) - 20), 2), "cpu_ms_an_image": round(cpu * 1e3, 3),
        "images_a_second_by_cpu": round(1 / cpu), "pipe_bytes_an_image": round(passed),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--hanging", type=int, default=600)
    parser.add_argument("--picture")
    parser.add_argument("--out", default="results/prepare_writer")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])
    pool.prepare_source = prepare_writer.answer
    run.merge = lambda *arguments, **settings: None
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if not options.picture:
        options.picture = str(out / "picture.png")
        cv2.imwrite(options.picture, draw_radiograph(0, 1400, 1280))
    rows = []
    names = ["cut" if number % 50 == 3 else "good" for number in range(options.images)]
    for kind in ("raw", "jpeg"):
        rows.append({"what": kind, **prepared(options.picture, names, format=kind)})
        print(json.dumps(rows[-1]), flush=True)
    os.environ["SLEEP"] = "0.02"
    count = options.hanging
    for hung in (0, 3):
        at = {count // 8 * (2 * k + 1) for k in range(hung)}
        names = ["hangs" if number in at else "good" for number in range(count)]
        found = prepared(options.picture, names, img_size=320, shard_size=64, timeout=LIMIT)
        rows.append({"what": f"{hung} of {count} hang", **found})
        print(json.dumps(rows[-1]), flush=True)
    (out / "prepare_writer.json").write_text(json.dumps({"rows": rows, "commit": commit()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
