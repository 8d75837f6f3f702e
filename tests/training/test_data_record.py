"""What a run is trained on, written down: every difference is noticed and named by an example."""

from __future__ import annotations

import pytest

from hdxray_fast.errors import ConfigError
from hdxray_fast.training.data_record import RECORD, DataRecord, content_digest, prints_of, refuse_other_data

pytest.importorskip("pyarrow")

IMAGES = {"a.png": 1, "b.png": 2, "c.png": 2**32 - 1}
LABELS = {"a.png": "x", "b.png": "y", "c.png": "z"}


def record(images: dict, labels: dict, weights: str = "w") -> DataRecord:
    made = DataRecord()
    made.add("readable images", images, prints_of(list(images.values())))
    made.add("labels", labels, labels.values())
    made.add("weights", ["the encoder"], [weights], setting="weights")
    return made


def refusal(tmp_path, now: DataRecord, before: DataRecord | None = None) -> str:
    before = before or record(IMAGES, LABELS)
    before.write(tmp_path)
    with pytest.raises(ConfigError) as caught:
        refuse_other_data({"data": "f", "record": before.digest}, "f", now, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "weights", "said"),
    [
        ({**IMAGES, "b.png": 7}, LABELS, "w", "data: these are other readable images (1 changed, such as b.png) than"),
        ({"a.png": 1, "c.png": 2**32 - 1, "d.png": 2}, {"a.png": "x", "c.png": "z", "d.png": "y"}, "w",
         "data: these are other readable images (1 gone, such as b.png; 1 new, such as d.png) than"),
        (IMAGES, {**LABELS, "c.png": "x", "b.png": "x"}, "w",
         "data: these are other labels (2 changed, such as b.png) than"),
        ({**IMAGES, "a.png": 0}, {**LABELS, "a.png": "q"}, "w",
         "other readable images (1 changed, such as a.png) and other labels (1 changed, such as a.png) than"),
        (IMAGES, LABELS, "v", "weights: these are other weights (1 changed, such as the encoder) than"),
        (dict(reversed(IMAGES.items())), LABELS, "w", "data: these are the readable images in another order than"),
    ],
)  # fmt: skip
def test_what_differs_is_named(tmp_path, images, labels, weights, said):
    assert said in refusal(tmp_path, record(images, labels, weights))


def test_the_same_go_on_and_are_written_once(tmp_path):
    before = record(IMAGES, LABELS)
    before.write(tmp_path)
    written = (tmp_path / RECORD).stat().st_mtime_ns
    again = record(IMAGES, LABELS)
    again.write(tmp_path)
    assert (tmp_path / RECORD).stat().st_mtime_ns == written
    refuse_other_data({"data": "f", "record": before.digest}, "f", again, tmp_path)
    refuse_other_data({"data": "f"}, "f", again, tmp_path)  # a checkpoint from before there were records
    record({**IMAGES, "a.png": 9}, LABELS).write(tmp_path)
    assert (tmp_path / RECORD).stat().st_mtime_ns != written


def test_without_the_record_nothing_is_named(tmp_path):
    now, before = record({**IMAGES, "b.png": 7}, LABELS), record(IMAGES, LABELS)
    for state in ({"data": "f", "record": before.digest}, {"data": "g"}):
        with pytest.raises(ConfigError, match=r"^data: these are other readable images than"):
            refuse_other_data(state, "f", now, tmp_path)
    now.write(tmp_path)  # of another run
    with pytest.raises(ConfigError, match=r"^data: these are other readable images than"):
        refuse_other_data({"data": "f", "record": before.digest}, "f", now, tmp_path)
    with pytest.raises(ConfigError, match=r"^data: these are other readable images than"):
        refuse_other_data({"data": "g", "record": None}, "f", None, tmp_path)


def test_digests_tell_where_one_thing_ends():
    assert content_digest("ab", "c") != content_digest("a", "bc") != content_digest(b"a", "bc", "")
    one, other = DataRecord(), DataRecord()
    one.add("images", ["a\nb"], ["1"])
    other.add("images", ["a", "b"], ["1", ""])
    assert one.digest != other.digest
    odd = DataRecord()
    odd.add("images", ["\udcff.png"], ["1"])  # a name of other bytes than UTF-8
    assert odd.parts[0].names == [r"\xff.png"]
    with pytest.raises(ValueError, match="1 names of labels, 2 contents"):
        odd.add("labels", ["a"], ["1", "2"])
