"""Writes what ``backend="auto"`` of the attention chooses on each measured device, from the results of the benchmarks.

    python benchmarks/backend_table.py [hdxray_fast/ops/attention_table.json ...]

Each file named (the package's own without any) gets, for every GPU that has results, the fastest backend of every shape
class measured. What it says of other devices, and of classes that were not measured again, stays. Writing the same
results again changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TABLE = ROOT / "hdxray_fast" / "ops" / "attention_table.json"


def class_name(entry: dict[str, Any]) -> str:
    """The shape class of an entry of a row's ``backend_times``, as the attention itself names it."""
    from hdxray_fast.ops import attention_table

    return attention_table.shape_class(
        entry["layout"], entry["head_dim"], getattr(torch, entry["dtype"]), entry["longest"], entry["training"]
    )


def measured(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Choices by device, from all results files of GPUs; classes of which nothing could be measured are left out.

    Two cases of one class (the whole sequence, and the decoder's queries) count together: the backend whose times are
    the smallest share of the fastest one's, case by case, summed.
    """
    devices: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*/gpu_attention.json")):
        times: dict[str, list[dict[str, float]]] = {}
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        seen: set[str] = set()
        for row in rows:
            for entry in row["extra"].get("backend_times", []):
                key = json.dumps([entry[k] for k in entry if k != "ms"] + [row["extra"].get("tokens_k")])
                if entry["ms"] and key not in seen:  # two rows of one race hold the same times
                    seen.add(key)
                    times.setdefault(class_name(entry), []).append(entry["ms"])
        if times:
            newest = max(rows, key=lambda r: r["measured"])
            devices[newest["device"]["name"]] = {
                "measured": newest["measured"],
                "torch": newest["versions"].get("torch", "unknown"),
                "triton": newest["versions"].get("triton", "unknown"),
                "choices": {name: choice(cases) for name, cases in sorted(times.items())},
            }
    return devices


def choice(cases: list[dict[str, float]]) -> dict[str, Any]:
    """The fastest backend of those that ran in every case, with the milliseconds of all (of the last case)."""
    everywhere = set.intersection(*[set(ms) for ms in cases]) or set(cases[-1])
    cost = {b: sum(ms[b] / min(ms.values()) for ms in cases if b in ms) for b in everywhere}
    ms = {backend: round(value, 4) for backend, value in sorted(cases[-1].items())}
    return {"backend": min(sorted(cost), key=cost.get), "ms": ms}


def merge(path: Path, devices: dict[str, dict[str, Any]]) -> bool:
    """Put `devices` into the file at `path`; whether that changed it."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    table = json.loads(before) if before.strip() else {}
    for name, found in devices.items():
        kept = table.get(name, {}).get("choices", {})
        table[name] = {**found, "choices": dict(sorted({**kept, **found["choices"]}.items()))}
    after = json.dumps(table, indent=1, sort_keys=False) + "\n"
    if after == before or (not devices and before):
        return False
    path.write_text(after, encoding="utf-8")
    return True


def main(paths: list[str]) -> None:
    devices = measured()
    for name, found in devices.items():
        for shape_class, chosen in found["choices"].items():
            print(f"{name}: {shape_class}: {chosen['backend']} of {chosen['ms']} ms")
    if not devices:
        print("no results of a GPU's attention in", RESULTS)
    for path in map(Path, paths or [str(TABLE)]):
        print(f"{path}: {'written' if merge(path, devices) else 'as it was'}")


if __name__ == "__main__":
    main(sys.argv[1:])
