"""One command for a machine with a GPU: build, test, check memory and races, measure, and keep what was found.

    make gpu-check                     # everything, inside 8 minutes
    make gpu-check TUNE=1              # and choose the attention kernels' configurations first, which takes longer
    python3 tools/gpu_check.py --only build attention

It needs PyTorch, the build tools (CMake, ninja, pybind11, scikit-build-core), pytest and pytest-benchmark in the Python
that runs it (stage pretrain also the extra ``train``), and no network. Each stage has its own time limit and log, and
none stops the next ones. Results go to benchmarks/results and hdxray_fast/ops as always; ``$OUT`` (or
build/gpu-check/out) gets ``summary.txt``, ``logs.tar.gz`` and ``results.tar.gz``, which unpacks over a checkout, where
``python benchmarks/harness/table.py`` then writes the tables of README.md and docs/benchmarks.md.

Exit status: 0 if every stage passed, 1 if one did not, 3 if there is no GPU (then only build, doctor and table run).
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
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # however it is started
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from harness.bars import verdict
from stages import FAIL, Result, Runner, Stage, pytest_verdict

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 470.0  # seconds
TUNED_TOTAL = 570.0  # with tuning: within ten minutes as well
TUNE_SECONDS = 200.0
KEPT = (
    "benchmarks/results",
    "build/tuning/*.json",
    "hdxray_fast/ops/attention_table.json",
    "hdxray_fast/ops/triton/*.json",
)
# what a training imports
TRAINING = ("accelerate", "filelock", "loky", "pebble", "psutil", "pyarrow", "safetensors", "tqdm")
CUDA_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")

PROBE = """
import importlib.util, json, sys
modules = {"xdist": "xdist", "timeout": "pytest_timeout", "benchmark": "pytest_benchmark"}
modules.update((name, name) for name in sys.argv[1:])
found = {name: bool(importlib.util.find_spec(module)) for name, module in modules.items()}
try:
    import torch
    found.update(torch=torch.__version__, built=torch.version.cuda, gpu=torch.cuda.is_available())
    if found["gpu"]:
        found.update(name=torch.cuda.get_device_name(), capability="%d%d" % torch.cuda.get_device_capability())
except Exception as error:
    found["error"] = "%s: %s" % (type(error).__name__, error)
print(json.dumps(found))
"""

DOCTOR = """
import pathlib, sys
import hdxray_fast
from hdxray_fast import _core
from hdxray_fast.cli.main import main
site, want_cuda = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2] == "cuda"
where, cuda = pathlib.Path(hdxray_fast.__file__).resolve(), _core.build_info()["cuda"]
print("hdxray_fast from", where, "- CUDA", cuda, flush=True)
status = main(["doctor"])
if site not in where.parents:
    sys.exit("the package that was imported is not the one that was built (%s)" % site)
if want_cuda and not cuda.startswith("on"):
    sys.exit("the core was built without CUDA: %s" % cuda)
