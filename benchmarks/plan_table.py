"""Writes ``pretrain/planning_table.json``, which ``hdxray-fast plan`` takes rates from, from all result files.

python benchmarks/plan_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hdxray_fast.pretrain.plan_config import PlanConfig
from hdxray_fast.pretrain.shape import Shape

ROOT = Path(__file__).parent.parent
RESULTS, TABLE = ROOT / "benchmarks" / "results", ROOT / "hdxray_fast" / "pretrain" / "planning_table.json"
STEP = re.compile(r"MAE step, ViT-([TSBLH])/16, (cross|self) decoder(?:, batch (\d+))?, (fp32|bf16)$")
SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}


def measured_steps(rows: list[dict]) -> list[dict]:
    """Seconds an image and FLOPs an image of every step that was measured, by device, model, decoder and precision."""
    steps = []
    for row in rows:
        found = STEP.match(row["case"])
        if not found or "median" not in row["ours"]:
            continue
        model, decoder = f"vit_{SIZES[found[1]]}_patch16", found[2]
        batch = int(row["extra"].get("batch") or found[3] or 1)
        shape = Shape.of(PlanConfig(images=1, model=model, decoder=decoder))
        steps.append(
            {
                "device": row["device"]["name"],
                "threads": row["threads"],
                "model": model,
                "decoder": decoder,
                "precision": found[4],
                "batch": batch,
                "seconds": row["ours"]["median"] / batch,
                "flops": shape.flops(row["extra"]["kept"], row["extra"]["predicted"]),
                "measured": row["measured"],
            }
        )
    return sorted(steps, key=lambda step: (step["device"], step["model"], step["decoder"], step["precision"]))


def main() -> None:
    rows = []
    for path in sorted(RESULTS.glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows += content["rows"] if isinstance(content, dict) and "bench" in content else []
    by_case = {row["case"]: row for row in rows}
    prepare = next((row for case, row in by_case.items() if case.startswith("prepare a radiograph")), None)
    stored = {
        row["extra"]["format"]: row["ours"]["median"] / row["rival"]["median"]
        for row in by_case.values()
        if row["case"].startswith("bytes of a prepared image")
    }
    table = {
        "steps": measured_steps(rows),
        "prepare": {}
        if prepare is None
        else {"seconds": prepare["ours"]["median"], "of": f"{prepare['extra']['of']}, {prepare['device']['name']}"},
        "stored_share": stored,
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{len(table['steps'])} steps in {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
