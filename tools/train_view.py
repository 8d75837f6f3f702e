"""Train and cross-validate the view: frontal, lateral or no chest radiograph, by the signs of the contour net.

    PYTHONPATH=. python tools/train_view.py --views DIR --frontal DIR [DIR ...] --work DIR

``--views`` has ``index.csv`` with the columns image, view (lateral, ct) and patient; a ``--frontal`` folder has JPEGs
and, if it has an ``index.csv``, the column patient; patients of the same id in ``--views`` and in a frontal folder
whose name is in ``--shared`` are one. Every picture is looked at once as it is and many times changed; five folds by
patient give the table, all pictures the weights in ``hdxray_fast/images/view_net.npz``. One thread: 20 minutes.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from contour_checks import DAMAGES, not_a_chest, to_canvas
from contour_confidence import SIZE, read_small

import hdxray_fast
from hdxray_fast.images.contour import _network
from hdxray_fast.images.view_net import SURE, view_chances

WEIGHTS = Path(hdxray_fast.__file__).parent / "images" / "view_net.npz"
CLASSES = {"frontal": 0, "lateral": 1, "ct": 2, "made": 2}
SHARES = {"frontal": 0.6, "lateral": 0.22, "ct": 0.15, "made": 0.03}  # of the loss
CHANGES = ("mirror", "gamma", "blur", "noise", "stretch", "low_contrast", "border", "occlude", "clipped")


def letters(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    image = image.copy()
    height, width = image.shape
    for _ in range(int(rng.integers(1, 5))):
        text = str(rng.choice(["L", "R", "PORTABLE", "AP", "(B)", "12/03", "SUPINE 14:22"]))
        at = (int(rng.uniform(0, 0.85) * width), int(rng.uniform(0.06, 1) * height))
        cv2.putText(image, text, at, 0, float(rng.uniform(0.4, 2.5)), int(rng.choice([255, 255, 0])), 3)
    return image


def devices(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Cables, electrodes, and the uneven exposure of a film taken in bed."""
    height, width = image.shape
    image = image.astype(np.float32)
    for _ in range(int(rng.integers(1, 5))):
        bends = np.cumsum(rng.normal(0, 0.12, (8, 2)), 0) + rng.uniform(0.1, 0.9, 2)
        line = cv2.resize(bends.astype(np.float32), (2, 60), interpolation=cv2.INTER_CUBIC) * [width, height]
        cv2.polylines(image, [line.astype(np.int32)], False, float(rng.uniform(150, 255)), int(rng.integers(1, 5)))
    for _ in range(int(rng.integers(0, 5))):
        at = (int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.9) * height))
        cv2.circle(image, at, int(rng.integers(4, 14)), float(rng.uniform(150, 255)), int(rng.choice([-1, 2])))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.clip(image * np.exp(rng.normal(0, 0.25) * x + rng.normal(0, 0.25) * y), 0, 255).astype(np.uint8)


def change(rng: np.random.Generator, image: np.ndarray, view: str) -> tuple[np.ndarray, str]:
    """A picture of the same view, and what was done to it."""
    height, width = image.shape
    box = np.array([[0.15, 0.15], [0.85, 0.15], [0.85, 0.85], [0.15, 0.85]]) * (width, height)
    done = [str(name) for name in rng.choice(CHANGES, int(rng.integers(0, 3)), replace=False)]
    if view != "ct" and rng.random() < 0.2:
        image, done = DAMAGES["white_out"](rng, image, box)[0], [*done, "white out"]
    if rng.random() < 0.3:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(-20, 20)), rng.uniform(0.85, 1.15))
        image, done = cv2.warpAffine(image, matrix, (width, height)), [*done, "tilt"]
    for name in done:
        image = DAMAGES[name](rng, image, box)[0] if name in CHANGES else image
    if rng.random() < 0.2:
        image, done = letters(rng, image), [*done, "letters"]
    if view != "ct" and rng.random() < 0.2:
        image, done = devices(rng, image), [*done, "devices"]
    drawn = rng.random()
    if drawn < 0.12:
        image, done = 255 - image, [*done, "invert"]
    elif drawn < 0.3:
        image, done = np.ascontiguousarray(np.rot90(image, int(rng.integers(1, 4)))), [*done, "turn"]
    return image, "+".join(done)


