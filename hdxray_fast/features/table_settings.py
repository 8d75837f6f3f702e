"""Settings that made a table of features: what differs, and whether an earlier version's encoder of the package did."""

from __future__ import annotations

from collections.abc import Collection, Mapping

SHIPPED = "shipped"  # which encoder of the package made a table; null if none did; it does not part tables
OF_A_VERSION = {"weights", "depth"}  # of the package's encoder, of which the first versions had all blocks


def differ_by_version(names: Collection[str]) -> bool:
    """Whether settings of these names are what versions of the package's encoder differ in."""
    return "weights" in names and {*names} <= OF_A_VERSION


def earlier_shipped(found: Mapping[str, object]) -> str:
    """What is said of features that differ from those of the package's encoder by its version alone; blank if they are
    known to be of another.

    Args:
        found: settings of the table; those of earlier releases do not tell which encoder of the package it was.
    """
    if SHIPPED in found and found[SHIPPED] is None:
        return ""
    sure = "" if SHIPPED in found else "most likely "
    return (
        f"{sure}those of the encoder that came with an earlier version of this package; it has been trained further "
        "since, and features of two encoders do not compare"
    )


def differences(found: Mapping, given: Mapping) -> list[str]:
    """What differs, with both values; of weights the name alone says enough."""
    words = []
    for key in sorted({*found, *given}):
        before, now = found.get(key), given.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            words += differences(before, now)
        elif before != now:
            words.append(key if key in ("weights", "names") else f"{key}: {before} -> {now}")
    return words
