"""What looking at the chest alone costs: features of all patches against those of the patches inside the contour.

    python benchmarks/experiments/contour_features.py --weights MODEL... --labels labels.csv --images FOLDER

Two measurements, each with several encoders: the cosine between the pooled features of a radiograph (``--images``),
and the test AUROC of a linear probe on either kind of feature (``--labels``). The differences of AUROC are by pairs,
over test patients and encoders: a probe on all patches and one on those of the chest share their encoder.
``--untrained 3`` takes encoders with random weights in place of ``--weights``. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from paired import differences_within_runs
from runs import probe_auroc, split_sizes, untrained, write_results
from slices import begin

import hdxray_fast as hx
from hdxray_fast.data.listing import list_images

KEEPS = ("all", "valid", "contour")


def cosines(encoder: hx.Encoder, files: list[str], keeps: Sequence[str], workers: int) -> dict:
    """Cosine with the features of all patches, which come first of ``keeps``, and patches looked at."""
    rows = {
        keep: hx.embed(files, encoder, keep=keep, pool="mean", workers=workers, progress=True) for keep in keeps
    }  # fmt: skip
    dense = rows["all"].features
    found = {}
    for keep in keeps:
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


def over_encoders(found: list[dict]) -> dict:
    """Means over encoders of :func:`cosines`; of ``cosine_min`` the least."""
    return {
        keep: {
            name: float((np.min if name == "cosine_min" else np.mean)([each[keep][name] for each in found]))
            for name in found[0][keep]
        }
        for keep in found[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=[], help="encoders, each as for hdxray-fast embed")
    parser.add_argument("--untrained", type=int, default=0, metavar="N", help="N encoders with random weights instead")
    parser.add_argument("--model", default="vit_tiny_patch16", help="of --untrained")
    parser.add_argument("--labels", required=True, help="CSV manifest for the probes, with a train and a test split")
    parser.add_argument("--images", help="folder of radiographs for the cosines")
    parser.add_argument("--img-size", type=int, default=320, help="canvas side, pixels")
    parser.add_argument("--what", help="what --weights are, in words, for the documents")
    parser.add_argument("--keep", nargs="+", default=KEEPS[1:], choices=KEEPS[1:], help="set against all patches")
    parser.add_argument("--limit", type=int, default=40, help="images for the cosines")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--out", default="results/contour_features")
    options = parser.parse_args()
    if bool(options.weights) == bool(options.untrained):
        parser.error("name encoders with --weights, or their number with --untrained")
    if options.weights and not options.what:
        parser.error("say with --what what the encoders are: how they were pre-trained, and on what")
    out, size = Path(options.out), options.img_size
    names = ("weights", "untrained", "model", "labels", "images", "img_size", "what", "keep", "limit")
    begin(out, {name: getattr(options, name) for name in names}, "*_*/metrics.json")

    keeps = ("all", *options.keep)
    count = len(options.weights) or options.untrained
    runs: dict[str, list[Path]] = {keep: [out / f"{keep}_{number}" for number in range(count)] for keep in keeps}
    aurocs: dict[str, list[dict]] = {keep: [] for keep in keeps}
    alike: list[Mapping] = []
    files = list_images(options.images)[: options.limit] if options.images else []
    for number in range(count):
        if options.weights:
            encoder = partial(hx.create_encoder, weights=options.weights[number], img_size=size)
        else:
            encoder = partial(untrained, options.model, size, number)
        for keep in keeps:
            found = probe_auroc(
                runs[keep][number], encoder, options.labels, None, number, keep=keep, workers=options.workers
            )
            aurocs[keep].append(found)
        if files:
            alike.append(cosines(encoder(), files, keeps, options.workers))
    settings = {
        "encoders": options.what or "random weights", "count": count,
        "model": None if options.weights else options.model, "img_size": size,
        "images": split_sizes(options.labels, None),
    }  # fmt: skip
    if alike:
        settings["cosine"] = {"images": len(files), **over_encoders(alike)}
    asked = [(second, first) for first, second in itertools.combinations(keeps, 2)]
    write_results(out, aurocs, "patches looked at", settings, differences_within_runs(runs, asked))


if __name__ == "__main__":
    main()
