"""Train, cross-validate and export the contour net, and write its report.

    PYTHONPATH=. python tools/train_contour.py folds final classical report --timings \\
        --labelled DIR --unlabelled DIR [DIR ...] --work DIR

* ``folds``: five-fold cross-validation by patient. Per fold a teacher is trained on the labelled images of the other
  folds, it labels the unlabelled images (the confident ones are kept), and a student is trained on both.
* ``final``: the shipped net, on all images, taught by the five students together.
* ``classical``: the shape models of the folds and the shipped one.
* ``report``: tables and pictures of docs/contour.md, from the folds' nets on the patients they never saw.

One thread is enough: about three minutes for a teacher and six for a student. What is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import contour_confidence as confidence
import contour_report
import contour_shape
import cv2
import numpy as np
import torch
from contour_confidence import overlap
from contour_data import FRAME, LEVELS, Sample, augment, load_labelled, load_unlabelled, standardise, valid_mask
from contour_export import fold_batch_norm
from contour_model import ContourNet, contour_loss

import hdxray_fast
from hdxray_fast.images.contour import rasterize_polygon
from hdxray_fast.images.contour_net import ContourRunner, load_weights, quantise

WEIGHTS = Path(hdxray_fast.__file__).parent / "images"


def train(
    labelled: list[Sample], pseudo: list[Sample], steps: int, seed: int, batch: int = 16, lr: float = 4e-3
) -> ContourNet:
    """Train one net; with pseudo-labelled images, every batch is half of them. Returns the weights' moving average."""
    rng, _ = np.random.default_rng(seed), torch.manual_seed(seed)
    net = ContourNet().to(memory_format=torch.channels_last)
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    started, running = time.time(), 0.0
    for step in range(steps):
        real = batch // 2 if pseudo else batch
        picks = [labelled[i] for i in rng.integers(len(labelled), size=real)]
        picks += [pseudo[i] for i in rng.integers(len(pseudo), size=batch - real)] if pseudo else []
        pairs = [augment(rng, sample) for sample in picks]
        images = torch.from_numpy(np.stack([p[0] for p in pairs]))[:, None]  # [B, 1, 160, 160] f32
        target = torch.from_numpy(np.stack([p[1] for p in pairs]))  # [B, 2, 80, 80] f32
        loss = contour_loss(net(images.contiguous(memory_format=torch.channels_last))[0], target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():  # moving average, its horizon growing with the run
            keep = min(0.995, 1 - 1 / (step + 1))
            for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                a.copy_(b if not a.is_floating_point() else a * keep + b * (1 - keep))
        running += loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.time() - started) / (step + 1) * 1e3
            print(f"step {step + 1}/{steps} loss {running / 100:.4f} {pace:.0f} ms", flush=True)
            running = 0.0
    return average.eval()


