"""Measure the contour methods on patients they never saw, and write the tables and pictures of docs/contour.md."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import contour_checks as checks
import cv2
import numpy as np
from contour_confidence import overlap
from contour_data import Sample, letterbox

from hdxray_fast.images import contour_classical, contour_net
from hdxray_fast.images.contour import Contour, find_contour, rasterize_polygon
from hdxray_fast.images.contour_methods import METHODS
from hdxray_fast.images.overlay import draw_overlay

ROOT = Path(__file__).resolve().parent.parent
SIZE = 1280
TILE = 480  # px, side of a picture in the docs
SHOWN = (
    ("clean", "network"),
    ("clean", "classical"),
    ("invert", "network"),
    ("rot90", "network"),
    ("white_out", "network"),
)


@contextlib.contextmanager
def fold_models(work: Path, fold: int) -> Iterator[None]:
    """find_contour with the models of one fold in place of the shipped ones."""
    shape = contour_classical.load_shape_model(work / f"shape{fold}.npz")
    shipped, local = contour_classical._model, contour_net._local
    before = getattr(local, "runner", None)
    local.runner = contour_net.ContourRunner(contour_net.load_weights(work / f"net{fold}.npz"))
    contour_classical._model = lambda: shape
    try:
        yield
    finally:
        contour_classical._model = shipped
        if before is None:
            del local.runner
        else:
            local.runner = before


def _image_and_polygon(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The radiograph at full size, and its true outline in its pixels."""
    image = cv2.imread(sample.path, cv2.IMREAD_GRAYSCALE)
    side = max(image.shape)
    return image, sample.polygon * side - [(side - image.shape[1]) / 2, (side - image.shape[0]) / 2]


