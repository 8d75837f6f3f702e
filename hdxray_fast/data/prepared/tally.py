"""What a prepared data set holds, counted shard by shard, and said in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ...files import size_in_words
from ...names import escaped
from ...terminal import counted, visible
from .shards import arrow
from .sources import some_names

# of the images in the index, kept for quantiles and pictures: tens of bytes an image
KEPT = (
    "shard", "offset", "length", "inside_share", "confidence", "flagged", "scale", "shift", "height", "width",
    "patient",
)  # fmt: skip
SHOWN = 5  # reasons, on a terminal


class Tally:
    """Counts of all sources, and a few columns of the images that are in the index."""

    def __init__(self) -> None:
        self.sources = self.good = 0
        self._status, self._reasons, self._filtered, self._flags, self._views, self._parts, self._formats = (
            Counter() for _ in range(7)
        )
        self._kept: list = []

    def add(self, facts, images) -> None:
        """Take in a shard.

        Args:
            facts: of all its sources.
            images: those of them that go into the index.
        """
        self.sources += len(facts)
        status = facts.column("status").to_pylist()
        self.good += status.count("ok")
        self._status.update(status)
        reasons = facts.column("reason").to_pylist()
        self._reasons.update(filter(None, reasons))
        self._filtered.update(why for why, what in zip(reasons, status, strict=True) if what == "filtered")
        pairs = zip(*(facts.column(name).to_pylist() for name in ("view", "view_evidence")), strict=True)
        self._views.update(
            f"{view} ({evidence})" if view else "not known" for view, evidence in pairs if evidence is not None
        )
        self._parts.update(part or "" for part in facts.column("body_part").to_pylist() if part is not None)
        self._flags.update(flag for flags in images.column("flags").to_pylist() for flag in flags)
        self._formats.update(images.column("format").to_pylist())
        self._kept.append(images.select(KEPT))

    def columns(self):
        """``KEPT`` of all images in the index, by row."""
        return arrow().concat_tables(self._kept)

    def summary(self, duplicates: int, near: int, skipped: list[str]) -> dict:
        """Counts by status and reason, sizes, contours, patients, as ``summary.json`` has them."""
        index, compute = self.columns(), arrow().compute
        patients = index.column("patient").drop_null()
        patients = patients.filter(compute.not_equal(patients, ""))
        confidence, share = (_quantiles(index.column(name)) for name in ("confidence", "inside_share"))
        return {
            "sources": self.sources,
            "images": len(index),
            **{name: self._status.get(name, 0) for name in ("ok", "unreadable", "filtered")},
            "duplicates": duplicates,
            "near_duplicates": near,
            "skipped": len(skipped),
            "skipped_first": [escaped(name) for name in skipped[:3]],
            "patients": compute.count_distinct(patients).as_py(),
            "images_without_patient": len(index) - len(patients),
            "flagged_contours": int(np.sum(index.column("flagged").to_numpy())),
            "bytes": int(np.sum(index.column("length").to_numpy())),
            "confidence": confidence,
            "inside_share": share,
            "flags": dict(self._flags.most_common()),
            "views": dict(self._views.most_common()),
            "body_parts": dict(self._parts),
            "formats": dict(self._formats.most_common()),
            "reasons": dict(self._reasons.most_common(20)),
            "filtered_reasons": dict(self._filtered.most_common(20)),
        }


def _quantiles(column) -> dict:
    values = np.quantile(column.to_numpy(), (0, 0.05, 0.5, 0.95, 1))
    return dict(zip(("min", "p05", "median", "p95", "max"), (round(float(v), 4) for v in values), strict=True))


def describe(summary: dict) -> str:
    """What the command prints."""
    lines = [
        f"{counted(summary['images'], 'image')} of {counted(summary['sources'], 'source')} "
        f"({summary['unreadable']} unreadable, {summary['filtered']} filtered, "
        f"{counted(summary['duplicates'], 'duplicate')}), {size_in_words(summary['bytes'])}",
        f"patients: {summary['patients']} known by a hash, {summary['images_without_patient']} images without",
        f"contours: confidence {summary['confidence']['median']:.2f} (5 % below {summary['confidence']['p05']:.2f}), "
        f"{summary['flagged_contours']} flagged; {summary['inside_share']['median']:.0%} of the patches inside",
    ]
    if summary["flags"]:
        lines.append("flags: " + ", ".join(f"{count} {flag}" for flag, count in summary["flags"].items()))
    views = ", ".join(f"{count} {name}" for name, count in summary["views"].items())
    parts = sorted(summary["body_parts"].items(), key=lambda item: -item[1])
    lines += [f"views: {views or 'not looked at'}"]
    lines += ["body parts: " + ", ".join(f"{count} {name or 'not stated'}" for name, count in parts[:8])]
    if summary["near_duplicates"]:
        lines.append(
            f"near duplicates: {summary['near_duplicates']} images look like an earlier one encoded, scaled or trimmed "
            f"anew; they are kept, and listed in duplicates.csv"
        )
    if summary["skipped"]:
        names = some_names(summary["skipped_first"], summary["skipped"])
        lines.append(f"left out for the suffix: {names}; all of them: skipped.csv")
    filtered = summary["filtered_reasons"]
    if filtered:
        lines.append(f"filtered: {_first(filtered)}{_kept_with(filtered)}")
    others = {reason: count for reason, count in summary["reasons"].items() if reason not in filtered}
    if others:
        lines.append(f"unreadable: {_first(others)}")
    return "\n".join(map(visible, lines))


def _first(reasons: dict[str, int]) -> str:
    """The most frequent ones: ``2 x lateral view (header)``."""
    some = ", ".join(f"{count} x {reason}" for reason, count in list(reasons.items())[:SHOWN])
    return some + (f", {len(reasons) - SHOWN} reasons more" if len(reasons) > SHOWN else "")


def _kept_with(reasons: Iterable[str]) -> str:
    """The options of prepare that leave out nothing for these reasons; one that was given is named by its reason."""
    words = {"view": ("view", "no chest radiograph"), "body-part": ("body part",), "modality": ("modality",)}
    options = [
        f"--{option} any" for option, told in words.items() if any(word in why for word in told for why in reasons)
    ]
    return f"; in a new set, {' '.join(options)} keeps them" if options else ""
