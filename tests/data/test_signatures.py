"""What a model keeps of its films finds their copies and no others, and is no picture."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
from film_makers import compressed, draw_film, trimmed, windowed
from safetensors.numpy import load_file

from hdxray_fast.data.seen import Seen
from hdxray_fast.data.seen_key import run_key
from hdxray_fast.data.signature_search import found_among
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.film_signature import film_signature
from hdxray_fast.images.perceptual_hash import SIDE, equalised_thumbnail

FILMS = 24
COPIES = {
    "JPEG 80": lambda film: compressed(film, 80),
    "windowed": windowed,
    "negative": lambda film: 255 - film,
    "a few pixels less": lambda film: film[3:-2, 4:-3],
    "trimmed on one side": lambda film: trimmed(film, 0, 0, 0.03, 0),
}


def thumbnails_of(films) -> np.ndarray:
    canvases = [read_canvas(film, size=256) for film in films]
    return np.stack([equalised_thumbnail(canvas.pixels, canvas.valid_box) for canvas in canvases])


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [draw_film(patient) for patient in range(2 * FILMS)]


@pytest.fixture(scope="module")
def thumbnails(films) -> np.ndarray:
    return thumbnails_of(films)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_other_films_are_not(films, thumbnails, kind):
    copies = thumbnails_of([COPIES[kind](film) for film in films])
    found = found_among(copies, film_signature(thumbnails[:FILMS]))
    assert found[:FILMS].mean() >= 0.75 and not found[FILMS:].any()


def test_another_exposure_is_another_film(thumbnails):
    again = thumbnails_of([draw_film(patient, exposure=1) for patient in range(FILMS)])
    assert not found_among(again, film_signature(thumbnails[:FILMS])).any()


def test_signatures_in_files_mean_the_same_for_ever():
    ramp = np.add.outer(np.arange(SIDE) * 2, np.square(np.arange(SIDE)) // 12).astype(np.uint8)
    (signature,) = film_signature(ramp[None])
    assert signature.shape == (64,) and signature.dtype == np.uint8
    assert signature[:8].tobytes().hex() == "bdaf7d95c2a785ac"


def test_nothing_to_see_is_like_nothing(thumbnails):
    flat = np.full((2, SIDE, SIDE), 90, np.uint8)
    assert not found_among(flat, film_signature(np.concatenate([thumbnails, flat]))).any()
    assert found_among(thumbnails[:0], film_signature(thumbnails)).shape == (0,)
    assert not found_among(thumbnails, film_signature(thumbnails[:0])).any()


class Table:
    patients = tuple(f"p{number}" for number in range(FILMS))
    splits = ("train", "val", "test") * (FILMS // 3)
    origin = MappingProxyType({})


def test_a_record_tells_copies_of_training_and_validation(thumbnails, tmp_path):
    hashes = [f"{number:016x}" for number in range(1, FILMS + 1)]
    Seen.of(Table, None, hashes, thumbnails[:FILMS], run_key(tmp_path)).save(tmp_path / "seen.safetensors")
    record = Seen.load(tmp_path / "seen.safetensors")
    assert record.limits == ""
    copies = thumbnails[:FILMS]
    taught = [split != "test" for split in Table.splits]
    assert record.near(copies).tolist() == taught
    # what is equal to the pixel is counted once
    overlap = record.overlap(["new"] * FILMS, [*hashes[:6], *[""] * (FILMS - 6)], copies)
    assert overlap.as_dict() == {"images": 16, "share": 16 / 24, "patients": 0, "pixels": 4, "near": 12}
    told = overlap.describe([f"{number}.jpg" for number in range(FILMS)])
    assert told.endswith("16 of these 24 images (67%): 4 equal to the pixel, 12 near duplicates; the first is 0.jpg")


def test_records_of_earlier_releases_say_what_they_cannot_tell(thumbnails, tmp_path):
    Seen.of(Table, None, [f"{1:016x}"] * FILMS, key=run_key(tmp_path)).save(tmp_path / "seen.safetensors")
    record = Seen.load(tmp_path / "seen.safetensors")
    assert "near duplicates are not" in record.limits
    assert record.overlap(Table.patients, [""] * FILMS, thumbnails[:FILMS]).by.keys() == {"patients", "pixels"}
    assert Seen.of_origin({}).limits == ""  # nothing is known at all, and that is said elsewhere


def test_a_record_holds_no_picture(thumbnails, tmp_path):
    """Who has many films of others guesses a film from its signature hardly better than from the mean of those."""
    draws = thumbnails_of([draw_film(patient) for patient in range(100, 260)]).reshape(160, -1).astype(np.float32)
    pictures = [draws.reshape(-1, SIDE, SIDE).astype(np.uint8), thumbnails]
    bits = [np.unpackbits(film_signature(each), axis=1) * 2.0 - 1 for each in pictures]
    mean = draws.mean(0)
    weights = np.linalg.solve(bits[0].T @ bits[0] + 1000 * np.eye(512), bits[0].T @ (draws - mean))
    truth = thumbnails.reshape(len(thumbnails), -1)
    guesses = mean + bits[1] @ weights
    alike = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(guesses, truth, strict=True)])
    assert alike < np.mean([np.corrcoef(mean, other)[0, 1] for other in truth]) + 0.05
    Seen.of(Table, None, (), thumbnails[:FILMS]).save(tmp_path / "seen.safetensors")
    held = load_file(tmp_path / "seen.safetensors")
    assert held["near.keys"].nbytes == 64 * FILMS
    ordered = [row.tobytes() for row in held["near.keys"]]
    assert ordered == sorted(ordered)  # in no order of the images
