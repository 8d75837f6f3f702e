"""What a report model's validation found is told by those who use it, and what is too little to find anything."""

from __future__ import annotations

import re

import pytest

from hdxray_fast.reports.validated import Validated, few_to_validate


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            Validated("val", 30, 0.0),
            "matched nothing of its validation reports (BLEU-4 0.00): its sentences say nothing",
        ),
        (Validated("train", 4, 0.0049), "matched nothing of its training reports (BLEU-4 0.00)"),
        (Validated("val", 30, 0.005), ""),
        (Validated("val", 0), "was never validated"),
    ],
)
def test_a_model_that_matches_nothing_says_so(found, told):
    kept = Validated.of(found.record())
    assert kept == found
    assert told in kept.warning() if told else kept.warning() == ""


@pytest.mark.parametrize("record", [None, {}, [], {"split": "val", "studies": "many", "bleu4": 0.0}, {"split": "val"}])
def test_what_no_training_wrote_tells_nothing(record):
    assert Validated.of(record) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("val", 1, True, 0.1, 200), "1 study is few .* raise --val-share .now 0.1"),
        (("val", 19, False, 0.1, 200), "19 studies are few .* give more studies the split val"),
        (("val", 8, True, 0.1, 8), "8 studies are few .* raise --validate-studies .now 8"),
        (("train", 4, False, 0.1, 200), "no more to train on"),
        (("val", 20, True, 0.1, 200), "^$"),
        (("val", 0, True, 0.1, 200), "^$"),
    ],
)
def test_few_studies_to_validate_on_are_warned_of(given, told):
    assert re.search(told, few_to_validate(*given))