def _lung_recall(contour: Contour, sample: Sample) -> float:
    """Share of the true lung pixels of the canvas that lie in inside patches."""
    bits = cv2.imread(sample.path.rsplit(".", 1)[0] + ".mask.png", cv2.IMREAD_UNCHANGED)
    lungs, _ = letterbox(((bits & 3) > 0).astype(np.uint8), SIZE, cv2.INTER_NEAREST)
    inside = np.kron(contour.inside, np.ones((SIZE // contour.inside.shape[0],) * 2, bool))
    return float((lungs.astype(bool) & inside).sum() / lungs.sum())


def measure_methods(samples: list[Sample], work: Path) -> dict[str, dict]:
    """Every method on every held-out radiograph, undamaged."""
    rows: dict[str, dict] = {m: {"iou": [], "recall": [], "flagged": [], "name": []} for m in METHODS}
    for fold in range(5):
        with fold_models(work, fold):
            for sample in (s for s in samples if s.fold == fold):
                image, _ = _image_and_polygon(sample)
                canvas, truth = checks.to_canvas(image, SIZE), rasterize_polygon(sample.polygon * SIZE, SIZE)
                for method, row in rows.items():
                    contour = find_contour(canvas, method)
                    row["iou"].append(overlap(contour.inside, truth))
                    row["recall"].append(_lung_recall(contour, sample))
                    row["flagged"].append(contour.flagged)
                    row["name"].append(sample.name)
    return rows


def measure_damage(samples: list[Sample], work: Path) -> dict[str, list]:
    """By kind of damage: IoU and flag of the first look; IoU, flag and method after the rescue."""
    results: dict[str, list] = {}
    for fold in range(5):
        rng = np.random.default_rng(100 + fold)
        with fold_models(work, fold):
            for sample in (s for s in samples if s.fold == fold):
                image, polygon = _image_and_polygon(sample)
                for kind, damage in checks.DAMAGES.items():
                    damaged, moved = damage(rng, image, polygon)
                    if min(damaged.shape) < 32 or len(moved) < 3:
                        continue
                    canvas = checks.to_canvas(damaged, SIZE)
                    truth = rasterize_polygon(checks.to_shares(damaged, moved) * SIZE, SIZE)
                    first, last = find_contour(canvas, rescue=False), find_contour(canvas)
                    results.setdefault(kind, []).append(
                        [
                            overlap(first.inside, truth),
                            first.flagged,
                            overlap(last.inside, truth),
                            last.flagged,
                            last.method,
                        ]
                    )
    return results


def measure_not_chests(samples: list[Sample]) -> dict[str, list[bool]]:
    """Flags of the shipped net, by kind of picture; the DICOM files of pydicom where it is installed."""
    rng = np.random.default_rng(7)
    radiographs = [cv2.imread(s.path, cv2.IMREAD_GRAYSCALE) for s in samples[:12]]
    flags: dict[str, list[bool]] = {}
    for _ in range(300):
        kind, picture = checks.not_a_chest(rng, radiographs, 640)
        flags.setdefault(kind, []).append(find_contour(checks.to_canvas(picture, SIZE)).flagged)
    for kind, picture in checks.dicom_pictures():
        flags.setdefault(kind, []).append(find_contour(checks.to_canvas(picture, SIZE)).flagged)
    return flags


def measure_acceptance(folders: list[Path]) -> dict[str, int]:
    """How often the shipped net accepts at once, after a rescue, or not at all, on unlabelled radiographs."""
    counts = {"accepted at once": 0, "rescued": 0, "fell back, flagged": 0}
    for folder in folders:
        for path in sorted(folder.glob("*.jpg")):
            contour = find_contour(checks.to_canvas(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), SIZE))
            key = (
                "fell back, flagged" if contour.flagged else "rescued" if ":" in contour.method else "accepted at once"
            )
            counts[key] += 1
    return counts


def measure_times(samples: list[Sample], rounds: int = 5) -> dict[str, float]:
    """Median milliseconds of find_contour per 1280 x 1280 uint8 canvas, one thread, grid and confidence included."""
    canvases = [checks.to_canvas(cv2.imread(s.path, cv2.IMREAD_GRAYSCALE), SIZE) for s in samples[:24]]
    times: dict[str, list] = {m: [] for m in METHODS}
    for _ in range(rounds):
        for canvas in canvases:
            for method, row in times.items():
                start = time.perf_counter()
                find_contour(canvas, method)
                row.append((time.perf_counter() - start) * 1e3)
    return {method: float(np.median(row)) for method, row in times.items()}


def _methods_table(rows: dict[str, dict], times: dict[str, float]) -> str:
    lines = ["| method | mean IoU | p10 | worst | lung recall | lowest recall | ms |", "|---|---|---|---|---|---|---|"]
    for method, row in rows.items():
        iou, recall = np.array(row["iou"]), np.array(row["recall"])
        lines.append(
            f"| {method} | {iou.mean():.3f} | {np.percentile(iou, 10):.3f} | {iou.min():.3f} | {recall.mean():.3f} "
            f"| {recall.min():.3f} | {times[method]:.1f} |"
        )
    return "\n".join(lines)


def _damage_table(results: dict[str, list]) -> str:
    lines = [
        "| picture | n | IoU, first look | accepted | IoU, after rescue | accepted | worst accepted |",
        "|---|---|---|---|---|---|---|",
    ]
    every = [row for rows in results.values() for row in rows]
    for kind, rows in {**results, "all": every}.items():
        first, flag1, last, flag2 = (np.array([row[k] for row in rows]) for k in range(4))
        accepted = last[~flag2.astype(bool)]
        worst = f"{accepted.min():.2f}" if len(accepted) else "none"
        lines.append(
            f"| {kind.replace('_', ' ')} | {len(rows)} | {first.mean():.3f} | {1 - flag1.mean():.0%} "
            f"| {last.mean():.3f} | {1 - flag2.mean():.0%} | {worst} |"
        )
    first, flag1, last, flag2 = (np.array([row[k] for row in every]) for k in range(4))
    bad1, bad2 = first < 0.7, last < 0.7
    lines.append(
        f"\nOf {bad1.sum()} first looks under IoU 0.7, {flag1[bad1].mean():.1%} were flagged; of {bad2.sum()} results "
        f"under 0.7 after the rescue, {flag2[bad2].mean():.1%}. Of {(first >= 0.85).sum()} first looks of 0.85 or "
        f"more, {1 - flag1[first >= 0.85].mean():.1%} were accepted at once."
    )
    return "\n".join(lines)


def _flags_table(flags: dict[str, list[bool]], counts: dict[str, int]) -> str:
    lines = ["| picture without a chest | n | flagged |", "|---|---|---|"]
    lines += [f"| {kind.replace('_', ' ')} | {len(row)} | {np.mean(row):.0%} |" for kind, row in sorted(flags.items())]
    total = sum(counts.values())
    if total:
        shares = ", ".join(f"{count} {key} ({count / total:.1%})" for key, count in counts.items())
        lines.append(f"\n{total} unlabelled radiographs: {shares}.")
    return "\n".join(lines)


def _pictures(samples: list[Sample], work: Path, folder: Path) -> str:
    """Held-out overlays of openly licensed radiographs, whole and damaged; the radiologists' outline in yellow."""
    free = [s for s in samples if s.licence in ("CC BY", "CC0")]
    folder.mkdir(parents=True, exist_ok=True)
    rows, credits = [], []
    for sample in free:
        image, polygon = _image_and_polygon(sample)
        tiles = []
        with fold_models(work, sample.fold):
            for kind, method in SHOWN:
                damaged, moved = checks.DAMAGES[kind](np.random.default_rng(3), image, polygon)
                canvas = checks.to_canvas(damaged, TILE)
                picture = draw_overlay(canvas, find_contour(canvas, method))
                corners = np.round(checks.to_shares(damaged, moved) * TILE).astype(np.int32)
                tiles.append(cv2.polylines(picture, [corners], True, (0, 230, 255), 1, cv2.LINE_AA))
        rows.append(np.hstack(tiles))
        credits.append(f"`{sample.name}`, {sample.licence}, {sample.url}")
    cv2.imwrite(str(folder / "contour_overlays.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 80])
    shown = ", ".join(f"{kind.replace('_', ' ')} ({method})" for kind, method in SHOWN)
    return f"From the left: {shown}. Radiographs: {'; '.join(credits)}. Masks: see the model card."


def _wrapped(block: str) -> str:
    """`block` with its sentences in lines as long as the page's; tables, links and names stay unbroken."""
    lines = block.split("\n")
    return "\n".join(
        line if line.startswith("|") else textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _replace(text: str, name: str, block: str) -> str:
    """Put a block between <!-- name --> and <!-- end name -->."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"docs/contour.md has no place for {name!r}")
    return re.sub(pattern, lambda m: f"{m[1]}{_wrapped(block)}\n{m[2]}", text, flags=re.S)


def write(samples: list[Sample], unlabelled: list[Path], work: Path, timings: bool) -> None:
    """Measure everything and put it into docs/contour.md; the times only when asked for, else those of the last run."""
    rows = measure_methods(samples, work)
    stored = work / "timings.json"
    if timings or not stored.exists():
        stored.write_text(json.dumps(measure_times(samples)))
    times = json.loads(stored.read_text())
    damage = measure_damage(samples, work)
    flags, counts = measure_not_chests(samples), measure_acceptance(unlabelled)
    (work / "report.json").write_text(json.dumps({"methods": rows, "damage": damage}, indent=1))
    page = ROOT / "docs" / "contour.md"
    text = page.read_text()
    machine = (
        f"Python {platform.python_version()}, OpenCV {cv2.__version__}, numpy {np.__version__}, {platform.machine()}"
    )
    patients = len({s.patient for s in samples})
    caption = f"\n\n{len(samples)} radiographs of {patients} patients, 5 folds. {machine}, one thread."
    text = _replace(text, "methods", _methods_table(rows, times) + caption)
    text = _replace(text, "damage", _damage_table(damage))
    text = _replace(text, "refused", _flags_table(flags, counts))
    text = _replace(text, "credits", _pictures(samples, work, page.parent / "img"))
    page.write_text(text)
    print(_methods_table(rows, times), _damage_table(damage), _flags_table(flags, counts), sep="\n\n")
