"""Uncertain labels: a policy for training, and nothing for the numbers that are told.

A policy that also decided validation and test would move the score of the same model: only what somebody was sure of
is counted there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import ConfigError
from .label_table import LabelTable

POLICIES = ("ignore", "zeros", "ones")
UNCERTAIN = -1.0


def policy_of(classes: Sequence[str], policy: str | Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A policy for each class that is named, and the names in it that are none of ``classes``.

    Args:
        classes: ``C`` names.
        policy: one word for all classes, ``"Edema=ones, ..."``, or a dict.

    Raises:
        ConfigError: a policy is none of ``POLICIES``.
    """
    if isinstance(policy, str) and "=" in policy:
        pairs = (pair.rpartition("=") for pair in policy.split(","))  # a class may have "=" in its name
        policy = {name.strip(): value.strip() for name, _, value in pairs}
    by_class = dict.fromkeys(classes, policy) if isinstance(policy, str) else {**policy}
    if wrong := sorted({str(value) for value in by_class.values()} - set(POLICIES)):
        raise ConfigError(f"uncertain: got {wrong[0]!r}, accepted are {', '.join(POLICIES)}")
    return by_class, sorted(set(by_class) - set(classes))


def decide_uncertain(labels: np.ndarray, classes: Sequence[str], policy: str | Mapping[str, str]) -> np.ndarray:
    """Uncertain labels (-1) by ``policy``; ``[N, C]`` in and out.

    Raises:
        ConfigError: unknown policy or class.
    """
    by_class, foreign = policy_of(classes, policy)
    if foreign:
        raise ConfigError(f"uncertain: names {foreign[0]!r}, classes are {', '.join(classes)}")
    decided = labels.astype(np.float32, copy=True)
    value = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
    for column, name in enumerate(classes):
        here = decided[:, column]
        here[here == UNCERTAIN] = value[by_class.get(name, "ignore")]
    return decided


def decided_for_training(table: LabelTable, policy: str | Mapping[str, str], chosen: bool = False) -> LabelTable:
    """A split table whose uncertain labels are read by ``policy`` in ``train`` and count for nothing elsewhere.

    Args:
        table: labels 1, 0, -1 or NaN.
        policy: see :func:`policy_of`.
        chosen: the classes were picked from more, so that a policy may name one that was not: it is dropped, and noted.

    Raises:
        ConfigError: unknown policy or class.
    """
    by_class, foreign = policy_of(table.classes, policy)
    notes = list(table.notes)
    if foreign and chosen:
        notes.append(f"uncertain: {', '.join(foreign)}: none of the classes asked for, its policy is dropped")
        by_class = {name: value for name, value in by_class.items() if name in table.classes}
    elif foreign:
        raise ConfigError(f"uncertain: names {foreign[0]!r}, classes are {', '.join(table.classes)}")
    labels = without_uncertain(table.labels)
    train = np.array([split == "train" for split in table.splits], bool)
    labels[train] = decide_uncertain(table.labels[train], table.classes, by_class)
    held = table.labels[~train] == UNCERTAIN
    if held.any():
        counts = [f"{name} {count}" for name, count in zip(table.classes, held.sum(0).tolist(), strict=True) if count]
        notes.append(
            f"{int(held.sum())} uncertain labels in val and test count for nothing ({', '.join(counts)}); their policy "
            "is for training"
        )
    return replace(table, labels=labels, notes=notes)


def without_uncertain(labels: np.ndarray) -> np.ndarray:
    """A copy of ``[N, C]`` in which uncertain labels are not known."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), labels).astype(np.float32)
