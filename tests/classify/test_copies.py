"""Near duplicates under two patients' names: on one side of a drawn split, told of across a given one."""

from __future__ import annotations

import cv2
import numpy as np
from film_makers import COPIES, draw_film
from prepared_helpers import prepare

from hdxray_fast.classify.copies import keep_copies_together
from hdxray_fast.classify.label_table import LabelTable
from hdxray_fast.data.prepared.reading import PreparedSet

SPLITS = ["train", "train", "train", "val", "test", "test", "train"]
PATIENTS = ["a", "b", "c", "d", "e", "f", "b"]


def table_and_images(tmp_path) -> tuple[LabelTable, PreparedSet]:
    """Row 4, of the test, is a copy of row 1 of the training, whose patient has row 6 too."""
    films = [draw_film(number) for number in range(7)]
    films[4] = COPIES["all at once"](films[1])
    for number, film in enumerate(films):
        cv2.imwrite(str(tmp_path / f"{number}.png"), film)
    prepare([tmp_path], tmp_path / "set", size=256)
    images = PreparedSet(tmp_path / "set")
    table = LabelTable(images.sources(), np.zeros((7, 1), np.float32), ["x"], PATIENTS, SPLITS)
    return table, images.subset(range(7))


def test_a_drawn_split_has_no_copies_on_both_sides(tmp_path):
    table, images = table_and_images(tmp_path)
    kept, left, notes = keep_copies_together(table, images, ["val", "test"])
    assert [path[-5] for path in kept.paths] == ["0", "2", "3", "4", "5"]
    assert left.sources() == kept.paths and kept.splits == ["train", "train", "val", "test", "test"]
    (note,) = notes
    assert note.startswith("2 images are left out of train or val") and "1.png (train)" in note and "4.png" in note


def test_a_given_split_stays_and_is_told_of(tmp_path):
    table, images = table_and_images(tmp_path)
    for drawn in ([], ["val"]):
        kept, left, (note,) = keep_copies_together(table, images, drawn)
        assert kept.paths == table.paths == left.sources()
        assert note.startswith("warning: 1 pairs of near duplicates lie across splits that the manifest gives")


def test_copies_within_a_split_are_no_matter(tmp_path):
    table, images = table_and_images(tmp_path)
    rows = [0, 1, 2, 3, 6]
    kept, _, notes = keep_copies_together(table.rows(rows), images.subset(rows), ["val", "test"])
    assert len(kept) == 5 and notes == []
