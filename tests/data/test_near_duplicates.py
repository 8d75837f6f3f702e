"""Copies of a film are found whatever was done to them, and other films are never taken for copies."""

from __future__ import annotations

import numpy as np
import pytest
from film_makers import COPIES, draw_film

from hdxray_fast.data import hash_search
from hdxray_fast.data.hash_search import candidates
from hdxray_fast.data.near_duplicates import SAME_FILM, near_pairs, near_pairs_between, united
from hdxray_fast.images.alignment import likeness
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.perceptual_hash import LENGTH, SIDE, equalised_thumbnail, perceptual_hash

PATIENTS, EXPOSURES = 6, 2


def thumbnail(film: np.ndarray) -> np.ndarray:
    canvas = read_canvas(film, size=256)
    return equalised_thumbnail(canvas.pixels, canvas.valid_box)


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [draw_film(patient, exposure) for patient in range(PATIENTS) for exposure in range(EXPOSURES)]


@pytest.fixture(scope="module")
def thumbnails(films) -> np.ndarray:
    return np.stack([thumbnail(film) for film in films])


def pairs_of(found) -> list[tuple[int, int]]:
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_thumbnails_know_nothing_of_greys_and_borders(films):
    film = films[0]
    plain = thumbnail(film)
    assert plain.shape == (SIDE, SIDE) and plain.dtype == np.uint8 and plain.min() == 0 and plain.max() == 255
    table = (255 * (np.arange(256) / 255) ** 0.7).astype(np.uint8)
    assert likeness(thumbnail(table[film])[None], plain[None]) > 0.9
    wide = np.pad(film, ((0, 0), (80, 40)))
    assert likeness(thumbnail(wide)[None], plain[None]) > 0.9
    canvas = read_canvas(film, size=256, bits=16)
    assert likeness(equalised_thumbnail(canvas.pixels, canvas.valid_box)[None], plain[None]) > 0.9


def test_hash_of_a_negative_is_the_negative(thumbnails):
    hashes = perceptual_hash(thumbnails)
    assert hashes.shape == (len(thumbnails), LENGTH) and hashes.dtype == np.int8
    np.testing.assert_allclose(perceptual_hash(255 - thumbnails), -hashes.astype(int), atol=1)
    assert np.array_equal(perceptual_hash(thumbnails[3:4])[0], hashes[3])


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_among_other_films(films, thumbnails, kind):
    made = np.stack([thumbnail(COPIES[kind](film)) for film in films])
    assert pairs_of(near_pairs_between(thumbnails, made)) == [(row, row) for row in range(len(films))]


def test_films_of_one_patient_are_no_copies(thumbnails):
    assert len(near_pairs(thumbnails).first) == 0
    again = np.concatenate([thumbnails, thumbnails[5:7]])
    found = near_pairs(again)
    assert pairs_of(found) == [(5, len(thumbnails)), (6, len(thumbnails) + 1)]
    assert (found.likeness > 0.99).all()


def test_likeness_is_one_for_a_film_and_its_negative_and_low_for_others(thumbnails):
    np.testing.assert_allclose(likeness(thumbnails, thumbnails), 1, atol=1e-4)
    np.testing.assert_allclose(likeness(thumbnails, 255 - thumbnails), 1, atol=1e-4)
    assert likeness(thumbnails[:-1], thumbnails[1:]).max() < SAME_FILM - 0.02
    assert likeness(thumbnails[:0], thumbnails[:0]).shape == (0,)
    flat = np.zeros((1, SIDE, SIDE), np.uint8)
    assert likeness(flat, flat) == 0  # nothing to see is no film


def crowd(count: int, copies: int) -> np.ndarray:
    """Hashes that have nothing to do with each other, the last ones near copies of the first."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 12, (count, LENGTH)) + 20 * np.sin(np.arange(LENGTH))
    values[-copies:] = values[:copies] + rng.normal(0, 1.5, (copies, LENGTH))
    values[::7] *= -1  # negatives
    return np.rint(np.clip(values, -127, 127)).astype(np.int8)


@pytest.mark.parametrize("each_with_each", [True, False])
def test_search_proposes_the_copies_of_a_crowd(monkeypatch, each_with_each):
    monkeypatch.setattr(hash_search, "EACH_WITH_EACH", 1 << 15 if each_with_each else 0)
    count, copies = 6000, 100
    first, second = candidates(crowd(count, copies))
    assert (first < second).all() and len(first) <= hash_search.LOOKS + count // 2
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(found) == len(first)
    wanted = {(row, count - copies + row) for row in range(copies)}
    assert len(wanted & found) >= (copies if each_with_each else 0.98 * copies)


@pytest.mark.parametrize("each_with_each", [True, False])
def test_search_between_two_crowds_crosses_the_boundary(monkeypatch, each_with_each):
    monkeypatch.setattr(hash_search, "EACH_WITH_EACH", 1 << 15 if each_with_each else 0)
    hashes, boundary = crowd(4000, 50), 3900
    first, second = candidates(hashes, boundary)
    assert (first < boundary).all() and (second >= boundary).all()
    wanted = {(row, 3950 + row) for row in range(50)}
    assert len(wanted & set(zip(first.tolist(), second.tolist(), strict=True))) >= 49


def test_search_of_many_equal_hashes_ends(monkeypatch):
    monkeypatch.setattr(hash_search, "EACH_WITH_EACH", 0)
    first, _ = candidates(np.repeat(crowd(2, 1), 300, axis=0))
    assert 0 < len(first) <= hash_search.LOOKS + 300


def test_few_hashes_are_all_proposed():
    first, second = candidates(crowd(5, 1))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [
        (i, j) for i in range(5) for j in range(i + 1, 5)
    ]
    first, second = candidates(crowd(5, 1), 2)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(i, j) for i in range(2) for j in range(2, 5)]
    for count in (0, 1):
        assert len(candidates(np.zeros((count, LENGTH), np.int8))[0]) == 0


def test_patients_who_share_a_film_are_one_for_a_draw():
    patients = ["d", "a", "b", "c", "b", "e"]
    assert united(patients, [0, 2], [2, 3]) == ["b", "a", "b", "b", "b", "e"]
    assert united(patients, [], []) == patients
    assert united(patients, [2], [4]) == patients  # of one patient anyhow
