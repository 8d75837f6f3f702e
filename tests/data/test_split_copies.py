"""Near duplicates under two patients' names: on one side of a drawn split, told of across a given one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from film_makers import COPIES, draw_film
from prepared_helpers import prepare

from hdxray_fast.data.prepared.duplicates import thumbnails_of
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.split_copies import keep_copies_together

SPLITS = ["train", "train", "train", "val", "test", "test", "train"]
PATIENTS = ["a", "b", "c", "d", "e", "f", "b"]


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Names and thumbnails: row 4, of the test, is a copy of row 1 of the training, whose patient has row 6 too."""
    folder = tmp_path_factory.mktemp("copies")
    films = [draw_film(number) for number in range(7)]
    films[4] = COPIES["all at once"](films[1])
    for number, film in enumerate(films):
        cv2.imwrite(str(folder / f"{number}.png"), film)
    prepare([folder], folder / "set", img_size=256)
    images = PreparedSet(folder / "set")
    return images.sources(), thumbnails_of(images)


def test_a_drawn_split_has_no_copies_on_both_sides(named):
    kept, (note,) = keep_copies_together(SPLITS, PATIENTS, *named, ["val", "test"])
    assert kept == [0, 2, 3, 4, 5]
    assert note.startswith("2 images are left out of train or val") and "1.png (train)" in note and "4.png" in note


def test_a_given_split_stays_and_is_told_of(named):
    for drawn in ([], ["val"]):
        kept, (note,) = keep_copies_together(SPLITS, PATIENTS, *named, drawn)
        assert kept == list(range(7))
        assert note.startswith("warning: 1 pair of near duplicates across splits that the manifest gives")


def test_copies_within_a_split_are_no_matter(named):
    names, thumbnails = named
    rows = [0, 1, 2, 3, 6]
    parts = ([whole[row] for row in rows] for whole in (SPLITS, PATIENTS, names))
    assert keep_copies_together(*parts, thumbnails[rows], ["val", "test"]) == ([0, 1, 2, 3, 4], [])
