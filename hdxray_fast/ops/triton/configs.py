"""Block shapes of the attention kernels: the candidates, the default, and the choice that was measured on a device.

Nothing is tuned while a program runs: a tuner keyed on lengths would start again with every ragged batch. Candidates
are per (kernel, architecture, head dimension, dtype); the first is the default. tools/compile_kernels.py compiles all
of them ahead of time and fails if one that :func:`choose` can give spills registers or exceeds the shared memory;
benchmarks/tune_attention.py measures them on a device and writes the fastest to configs_measured.json beside this file,
which then goes before the default. Which Triton is installed decides what spills: a candidate is listed here if it is
clean in each of the versions that benchmarks/results/compile has a table of.

What bounds a choice on sm_90 (65,536 registers and 227 KiB of shared memory a multiprocessor, 255 registers a thread),
for the forward kernel with 8 warps, M x N scores in fp32 and M x D accumulators: (M N + M D) / 256 registers a thread
and half of M N / 256 more for the probabilities in 16 bits. 128 x 64 at D = 64 is 32 + 32 + 16, with addresses about
125: two programs fit a multiprocessor, so that one computes exponentials while the other multiplies; 64 x 64 with 4
warps needs as many a thread, and four programs do the same at a finer grain (7 % faster on an H200). 128 x 128 takes
about 185, one program, with fewer rescalings a score. The backward kernels hold two score tiles and one (dQ) or two
(dK, dV) accumulators. Shared memory: Q (or K and V) once, and ``stages`` tiles of each streamed tensor.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

HEAD_DIMS = (32, 64, 80, 96, 128)
KERNELS = ("forward", "dq", "dkdv")
ARCHES = ("sm80", "sm86", "sm90", "sm100")
DTYPES = ("bf16", "fp16", "fp32", "tf32")  # tf32: float32 tensors whose products may round to TF32
LONG = 1024  # sequences longer than this are a case of their own for measured choices
MEASURED = Path(__file__).with_name("configs_measured.json")


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled. Block sizes are rows of queries (m) and of keys (n), powers of two."""

    m: int
    n: int
    warps: int
    stages: int
    tma: bool = False  # tensor descriptors for the streamed side: the copy engine of sm_90 and later
    warp_specialize: bool = False  # forward only, with tma; adds a warp group that loads
    poly: bool = False  # forward only: a quarter of the exponentials on the multiply-add units
    part: int = 0  # width of the parts that the head dimension is cut into; 0: as wide as possible

    def constants(self, kernel: str, head_dim: int, precision: str) -> dict[str, int | bool | str]:
        """The kernel's constexpr arguments."""
        first = self.part or 1 << (head_dim.bit_length() - 1)  # the largest power of two
        rest = self.part or head_dim - first
        constants: dict[str, int | bool | str] = {"D0": first, "D1": rest, "PARTS": head_dim // first}
        if not self.part and rest:
            constants["PARTS"] = 2
        constants |= {"BLOCK_M": self.m, "BLOCK_N": self.n, "TMA": self.tma, "PRECISION": precision}
        if kernel == "forward":
            constants |= {"WARP_SPECIALIZE": self.warp_specialize, "POLY": self.poly}
        return constants

    def options(self) -> dict[str, int | bool]:
        """The compiler's options; multiply-add contraction is named because Triton 3.10 stops doing it by itself."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def arch_of(capability: tuple[int, int]) -> str | None:
    """The architecture whose candidates a device takes; None for those older than the kernels support."""
    if capability < (8, 0):
        return None
    if capability[0] == 9:
        return "sm90"
    if capability[0] in (10, 11):
        return "sm100"
    return "sm80" if capability == (8, 0) else "sm86"  # sm_86, 87, 89 and 12x: mma.sync and 99 KiB of shared memory


def candidates(kernel: str, head_dim: int, dtype: str, arch: str) -> list[Config]:
    """Configurations worth measuring, the default first; ``arch`` is one of ARCHES or ``"interpreter"``."""
    if arch == "interpreter":
        return [Config(32, 32, 4, 2), Config(32, 16, 4, 2, tma=True), Config(16, 32, 4, 2, part=16)]
    if dtype in ("fp32", "tf32"):
        entries = [next(entry for entry in _float32(dtype, arch)[kernel] if head_dim in entry[0])]
    else:
        entries = _HALF[arch][kernel]
    found = [Config(*fields) for dims, fields in entries if head_dim in dims]
    if kernel == "forward" and head_dim == 32 and dtype in ("bf16", "fp16"):  # where exponentials are the limit
        found += [replace(c, poly=True) for c in found if c.m == 128 and not c.warp_specialize]
    return found


def computed_dtype(dtype: str, head_dim: int, arch: str) -> str:
    """What a kernel computes in: TF32 where it was allowed, unless its operands do not fit the registers (sm_8x)."""
    return "fp32" if dtype == "tf32" and arch in ("sm80", "sm86") and head_dim > 64 else dtype


def choose(
    kernel: str, head_dim: int, dtype: str, arch: str, device_name: str = "", longest: int = 0, tma: bool = True
) -> Config:
    """The measured configuration for this device if there is one, otherwise the default.

    Args:
        kernel: one of KERNELS.
        head_dim: a key of HEAD_DIMS.
        dtype: one of DTYPES.
        arch: from :func:`arch_of`.
        device_name: as ``torch.cuda.get_device_name`` gives it.
        longest: longest sequence, or an estimate.
        tma: whether the tensors can be described to the copy engine (16-byte aligned).
    """
    chosen = _measured().get(device_name, {}).get(measured_key(kernel, head_dim, dtype, longest))
    found = candidates(kernel, head_dim, dtype, arch)
    if chosen in found and (tma or not chosen.tma):
        return chosen
    return next(config for config in found if tma or not config.tma)


def choices(kernel: str, head_dim: int, dtype: str, arch: str) -> list[Config]:
    """All that :func:`choose` can give: the default, with the copy engine and without, and what any device measured."""
    found = candidates(kernel, head_dim, dtype, arch)
    keys = [measured_key(kernel, head_dim, dtype, longest) for longest in (0, LONG + 1)]
    possible = [table.get(key) for table in _measured().values() for key in keys]
    possible += [next(config for config in found if tma or not config.tma) for tma in (True, False)]
    return [config for config in found if config in possible]


def measured_key(kernel: str, head_dim: int, dtype: str, longest: int) -> str:
    """Name of one choice in configs_measured.json."""
    return f"{kernel} D={head_dim} {dtype} {'long' if longest > LONG else 'short'}"


def write_measured(device_name: str, choices: dict[str, Config], path: Path = MEASURED) -> None:
    """Put the choices of one device into the file, in place of those it had there."""
    table = json.loads(path.read_text()) if path.exists() else {}
    table[device_name] = {key: asdict(config) for key, config in sorted(choices.items())}
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    _measured.cache_clear()


@functools.cache
def _measured() -> dict[str, dict[str, Config]]:
    if not MEASURED.exists():
        return {}
    table = json.loads(MEASURED.read_text())
    return {device: {key: Config(**fields) for key, fields in found.items()} for device, found in table.items()}


# --- the candidates: (head dimensions, fields of Config in their order) -----------------------------------------------
def _cut(part: int, *fields: int) -> tuple:
    """Fields of a configuration whose head dimension is cut into parts of one width."""
    return (*fields, False, False, False, part)


_SMALL, _SPLIT, _BIG = (32, 64), (80, 96), (128,)
_ALL = _SMALL + _SPLIT + _BIG

_HALF = {
    "sm90": {
        "forward": [
            (_SMALL, (64, 64, 4, 3)),  # the fastest on an H200, in every case
            (_SMALL, (128, 64, 8, 3)),
            (_SMALL, (128, 128, 8, 2)),
            (_SMALL, (128, 64, 4, 3)),
            (_SMALL, (64, 128, 4, 3)),
            (_SMALL, (128, 128, 8, 2, True)),
            (_SMALL, (128, 64, 8, 3, True)),
            (_SMALL, (128, 64, 4, 3, True)),
            (_SMALL, (64, 128, 4, 2, True)),
            (_SPLIT, (128, 64, 8, 2)),
            (_SPLIT, (64, 64, 4, 2)),
            (_SPLIT, (128, 64, 8, 3, True)),
            (_SPLIT, (128, 128, 8, 2, True)),
            (_BIG, (128, 64, 8, 2)),
            (_BIG, (64, 64, 4, 2)),
            (_BIG, (128, 64, 8, 3, True)),
            (_BIG, (128, 128, 8, 2, True)),
            (_ALL, (128, 128, 4, 2, True, True)),
        ],
        "dq": [
            (_SMALL, (128, 64, 8, 3)),
            (_SMALL, (128, 128, 8, 2)),
            (_SMALL, (64, 64, 4, 3)),
            (_SMALL, (128, 64, 8, 3, True)),
            (_SMALL, (128, 128, 8, 2, True)),
            (_SMALL, (64, 128, 4, 2, True)),
            (_SPLIT + _BIG, (128, 64, 8, 2)),
            (_SPLIT + _BIG, (64, 64, 4, 2)),
            (_SPLIT + _BIG, (128, 64, 8, 2, True)),
            (_SPLIT + _BIG, (64, 64, 4, 2, True)),
        ],
        "dkdv": [
            (_SMALL, (32, 128, 8, 3)),  # the fastest on an H200 without the copy engine
            (_SMALL, (64, 128, 8, 2)),
            (_SMALL, (64, 64, 4, 2)),
            (_SMALL, (64, 128, 8, 3)),
            (_SMALL, (64, 128, 8, 2, True)),
            (_SMALL, (32, 64, 4, 3)),
            (_SMALL, (64, 64, 4, 3, True)),
            (_SMALL, (32, 128, 8, 3, True)),
            (_SPLIT + _BIG, (32, 128, 8, 2)),
            (_SPLIT, (64, 128, 8, 2)),
            (_SPLIT + _BIG, (32, 64, 4, 2)),
            (_SPLIT + _BIG, (64, 128, 8, 2, True)),
            (_SPLIT + _BIG, (32, 64, 4, 2, True)),
        ],
    },
    "sm80": {
        "forward": [
            (_SMALL, (128, 64, 8, 3)),
            ((32,), (128, 64, 4, 3)),
            (_SMALL, (64, 64, 4, 3)),
            (_SPLIT, (128, 64, 8, 2)),
            ((96,), (128, 32, 4, 2)),
            (_SPLIT, (64, 64, 4, 2)),
            (_BIG, (128, 64, 8, 2)),
        ],
        "dq": [
            (_SMALL, (128, 64, 8, 2)),
            (_SMALL, (64, 64, 4, 2)),
            (_SPLIT, (128, 32, 8, 2)),
            (_SPLIT, (64, 32, 4, 2)),
            (_BIG, _cut(64, 32, 32, 4, 2)),
        ],
        "dkdv": [
            (_SMALL, (64, 128, 8, 2)),
            (_SMALL, (64, 64, 4, 2)),
            (_SMALL, (32, 128, 8, 2)),
            ((80,), (32, 128, 8, 2)),
            ((80,), (32, 64, 4, 2)),
            ((96,), (32, 64, 8, 2)),
            (_BIG, (32, 128, 8, 2)),
            (_BIG, (32, 64, 8, 2)),
        ],
    },
    "sm86": {  # 99 KiB of shared memory a program
        "forward": [(_SMALL, (128, 64, 8, 2)), (_SPLIT, (64, 32, 4, 2)), (_BIG, _cut(64, 64, 32, 4, 2))],
        "dq": [(_SMALL, (64, 64, 4, 2)), (_SPLIT, (64, 32, 4, 2)), (_BIG, _cut(64, 32, 32, 4, 2))],
        "dkdv": [(_SMALL, (64, 64, 4, 2)), ((80,), (32, 64, 4, 2)), ((96, 128), (32, 64, 8, 2))],
    },
    "sm100": {
        "forward": [
            (_ALL, (128, 64, 8, 2)),
            (_ALL, (128, 128, 8, 2)),
            ((64, *_SPLIT, *_BIG), (64, 64, 4, 2)),
            (_ALL, (128, 64, 8, 2, True)),
        ],
        "dq": [
            (_ALL, (128, 64, 8, 2)),
            (_ALL, (128, 64, 8, 2, True)),
        ],
        "dkdv": [
            (_ALL, (64, 128, 8, 2)),
            (_SMALL + _SPLIT, (64, 128, 8, 2, True)),
        ],
    },
}


def _float32(dtype: str, arch: str) -> dict[str, list[tuple]]:
    """float32 on the multiply-add units, or as TF32 on tensor cores: small tiles, the head dimension in parts."""
    if dtype == "fp32":
        rows = [((32,), _cut(32, 64, 32, 8, 1)), ((64, 80, 96, 128), _cut(16, 64, 32, 8, 1))]
        narrow = {"sm80": (32, 64, 80), "sm86": (64, 80, 128)}.get(arch, (64, 80))
        keys = [(narrow, _cut(16, 32, 32, 8, 1)), (_ALL, _cut(32, 32, 32, 8, 1))]
        return {"forward": rows, "dq": rows, "dkdv": keys}
    rows = [((80,), _cut(16, 64, 32, 8, 2)), (_ALL, _cut(32, 64, 32, 8, 2))]
    keys = [((80,), _cut(16, 32, 64, 8, 2)), (_ALL, _cut(32, 32, 64, 8, 2))]
    if arch in ("sm80", "sm86"):
        keys = [((32,), (32, 64, 8, 2)), *keys]
    return {"forward": rows, "dq": rows, "dkdv": keys}
