"""Ahead-of-time compilation of the Triton kernels: no spills, shared memory within limits, tensor-core instructions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest

triton = pytest.importorskip(
    "triton", reason="Triton is not installed (it comes with CUDA builds of PyTorch for Linux)"
)

from hdxray_fast.ops.triton import configs  # noqa: E402

ROOT = Path(__file__).parents[2]
NOTHING = {"arch": "sm90", "head_dim": 0, "dtype": "bf16", "config": asdict(configs.Config(64, 64, 4, 2))}
TOOL = ROOT / "tools" / "compile_kernels.py"
TABLES = ROOT / "benchmarks" / "results" / "compile"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

pytestmark = [
    pytest.mark.skipif(not TOOL.exists(), reason="needs the project's own tools beside the tests"),
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA compiler"),
]


def compile_all(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own, which no other test has switched to the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_defaults_of_hopper_compile(tmp_path):
    found = compile_all("--defaults", "--arch", "sm90", "--dtype", "bf16", "--out", str(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())
    attention = [row for row in rows if row["kernel"] != "schedule"]
    assert {(row["kernel"], row["head_dim"]) for row in attention} == set(product(configs.KERNELS, configs.HEAD_DIMS))
    assert all(row["instructions"]["wgmma"] for row in attention)
    assert all(0 < row["registers"] <= 255 for row in rows)
    assert path.with_suffix(".json").exists()
    assert "| forward | 64 | bf16 |" in next(tmp_path.glob("*.md")).read_text()


def test_ragged_batches_share_their_kernels():
    """The launches themselves, compiled for a GPU that is not there: one variant each, specialised as in the tables."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(configs.__file__).parents[3])  # the package that this process has
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "triton_launches.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
    compiled = json.loads(found.stdout.splitlines()[-1])
    names = {"forward_kernel", "dq_kernel", "dkdv_kernel"}
    assert set(compiled) == {f"{name} {kind}" for name in names for kind in ("pointers", "tma")} | {
        "schedule_kernel pointers"
    }
    for name, variants in compiled.items():
        # the schedule is one per height of tile; dense and ragged sequences are the same kernels
        assert len(variants) <= (2 if name.startswith("schedule") else 1), name
        for signature, divisible in variants.values():
            pointers = {n for n, kind in signature.items() if kind.startswith("*")}
            strides = {n for n in signature if n.startswith("stride")}
            assert set(divisible) == pointers | strides  # so that loads are 16 bytes wide
            assert all(
                kind == "i32" for n, kind in signature.items() if n in strides or n.startswith(("rows", "length"))
            )


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [("bf16", "fp16"), ("fp32", "tf32")], ids=" ".join)
@pytest.mark.parametrize("arch", configs.ARCHES)
def test_what_can_be_picked_without_measuring_is_clean(arch, dtypes):
    """Whichever Triton is installed. That all candidates are, under each supported one, is what the tables record."""
    found = compile_all("--defaults", "--arch", arch, "--dtype", *dtypes)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("head_dims", [("32",), ("64",), ("80", "96", "128")], ids=" ".join)
@pytest.mark.parametrize("arch", configs.ARCHES)
def test_every_candidate_compiles(arch, head_dims):
    """In one dtype: others differ in the names of instructions. Spills depend on Triton and are told, not failed."""
    found = compile_all("--arch", arch, "--head-dim", *head_dims, "--dtype", "bf16")
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]


def test_all_that_choose_gives_is_among_the_choices(monkeypatch):
    odd = configs.Config(128, 128, 8, 2)  # a candidate, not the default
    key = configs.measured_key("forward", 64, "bf16", 6401)
    monkeypatch.setattr(configs, "_measured", lambda: {"a GPU": {key: odd}})
    assert configs.choose("forward", 64, "bf16", "sm90", "a GPU", longest=6401) == odd
    for arch, kernel, dim in product(configs.ARCHES, configs.KERNELS, configs.HEAD_DIMS):
        for dtype in {configs.computed_dtype(d, dim, arch) for d in configs.DTYPES}:
            choices = configs.choices(kernel, dim, dtype, arch)
            assert 1 <= len(choices) <= len(configs.candidates(kernel, dim, dtype, arch))
            for device, longest, tma in product(("", "a GPU"), (0, 6401), (True, False)):
                assert configs.choose(kernel, dim, dtype, arch, device, longest, tma) in choices


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compile_kernels", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_spill_fails_where_nothing_was_measured_and_is_told_elsewhere(tool, capsys, monkeypatch):
    def spilling(config: configs.Config):
        def compile_one(arch, kernel, head_dim, dtype, tried):
            row = {"arch": arch, "kernel": kernel, "head_dim": head_dim, "dtype": dtype, "config": asdict(tried)}
            return row | {"registers": 255, "problem": "spills: 8 bytes" if tried == config else ""}

        return compile_one

    arguments = ["--arch", "sm90", "--head-dim", "64", "--dtype", "bf16"]
    default, *others = configs.candidates("forward", 64, "bf16", "sm90")
    monkeypatch.setattr(tool, "compile_one", spilling(default))
    assert tool.main(arguments) == 1
    monkeypatch.setattr(tool, "compile_one", spilling(next(c for c in others if c.warp_specialize)))
    assert tool.main(arguments) == 0
    assert "forward D=64 bf16 128x128 w4 s2 tma ws: spills: 8 bytes" in capsys.readouterr().out
    monkeypatch.setattr(tool, "compile_one", lambda *job: {"problem": "does not compile", "kernel": "x"} | NOTHING)
    assert tool.main(arguments) == 1


def test_a_configuration_that_spills_is_a_problem(tool):
    row = {"arch": "sm86", "dtype": "bf16", "config": {"tma": True, "warp_specialize": True, "warps": 4}, "warps": 4}
    row |= {"stack_bytes": 8, "spill_moves": 2, "shared_bytes": 100 * 1024, "instructions": {"mma.sync": 0, "tma": 0}}
    problem = tool._problem(row)
    for part in (
        "spills: 8 bytes",
        "100 KiB of shared memory, limit 99",
        "no mma.sync",
        "no bulk tensor",
        "specialised",
    ):
        assert part in problem
    good = {"stack_bytes": 0, "spill_moves": 0, "shared_bytes": 1024, "instructions": {"mma.sync": 9, "tma": 2}}
    assert tool._problem(row | good | {"warps": 12}) == ""


@pytest.mark.skipif(not TABLES.exists(), reason="needs the project's own results beside the tests")
def test_the_tables_hold_every_configuration_that_can_be_picked():
    tables = sorted(TABLES.glob("triton-*.json"))
    assert {path.stem.removeprefix("triton-") for path in tables} >= {"3.6.0", "3.7.1", "3.8.0", "3.9.0"}
    for path in tables:
        rows = json.loads(path.read_text())
        assert not [row for row in rows if row["problem"]], path.name
        known = {(r["arch"], r["kernel"], r["head_dim"], r["dtype"], configs.Config(**r["config"])) for r in rows}
        for arch in configs.ARCHES:
            for kernel in configs.KERNELS:
                for dim in configs.HEAD_DIMS:
                    for dtype in {configs.computed_dtype(d, dim, arch) for d in configs.DTYPES}:
                        for config in configs.candidates(kernel, dim, dtype, arch):
                            assert (arch, kernel, dim, dtype, config) in known, path.name
