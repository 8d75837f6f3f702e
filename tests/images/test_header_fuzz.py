"""Headers mutated element by element: an error that was foreseen, or a canvas. Long runs: see the helper."""

from __future__ import annotations

import pytest

pytest.importorskip("pydicom")

from header_fuzz import bases, survive


@pytest.mark.filterwarnings("ignore")
def test_mutated_headers_end_nowhere_unforeseen(tmp_path):
    fates, bugs = survive(tmp_path / "fuzzed.dcm", bases(tmp_path), range(960), seed=1)
    assert not bugs
    assert fates["canvas, flagged"] > 200
    assert fates["ImageReadError"] > 20
