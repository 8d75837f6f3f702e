"""Intervals of a small fixed simulation hold the true value, where percentiles of draws do not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def coverage(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "experiments"))
    return importlib.import_module("coverage")


def test_ten_positive_and_ten_negative_patients(coverage):
    """Of 120 test sets 0.93 is 112; before, percentiles held the AUROC in some 0.75."""
    found = coverage.simulate(coverage.Setting(20, (10,), 0.97), tests=120, bootstraps=150, seed=[0, 0])
    assert found["before"]["auroc"]["held"] < 0.85
    for metric, row in found["after"].items():
        assert row["given"] == 120 and row["held"] >= 0.93, metric
    assert found["after"]["auroc"]["length"] < 0.3


def test_a_mean_of_classes(coverage):
    found = coverage.simulate(coverage.Setting(100, (10, 30), 0.9), tests=80, bootstraps=100, seed=[0, 1])
    for metric in ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error"):
        assert found["after"][metric]["given"] == 80 and found["after"][metric]["held"] >= 0.93, metric
    assert found["after"]["auroc"]["length"] < 0.2


def test_too_few_have_none_and_the_table_says_so(coverage):
    setting = coverage.Setting(60, (3,), 0.8)
    found = coverage.simulate(setting, tests=5, bootstraps=50, seed=[0, 2])
    assert all(row["given"] == 0 for row in found["after"].values())
    assert found["before"]["auroc"]["given"] == 5
    assert coverage.table([(setting, found)]).splitlines()[2].count("→ none") == len(coverage.SHOWN) + 1