@torch.no_grad()
def predict(nets: list[ContourNet], sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities of some nets, ([2, 80, 80] as is, [2, 80, 80] from the mirrored input, mirrored back)."""
    x = standardise(sample.images[FRAME], valid_mask(sample.valid_box))
    batch = torch.from_numpy(np.stack([x, x[:, ::-1]]))[:, None]
    p = torch.stack([net(batch)[0].sigmoid() for net in nets]).mean(0).numpy()
    return p[0], p[1][..., ::-1]


def hull_mask(probability: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Fill the convex hull of {p >= .5} at `size` px; returns float32 mask and polygon (xy shares of the frame)."""
    fine = cv2.resize(probability, (320, 320), interpolation=cv2.INTER_LINEAR)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((fine >= 0.5).astype(np.uint8))
    if count < 2:
        return np.zeros((size, size), np.float32), None
    area = stats[1:, cv2.CC_STAT_AREA]
    big = np.isin(labels, 1 + np.flatnonzero(area >= 0.1 * area.max()))
    ys, xs = np.nonzero(big)
    hull = cv2.convexHull(np.stack([xs, ys], 1).astype(np.int32))[:, 0]
    polygon = ((hull + 0.5) / 320).astype(np.float32)
    fixed = np.round((polygon * size * 4 - 0.5) * 256).astype(np.int32)
    filled = cv2.fillPoly(np.zeros((size * 4, size * 4), np.uint8), [fixed], 255, shift=8)
    return cv2.resize(filled, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255, polygon


def score(nets: list[ContourNet], samples: list[Sample]) -> list[dict]:
    """IoU of the hull on the 80 x 80 grid, recall of the lungs, and confidence, for labelled samples."""
    rows = []
    for sample in samples:
        p, mirrored = predict(nets, sample)
        mean = (p[0] + mirrored[0]) / 2
        inside = hull_mask(mean, 80)[0] >= 0.5
        truth = cv2.resize(sample.truth[160], (80, 80), interpolation=cv2.INTER_AREA)
        truth_hull = rasterize_polygon(sample.polygon * 1280, 1280)
        rows.append(
            {
                "name": sample.name,
                "iou": overlap(inside, truth_hull),
                "plain": overlap(hull_mask(p[0], 80)[0] >= 0.5, truth_hull),
                "recall": float((truth[..., 1] * inside).sum() / truth[..., 1].sum()),
                "sharp": float((mean**2).sum() / max(1e-6, mean.sum())),
                "mirror": overlap(p[0] >= 0.5, mirrored[0] >= 0.5),
            }
        )
    return rows


def summary(rows: list[dict]) -> str:
    """One line: mean, p10, worst IoU and lung recall."""
    iou, recall = np.array([r["iou"] for r in rows]), np.array([r["recall"] for r in rows])
    plain = np.array([r["plain"] for r in rows])
    return (
        f"n {len(rows)} IoU mean {iou.mean():.4f} p10 {np.percentile(iou, 10):.4f} worst {iou.min():.4f} "
        f"recall {recall.mean():.4f} (without mirror {plain.mean():.4f} p10 {np.percentile(plain, 10):.4f})"
    )


def pseudo_label(nets: list[ContourNet], samples: list[Sample]) -> list[Sample]:
    """The unlabelled images that the nets are sure of, with the nets' hull and lungs as truth."""
    kept = []
    for sample in samples:
        p, mirrored = predict(nets, sample)
        mean = (p + mirrored) / 2
        sharp = (mean[0] ** 2).sum() / max(1e-6, mean[0].sum())
        if sharp < 0.93 or overlap(p[0] >= 0.5, mirrored[0] >= 0.5) < 0.92 or mean[0].mean() < 0.08:
            continue
        sample = copy.copy(sample)
        sample.truth = {
            size: np.stack([hull_mask(mean[0], size)[0], cv2.resize(mean[1], (size, size))], -1) for size in LEVELS
        }
        kept.append(sample)
    return kept


def export(net: ContourNet, labelled: list[Sample], unlabelled: list[Sample], path: Path) -> None:
    """Fold, quantise, fit the confidence on these images, and write the file that the package reads."""
    weights = fold_batch_norm(net) | confidence.blank_confidence()
    weights = load_quantised(weights, path)
    found = confidence.collect(ContourRunner(weights), labelled + unlabelled[::2], seed=0, rounds=6)
    weights |= confidence.fit(*found)
    np.savez_compressed(path, **quantise(weights))
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB, confidence from {len(found[1])} pictures", flush=True)


def load_quantised(weights: dict, path: Path) -> dict:
    """The weights as they will be read back, rounding included."""
    np.savez_compressed(path, **quantise(weights))
    return load_weights(path)


def run_folds(args: argparse.Namespace) -> None:
    """Teachers, students, and per fold the files that the package would read."""
    labelled, unlabelled = load_labelled(args.labelled), load_unlabelled(args.unlabelled)
    rows = {"teacher": [], "student": []}
    for stage in ("teacher", "student"):
        for fold in range(5):
            ours = [s for s in labelled if s.fold != fold]
            held = [s for s in labelled if s.fold == fold]
            path = args.work / f"{stage}{fold}.pt"
            if not path.exists():
                pseudo = pseudo_label([load(args.work / f"teacher{fold}.pt")], unlabelled) if stage == "student" else []
                print(f"{stage} {fold}: {len(ours)} labelled, {len(pseudo)} pseudo-labelled", flush=True)
                steps = args.student_steps if pseudo else args.teacher_steps
                torch.save(train(ours, pseudo, steps, seed=fold).state_dict(), path)
            rows[stage] += score([load(path)], held)
            print(f"{stage} {fold}: {summary(score([load(path)], held))}", flush=True)
            if stage == "student" and not (args.work / f"net{fold}.npz").exists():
                export(load(path), ours, unlabelled, args.work / f"net{fold}.npz")
        print(f"{stage}: {summary(rows[stage])}", flush=True)
        (args.work / f"{stage}.json").write_text(json.dumps(rows[stage], indent=1))


def run_final(args: argparse.Namespace) -> None:
    """The shipped net: on all labelled images, and on what the five students together say of the unlabelled ones."""
    labelled, unlabelled = load_labelled(args.labelled), load_unlabelled(args.unlabelled)
    path = args.work / "final.pt"
    if not path.exists():
        pseudo = pseudo_label([load(args.work / f"student{fold}.pt") for fold in range(5)], unlabelled)
        print(f"final: {len(labelled)} labelled, {len(pseudo)} pseudo-labelled", flush=True)
        torch.save(train(labelled, pseudo, args.student_steps, seed=9).state_dict(), path)
    print(f"final, on its own training images: {summary(score([load(path)], labelled))}", flush=True)
    export(load(path), labelled, unlabelled, WEIGHTS / "contour_net.npz")


def run_classical(args: argparse.Namespace) -> None:
    """Shape models of the folds, and the shipped one of all labelled images."""
    labelled = load_labelled(args.labelled)
    for fold in range(5):
        model = contour_shape.fit([s for s in labelled if s.fold != fold])
        np.savez_compressed(args.work / f"shape{fold}.npz", **contour_shape.store(model))
    np.savez_compressed(WEIGHTS / "contour_shape.npz", **contour_shape.store(contour_shape.fit(labelled)))


def run_report(args: argparse.Namespace) -> None:
    """Tables and pictures of docs/contour.md."""
    contour_report.write(load_labelled(args.labelled), args.unlabelled, args.work, args.timings)


def load(path: Path) -> ContourNet:
    net = ContourNet()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval().to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"folds": run_folds, "final": run_final, "classical": run_classical, "report": run_report}
    parser.add_argument("stage", nargs="+", choices=stages)
    parser.add_argument("--labelled", type=Path, required=True, help="folder with index.csv, images and masks")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="folders of JPEGs")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints and figures of the run go")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--student-steps", type=int, default=2500)
    parser.add_argument("--timings", action="store_true", help="report: measure the times anew (on a quiet machine)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for stage in args.stage:
        stages[stage](args)


if __name__ == "__main__":
    main()
