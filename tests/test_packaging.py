"""What a user installs: sdist and wheel are built, the wheel is looked into, installed and imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The build back end runs in this environment: nothing is downloaded, and pip's build isolation is not what is tested.
BUILD = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
CORE = re.compile(r"^hdxray_fast/_core\.[^/]*so$")

pytest.importorskip("scikit_build_core", reason="the build back end is not installed (make test installs it)")
pytest.importorskip("pybind11", reason="pybind11 is not installed (make test installs it)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the project's sources beside the tests"),
]


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with its own tools (cmake, ninja) found first."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]), **changes}


def wheel(source: Path, out: Path, *settings: str, **changes: str) -> subprocess.CompletedProcess:
    options = [f"--config-settings={s}" for s in settings]
    command = [*BUILD, "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", out, *options, source]
    return run(*command, env=environment(**changes), cwd=out)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(out)!r})"
    built = run(sys.executable, "-c", code, env=environment(), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (archive,) = out.glob("hdxray_fast-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(out)
    (folder,) = (p for p in out.iterdir() if p.is_dir())
    return folder


@pytest.fixture(scope="module")
def built_wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built from the source distribution."""
    out = tmp_path_factory.mktemp("wheel")
    built = wheel(sdist, out)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("hdxray_fast-*.whl")
    return path


