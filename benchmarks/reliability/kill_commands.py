"""Commands killed with SIGKILL at random moments, then run to their end: they must write what a calm run writes.

    python benchmarks/reliability/kill_commands.py --kills 20 --out results/kill_commands

``embed``, ``predict``, ``report generate``, ``merge``, ``stream`` and ``convert`` on small films and models that are
made here. In rounds of up to five kills: moments are spread over the part of a calm run that comes after its imports.
After each round the command is run to its end, and every file is compared byte by byte, but for the note of a merge,
which holds times. That rows which a killed run had on the disk are not made again is a matter of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
from film_makers import draw_film
from harness.record import commit
from prepared_helpers import prepare
from report_makers import write_csv
from report_model_makers import ENGLISH, QUICK, save_small_encoder, small_encoder

from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.run import run_report_training

PER_ROUND = 5
LEFTOVERS = re.compile(r"\.tmp|\.parts(/|$)|\.part$")


def make_inputs(root: Path, films: int) -> None:
    rows = []
    (root / "films").mkdir()
    for number in range(films):
        cv2.imwrite(str(root / "films" / f"{number:03d}.png"), draw_film(number))
        rows.append({
            "id": f"s{number}", "image": f"films/{number:03d}.png", "report": ENGLISH[number % 4],
            "patient": f"p{number}", "split": "train" if number < 8 else "val" if number < 10 else "test",
        })  # fmt: skip
    (root / "films" / "005.png").write_bytes(b"no picture")
    data = write_csv(root / "studies.csv", rows)
    encoder = save_small_encoder(root / "encoder")
    save_classifier(Classifier(small_encoder(), ClassifierConfig(["a", "b"])), root / "classifier")
    settings = {**QUICK, "data": str(data), "out": str(root / "report"), "weights": str(encoder)}
    run_report_training(ReportConfig(**settings), progress=False)
    prepare([root / "films"], root / "set", img_size=320)


def commands(root: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Of each: its words, and what it writes; ``{out}`` is the folder of a run."""
    films = str(root / "films")
    return {
        "embed": (["embed", films, "--weights", str(root / "encoder"), "--out", "{out}/f.parquet"], []),
        "predict": (["predict", films, "--model", str(root / "classifier"), "--out", "{out}/p.csv"], []),
        "report generate": (
            ["report", "generate", "--model", str(root / "report"), "--data", str(root / "studies.csv"), "--split",
             "test", "--out", "{out}/reports", "--batch-size", "2", "--pictures", "2"], []),
        "merge": (["merge", "{out}/set"], [str(root / "set")]),
        "stream": (["stream", str(root / "set"), "--out", "{out}/chunks", "--chunk-mib", "1"], []),
        "convert": (["convert", str(root / "encoder"), "{out}/model"], []),
    }  # fmt: skip


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".merged"]
    files = [path for path in files if not path.name.endswith((".lock", ".html"))]  # pages say when they were made
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


class Runs:
    """One command, run again and again on inputs that stay."""

    def __init__(self, words: list[str], copied: list[str], folder: Path) -> None:
        self.words, self.copied, self.out = words, copied, folder / "out"
        self.begin()

    def begin(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for source in self.copied:
            shutil.copytree(source, self.out / Path(source).name)

    def start(self) -> subprocess.Popen:
        words = [word.replace("{out}", str(self.out)) for word in self.words]
        return subprocess.Popen(
            [sys.executable, "-m", "hdxray_fast", *words], start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def finish(self) -> str:
        run = self.start()
        said, _ = run.communicate()
        if run.returncode:
            raise SystemExit(f"{' '.join(self.words)}: ended with {run.returncode}: {said[-2000:]}")
        return said


def put_to_it(name: str, runs: Runs, kills: int, rng: np.random.Generator, bar: tqdm) -> dict:
    began = time.monotonic()
    runs.finish()
    lasts, wanted = time.monotonic() - began, contents(runs.out)
    before = time.monotonic()
    subprocess.run([sys.executable, "-m", "hdxray_fast", *runs.words[: 1 + (name == "report generate")], "--help"],
                   capture_output=True, check=True)  # fmt: skip
    starts = min(time.monotonic() - before, 0.8 * lasts)
    moments, differing, left, missed = [], set(), set(), 0
    while len(moments) < kills:
        runs.begin()
        for _ in range(min(PER_ROUND, kills - len(moments))):
            moment = float(rng.uniform(starts, lasts))
            run = runs.start()
            try:
                run.communicate(timeout=moment)
                missed += 1
                runs.begin()
                continue
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
            moments.append(round(moment, 2))
            bar.update()
        runs.finish()
        found = contents(runs.out)
        differing |= {file for file in {*found, *wanted} if found.get(file) != wanted.get(file)}
        left |= {file for file in found if LEFTOVERS.search(file)}
    return {
        "command": name, "kills": len(moments), "ended_before_their_kill": missed, "calm_seconds": round(lasts, 1),
        "moments": moments, "files_compared": len(wanted), "differing": sorted(differing),
        "left_half_written": sorted(left),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/kill_commands"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="hdxray-kill-") as folder:
        root = Path(folder)
        make_inputs(root, options.films)
        chosen = {name: one for name, one in commands(root).items() if not options.only or name in options.only}
        with tqdm(total=options.kills * len(chosen), unit="kill", dynamic_ncols=True) as bar:
            for name, (words, copied) in chosen.items():
                rows.append(put_to_it(name, Runs(words, copied, root), options.kills, rng, bar))
                report = {"rows": rows, "seed": options.seed, "films": options.films, "commit": commit()}
                (options.out / "kill_commands.json").write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print({key: value for key, value in row.items() if key != "moments"})
    return int(any(row["differing"] or row["left_half_written"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
