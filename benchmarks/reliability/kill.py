"""``prepare`` killed with SIGKILL at random moments, then run to its end: the data set must be that of a calm run.

    python benchmarks/reliability/kill.py --kills 50 --out results/kill

In rounds of five kills: half of them kill every process, half the main one alone, after which its workers must go by
themselves. Moments are spread over the whole of a calm run, its start and its merge included; a run that ends before
its kill does not count. After each round the run is finished, and every file compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from harness.record import commit
from toy_radiographs import draw_radiograph

PER_ROUND = 5
KINDS = (".bin", ".arrow", ".csv", ".parquet", ".json", ".png")
COMMAND = (
    "import sys; from hdxray_fast.data.prepared.run import run_prepare; from hdxray_fast.data.prepared.config import "
    "PrepareConfig as C; run_prepare(C(sys.argv[3:], sys.argv[1], img_size=96, workers=2, shard_size=4, "
    "contour='rectangle', patient_key=sys.argv[2]), progress=False)"
)


def make_sources(folder: Path, count: int) -> list[str]:
    """Radiographs, doubles and damaged files, a third of them in a compressed tar."""
    (folder / "xrays").mkdir()
    for number in range(count):
        path = folder / "xrays" / f"{number:03d}.png"
        cv2.imwrite(str(path), draw_radiograph(number - number % 7 if number % 7 == 1 else number))
        if number % 11 == 5:
            path.write_bytes(path.read_bytes()[:300])
    with tarfile.open(folder / "more.tar.gz", "w:gz") as archive:
        for path in sorted((folder / "xrays").iterdir())[::3]:
            archive.add(path, path.name)
            path.unlink()
    return [str(folder / "xrays"), str(folder / "more.tar.gz")]


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix in KINDS]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def gone(pids: list[int], patience: float) -> bool:
    """Whether all of these processes end by themselves."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--out", default="results/kill")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    moments, orphans, differing, rounds, missed = [], 0, [], 0, 0
    with tempfile.TemporaryDirectory(prefix="hdxray-kill-") as root:
        folder = Path(root)
        sources = make_sources(folder, options.images)
        calm, out, key = folder / "calm", folder / "set", folder / "key"
        key.touch(mode=0o600)
        key.write_text("a key that is the same in every run")

        def command(where: Path) -> list[str]:
            return [sys.executable, "-c", COMMAND, str(where), str(key), *sources]

        began = time.monotonic()
        subprocess.run(command(calm), check=True)
        lasts = time.monotonic() - began
        wanted = contents(calm)
        bar = tqdm(total=options.kills, unit="kill", dynamic_ncols=True)
        while len(moments) < options.kills:
            shutil.rmtree(out, ignore_errors=True)
            rounds += 1
            for _ in range(PER_ROUND):
                if len(moments) == options.kills:
                    break
                moment = float(rng.uniform(0, lasts))
                run = subprocess.Popen(command(out), start_new_session=True, stderr=subprocess.DEVNULL)
                try:
                    run.wait(moment)
                    missed += 1
                    shutil.rmtree(out)  # the next one has all before it again
                    continue
                except subprocess.TimeoutExpired:
                    pass
                workers = children(run.pid)
                if rng.random() < 0.5:
                    os.killpg(run.pid, signal.SIGKILL)
                else:
                    os.kill(run.pid, signal.SIGKILL)
                run.wait()
                if not gone(workers, 60):
                    orphans += 1
                    os.killpg(run.pid, signal.SIGKILL)
                moments.append(round(moment, 2))
                bar.update()
            subprocess.run(command(out), check=True)
            found = contents(out)
            differing += [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
            differing += [str(path) for path in out.rglob("*") if path.suffix == ".tmp" or "unpacked" in path.name]
        bar.close()
        images = json.loads((calm / "summary.json").read_text())["images"]
    report = {
        "kills": len(moments),
        "rounds": rounds,
        "ended_before_their_kill": missed,
        "calm_run_seconds": round(lasts, 1),
        "moments": moments,
        "files_compared": len(wanted),
        "images": images,
        "differing": differing,
        "workers_left_behind": orphans,
        "seed": options.seed,
        "commit": commit(),
    }
    target = Path(options.out)
    target.mkdir(parents=True, exist_ok=True)
    (target / f"kill-{options.seed}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if differing or orphans else 0


if __name__ == "__main__":
    sys.exit(main())
