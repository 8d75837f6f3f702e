"""Compile every Triton attention kernel ahead of time, for devices that need not be there, and table what comes out.

    python tools/compile_kernels.py                      # all candidates for all architectures (tens of minutes)
    python tools/compile_kernels.py --defaults --arch sm90   # those alone that can be picked without measuring
    python tools/compile_kernels.py --out benchmarks/results/compile

Registers, spills and shared memory are read from the compiled code. A configuration has a problem if it does not
compile, spills, needs more shared memory than a program of the architecture can have, or (16-bit dtypes) does its
products without the tensor-core instructions of the architecture: ``mma.sync`` on sm_80 and sm_86, ``wgmma`` on sm_90,
``tcgen05`` on sm_100.

Exit status: 1 if one that can be picked without measuring (``configs.choices``) has a problem, or one that is only a
candidate does not compile; the other problems of candidates are for the table: the Triton that is installed decides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hdxray_fast.ops.triton import attention as launches
from hdxray_fast.ops.triton import configs
from hdxray_fast.ops.triton.configs import Config

SHARED_KIB = {"sm80": 163, "sm86": 99, "sm90": 227, "sm100": 227}  # most that one program can have
CAPABILITY = {"sm80": 80, "sm86": 86, "sm90": 90, "sm100": 100}
KERNELS = {
    "forward": launches.forward_kernel,
    "dq": launches.dq_kernel,
    "dkdv": launches.dkdv_kernel,
    "schedule": launches.schedule_kernel,
}
TENSORS = ("q", "k", "v", "out", "grad_out", "dq", "dk", "dv")  # in the caller's dtype
POINTERS = {"lse": "*fp32", "delta": "*fp32", "schedule": "*i32", "cu_own": "*i32", "cu_other": "*i32"}
POINTEES = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "tf32": "*fp32"}
INSTRUCTIONS = {  # in PTX
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma.sync": r"\bmma\.sync",
    "tma": r"cp\.async\.bulk\.tensor",
}
EXPECTED = {"sm80": "mma.sync", "sm86": "mma.sync", "sm90": "wgmma", "sm100": "tcgen05"}


def jobs_of(arches: list[str], head_dims: list[int], dtypes: list[str], defaults: bool) -> list[tuple]:
    """Arguments of :func:`compile_one`: every candidate, or those that can be picked without measuring."""
    listed = configs.choices if defaults else configs.candidates
    found = []
    for arch in arches:
        for kernel in configs.KERNELS:
            for head_dim in head_dims:
                for dtype in dtypes:
                    if configs.computed_dtype(dtype, head_dim, arch) != dtype:
                        continue
                    found += [(arch, kernel, head_dim, dtype, c) for c in listed(kernel, head_dim, dtype, arch)]
        blocks = {c.m if kernel != "dkdv" else c.n for _, kernel, _, _, c in found}
        found += [(arch, "schedule", 0, "int32", Config(block, block, 1, 3)) for block in sorted(blocks)]
    return found


def compile_one(arch: str, kernel: str, head_dim: int, dtype: str, config: Config) -> dict[str, Any]:
    """One row of the table; ``problem`` says what is wrong, or is empty."""
    row = {"arch": arch, "kernel": kernel, "head_dim": head_dim, "dtype": dtype, "config": asdict(config)}
    if kernel == "schedule":
        constants: dict[str, Any] = {"BLOCK": config.m, "CHUNK": launches.CHUNK}
    else:
        constants = config.constants(kernel, head_dim, "tf32" if dtype == "tf32" else "ieee")
    target = GPUTarget("cuda", CAPABILITY[arch], 32)
    try:
        compiled = triton.compile(_source(KERNELS[kernel], dtype, constants), target=target, options=config.options())
    except Exception as error:  # the compiler fails in many ways, all of which belong in the table
        return row | {"problem": f"does not compile: {type(error).__name__}: {str(error).strip()[:200]}"}
    ptx = compiled.asm["ptx"]
    row |= _resources(compiled.asm["cubin"])
    row["shared_bytes"] = compiled.metadata.shared
    row["warps"] = compiled.metadata.num_warps  # with those that warp specialisation adds
    row["instructions"] = {name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}
    return row | {"problem": _problem(row)}


def _source(kernel, dtype: str, constants: dict[str, Any]) -> ASTSource:
    """The kernel as a launch specialises it: pointers and strides are multiples of 16, lengths are anything."""
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in TENSORS or name in POINTERS:
            signature[name] = POINTERS.get(name) or POINTEES[dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name.startswith("stride"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes)


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    moves = len(re.findall(r"\b(?:LDL|STL)\b", code))  # loads from and stores to the stack
    return {"registers": int(registers), "stack_bytes": int(stack), "spill_moves": moves}


def _problem(row: dict[str, Any]) -> str:
    problems = []
    if row["stack_bytes"] or row["spill_moves"]:
        problems.append(f"spills: {row['stack_bytes']} bytes of stack, {row['spill_moves']} moves")
    if row["shared_bytes"] > SHARED_KIB[row["arch"]] * 1024:
        problems.append(f"{row['shared_bytes'] / 1024:.0f} KiB of shared memory, limit {SHARED_KIB[row['arch']]}")
    expected = EXPECTED[row["arch"]]
    if row["dtype"] in ("bf16", "fp16", "tf32") and not row["instructions"][expected]:
        if row["dtype"] == "tf32" and row["instructions"]["mma.sync"]:
            return "; ".join(problems)  # wgmma and tcgen05 take TF32 in one of the two layouts only
        problems.append(f"no {expected} instruction")
    if row["config"]["tma"] and not row["instructions"]["tma"]:
        problems.append("no bulk tensor copy")
    if row["config"]["warp_specialize"] and row["warps"] <= row["config"]["warps"]:
        problems.append("warps were not specialised")
    return "; ".join(problems)


def fails(row: dict[str, Any]) -> bool:
    """Whether a row's problem concerns what can be picked without measuring, or is that it does not compile."""
    if not row["problem"]:
        return False
    if row["kernel"] == "schedule" or "registers" not in row:
        return True
    return Config(**row["config"]) in configs.choices(row["kernel"], row["head_dim"], row["dtype"], row["arch"])


