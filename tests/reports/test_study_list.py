"""Many studies in one buffer: what comes out is what went in, and little more memory than its text."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace

import pytest

from hdxray_fast.data.ragged import Ragged
from hdxray_fast.reports.batches import StudyDataset, ready_studies
from hdxray_fast.reports.studies import StudyTable
from hdxray_fast.reports.study_list import Studies, Study

STUDIES = [
    Study("s1", ("a.png", "b\udcff.png"), "Heart. Lungs.", "train", "en", "p1", "", "row 2"),
    Study("", (), "", "", "zh"),
    Study("心", ("a\0b", ""), "两肺清晰\ud800", "test", "zh", "p2", "s1", "row 4"),
]


def test_studies_come_out_as_they_went_in():
    held = Studies(STUDIES)
    assert list(held) == STUDIES == held and [one.place for one in held] == ["row 2", "", "row 4"]
    assert held[-1] == STUDIES[2] and held[1:] == STUDIES[1:]
    assert held.rows([2, 0, 0])[::-1] == [STUDIES[0], STUDIES[0], STUDIES[2]]
    assert held.rows([2, 1])[:1].column("patient") == ["p2"] and held.column("id") == ["s1", "", "心"]
    assert pickle.loads(pickle.dumps(held[1:])) == STUDIES[1:]
    assert held != STUDIES[:2] and not Studies()
    with pytest.raises(IndexError):
        held[3]
    with pytest.raises(TypeError, match="does not grow"):
        held[:1].append(STUDIES[0])


def test_a_table_keeps_no_study_as_an_object():
    table = StudyTable(STUDIES)
    assert isinstance(table.studies, Studies) and table.split("test") == STUDIES[2:]
    assert table.patients == ["p1", "", "p2"]
    table.leave_out(lambda study: not study.images, "left out")
    assert table.studies == STUDIES[::2] and table.notes == ["1 study left out (a study without images)"]


def test_rows_of_numbers():
    rows = Ragged([[3, 1], [], [7]])
    assert [rows[row] for row in range(len(rows))] == [(3, 1), (), (7,)]
    for row in (-1, 3):
        with pytest.raises(IndexError):
            rows[row]


def test_workers_get_numbers_and_words_and_no_text():
    report, count = "The heart is not enlarged. " * 20, 500
    studies = Studies(Study(f"s{n}", (f"/films/{n}.png",), report, "train") for n in range(count))
    text = sum(len(study.report) + len(study.images[0]) + len(study.id) + len("trainen") for study in studies)
    held = sum(map(sys.getsizeof, (studies._text, studies._cells, studies._firsts, studies._starts)))
    assert held < 1.2 * text + 80 * count

    names = [path for study in studies for path in study.images]
    ready, notes = ready_studies(studies, SimpleNamespace(sources=lambda: names[1:]), (), 2)
    assert len(ready) == count - 1 and "1 study left out: none of their radiographs" in notes[0]
    ready = ready.with_targets([[n, n + 1] for n in range(count - 1)])
    assert (ready[7].images, ready[7].target, ready[-2:][0].study.id) == ((7,), (7, 8), f"s{count - 2}")
    encoder = SimpleNamespace(keep="all", margin=0, grid_size=(4, 4), patch_size=16, contour="network")
    dataset = StudyDataset(ready, None, SimpleNamespace(encoder=encoder, config=SimpleNamespace(keep=None)))
    assert len(pickle.dumps(dataset)) < 64 * count and b"enlarged" not in pickle.dumps(dataset)
