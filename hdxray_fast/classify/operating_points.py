"""What a class is worth where it is used: sensitivity at a specificity, and what a finding means at a prevalence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import ConfigError
from ..terminal import aligned
from .interval_text import interval_text
from .resampled import Ranked

LEVELS = (0.9, 0.95)
TOLERANCE = 1e-9  # shares of counts are no exact numbers


def point_names(prevalence: float | None = None) -> list[str]:
    """What :meth:`OperatingPoints.measure` gives, in its order."""
    names = [f"sensitivity_at_specificity_{level:g}" for level in LEVELS]
    names += [f"specificity_at_sensitivity_{level:g}" for level in LEVELS]
    return names + ["sensitivity", "specificity"] + (["ppv", "npv"] if prevalence is not None else [])


class OperatingPoints(Ranked):
    """Points of one class's ROC curve under many sets of image weights.

    At a fixed specificity (or sensitivity) the best point of the test set's own curve is told, as the field does; no
    point between two scores is made up. ``sensitivity`` and ``specificity`` are at the threshold of validation, and so
    are positive and negative predictive value, which follow from them by Bayes' rule at the prevalence given: that of a
    test set is seldom that of a clinic.

    Args:
        truth: ``[N]`` 0 or 1.
        score: ``[N]`` in [0, 1].
        threshold: of the decision, ``score >= threshold``.
        prevalence: 0 to 1; left out, no predictive values.
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray, threshold: float, prevalence: float | None = None) -> None:
        super().__init__(truth, score, threshold)
        self.prevalence = prevalence

    def measure(self, weights: Iterable[np.ndarray]) -> np.ndarray:
        """``[draws, len(point_names(prevalence))]`` for weights ``[N]`` of each; NaN without positives or negatives."""
        rows = [self._one(drawn[self.order]) for drawn in weights]
        return np.array(rows, np.float64).reshape(-1, len(point_names(self.prevalence)))

    def _one(self, weights: np.ndarray) -> list[float]:
        gained, passed = self.steps(weights)
        hits, alarms = np.cumsum(gained), np.cumsum(passed - gained)
        positives, negatives = hits[-1], alarms[-1]
        if positives <= 0 or negatives <= 0:
            return [np.nan] * len(point_names(self.prevalence))
        sensitivity = np.append(0.0, hits / positives)  # as the threshold falls
        specificity = np.append(1.0, 1 - alarms / negatives)
        found = [float(sensitivity[specificity >= level - TOLERANCE].max()) for level in LEVELS]
        found += [float(specificity[sensitivity >= level - TOLERANCE].max()) for level in LEVELS]
        right, called = self.decided(weights)
        own, other = right / positives, (called - right) / negatives
        found += [own, 1 - other]
        if self.prevalence is not None:
            found += predictive_values(own, 1 - other, self.prevalence)
        return found


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> list[float]:
    """Positive and negative predictive value by Bayes' rule; NaN where nothing is called so."""
    ill, well = prevalence, 1 - prevalence
    called, not_called = sensitivity * ill + (1 - specificity) * well, (1 - sensitivity) * ill + specificity * well
    return [
        sensitivity * ill / called if called > 0 else np.nan,
        specificity * well / not_called if not_called > 0 else np.nan,
    ]


def read_prevalence(
    text: str | float | None, classes: Sequence[str] | None = None, multiclass: bool = False
) -> dict[str, float]:
    """A prevalence for each class that is named: ``"0.05"`` is for all, ``"Edema=5%, Mass=0.01"`` for single ones.

    Args:
        text: what the user gave.
        classes: ``C`` names; left out, they are not known yet, and numbers alone are checked.
        multiclass: the classes exclude each other, and have no prevalence.

    Raises:
        ConfigError: no number between 0 and 1, an unknown class, or any prevalence of ``multiclass``.
    """
    if text is None:
        return {}
    pairs = [pair.rpartition("=") for pair in str(text).split(",")]
    found = {}
    for name, equals, value in pairs:
        try:
            share = float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
        except ValueError:
            share = np.nan
        if not 0 < share < 1 or (not equals and len(pairs) > 1):
            raise ConfigError(
                f"prevalence: got {str(text)!r}, accepted is a share between 0 and 1, such as 0.05 or 5%, or one per "
                "class: Edema=0.05, ..."
            )
        found[name.strip() if equals else ""] = share
    if classes is None:
        return found
    if "" not in found and (foreign := sorted(set(found) - set(classes))):
        raise ConfigError(f"prevalence: names {foreign[0]!r}, classes are {', '.join(classes)}")
    if multiclass:
        raise ConfigError("prevalence: predictive values are of classes with a threshold, not of multiclass ones")
    if "" in found:
        return dict.fromkeys(classes, found[""])
    return found


ONE_SIDED = "warning: called present in "


def describe_one_sided(called: dict[str, tuple[int, int, float]]) -> list[str]:
    """Classes whose threshold parts no images, as warnings: those called present in all, then those in none.

    Args:
        called: by class, how many images are called present, of how many, and from which probability on.
    """
    found = []
    for words, wanted in (("every image", 1), ("no image", 0)):
        names = [f"{name} (from {at:.3g})" for name, (count, of, at) in called.items() if of and count == wanted * of]
        if names:
            told = f"{ONE_SIDED}{words}, so that the threshold tells nothing apart"
            found.append(f"{told}: {', '.join(names)}")
    return found


def called_in(report: dict) -> dict[str, tuple[int, int, float]]:
    """For :func:`describe_one_sided`, of a report of :func:`.evaluate_predictions`; nothing of exclusive classes."""
    return {
        name: (row["called"], row["positive"] + row["negative"], row["threshold"])
        for name, row in report["classes"].items()
        if "called" in row  # not in reports of earlier releases
    }


def describe_points(rows: dict[str, dict], few: dict[str, str]) -> list[str]:
    """The classes' operating points as lines of a table for a terminal; ``few`` as for :func:`.interval_text`."""
    some = [row["operating_points"] for row in rows.values() if row.get("operating_points")]
    if not some:
        return []
    titles = {f"sensitivity_at_specificity_{level:g}": f"sens@spec {level:.0%}" for level in LEVELS}
    titles |= {f"specificity_at_sensitivity_{level:g}": f"spec@sens {level:.0%}" for level in LEVELS}
    titles |= {"sensitivity": "sensitivity", "specificity": "specificity"}
    if any("ppv" in points for points in some):
        titles |= {"ppv": "PPV", "npv": "NPV"}
    table = [["", *titles.values()]]
    for name, row in rows.items():
        points = row.get("operating_points") or {}
        table.append([name, *(interval_text(points.get(key), few[name]) for key in titles)])
    lines = aligned(table)
    lines.append("sensitivity, specificity and predictive values are at the threshold of validation")
    shares = {name: row["operating_points"]["prevalence"] for name, row in rows.items() if row.get("operating_points")}
    if told := {name: share for name, share in shares.items() if share is not None}:
        lines.append("prevalence: " + ", ".join(f"{share:g} ({name})" for name, share in told.items()))
    return lines