def run(jobs: list[tuple], workers: int) -> list[dict[str, Any]]:
    if workers <= 1:
        return [_shown(compile_one(*job)) for job in jobs]
    with ProcessPoolExecutor(workers) as pool:
        return [_shown(row) for row in pool.map(compile_one, *zip(*jobs, strict=True), chunksize=4)]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    if row["problem"]:
        print(
            f"{row['arch']} {row['kernel']} D={row['head_dim']} {row['dtype']} {_name(row['config'])}: {row['problem']}"
        )
    return row


def _name(config: dict[str, Any]) -> str:
    extras = [word for word, key in (("tma", "tma"), ("ws", "warp_specialize"), ("poly", "poly")) if config[key]]
    extras += [f"cut {config['part']}"] if config["part"] else []
    return " ".join([f"{config['m']}x{config['n']} w{config['warps']} s{config['stages']}", *extras])


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per architecture; a line per configuration."""
    lines = [
        "# Attention kernels, compiled ahead of time",
        "",
        f"Triton {triton.__version__}; written by tools/compile_kernels.py. A configuration is queries x keys",
        "(schedule: rows of a tile), warps (w), stages (s), tensor descriptors (tma), specialised warps (ws), a",
        "quarter of the exponentials as polynomials (poly), parts of the head dimension (cut). The first line of each",
        "kernel, head dimension and dtype is the default. None spills unless the last column says so.",
    ]
    by_arch = defaultdict(list)
    for row in rows:
        by_arch[row["arch"]].append(row)
    for arch, group in by_arch.items():
        lines += ["", f"## {arch} (at most {SHARED_KIB[arch]} KiB of shared memory)", ""]
        lines += ["| kernel | D | dtype | configuration | registers | shared KiB | instructions | problem |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in group:
            found = ", ".join(f"{name} {count}" for name, count in row.get("instructions", {}).items() if count)
            cells = [row["kernel"], row["head_dim"], row["dtype"], _name(row["config"]), row.get("registers", "")]
            cells += [f"{row.get('shared_bytes', 0) / 1024:.1f}", found, row["problem"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=configs.ARCHES, default=list(configs.ARCHES))
    parser.add_argument("--head-dim", nargs="+", type=int, choices=configs.HEAD_DIMS, default=configs.HEAD_DIMS)
    parser.add_argument("--dtype", nargs="+", choices=configs.DTYPES, default=list(configs.DTYPES))
    parser.add_argument("--defaults", action="store_true", help="only what can be picked without measuring")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for triton-<version>.json and .md")
    options = parser.parse_args(arguments)

    rows = run(jobs_of(options.arch, options.head_dim, options.dtype, options.defaults), options.workers)
    problems, failures = sum(bool(row["problem"]) for row in rows), sum(map(fails, rows))
    print(
        f"Triton {triton.__version__}: {len(rows)} configurations compiled, {problems} with a problem,"
        f" {failures} of them fail"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"triton-{triton.__version__}"
        path.with_name(path.name + ".json").write_text(json.dumps(rows, indent=1) + "\n")
        path.with_name(path.name + ".md").write_text(markdown(rows))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
