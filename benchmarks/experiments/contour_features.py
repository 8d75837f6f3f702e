"""What looking at the chest alone costs: features of all patches against those of the patches inside the contour.

    python benchmarks/experiments/contour_features.py --weights MODEL --labels labels.csv --images FOLDER --out results

Two measurements: the cosine between the pooled features of a radiograph (``--images``, at the encoder's size), and
the test AUROC of a linear probe on either kind of feature (``--labels``, with its train and test split, at
``--label-size``). Writes ``contour_features.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from runs import SPLIT

import hdxray_fast as hx
from hdxray_fast.classify.interval_text import interval_text
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig

KEEPS = ("all", "valid", "contour")


def cosines(weights: str, images: str, limit: int, workers: int) -> dict:
    """Cosine with the features of all patches, and patches looked at, over the images of a folder."""
    from hdxray_fast.data.listing import list_images

    files = list_images(images)[:limit]
    rows = {
        keep: hx.embed(
            files, hx.create_encoder(weights=weights), keep=keep, pool="mean", workers=workers, progress=True
        )
        for keep in KEEPS
    }
    dense = rows["all"].features
    found: dict = {"images": len(dense)}
    for keep in KEEPS:
        features = rows[keep].features
        cosine = (features * dense).sum(1) / (np.linalg.norm(features, axis=1) * np.linalg.norm(dense, axis=1))
        found[keep] = {
            "patches": float(rows[keep].kept.mean()),
            "cosine_mean": float(cosine.mean()),
            "cosine_min": float(cosine.min()),
            "cosine_centred": float(centred_cosine(features, dense)),
        }
    return found


def centred_cosine(features: np.ndarray, dense: np.ndarray) -> float:
    """Mean cosine after the mean feature of each kind is taken away: agreement on what tells images apart."""
    a, b = features - features.mean(0), dense - dense.mean(0)
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())


def probes(weights: str, labels: str, out: Path, size: int, workers: int) -> dict:
    """Test AUROC of a linear probe with each kind of feature."""
    found = {}
    for keep in KEEPS:
        config = ProbeConfig(
            labels, str(out / f"probe_{keep}"), weights, img_size=size, keep=keep, pool="mean",
            workers=workers, **SPLIT,
        )  # fmt: skip
        found[keep] = run_probe(config).report["mean"]["auroc"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="encoder, as for hdxray-fast embed")
    parser.add_argument("--images", help="folder of radiographs for the cosines")
    parser.add_argument("--labels", help="CSV manifest for the probes")
    parser.add_argument("--label-size", type=int, default=640, help="canvas side for the probes, pixels")
    parser.add_argument("--limit", type=int, default=40, help="images for the cosines")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="results/contour_features")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    report: dict = {"weights": options.weights}
    if options.images:
        report["cosine"] = cosines(options.weights, options.images, options.limit, options.workers)
    if options.labels:
        report["label_size"] = options.label_size
        report["probe"] = probes(options.weights, options.labels, out, options.label_size, options.workers)
    (out / "contour_features.json").write_text(json.dumps(report, indent=1) + "\n")
    print("| patches looked at | patches | cosine with all | centred | probe AUROC (95 %) |\n|---|---|---|---|---|")
    for keep in KEEPS:
        cosine = report.get("cosine", {}).get(keep)
        probe = report.get("probe", {}).get(keep)
        cells = (
            [f"{cosine['patches']:.0f}", f"{cosine['cosine_mean']:.3f}", f"{cosine['cosine_centred']:.3f}"]
            if cosine
            else ["", "", ""]
        )
        cells.append(interval_text(probe) if probe else "")
        print(f"| {keep} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
