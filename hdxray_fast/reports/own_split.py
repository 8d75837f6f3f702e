"""A model's own split, found again: what is tested on is what training left alone, or it is said."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.seen import DRAWN_FILE, SEEN_FILE, Overlap, Seen
from ..data.seen_key import KEY_FILE, key_of, without_digests
from ..errors import ConfigError
from ..regular_files import RUN_JSON, read_json, reason_of
from ..weights.model_folders import model_folder
from .layouts import STUDY_SETTINGS, read_studies
from .studies import Study, StudyTable
from .study_splits import identities

if TYPE_CHECKING:
    from .config import ReportConfig

REPORT_FILE = "report.json"  # in a report model's folder
SCORES, METRICS = "scores.csv", "metrics.json"  # in an evaluation's folder
ORIGIN_KEYS = {"val_share": "val_share", "test_share": "test_share", "split_seed": "seed"}


def record_of_model(directory: str | Path) -> Seen | None:
    """What the report model in a folder (or in that of its run) has seen; ``None`` for one of an earlier release.

    Where the record was removed, how the splits were drawn is still known.

    Raises:
        ConfigError: there is no report model.
        CheckpointError: the record is damaged.
    """
    folder = model_folder(directory, REPORT_FILE)
    if (record := Seen.load(folder / SEEN_FILE)) is not None:
        return record
    try:
        settings = read_json(folder / REPORT_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {directory} is no folder that report train wrote ({reason_of(error)})") from error
    return Seen.of_origin(settings["splits"], key_of(folder / SEEN_FILE)) if settings.get("splits") else None


def record_of_predictions(path: str | Path) -> Seen | None:
    """What the model behind predictions has seen: ``report generate`` writes it beside them.

    Of an evaluation's scores it is how the splits of the data were drawn, and nobody.
    """
    path = Path(path)
    if (record := Seen.load(path.parent / SEEN_FILE)) is not None or path.name != SCORES:
        return record
    try:
        told = read_json(path.with_name(METRICS), RUN_JSON)
    except (OSError, ValueError):
        return None
    origin = told.get("splits") if isinstance(told, dict) else None
    numbers = isinstance(origin, dict) and all(isinstance(origin.get(key), int | float) for key in ORIGIN_KEYS.values())
    return Seen.of_origin(origin) if numbers else None


def drawn_as(table: StudyTable, record: Seen | None, *told: float | None) -> dict | None:
    """How splits were drawn, for ``metrics.json``: rule, seed and shares; ``None`` where the table gives them, or
    neither the model nor the user told of them.

    Args:
        table: of :func:`read_own_split`, with ``record``.
        told: shares and seed by the user.
    """
    known = (record is not None and record.origin) or any(value is not None for value in told)
    return without_digests(table.origin) if table.drawn and known else None


def read_own_split(
    data: str | Path,
    record: Seen | None,
    *,
    val_share: float | None = None,
    test_share: float | None = None,
    split_seed: int | None = None,
    **reading,
) -> StudyTable:
    """:func:`.read_studies` with the splits that a model has.

    Args:
        data: the studies.
        record: of the model; ``None`` where it has none.
        val_share, test_share, split_seed: of splits that are drawn; left out, as the model's were.
        **reading: as for :func:`.read_studies`.

    Raises:
        ConfigError: splits are asked for that contradict the model's.
    """
    told = {"val_share": val_share, "test_share": test_share, "split_seed": split_seed}
    told = {name: value for name, value in told.items() if value is not None}
    if record is None or not record.origin:
        table = read_studies(data, **told, **reading)
        if table.drawn:
            table.notes.append(
                "the model behind this does not say how its own split was drawn (one of an earlier release does not): "
                "the split drawn here may hold studies that it was trained on"
            )
        return table
    own = {name: record.origin[key] for name, key in ORIGIN_KEYS.items()}
    table = read_studies(data, record=record, **own, **reading)
    if not record.knows_patients:
        table.notes.append(
            f"the {KEY_FILE} of the model's run is not beside it: whether the model was trained on these patients "
            "cannot be told"
        )
    other = [name for name, value in told.items() if value != own[name]]
    if not other or not table.drawn:
        return table
    if table.known:
        raise ConfigError(
            f"{other[0]}: got {told[other[0]]}, but the model was trained on patients of {data} with "
            f"{other[0]} {own[other[0]]}: studies that it was trained on would be tested; leave it out"
        )
    return read_studies(data, record=record, **{**own, **told}, **reading)


def read_of_run(config: ReportConfig) -> tuple[StudyTable, bool]:
    """The studies of a training, split as when it was begun; and whether it was begun before with a record of that.

    Raises:
        ConfigError: see :func:`.read_studies`.
        CheckpointError: the record is damaged.
    """
    settings = {name: getattr(config, name) for name in STUDY_SETTINGS}
    if not config.goes_on:
        return read_studies(config.data, **settings), False
    out = Path(config.out)
    begun = Seen.load(out / DRAWN_FILE, needs_key=True)
    if begun is None and _has_no_split_seed(out / "config.json"):
        settings["split_seed"] = config.seed  # by which earlier releases drew the splits, too
    return read_studies(config.data, record=begun, **settings), begun is not None


def _has_no_split_seed(path: Path) -> bool:
    try:
        return "split_seed" not in read_json(path, RUN_JSON)
    except (OSError, ValueError):
        return False  # no run was begun, or what is wrong with it is said when it goes on


def overlap_with(
    record: Seen | None,
    studies: Sequence[Study],
    split: str,
    source: str,
    allowed: bool = False,
    known: Mapping[str, Collection[str]] | None = None,
) -> Overlap | None:
    """How many of some studies a model was trained or validated on; ``None`` where that is not known.

    Args:
        record: of the model.
        studies: what is tested on.
        split: of the data.
        source: name of the data, for errors.
        allowed: test on what was trained on, too.
        known: ids of studies, and paths of images, that it has seen, by :func:`.known_images.read_known_images`; left
            out, patients alone are compared.

    Raises:
        ConfigError: it is most of what is to be tested on, and not ``allowed``.
    """
    asks = record is not None and record.knows_patients and len(record.keys["patients"]) > 0
    if record is None or not (asks or known):
        return None
    patients = identities([study.patient or study.id for study in studies])
    by = {"patients": record.taught("patients", patients)} if asks else {}
    for way, ids in (known or {}).items():
        names = [{study.part_of or study.id, *map(os.path.abspath, study.images)} for study in studies]
        by[way] = np.array([not own.isdisjoint(ids) for own in names], bool)
    overlap = Overlap(len(studies), by, "studies")
    overlap.refuse_most(split, [study.named for study in studies], allowed, "scores", source)
    return overlap
