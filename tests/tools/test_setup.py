"""The set-up of a fresh machine: which PyTorch is asked for, what is said before, what continuous integration runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "tools" / "install_torch.sh"
CI = ROOT / ".ci" / "run"
needs_make = pytest.mark.skipif(
    not shutil.which("make") or not (ROOT / "Makefile").exists(), reason="needs make and the Makefile"
)

pytestmark = [
    pytest.mark.skipif(not INSTALL.exists(), reason="needs the project's own tools beside the tests"),
    pytest.mark.skipif(not shutil.which("bash"), reason="needs bash"),
]

# Stands for a Python with pip: notes what is installed, and has the CPU build of one version at most.
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -m ]]; then
    echo "${@: -1}" >>"$NOTES/asked.txt"
    if [[ ${@: -1} == *+cpu && ! -e $NOTES/cpu-builds ]]; then
        echo "ERROR: No matching distribution found for ${@: -1}" >&2; exit 1
    fi
    echo "${@: -1}" >"$NOTES/installed.txt"
elif [[ $2 == *prefix* ]]; then
    echo "$NOTES"
else
    cat "$NOTES/installed.txt"
fi
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def set_up(tmp_path):
    """Runs install_torch.sh; gives what pip was asked for in turn, what was said, and the constraint that was kept."""
    python = executable(tmp_path / "python", PYTHON)

    def run(*arguments: str, gpu: bool = False) -> tuple[list[str], str, str]:
        executable(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\nexit {0 if gpu else 1}\n")
        environment = os.environ | {"NOTES": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        command = ["bash", str(INSTALL), str(python), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""  # no error is shown that needs nobody's care
        asked = (tmp_path / "asked.txt").read_text().split()
        return asked, done.stdout, (tmp_path / "torch.txt").read_text().strip()

    return run


linux_without_gpu = pytest.mark.skipif(
    Path("/dev/nvidia0").exists() or os.uname().sysname != "Linux", reason="for Linux without an NVIDIA GPU"
)


@linux_without_gpu
def test_without_a_gpu_the_cpu_build_is_taken_where_there_is_one(set_up, tmp_path):
    (tmp_path / "cpu-builds").touch()
    asked, said, kept = set_up("torch==2.13.0")
    assert asked == ["torch==2.13.0+cpu"]
    assert "200 MB" in said.splitlines()[0] and "2.7 GB" in said.splitlines()[0]
    assert kept == "torch==2.13.0+cpu"


@linux_without_gpu
def test_without_a_cpu_build_the_other_is_taken(set_up):
    asked, said, kept = set_up("torch==2.13.0")
    assert asked == ["torch==2.13.0+cpu", "torch==2.13.0"]
    assert "no index of this pip offers a CPU build" in said
    assert kept == "torch==2.13.0"


@pytest.mark.parametrize(
    ("arguments", "gpu"),
    [
        (["torch==2.13.0"], True),
        (["torch==2.12.0", "asked"], False),
        (["torch>=2.10", "asked"], False),
        (["torch==2.13.0+cu130"], False),
    ],
    ids=["with a GPU", "a version", "a range", "a build"],
)
def test_what_a_gpu_or_the_user_wants_is_taken_as_it_is(set_up, tmp_path, arguments, gpu):
    (tmp_path / "cpu-builds").touch()
    asked, said, _ = set_up(*arguments, gpu=gpu)
    assert asked == arguments[:1]
    assert f"({arguments[0]})" in said


@pytest.mark.skipif(not CI.exists(), reason="needs the repository beside the tests")
def test_continuous_integration_runs_every_test_once_with_a_users_pip(tmp_path):
    make = 'echo "make $*: $(env | grep -c ^PIP_ || true)"\n'
    executable(tmp_path / "make", f"#!/usr/bin/env bash\n{make}")
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PIP_FIND_LINKS": "/nowhere",
        "PIP_PRE": "1",
    }
    done = subprocess.run(["bash", str(CI)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["make lint: 0", "make test: 0", "make test-slow: 0"]


def planned_by_make(target: str, *settings: str) -> str:
    """The commands that make would run."""
    command = ["make", "-n", "-C", str(ROOT), target, *settings]
    # the make that may have started these tests hands its own settings down
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@needs_make
def test_the_demo_takes_steps_and_size():
    def words(*settings: str) -> list[str]:
        lines = planned_by_make("demo", *settings).replace("\\\n", " ").splitlines()
        return next(line for line in lines if "hdxray-fast demo" in line).split()

    assert words()[1:] == ["demo", "--out", "demo"]
    given = words("STEPS=20", "SIZE=640", "DATA=films", "DEMO_ARGS=--seed 3")
    assert given[4:] == ["--steps", '"20"', "--img-size", '"640"', "--data", '"films"', "--seed", "3"]


@needs_make
def test_fast_and_slow_tests_are_all_tests():
    def planned(target: str, *settings: str) -> str:
        return next(line for line in reversed(planned_by_make(target, *settings).splitlines()) if "/pytest" in line)

    assert '-m "not slow"' in planned("test")
    assert "-m slow" in planned("test-slow")
    assert " -m " not in planned("test-all")
    assert "OMP_NUM_THREADS=1 " in planned("test", "CORES=4", "PYTEST_WORKERS=4")
    assert "OMP_NUM_THREADS=2 " in planned("test", "CORES=4", "PYTEST_WORKERS=2")
    assert "OMP_NUM_THREADS=4 " in planned("test", "CORES=4", "PYTEST_WORKERS=0")