def listed(folder: Path, shared: bool) -> list[tuple[Path, str, str]]:
    """(path, patient, view) of a folder's pictures."""
    if not (folder / "index.csv").exists():
        return [(path, f"{folder.name}/{path.name}", "frontal") for path in sorted(folder.glob("*.jpg"))]
    with open(folder / "index.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    group = "shared" if shared else ""  # patients of several folders of one collection stay on one side
    views = {"lateral", "ct"}
    return [
        (folder / row["image"], f"{group}/{row['patient'].lstrip('0')}", row["view"] if row.get("view") in views else
         "frontal")
        for row in rows
    ]  # fmt: skip


def look(image: np.ndarray) -> np.ndarray:
    return _network(to_canvas(image, SIZE), rescue=True)[3].signs


def collect(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Signs, views, patients and changes of all pictures."""
    rng, rows, radiographs = np.random.default_rng(0), [], []
    for folder in (args.views, *args.frontal):
        shared = folder == args.views or folder.name in args.shared
        for path, patient, view in listed(folder, shared):
            image = read_small(str(path))
            radiographs += [image] if view == "frontal" and len(radiographs) < 60 else []
            rows.append((look(image), view, patient, "as it is"))
            for _ in range(40 if view != "frontal" else 10 if shared else 3):
                changed, done = change(rng, image, view)
                if min(changed.shape) >= 32:
                    rows.append((look(changed), view, patient, done or "none"))
    for number in range(600):
        kind, picture = not_a_chest(rng, radiographs)
        if kind != "shuffled":
            rows.append((look(picture), "made", f"made/{number}", kind))
    signs, views, patients, done = zip(*rows, strict=True)
    return {"signs": np.stack(signs), "view": np.array(views), "patient": np.array(patients), "done": np.array(done)}


def fit(rows: dict[str, np.ndarray], chosen: np.ndarray, decay: float = 3e-4) -> dict[str, np.ndarray]:
    """Multinomial logistic regression on the chosen rows, as ``images/view_net.py`` reads it."""
    signs, view = rows["signs"][chosen], rows["view"][chosen]
    mean, deviation = signs.mean(0), signs.std(0) + 1e-4
    x = torch.from_numpy(np.clip((signs - mean) / deviation, -4, 4).astype(np.float32))
    y = torch.tensor([CLASSES[name] for name in view])
    each = torch.tensor([SHARES[name] / (view == name).sum() for name in view], dtype=torch.float32)
    weight, bias = torch.zeros(x.shape[1], 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (torch.nn.functional.cross_entropy(x @ weight + bias, y, reduction="none") * each).sum()
        loss = loss + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = {"weight": weight.detach().numpy(), "bias": bias.detach().numpy(), "mean": mean, "deviation": deviation}
    return {name: value.astype(np.float32) for name, value in found.items()}


def table(rows: dict[str, np.ndarray], found: np.ndarray, title: str, chosen: np.ndarray) -> None:
    """Counts: what is taken for which view, and how many are not sure."""
    print(f"{title}\n| shown | n | frontal | lateral | other | not sure, kept |\n|---|---|---|---|---|---|")
    for view in ("frontal", "lateral", "ct"):
        these = found[chosen & (rows["view"] == view)]
        sure = these.max(1) >= np.array(SURE)[these.argmax(1)]
        counts = [int((these.argmax(1)[sure] == place).sum()) for place in range(3)]
        print(f"| {view} | {len(these)} | {' | '.join(map(str, counts))} | {int((~sure).sum())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=Path, required=True)
    parser.add_argument("--frontal", type=Path, nargs="+", required=True)
    parser.add_argument("--shared", nargs="*", default=["contour"], help="frontal folders of the collection of --views")
    parser.add_argument("--work", type=Path, required=True, help="where the signs are kept: remove to look again")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "signs.npz").exists():
        np.savez_compressed(args.work / "signs.npz", **collect(args))
    with np.load(args.work / "signs.npz") as stored:
        rows = {name: stored[name] for name in stored.files}
    fold = np.array([zlib.crc32(patient.encode()) % 5 for patient in rows["patient"]])
    found = np.zeros((len(fold), 3))
    for held in range(5):
        found[fold == held] = view_chances(rows["signs"][fold == held], fit(rows, fold != held))
    plain = rows["done"] == "as it is"
    table(rows, found, "pictures as they are", plain)
    for name in ("letters", "devices", "white out", "invert", "turn", "tilt"):
        table(rows, found, f"changed: {name} alone", rows["done"] == name)
    table(rows, found, "all changed pictures", ~plain)
    np.savez_compressed(WEIGHTS, **fit(rows, np.ones(len(fold), bool)))
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size / 1024:.1f} KB")


if __name__ == "__main__":
    main()
