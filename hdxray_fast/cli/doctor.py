"""What this machine has, which backend each operation takes and why, and how to get what is missing (``doctor``)."""

from __future__ import annotations

import importlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.reader_pool import worker_count
from ..extras import EXTRAS, install, installed, missing_of
from ..terminal import fitted

WHAT_FOR = {
    "dicom": "DICOM files, compressed ones included",
    "train": "pre-training, checkpoints, prepared data and the command line",
    "demo": "the demo's radiograph (with dicom and train)",
    "embed": "feature tables of the embed command",
    "prepare": "pictures of data sets prepared once (with train)",
    "streaming": "prepared data sets in object stores (with prepare)",
    "hf": "the encoder as a transformers model",
    "timm": "the encoder in timm's registry",
    "export": "the encoder as an ONNX graph",
    "classify": "labels, probes, fine-tuning and evaluation (with train)",
    "excel": "Excel workbooks in the place of CSV files",
    "text": "label queries from the diseases' names",
    "wandb": "curves in Weights & Biases (with train)",
    "report": "reports and their scores but METEOR (with train)",
    "report-scores": "METEOR of English reports, which takes Java (with report)",
    "report-chinese": "scores of Chinese reports by words (with report)",
    "lora": "report models by a language model with LoRA (with report)",
    "clinical": "RadGraph F1 and CheXbert F1 of English reports (with report)",
}
MODULES = {"torch": "torch", "numpy": "numpy", "opencv": "cv2", "safetensors": "safetensors"}  # of every installation


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def doctor_report() -> dict[str, Any]:
    """Everything ``hdxray-fast doctor`` tells, as a JSON-able dictionary.

    Returns:
        ``package``, ``python``, ``platform``, ``versions`` (name to version, or to the reason why it cannot be
        imported), ``cpu``, ``threads``, ``core`` (the native core), ``gpus``, ``backends`` (operation, device,
        backend, why), ``extras`` (each with ``missing`` and the ``command`` that installs it), ``advice`` (what to do,
        most useful first).
    """
    versions = {name: _module_version(module) for name, module in MODULES.items()}
    versions["triton"] = installed("triton") or "not installed (it comes with CUDA builds of torch)"
    core = _core_report()
    gpus = _gpus()
    extras = {name: _extra_report(name) for name in EXTRAS}
    return {
        "package": {"version": __version__, "location": str(Path(__file__).parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "versions": versions,
        "cpu": {"model": cpu_model(), "machine": platform.machine(), "cores": worker_count(-1), **core.pop("cpu")},
        "threads": _threads(),
        "core": core,
        "gpus": gpus,
        "backends": _backends(gpus),
        "extras": extras,
        "advice": _advice(versions, core, extras, gpus),
    }


def format_doctor(report: dict[str, Any]) -> str:
    """`report` as text for a terminal."""
    cpu, core = report["cpu"], report["core"]
    sections = [
        ("hdxray_fast", [f"{report['package']['version']} in {report['package']['location']}"]),
        ("Python", [f"{report['python']['version']} ({report['python']['executable']}), {report['platform']}"]),
        ("Versions", [f"{name} {version}" for name, version in report["versions"].items()]),
        (
            "CPU",
            [
                f"{cpu['model']}, {cpu['cores']} cores usable",
                f"features: {', '.join(cpu['features']) or 'unknown'}",
                f"vector path: {cpu['vector_path'] or 'none'}",
                "threads: " + ", ".join(f"{name} {n}" for name, n in report["threads"].items()),
            ],
        ),
        (
            "Native core",
            _core_lines(core),
        ),
        ("GPU", [_gpu_line(gpu) for gpu in report["gpus"]] or ["none that torch can use"]),
        ("Backends", [f"{b['operation']} on {b['device']}: {b['backend']} ({b['why']})" for b in report["backends"]]),
        ("Extras", [_extra_line(name, extra) for name, extra in report["extras"].items()]),
        ("To do", report["advice"] or ["nothing: all is there"]),
    ]
    return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections)


# --- parts of the report ----------------------------------------------------------------------------------------------
def _module_version(module: str) -> str:
    try:
        return importlib.import_module(module).__version__
    except Exception as error:  # a broken installation fails in many ways, and the doctor must survive them all
        return f"cannot be imported: {error}"


def _threads() -> dict[str, int]:
    threads = {}
    for name, module, function in (("torch", "torch", "get_num_threads"), ("opencv", "cv2", "getNumThreads")):
        try:
            threads[name] = getattr(importlib.import_module(module), function)()
        except Exception:  # said under versions
            continue
    return threads


def _core_report() -> dict[str, Any]:
    nothing = {"features": [], "vector_path": None, "vector_paths": []}
    try:
        from ..ops.native import HOW_TO_BUILD, core, why_missing, why_not_native
    except Exception as error:  # torch cannot be imported
        return {"present": False, "reason": str(error), "cpu": nothing}
    if core is None:
        return {"present": False, "reason": f"{why_missing}; {HOW_TO_BUILD}", "cpu": nothing}
    cpu = {
        "features": core.cpu_features(),
        "vector_path": core.vector_path(),
        "vector_paths": core.vector_paths(),
    }
    built = core.build_info()  # compiler, cuda: "on: ..." or "off: why"
    return {"present": True, **built, "cuda_unusable": why_not_native("cuda", 0) or None, "cpu": cpu}


def _core_lines(core: dict[str, Any]) -> list[str]:
    if not core["present"]:
        return [f"MISSING: {core['reason']}"]
    lines = [f"present, {core['compiler']}; CUDA {core['cuda']}"]
    if core["cuda"].startswith("on") and core["cuda_unusable"]:
        lines.append(f"CUDA cannot be used here: {core['cuda_unusable']}; the CPU paths are used")
    return lines


def _gpus() -> list[dict[str, Any]]:
    try:
        import torch

        if not torch.cuda.is_available():
            return []
        found = []
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            found.append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_mib": properties.total_memory // 2**20,
                    "cuda": torch.version.cuda,
                    "driver": _driver(),
                }
            )
        return found
    except Exception:  # no torch, or a driver that fails: both are said elsewhere
        return []


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _backends(gpus: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What ``backend="auto"`` takes, operation by operation, asked of the functions that take it."""
    try:
        import torch

        from ..ops import attention, attention_table, native
    except Exception:  # said under versions
        return []

    def pixels(device: str) -> tuple[str, str]:
        where = torch.device(device)
        backend = native.resolve_backend("auto", where)
        if backend == "reference":
            return backend, f"plain PyTorch, because {native.why_not_native(where.type, where.index)}"
        path = f"vector path {native.core.vector_path()}" if where.type == "cpu" else "CUDA kernels"
        return backend, f"the compiled core, {path}"

    rows = []
    for device in ["cpu", *(["cuda"] if gpus else [])]:
        for operation in ("plan_masks", "gather_patches", "reconstruction_loss"):
            rows.append((operation, device, *pixels(device)))
    rows.append(("attention", "cpu", "sdpa", "PyTorch's scaled_dot_product_attention, sequence by sequence"))
    for name, index in {gpu["name"]: i for i, gpu in enumerate(gpus)}.items():  # each model of GPU once
        choices = attention_table.explain(name, attention.why_not_triton("cuda", index))
        rows += [(f"attention, {shape}", f"cuda ({name})", backend, why) for shape, backend, why in choices]
    return [dict(zip(("operation", "device", "backend", "why"), row, strict=True)) for row in rows]


def _extra_report(name: str) -> dict[str, Any]:
    missing = missing_of(name)
    return {"for": WHAT_FOR[name], "missing": missing, "command": install(name) if missing else None}


def _advice(versions: dict[str, str], core: dict, extras: dict, gpus: list) -> list[str]:
    advice = [f"repair {name}: {v}" for name, v in versions.items() if v.startswith("cannot be imported")]
    if not core["present"]:
        advice.append(f"native core: {core['reason']}")
    elif gpus and core["cuda"].startswith("off"):
        advice.append(
            "CUDA kernels: with nvcc on PATH, `pip install . -Ccmake.define.HDXRAY_CUDA=ON` in the project's folder "
            f"(the core was built with CUDA {core['cuda']})"
        )
    elif gpus and core.get("cuda_unusable"):
        advice.append(
            f"CUDA kernels: {core['cuda_unusable']}; after a new driver, or a build for this GPU with `pip install . "
            "-Ccmake.define.HDXRAY_CUDA=ON`, they are used"
        )
    advice += [f"{extra['for']}: {extra['command']}" for extra in extras.values() if extra["missing"]]
    return advice


def _gpu_line(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, {gpu['memory_mib']} MiB, compute capability {gpu['capability']}, "
        f"driver {gpu['driver']}, CUDA {gpu['cuda']}"
    )


def _extra_line(name: str, extra: dict[str, Any]) -> str:
    state = "there" if not extra["missing"] else "missing " + ", ".join(extra["missing"])
    return f"{name} ({extra['for']}): {state}"


# --- the command ------------------------------------------------------------------------------------------------------
def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    doctor = parser_class(
        examples=["doctor", "doctor --json"],
        description="What this machine has, which backend each operation uses, what is missing.",
    )
    doctor.add_argument("--json", action="store_true", help="machine-readable")
    commands.add_subcommand("doctor", doctor)


def run_doctor_command(**options: bool) -> int:
    report = doctor_report()
    print(json.dumps(report, indent=1) if options["json"] else fitted(format_doctor(report)))
    return 0


COMMANDS = {"doctor": run_doctor_command}
