"""The CUDA sources compile for every target, without a register spilled, wherever a CUDA compiler is found.

One configure and one build for the whole file; CMake is asked for the compiler's own report (``-Xptxas -v``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100")
MAX_REGISTERS = 128  # of 255: two blocks of 256 threads on a multiprocessor, which loads in flight need
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the project's sources beside the tests"),
    pytest.mark.skipif(CMAKE is None, reason="CMake is not installed (make test installs it)"),
]


def run(*command: object, **changes: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, **changes}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900, env=environment)


def configure(folder: Path, *settings: str, **changes: str) -> subprocess.CompletedProcess:
    options = [f"-D{s}" for s in settings]
    return run(
        CMAKE, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", *options, **changes
    )


def nvcc_works() -> bool:
    return shutil.which("nvcc") is not None and run("nvcc", "--version").returncode == 0


needs_nvcc = pytest.mark.skipif(not nvcc_works(), reason="no CUDA compiler (nvcc) is on PATH")


# --- what the compiler says -------------------------------------------------------------------------------------------
class Kernel(NamedTuple):
    """One kernel for one target, as ptxas reports it."""

    name: str
    target: str
    registers: int
    stack: int
    spilled: int
    shared: int


REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<target>sm_\d+)'\n.*\n\s*"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def kernels(report: str) -> Iterator[Kernel]:
    for found in REPORT.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        spilled = int(found["stores"]) + int(found["loads"])
        smem = int(shared[1]) if shared else 0
        yield Kernel(found["name"], found["target"], int(found["registers"]), int(found["stack"]), spilled, smem)


def test_a_report_with_spills_is_read():
    report = (
        "ptxas info    : Compiling entry function '_Z4growv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z4growv\n"
        "    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 48 bytes smem\n"
    )
    assert list(kernels(report)) == [Kernel("_Z4growv", "sm_90", 32, 16, 32, 48)]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> list[Kernel]:
    """Every kernel of the core, compiled for every target."""
    folder = tmp_path_factory.mktemp("cuda")
    configured = configure(folder, "HDXRAY_CUDA=ON", "CMAKE_CUDA_FLAGS=-Xptxas=-v", "CMAKE_BUILD_TYPE=Release")
    assert configured.returncode == 0, configured.stdout + configured.stderr
    assert f"CUDA on: {' '.join(TARGETS)} ptx" in configured.stdout
    # Objects of the CUDA sources alone; test_packaging.py builds and imports the whole core.
    objects = [f"CMakeFiles/_core.dir/csrc/gpu/{source.name}.o" for source in sorted((ROOT / "csrc/gpu").glob("*.cu"))]
    built = run(CMAKE, "--build", folder, "--verbose", "--target", *objects)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said[-5000:]
    assert all((folder / o).is_file() for o in objects)
    warnings = [line for line in said.splitlines() if "warning" in line.lower()]
    assert not warnings, warnings[:20]
    return list(kernels(said))


@needs_nvcc
def test_every_kernel_is_compiled_for_every_target(report):
    names = {k.name for k in report}
    assert {(k.name, k.target) for k in report} == {(n, t) for n in names for t in TARGETS}
    for part in ("gather_wide", "gather_any", "scatter_wide", "loss_wide", "loss_any", "loss_total", "loss_scale"):
        assert any(part in n for n in names), part
    assert any("plan" in n for n in names)


@needs_nvcc
def test_no_kernel_spills(report):
    assert not [k for k in report if k.spilled]
    assert not [k for k in report if k.stack]  # arrays that left the registers
    assert max(k.registers for k in report) <= MAX_REGISTERS
    assert max(k.shared for k in report) <= 48 * 1024


# --- when CUDA cannot be had ------------------------------------------------------------------------------------------
def broken_compiler(folder: Path) -> Path:
    """An nvcc that knows its targets and compiles nothing."""
    script = folder / "nvcc"
    script.write_text(
        '#!/bin/sh\nif [ "$1" = --list-gpu-code ]; then echo sm_80; echo sm_90; exit 0; fi\n'
        'echo "nvcc fatal   : Could not find \\"cicc\\"; and more" >&2; exit 1\n'
    )
    script.chmod(0o755)
    return script


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_compiler_that_fails_is_passed_over_by_auto_and_an_error_for_on(tmp_path):
    nvcc = broken_compiler(tmp_path)
    auto = configure(tmp_path / "auto", "HDXRAY_CUDA=AUTO", CUDACXX=str(nvcc))
    assert auto.returncode == 0, auto.stderr
    assert f"CUDA off: {nvcc} was found, but does not compile (nvcc fatal : Could not find 'cicc'" in one_line(
        auto.stdout
    )
    on = configure(tmp_path / "on", "HDXRAY_CUDA=ON", CUDACXX=str(nvcc))
    assert on.returncode != 0
    assert "HDXRAY_CUDA=ON was asked for and cannot be had" in one_line(on.stderr)
    assert "Could not find 'cicc'" in one_line(on.stderr)


def test_a_compiler_that_is_not_there_is_named(tmp_path):
    on = configure(tmp_path, "HDXRAY_CUDA=ON", CUDACXX="/nowhere/nvcc")
    assert on.returncode != 0
    assert "/nowhere/nvcc does not run" in one_line(on.stderr)


def test_an_unknown_target_is_refused(tmp_path):
    nvcc = broken_compiler(tmp_path)
    asked = configure(tmp_path / "b", "HDXRAY_CUDA=AUTO", "HDXRAY_CUDA_ARCHITECTURES=90;777", CUDACXX=str(nvcc))
    assert asked.returncode != 0
    assert "does not know 777, it knows sm_80 sm_90" in one_line(asked.stderr)