sys.exit(status)
"""


class Check:
    """Paths, environment and stages of one run."""

    def __init__(self, work: Path, out: Path, python: str = sys.executable) -> None:
        self.work, self.out, self.python = work, out, python
        self.site, self.logs, self.folder = work / "site", work / "logs", work / "run"
        self.found = self.probe()

    # --- what is here -------------------------------------------------------------------------------------------------
    def probe(self) -> dict:
        """What the Python at hand has: torch, a GPU, pytest's plugins."""
        try:
            done = subprocess.run(
                [self.python, "-c", PROBE, *TRAINING], capture_output=True, text=True, timeout=120, cwd="/", check=True
            )
            return json.loads(done.stdout.strip().splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            return {"error": f"{self.python} could not be asked ({type(error).__name__}: {error})"}

    @property
    def no_gpu(self) -> str | None:
        """Why nothing can run on a GPU here; None if there is one."""
        if "error" in self.found:
            return f"no GPU: torch cannot be imported ({self.found['error']})"
        if not self.found["built"]:
            return f"no GPU: torch {self.found['torch']} is built without CUDA"
        if not self.found["gpu"]:
            return f"no GPU: torch {self.found['torch']} (CUDA {self.found['built']}) finds no CUDA device"
        return None

    def environment(self, **more: str) -> dict[str, str]:
        """Of every stage: the built package before anything else, the CUDA tools on PATH, caches of its own."""
        folders = [str(Path(self.python).parent), os.environ.get("PATH", os.defpath)]
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        extra = [*([f"{home}/bin", f"{home}/compute-sanitizer"] if home else []), *CUDA_FOLDERS]
        folders += [folder for folder in extra if Path(folder).is_dir()]
        python_path = [str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "PATH": os.pathsep.join(folders),
            "PYTHONPATH": os.pathsep.join(python_path),
            "PYTHONUNBUFFERED": "1",
            "OUT": "",  # results are packed at the end
            "TRITON_CACHE_DIR": str(self.work / "cache" / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "cache" / "inductor"),
            **more,
        }

    # --- stages -------------------------------------------------------------------------------------------------------
    def build(self) -> Stage:
        env = self.environment(CMAKE_BUILD_PARALLEL_LEVEL=str(os.cpu_count() or 1))
        if (os.cpu_count() or 1) > 4 and "NVCC_APPEND_FLAGS" not in os.environ:
            env["NVCC_APPEND_FLAGS"] = "--threads 2"  # both architectures of a file at once
        compiler = os.environ.get("CUDACXX") or shutil.which("nvcc", path=env["PATH"])
        capability = self.found.get("capability", "90")
        architectures = sorted({capability, "80" if capability != "80" else "90"}, key=int)
        settings = [
            f"build-dir={self.work / 'build'}",
            f"cmake.define.HDXRAY_CUDA={'ON' if compiler else 'AUTO'}",  # ON: fail, and say why, rather than fall back
            f"cmake.define.HDXRAY_CUDA_ARCHITECTURES={';'.join(architectures)}",
        ]
        if compiler:
            env["CUDACXX"] = compiler

        def verdict(status: int) -> tuple[bool, str]:
            built = list(self.site.glob("hdxray_fast/_core*.so"))
            cuda = f"CUDA for {' '.join(architectures)}" if compiler else "no nvcc was found: without CUDA"
            return status == 0 and bool(built) and bool(compiler or self.no_gpu), cuda if built else "no core was built"

        def prepare() -> None:
            shutil.rmtree(self.site, ignore_errors=True)

        command = [self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-v"]
        command += ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--target", str(self.site)]
        command += [f"--config-settings={setting}" for setting in settings]
        limit = 1200 if self.no_gpu else 240
        return Stage("build", [*command, str(ROOT)], limit, env, prepare=prepare, verdict=verdict)

    def doctor(self) -> Stage:
        want = "any" if self.no_gpu else "cuda"
        command = [self.python, "-c", DOCTOR, str(self.site), want]
        return Stage("doctor", command, 60, self.environment(), needs=("build",))

    def pytest(self, name: str, limit: float, arguments: list[str], *, skips_fail: bool = False, **env: str) -> Stage:
        """A pytest stage, run away from the sources so that the built package is the one imported."""
        report = self.logs / f"{name}.xml"
        command = [self.python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-q"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}", *arguments]
        return Stage(
            name,
            command,
            limit,
            self.environment(**env),
            needs=("build",),
            blocked=self.no_gpu,
            prepare=lambda: report.unlink(missing_ok=True),
            verdict=pytest_verdict(report, skips_fail),
        )

    def tests(self) -> Stage:
        arguments = [str(ROOT / "tests"), "-m", "gpu"]
        if self.found.get("xdist"):  # compiling kernels is most of it, and that is work for the CPU
            arguments += ["-n", str(max(1, min(10, (os.cpu_count() or 1) * 2 // 3)))]
        if self.found.get("timeout"):
            # a thread ends a process that waits for the GPU, which no signal does; with xdist that is one worker
            arguments += ["--timeout=100", *(["--timeout-method=thread"] if self.found.get("xdist") else [])]
        return self.pytest("tests", 170, arguments)

    def sanitizer(self, tool: str, *select: str) -> Stage:
        marked = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.sanitize" in p.read_text("utf-8")]
        arguments = [*map(str, marked), "-m", "gpu and sanitize", *select]
        stage = self.pytest(tool, 170, arguments, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        options = ["--tool", tool, "--target-processes", "application-only", "--report-api-errors", "no"]
        options += ["--print-limit", "20"]
        stage.command = ["compute-sanitizer", *options, "--error-exitcode", "9", *stage.command]
        return stage

    def bench(
        self, name: str, limit: float, *, optional: bool = False, begin: float = 0.8, skips_fail: bool = True
    ) -> Stage:
        """A benchmark, of which no case begins after the share ``begin`` of its time."""
        arguments = [str(ROOT / "benchmarks" / f"bench_gpu_{name}.py"), "-s", "--benchmark-disable-gc"]
        arguments += ["--benchmark-columns=median,rounds"]
        env = {"HDXRAY_BENCH": "quick", "HDXRAY_BENCH_SECONDS": str(int(limit * begin))}
        stage = self.pytest(name, limit, arguments, skips_fail=skips_fail, **env)
        stage.optional = optional
        if not self.found.get("benchmark"):
            stage.blocked = stage.blocked or "pytest-benchmark is missing"
        return stage

    def pretrain(self, alone: bool) -> Stage:
        """The benchmark of whole pre-training runs: the first of them, and if the stage is alone as many as there are.

        A run takes a minute and a half, most of it compiling; none begins that could not end.
        """
        limit, begin = (450, 0.75) if alone else (140, 0.2)
        stage = self.bench("pretrain", limit, begin=begin, skips_fail=False)
        missing = [name for name in TRAINING if not self.found.get(name)]
        if missing:
            stage.blocked = stage.blocked or f"{', '.join(missing)} missing; training needs the extra train"
        return stage

    def script(self, name: str, limit: float, *command: str, needs_gpu: bool = True, optional: bool = False) -> Stage:
        blocked = self.no_gpu if needs_gpu else None
        command = (self.python, str(ROOT / "benchmarks" / command[0]), *command[1:])
        return Stage(name, command, limit, self.environment(), needs=("build",), blocked=blocked, optional=optional)

    def plan(self, tune: bool, only: Sequence[str] = ()) -> list[list[Stage]]:
        """All stages, in order; those of one list run at the same time. ``only``: the names that were asked for."""
        tables = [str(p / "hdxray_fast" / "ops" / "attention_table.json") for p in (ROOT, self.site)]
        batches = [
            [self.build()],
            [self.doctor()],
            [
                self.tests(),
                self.sanitizer("memcheck"),
                self.sanitizer("racecheck", "-k", "not attention"),  # Triton's own barriers are not ours to check
            ],
            [self.bench("attention", 150)],
            [self.script("backends", 20, "backend_table.py", *tables)],
            [self.bench("pixels", 80)],
            [self.bench("mae", 110)],
            [self.bench("encoder", 60)],
            [self.pretrain(alone=only == ["pretrain"])],
            [self.script("table", 20, "harness/table.py", "-", needs_gpu=False)],
            [self.bench("mae_compiled", 120, optional=True)],
        ]
        if tune:
            seconds = ["--seconds", str(int(TUNE_SECONDS * 0.9))]
            batches.insert(3, [self.script("tune", TUNE_SECONDS, "tune_attention.py", *seconds)])
        return batches

    # --- what is kept -------------------------------------------------------------------------------------------------
    def keep(self, text: str) -> None:
        """Leave summary, logs and results under ``out``; called after every stage, for the run may be cut short."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "summary.txt").write_text(text + "\n", encoding="utf-8")
        _pack(self.out / "logs.tar.gz", sorted(self.logs.glob("*")), self.logs)
        _pack(self.out / "results.tar.gz", sorted(p for pattern in KEPT for p in ROOT.glob(pattern)), ROOT)


def _pack(archive: Path, paths: Sequence[Path], root: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for path in paths:
            tar.add(path, arcname=str(path.relative_to(root)))


def ratios(device: str | None, results: Path = ROOT / "benchmarks" / "results") -> list[str]:
    """The rows measured on this GPU, a line each."""
    lines = []
    for path in sorted(results.glob("*/gpu_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row["device"]["name"] != device:
                continue
            ratio = "no ratio" if row["ratio"] is None else f"{row['ratio']:.2f}x"
            bar = "" if row["bar"] is None else f", bar {row['bar']:.3g}x {verdict(row)}"
            lines.append(f"{row['case']}: {ratio} {row['rival']['name']}{bar}")
    return lines


def summary(check: Check, runner: Runner, head: str) -> str:
    rows = ratios(check.found.get("name"))
    return "\n".join([head, "", runner.table(), *(["", *rows] if rows else [])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build, test and measure on this machine's GPU.")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages alone")
    parser.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help="all stages but these")
    parser.add_argument("--tune", action="store_true", help="choose the attention kernels' configurations first")
    parser.add_argument("--seconds", type=float, default=None, help=f"for everything together; default {TOTAL:.0f}")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", help="folder for all that is made")
    options = parser.parse_args(argv)

    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else options.work / "out"
    check = Check(options.work.resolve(), out.resolve())
    batches = check.plan(options.tune, options.only)
    names = [stage.name for batch in batches for stage in batch]
    unknown = sorted({*options.only, *options.skip} - set(names))
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [n for n in names if (not options.only or n in options.only) and n not in options.skip]
    before = [] if "build" in chosen or not list(check.site.glob("hdxray_fast/_core*.so")) else ["build"]
    total = options.seconds or (1300 if check.no_gpu else TUNED_TOTAL if options.tune else TOTAL)

    head = check.no_gpu or f"{check.found['name']}, torch {check.found['torch']} with CUDA {check.found['built']}"
    print(f"{head}\n", flush=True)
    runner = Runner(check.folder, check.logs, total, before, say=lambda line: print(line, flush=True))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an outer limit: end the children, keep what is there
    try:
        for batch in batches:
            stages = [stage for stage in batch if stage.name in chosen]
            if stages:
                runner.run(*stages)
                check.keep(summary(check, runner, head))
    except (KeyboardInterrupt, SystemExit):
        runner.results.append(Result("the rest", FAIL, 0.0, "interrupted"))
    text = summary(check, runner, head)
    check.keep(text)
    print(f"\n{text}\n\nkept in {check.out}", flush=True)
    if check.no_gpu:
        print(f"{check.no_gpu}: what needs one was not run", file=sys.stderr)
        return 3
    return int(any(result.fails_the_check for result in runner.results))


if __name__ == "__main__":
    sys.exit(main())
