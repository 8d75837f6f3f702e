"""What a step's images have in common: a full shuffle against blocks, on a set sorted by source and patient.

    python benchmarks/experiments/shuffle_quality.py --images 1000000 --out results.json

Synthetic: patients with 1 to 9 images each (3 in the mean), one after another, in six sources of 40 to 5 % of the
images, one after another, as folders give them. No pixels are read. Of each step of an epoch: the share of its images
that share a patient with another one of the step; and by how much the shares of the sources differ from those of the
whole set (half the sum of absolute differences).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from hdxray_fast.data.order import BlockOrder, GlobalOrder, Order
from hdxray_fast.files import written_whole

SOURCES = (0.40, 0.25, 0.15, 0.10, 0.05, 0.05)
USUAL = 131072


def sorted_set(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patient and source of each image, ``[N] int64`` each, in the order of the set."""
    counts = np.random.default_rng(seed).binomial(8, 0.25, images) + 1
    patients = np.repeat(np.arange(images), counts)[:images]
    source = np.searchsorted(np.cumsum(SOURCES)[:-1], np.arange(images) / images, "right")
    return patients, source


def mixture(order: Order, patients: np.ndarray, sources: np.ndarray, step: int) -> dict[str, float]:
    """Means over the whole steps of an epoch: ``same_patient``, ``source_distance``, and its 95th percentile."""
    rows = order.epoch(0)
    rows = rows[: len(rows) // step * step].reshape(-1, step)
    lying = np.sort(patients[rows], axis=1)
    equal = lying[:, 1:] == lying[:, :-1]
    shared = np.zeros(rows.shape, bool)
    shared[:, 1:] |= equal
    shared[:, :-1] |= equal
    whole = np.bincount(sources, minlength=len(SOURCES)) / len(sources)
    shares = np.stack([(sources[rows] == source).mean(1) for source in range(len(SOURCES))], axis=1)
    distance = np.abs(shares - whole).sum(1) / 2
    return {
        "same_patient": float(shared.mean()),
        "source_distance": float(distance.mean()),
        "source_distance_p95": float(np.quantile(distance, 0.95)),
    }


class Sorted:
    """No shuffle at all: the worst case."""

    nodes = 1

    def __init__(self, length: int) -> None:
        self.length = length

    def epoch(self, epoch: int) -> np.ndarray:
        return np.arange(self.length)

    def reached(self, position: int) -> None:
        pass


def measured(images: int, step: int, seed: int = 0) -> list[dict]:
    """A row for each order."""
    patients, sources = sorted_set(images)
    orders: dict[str, Order] = {"full shuffle": GlobalOrder(images, seed)}
    for block, nodes in ((USUAL, 1), (USUAL, 4), (USUAL, 8), (16384, 1), (16384, 8), (2048, 1)):
        orders[f"blocks of {block}, nodes: {nodes}"] = BlockOrder(images, seed, nodes, block)
    orders["as the set lies"] = Sorted(images)
    return [{"order": name, **mixture(order, patients, sources, step)} for name, order in orders.items()]


def table(rows: list[dict]) -> str:
    """As Markdown."""
    lines = [
        "| order | share a patient with another image of the step | distance of the sources' shares | 95 % below |",
        "|---|---|---|---|",
    ]
    for row in rows:
        distances = row["source_distance"], row["source_distance_p95"]
        lines.append(f"| {row['order']} | {row['same_patient']:.2%} | {distances[0]:.3f} | {distances[1]:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=2048, help="images of a step")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(arguments)
    rows = measured(options.images, options.step)
    print(table(rows))
    if options.out:
        with written_whole(options.out) as temporary:
            content = {"images": options.images, "step": options.step, "rows": rows}
            temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
