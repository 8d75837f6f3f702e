"""Reports that a model wrote, and what was left out on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.film_views import describe_view, not_frontal
from ..data.quarantine import Quarantined
from ..data.radiographs import Radiograph
from .studies import Study


@dataclass
class WrittenReport:
    """A report that a model wrote.

    Attributes:
        study: on which.
        text: may be empty.
        sentences: of the text.
        attention: ``[sentences, views, gh, gw] float32`` weights over the patches; ``None`` if it was not asked for.
        radiographs: those that were read.
        picture: where the attention is drawn.
        views: of the radiographs that were read, by path, as of :class:`.Predictions`.
    """

    study: Study
    text: str
    sentences: list[str] = field(default_factory=list)
    attention: np.ndarray | None = None
    radiographs: list[Radiograph] = field(default_factory=list)
    picture: Path | None = None
    views: dict[str, str] = field(default_factory=dict)

    @property
    def not_frontal(self) -> dict[str, str]:
        """Views of the radiographs, if all of them are known to be no frontal chests; empty of a study with one."""
        found = not_frontal(self.views.items())
        return found if len(found) == len(self.views) else {}

    @property
    def views_in_words(self) -> list[str]:
        """What :func:`.describe_view` says of ``not_frontal``, each once."""
        return [describe_view(view) for view in dict.fromkeys(self.not_frontal.values())]


@dataclass
class WrittenReports:
    """Reports, and what was left out on the way.

    Attributes:
        rows: in the order of the studies.
        notes: a sentence for everything that was left out, with its count.
        quarantined: radiographs that cannot be read.
        predictions: CSV that ``report evaluate`` reads, where one was written.
        page: HTML page of all of them, likewise.
        precision: ``"fp32"`` or ``"bf16"``, what the model computed in.
        warning: what the model's own validation warns of; blank if nothing, or where its folder does not tell.
        known: study, radiograph and ``"pixels"`` or ``"near"`` for each radiograph that the model was trained or
            validated on; ``None`` where it has no record of that.
        waiting: shares of other processes, counted from 1, that have not ended.
        joined: whether this process joined the reports of all shares; another has no ``rows``.
    """

    rows: list[WrittenReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    predictions: Path | None = None
    page: Path | None = None
    precision: str = "fp32"
    warning: str = ""
    known: list[tuple[str, str, str]] | None = None
    waiting: list[int] = field(default_factory=list)
    joined: bool = True
