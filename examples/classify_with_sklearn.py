"""Features of radiographs for a scikit-learn classifier.

    python examples/classify_with_sklearn.py                       # synthetic images
    python examples/classify_with_sklearn.py --manifest train.csv  # columns: path, label

Needs: pip install '.[dicom,train]' scikit-learn
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hdxray_fast as hx


def synthetic(count: int, side: int = 200) -> tuple[list[np.ndarray], np.ndarray]:
    """Toy chests; every other one has a bright spot in a lung."""
    rng = np.random.default_rng(0)
    images, labels = [], np.arange(count) % 2
    rows, columns = np.indices((side, side))
    for label in labels:
        image = np.full((side, side), 40.0)
        image[15:185, 20:180] = 180
        image[40:150, 35:90] = image[40:150, 110:165] = 80
        if label:
            y, x = rng.integers(60, 130), rng.integers(50, 75)
            image[(rows - y) ** 2 + (columns - x) ** 2 < 15**2] = 160
        images.append(np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8))
    return images, labels


def main(
    manifest: str | None = None, weights: str = "pretrained", img_size: int | None = 512, count: int = 24
) -> float:
    """Cross-validated area under the ROC curve of a logistic regression on the features."""
    encoder = hx.create_encoder(weights=weights, img_size=img_size)  # None: the weights' own size
    if manifest:
        with open(manifest, newline="") as file:
            rows = list(csv.DictReader(file))
        images, labels = [row["path"] for row in rows], np.array([int(row["label"]) for row in rows])
    else:
        images, labels = synthetic(count)

    table = hx.embed(images, encoder, pool="mean", workers=0, progress=bool(manifest))
    if table.quarantined:  # unreadable files have no row
        readable = set(table.sources)
        kept = [row for row, image in enumerate(images) if str(Path(image)) in readable]
        labels = labels[kept]
        print(f"{len(table.quarantined)} files could not be read, the first: {table.quarantined[0]}")

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(classifier, table.features, labels, scoring="roc_auc", cv=3)
    print(f"AUROC {scores.mean():.3f} over {len(labels)} images, features of {table.features.shape[1]} numbers")
    return float(scores.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", help="CSV with the columns path and label (0 or 1)")
    parser.add_argument(
        "--weights",
        default="pretrained",
        help="model folder, or published weights; left out, the encoder of the package",
    )
    parser.add_argument(
        "--img-size", type=int, default=512, help="canvas side, pixels; the encoder of the package was trained at 1280"
    )
    main(**vars(parser.parse_args()))