def test_sdist_holds_what_a_build_needs_and_no_build(sdist):
    for name in (
        "pyproject.toml",
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "cmake/find_cuda.cmake",
        "csrc/bindings.cpp",
        "csrc/gpu/gather.cu",
        "hdxray_fast/py.typed",
    ):
        assert (sdist / name).is_file(), name
    core = {p.relative_to(ROOT) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert core == {p.relative_to(sdist) for p in (sdist / "csrc").rglob("*") if p.is_file()}
    assert not list(sdist.rglob("*.so"))
    assert not list(sdist.rglob("__pycache__"))


def test_wheel_holds_package_data_and_metadata(built_wheel):
    with zipfile.ZipFile(built_wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
        (entry_points,) = (archive.read(n).decode() for n in names if n.endswith(".dist-info/entry_points.txt"))
    assert "hdxray_fast/py.typed" in names
    assert len([n for n in names if CORE.match(n)]) == 1
    weights = [p for p in (ROOT / "hdxray_fast" / "weights").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.relative_to(ROOT).as_posix() for p in weights} <= names
    assert not [n for n in names if n.startswith(("csrc/", "tests/", "benchmarks/")) or n.endswith(".pyc")]
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(re.split(r"[ <>=]", line.removeprefix("Requires-Dist: "))[0] for line in needs) == [
        "numpy",
        "opencv-python-headless",
        "safetensors",
        "torch",
    ]
    assert "License-Expression: Apache-2.0" in metadata
    assert "hdxray-fast = hdxray_fast.cli.main:main" in entry_points


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("readelf"), reason="needs Linux and readelf"
)
def test_core_needs_the_system_only(built_wheel, tmp_path):
    with zipfile.ZipFile(built_wheel) as archive:
        (core,) = (n for n in archive.namelist() if CORE.match(n))
        archive.extract(core, tmp_path)
    dynamic = run("readelf", "-d", tmp_path / core).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert needed
    allowed = ("libstdc++.so", "libgcc_s.so", "libc.so", "libm.so", "libpthread.so", "ld-linux", "libdl.so", "librt.so")
    assert not [n for n in needed if not n.startswith(allowed)], needed  # no libtorch, no libcudart, no libcuda
    symbols = run("readelf", "--dyn-syms", "-W", tmp_path / core).stdout
    assert "PyInit__core" in symbols
    # Of CUDA's run-time library nothing shows: torch's copy and this one never answer each other's calls.
    assert not re.findall(r"\bcuda[A-Z]\w+", symbols)


def assert_imports_and_computes(path: Path, site: Path) -> None:
    """Install the wheel into a folder of its own and use it there, away from the sources."""
    installed = run(*BUILD, "install", "--no-deps", "--target", site, path)
    assert installed.returncode == 0, installed.stderr
    code = (
        "import hdxray_fast as hx, torch;"
        "valid = torch.ones(2, 4, 4, dtype=torch.bool);"
        "plan = hx.plan_masks(valid, valid, backend='native');"
        "rows = hx.gather_patches(torch.ones(2, 1, 64, 64, dtype=torch.uint8), plan, backend='native');"
        "print(hx.__file__, tuple(rows.shape))"
    )
    used = run(sys.executable, "-c", code, env=environment(PYTHONPATH=str(site)), cwd=site)
    assert used.returncode == 0, used.stderr
    assert used.stdout.strip() == f"{site / 'hdxray_fast' / '__init__.py'} (2, 256)"


def test_wheel_imports_and_computes_away_from_the_sources(built_wheel, tmp_path):
    assert_imports_and_computes(built_wheel, tmp_path / "site")


# What the core says of CUDA, and that the package works on the CPU where no GPU is to be seen.
WITHOUT_GPU = (
    "import torch, hdxray_fast as hx; from hdxray_fast.ops import native;"
    "assert not torch.cuda.is_available();"
    "assert native.resolve_backend('auto', torch.device('cpu')) == 'native';"
    "assert native.resolve_backend('auto', torch.device('cuda', 0)) == 'reference';"
    "print(native.core.build_info()['cuda'], '|', native.why_not_native('cuda', 0))"
)


def cuda_of(path: Path, site: Path) -> tuple[str, str]:
    """What the installed wheel's core was built with, and why it cannot use a GPU when none is there."""
    assert_imports_and_computes(path, site)
    said = run(
        sys.executable, "-c", WITHOUT_GPU, env=environment(PYTHONPATH=str(site), CUDA_VISIBLE_DEVICES=""), cwd=site
    )
    assert said.returncode == 0, said.stderr
    built, _, why = said.stdout.strip().partition(" | ")
    return built, why


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no CUDA compiler (nvcc) is on PATH")
def test_where_a_cuda_compiler_is_found_the_wheel_has_cuda_and_needs_no_gpu(built_wheel, tmp_path):
    built, why = cuda_of(built_wheel, tmp_path / "site")
    assert re.fullmatch(r"on: sm_80( sm_\d+)* ptx", built), built
    assert re.search(r"no CUDA (driver|device) was found", why), why


def test_a_mistyped_choice_is_refused(sdist, tmp_path):
    mistyped = wheel(sdist, tmp_path, "cmake.define.HDXRAY_CUDA=MAYBE")
    assert mistyped.returncode != 0
    assert "accepted are ON, OFF and AUTO" in re.sub(r"\s+", " ", mistyped.stdout + mistyped.stderr)


def test_where_the_cuda_compiler_is_hidden_the_wheel_has_cpu_paths_and_says_why(sdist, tmp_path):
    """PATH without any folder that has an nvcc, against the environment as it is (the fixture's wheel)."""
    folders = environment()["PATH"].split(os.pathsep)
    visible = os.pathsep.join(f for f in folders if not (Path(f) / "nvcc").exists())
    if not all(shutil.which(tool, path=visible) for tool in ("cmake", "ninja", "c++")):
        pytest.skip("the compiler and nvcc share a folder here, so nvcc cannot be hidden")
    refused = wheel(sdist, tmp_path, "cmake.define.HDXRAY_CUDA=ON", PATH=visible, CUDACXX="", CUDA_PATH="")
    assert refused.returncode != 0
    assert "no CUDA compiler was found" in re.sub(r"\s+", " ", refused.stdout + refused.stderr)
    made = wheel(sdist, tmp_path, "cmake.build-type=Debug", PATH=visible, CUDACXX="", CUDA_PATH="")
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = tmp_path.glob("hdxray_fast-*.whl")
    built, why = cuda_of(path, tmp_path / "site")
    assert built.startswith("off: no CUDA compiler was found")
    assert "CPU paths only (CUDA off: no CUDA compiler was found" in why
