"""The core compiles with the oldest compilers that distributions still have: GCC 9 and 10, Clang 11 to 17.

Those that are on PATH are tried, and the Clang that the PyPI package ziglang brings (0.9 has Clang 13, 0.12 Clang 17).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the project's sources beside the tests"),
]
NAMES = [*(f"g++-{version}" for version in (9, 10)), *(f"clang++-{version}" for version in range(11, 18))]
COMPILERS = {name: [name] for name in NAMES if shutil.which(name)}
if importlib.util.find_spec("ziglang"):
    COMPILERS["zig"] = [sys.executable, "-m", "ziglang", "c++", "-target", "x86_64-linux-gnu.2.17"]
VECTOR_PATHS = {"csrc/cpu/kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"]}  # CMakeLists.txt says the same


def sources() -> list[str]:
    """Of the CPU build, as CMakeLists.txt lists them."""
    listed = re.search(r"set\(HDXRAY_SOURCES(.*?)\)", (ROOT / "CMakeLists.txt").read_text(), re.DOTALL)
    return [*listed[1].split(), *VECTOR_PATHS, "csrc/gpu/no_cuda.cpp"]


@pytest.mark.skipif(not COMPILERS, reason=f"none of {', '.join(NAMES)} is on PATH, and ziglang is not installed")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_core_compiles(compiler, tmp_path):
    pybind11 = pytest.importorskip("pybind11")
    command = [*COMPILERS[compiler], "-std=c++17", "-O0", "-fPIC", "-Icsrc", "-ffp-contract=off", "-Wall", "-Wextra"]
    command += ["-isystem", sysconfig.get_paths()["include"], "-isystem", pybind11.get_include()]
    command += ["-DHDXRAY_HAVE_AVX2=1", "-DHDXRAY_HAVE_CUDA=0", '-DHDXRAY_CUDA_NOTE="off"']
    for source in sources():
        compiled = subprocess.run(
            [*command, *VECTOR_PATHS.get(source, []), "-c", source, "-o", str(tmp_path / "core.o")],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert compiled.returncode == 0, compiled.stderr
