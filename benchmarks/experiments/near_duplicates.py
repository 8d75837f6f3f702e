"""How many copies of real films are found as near duplicates, and how many other films are taken for copies.

    HDXRAY_TEST_DATA=... python benchmarks/experiments/near_duplicates.py             # precision and recall
    HDXRAY_TEST_DATA=... python benchmarks/experiments/near_duplicates.py --signatures  # by what a model keeps
    python benchmarks/experiments/near_duplicates.py --million --keep FILE.npz        # time and memory of the search

The first keeps its thumbnails with ``--keep FILE.npz``, which the last draws hashes after.

The data folder has a folder for each collection, with an ``index.csv`` of the columns image and patient.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from film_makers import compressed, scaled, trimmed, windowed

from hdxray_fast.data.hash_search import candidates
from hdxray_fast.data.near_duplicates import SAME_FILM, near_pairs, near_pairs_between
from hdxray_fast.data.signature_search import found_among
from hdxray_fast.images.alignment import likeness
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.film_signature import film_signature
from hdxray_fast.images.perceptual_hash import LENGTH, equalised_thumbnail, perceptual_hash


def copies(film: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sides = rng.uniform(0, 0.03, 4)
    return {
        "JPEG 95": compressed(film, 95),
        "JPEG 70": compressed(film, 70),
        "scaled 0.75, JPEG 90": compressed(scaled(film, 0.75), 90),
        "scaled 0.5, JPEG 90": compressed(scaled(film, 0.5), 90),
        "window of percentiles 2 to 98": windowed(film),
        "window of percentiles 10 to 95": windowed(film, 10, 95),
        "gamma 0.6": cv2.LUT(film, (255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)),
        "negative": 255 - film,
        "trimmed by 0 to 3 % a side, JPEG 90": compressed(trimmed(film, *sides), 90),
        "trimmed by 3 % on two sides, JPEG 90": compressed(trimmed(film), 90),
        "trimmed by 3 % on all sides, JPEG 90": compressed(trimmed(film, 0.03, 0.03, 0.03, 0.03), 90),
        "trimmed by 0 to 3 % a side, window 2 to 98, scaled 0.5, JPEG 75": compressed(
            scaled(windowed(trimmed(film, *sides)), 0.5), 75
        ),
    }


def read_films(root: Path) -> tuple[list[Path], list[str]]:
    """All films, and the patient of each."""
    films, patients = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        listed = {}
        if (folder / "index.csv").exists():
            with (folder / "index.csv").open(newline="") as stream:
                listed = {row["image"]: row["patient"] for row in csv.DictReader(stream)}
        for path in sorted(folder.glob("*.jpg")) + sorted(folder.glob("*.jpeg")):
            films.append(path)
            patients.append(listed.get(path.name, path.stem))
    return films, patients


def thumbnail(film: np.ndarray) -> np.ndarray:
    canvas = read_canvas(film, size=640, pixel_hash="none")
    return equalised_thumbnail(canvas.pixels, canvas.valid_box)


def accuracy(root: Path, keep: Path | None) -> None:
    films, patients = read_films(root)
    plain, made = [], {}
    for number, path in enumerate(films):
        film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        plain.append(thumbnail(film))
        for kind, copy in copies(film, np.random.default_rng(number)).items():
            made.setdefault(kind, []).append(thumbnail(copy))
        if number % 100 == 99:
            print(f"{number + 1} of {len(films)} films read", file=sys.stderr, flush=True)
    plain, made = np.stack(plain), {kind: np.stack(copies) for kind, copies in made.items()}
    if keep:
        np.savez(keep, plain=plain, **made)
    within = near_pairs(plain)
    already = {(int(a), int(b)) for a, b in zip(within.first, within.second, strict=True)}
    print(f"{len(films)} films of {len(set(patients))} patients, likeness from {SAME_FILM} on; pairs among them:")
    for first, second, alike in zip(*within, strict=True):
        whose = "one patient" if patients[first] == patients[second] else "two patients"
        print(f"  {alike:.3f} {films[first].name} {films[second].name} ({whose})")
    print("\n| copy | found | other films of the patient | films of others | median, least likeness |")
    print("|---|---|---|---|---|")
    for kind, thumbnails in made.items():
        found = near_pairs_between(plain, thumbnails)
        pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
        own = sum(first == second for first, second in pairs)
        wrong = [p for p in pairs if p[0] != p[1] and (min(p), max(p)) not in already]
        same = sum(patients[first] == patients[second] for first, second in wrong)
        alike = likeness(plain, thumbnails)
        print(
            f"| {kind} | {own / len(films):.2%} | {same} | {len(wrong) - same} "
            f"| {np.median(alike):.2f}, {alike.min():.2f} |",
            flush=True,
        )


def signatures(root: Path) -> None:
    """Films of ``recognition``, looked for by the signatures of their copies and of other films, and guessed from them.

    Read: every third film and its copies; all films against those of other patients; and a training that has copies of
    100 test films.
    """
    with (root / "recognition" / "index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    films = [cv2.imread(str(root / "recognition" / row["image"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    plain, patients = np.stack([thumbnail(film) for film in films]), np.array([row["patient"] for row in rows])
    chosen, made = range(0, len(films), 3), {}
    for number in chosen:
        for kind, copy in copies(films[number], np.random.default_rng(number)).items():
            made.setdefault(kind, []).append(thumbnail(copy))
    kept = film_signature(plain)
    for kind, thumbnails in made.items():
        print(f"  {found_among(np.stack(thumbnails), kept[chosen]).mean():.1%} found: {kind}")
    wrong, began = 0, time.process_time()
    for start in range(0, len(films), 50):
        part = slice(start, start + 50)
        wrong += int(found_among(plain[part], kept[~np.isin(patients, patients[part])]).sum())
    seconds = (time.process_time() - began) / len(films) * 10_000
    print(f"{wrong} of {len(films)} films taken for one of other patients; {seconds:.0f} s of CPU per 10,000 films")
    test = np.flatnonzero([row["split"] == "test" for row in rows])
    copied, rest, train = test[:100], test[100:], np.setdiff1d(np.arange(len(rows)), test)
    for kind, cut in {"JPEG 80": False, "3 to 8 pixels cut off, JPEG 80": True}.items():
        altered = [films[n][6:-4, 3:-8] if cut else films[n] for n in copied]
        taught = film_signature(np.concatenate([plain[train], [thumbnail(compressed(one, 80)) for one in altered]]))
        found, wrong = (int(found_among(plain[part], taught).sum()) for part in (copied, rest))
        print(f"{kind}: {found} of {len(copied)} copies in training found, {wrong} of {len(rest)} others flagged")
    bits = np.unpackbits(kept, axis=1) * 2.0 - 1
    whole, learned = plain.reshape(len(plain), -1).astype(np.float64), np.arange(len(plain)) % 2 == 0
    mean, known = whole[learned].mean(0), bits[learned]
    best = 0.0
    for strength in (100, 300, 1000, 3000, 10000):
        inner = known.T @ known + strength * np.eye(known.shape[1])
        guesses = mean + bits[~learned] @ np.linalg.solve(inner, known.T @ (whole[learned] - mean))
        best = max(best, np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(guesses, whole[~learned], strict=True)]))
    usual = np.mean([np.corrcoef(mean, one)[0, 1] for one in whole[~learned]])
    print(f"best linear guess at a thumbnail: correlation {best:.2f}; the mean film: {usual:.2f}")


def million(count: int, kept: Path) -> None:
    """Hashes with the spread of real films', and for each kind of copy 2,000 that are as far off as real copies."""
    with np.load(kept) as thumbnails:
        real = {kind: perceptual_hash(thumbnails[kind]).astype(np.float32) for kind in thumbnails}
    plain = real.pop("plain")
    typical = np.linalg.eigh(plain.T @ plain)[1][:, -1]
    upright = np.where(plain @ typical < 0, -1, 1)[:, None]  # negatives turned over
    plain = plain * upright
    rng, planted = np.random.default_rng(0), 2000
    root = np.linalg.cholesky(np.cov(plain.T) + 1e-3 * np.eye(LENGTH)).astype(np.float32)
    values = rng.standard_normal((count, LENGTH), np.float32) @ root.T + plain.mean(0)
    real.pop("negative")
    for number, copies in enumerate(real.values()):
        rows = np.arange(number * planted, (number + 1) * planted)
        values[count - 1 - rows] = values[rows] + (copies * upright - plain)[rng.integers(0, len(plain), planted)]
    hashes = np.rint(np.clip(values, -127, 127)).astype(np.int8)
    del values
    before, began = time.process_time(), time.monotonic()
    first, second = candidates(hashes)
    print(
        f"{count} hashes: {time.process_time() - before:.1f} s of CPU, {time.monotonic() - began:.1f} s, "
        f"{len(first)} pairs proposed, at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
    found = np.sort(first[first + second == count - 1])
    for number, kind in enumerate(real):
        share = np.mean((found >= number * planted) & (found < (number + 1) * planted)) * len(found) / planted
        print(f"  {share:.1%} of the copies proposed: {kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--signatures", action="store_true")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="an .npz file for the thumbnails")
    given = parser.parse_args()
    if given.million:
        million(given.count, given.keep)
    elif given.signatures:
        signatures(Path(os.environ["HDXRAY_TEST_DATA"]))
    else:
        accuracy(Path(os.environ["HDXRAY_TEST_DATA"]), given.keep)
