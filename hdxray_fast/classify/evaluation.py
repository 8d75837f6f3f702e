"""Saved classifiers on new files, and on those of a table with labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.film_views import describe_left_out, describe_not_frontal
from ..data.inputs import inputs_of, prepared_among, require_prepared_for
from ..data.quarantine import read_quarantine, write_quarantine
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..data.result_files import file_named_by, refuse_other_table
from ..errors import ConfigError, TrainingError
from ..features.parts_folder import parts_of
from ..features.shares import Share
from ..files import claim_names, make_folder, written_somewhere
from ..models.layers import check_count
from ..progress import note
from ..ranks import acquainted
from ..terminal import visible
from .classifier import Classifier, load_classifier
from .data import without_filtered
from .earlier_results import identity_of, refuse_other_evaluation, refuse_other_predictions
from .film_maps import claim_maps, write_maps
from .label_table import LabelTable
from .labels import read_manifest, require_files
from .operating_points import read_prevalence
from .predictions import (
    FRONTAL_ALONE,
    LEFT_OUT,
    RESULT_FILES,
    Predictions,
    check_view,
    describe_unreadable,
    frontal_only,
    report_predictions,
    write_left_out,
    write_predictions,
)
from .renaming import NoSuchClass
from .scoring import Scorer, predict_kept, predict_list, untrained, what_is_asked
from .tested import overlap_of, part_to_test, refuse_mostly_seen, refuse_unreadable, what_cannot_be_told

EVALUATION_FILES = (*RESULT_FILES, "predictions.csv.parts", "unreadable.csv", LEFT_OUT)


def predict(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    model: Classifier | str | os.PathLike,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    maps: str | os.PathLike | None = None,
    force: bool = False,
    view: str = "any",
) -> Predictions:
    """Probabilities of a saved classifier for files, folders, CSV manifests or prepared data sets.

    Args:
        paths: what to look at; images of a prepared data set are called as the files that they were prepared from.
        image_column: the column of the manifests' files, where it goes by none of the usual names.
        maps: folder for a picture of each image with where the model looked, of :func:`.write_maps`.
        force: replace what another call drew there, of other files or another model.
        view: ``"frontal"`` leaves out what header or pixels show to be no frontal chest, which is then in ``left_out``.
        model: a classifier, or the folder of one.
        batch_size, workers, device, progress, precision, compile, timeout, max_memory: as for
            :func:`hdxray_fast.embed`.
        classes: names to ask about; left out, those it was trained on. A ``label-query`` head with text embeddings
            takes any name; the threshold of one that was never trained is 0.5.

    Returns:
        A row per image that could be read, in order: ``images``, ``probabilities [N, C]``, ``present``; the others are
        in ``quarantined``. ``overlap`` tells which of them the classifier was trained or validated on, by their pixels,
        by their look and, where a manifest is given, by their patients; with ``progress`` that is also printed.

    Raises:
        ConfigError: a path does not exist or names no image, a name that the classifier cannot answer for, or a cap
            that is not above 0.
        CheckpointError: the folder holds no classifier, or a damaged one.
    """
    check_view(view)
    model, inputs, patients = what_is_asked(paths, model, image_column, timeout, max_memory)
    scorer = Scorer(model, classes, device, precision, compile)
    names = [one.name for one in inputs]
    places = None if maps is None else claim_maps(maps, names, model, scorer.questions.names, force)
    reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory, "progress": progress}
    found = predict_list(inputs, scorer, batch_size=batch_size, **reading)
    found = frontal_only(found) if view == "frontal" else found
    _tell_known(found, model, patients, progress)
    if places is not None:
        write_maps(places, model, found, prepared_among(inputs), **reading)
    return found


@dataclass(frozen=True)
class PredictedFiles:
    """What :func:`predict_files` did.

    Attributes:
        out: the file.
        found: the predictions; ``None`` where another process has them.
        waiting: shares, counted from 1, that have not ended.
    """

    out: Path
    found: Predictions | None
    waiting: list[int] = field(default_factory=list)


@acquainted()
def predict_files(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    model: Classifier | str | os.PathLike,
    out: str | os.PathLike,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    maps: str | os.PathLike | None = None,
    force: bool = False,
    view: str = "any",
    part: str = "1/1",
) -> PredictedFiles:
    """:func:`predict` to a file, with the answers in ``<out>.parts/`` while they are made: a call that was ended at
    any moment, as by ``kill -9``, goes on where it was, if model, names and files are as they were.

    Args:
        image_column: as for :func:`predict`.
        out: the file: a CSV, Excel workbook, JSON (a list of rows) or Parquet, as its ending says; or a folder for
            ``predictions.csv``. What could not be read is listed beside it, in ``<out>.unreadable.csv``, and what
            ``view`` left out in ``<out>.left_out.csv``. A table that is there is replaced if it is of these classes, of
            the same model, and of none but these files.
        force: replace any table of predictions, and pictures of another call.
        paths, model, batch_size, workers, device, progress, classes, precision, compile, timeout, max_memory, maps,
            view: as for :func:`predict`.
        part: as for :func:`hdxray_fast.features.embedding_files.embed_files`.

    Raises:
        ConfigError, CheckpointError: as for :func:`predict`; or ``out`` has another ending, or is a file that is not
            to be replaced, or ``<out>.parts/`` holds answers of another model, or for other names, or in
            another precision.
        TrainingError: the file cannot be written; or another rank is gone.
        ArgumentError, ArgumentTypeError: ``batch_size`` is no int of at least 1.
    """
    share, place = Share.of_part(part), file_named_by(out, "predictions.csv")
    refuse_other_table(place, ("image", "present"), "predictions")  # before the model is read
    check_view(view)
    check_count("batch_size", batch_size)
    lost, aside = place.with_suffix(".unreadable.csv"), place.with_suffix(f".{LEFT_OUT}")
    for listed in (lost, aside):
        read_quarantine(listed)
    make_folder(place.parent)  # now, and not after the last image
    model, inputs, patients = what_is_asked(paths, model, image_column, timeout, max_memory, share)
    scorer = Scorer(model, classes, share.device(device), precision, compile)
    names = [one.name for one in inputs]
    refuse_other_predictions(place, names, scorer.questions.names, scorer.model_print, force)
    drawn = maps is not None and share.is_main
    places = claim_maps(maps, names, model, scorer.questions.names, force) if drawn else {}
    reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory, "progress": progress}
    done: list[Predictions] = []

    def write(found: Predictions) -> None:
        found = frontal_only(found) if view == "frontal" else found
        _tell_known(found, model, patients, progress)
        written_somewhere(place, lambda path: write_predictions(path, found), "the predictions")
        written_somewhere(lost, lambda path: write_quarantine(path, found.quarantined), "the list of the unreadable")
        written_somewhere(aside, lambda path: write_left_out(path, found), "the list of what is left out")
        if places:
            write_maps(places, model, found, prepared_among(inputs), **{**reading, "workers": share.workers(workers)})
        done.append(found)

    waiting = predict_kept(inputs, scorer, parts_of(place), write, share=share, batch_size=batch_size, **reading)
    return PredictedFiles(place, done[0] if done else None, waiting or [])


def _tell_known(found: Predictions, model: Classifier, patients: dict[str, str], progress: bool) -> None:
    """Add patients, and what of the images the model knows, which ``progress`` also prints."""
    known = [patients.get(file, "") for file in found.images]
    found.patients = known if any(known) else []
    found.overlap = overlap_of(model, known, found.hashes, found.thumbnails)
    if progress and model.seen is not None and model.seen.limits:
        note(f"the model: {model.seen.limits}")
    if progress and found.overlap and (told := found.overlap.describe(found.images)):
        note(f"warning: {visible(told)}")


@acquainted()
def evaluate_files(
    model: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    prepared: str | os.PathLike | None = None,
    preset: str | None = None,
    split: str = "test",
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    bootstraps: int = 1000,
    bootstrap_seed: int = 0,
    progress: bool = True,
    classes: Sequence[str] | None = None,
    max_bad_share: float = 0.05,
    precision: str = "auto",
    compile: str = "auto",
    allow_training_patients: bool = False,
    rename: str | Mapping[str, str] | None = None,
    prevalence: str | float | None = None,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    force: bool = False,
    view: str = "any",
    part: str = "1/1",
) -> dict:
    """Metrics of a saved classifier on one split of a manifest, or on ``"all"`` of it (an external test set).

    ``images``, ``image_column``, ``patient_column`` and ``preset`` are as for :func:`hdxray_fast.read_labels`;
    ``rename`` (``"effusions=effusion"``, or a dict) reads classes under the names that the classifier has for them.
    ``prepared`` names a prepared data set that holds the images, which are then not read from their files; those that
    it lacks count as unreadable. Uncertain labels count for nothing, whatever training made of them. Thresholds are
    those chosen on validation when the classifier was made; ``prevalence`` is as for :func:`.evaluate_predictions`, and
    ``classes``, ``precision``, ``compile``, ``timeout`` and ``max_memory`` as for :func:`predict`, so that names it has
    never seen can be put to the test. Writes what :func:`report_predictions` writes, and ``unreadable.csv`` where some
    cannot be read; the metrics also count those files as ``unreadable``, and say in which ``precision`` the model
    computed. ``split`` takes the words that a manifest may have for its splits; if training drew them, from this
    manifest, they are as they were there. ``view="frontal"`` leaves out films that are known to show no frontal chest,
    and lists them in ``left_out.csv``. ``force`` replaces an evaluation of another model, split or manifest in ``out``.

    Patients, stored pixels and the look of the images are compared with those that the classifier was trained and
    validated on, whatever manifest they come in; how many there are is printed and is in ``metrics.json`` under
    ``seen`` (``None`` for a classifier without a record of them).

    Answers are kept in ``predictions.csv.parts/`` until the metrics are written, as by :func:`predict_files`; ``part``
    is as there. Where other shares have not ended, or another process joins, it returns ``{"waiting": their numbers}``.

    Raises:
        ConfigError: the manifest lacks a class of the classifier, lists an image twice or a patient in two splits, or
            has no image in the split; more than half of the images of ``"test"`` or ``"all"`` are of training or
            validation, and ``allow_training_patients`` is not given; or ``out`` holds a training run, another
            evaluation (and not ``force``), or files of these names that no evaluation made.
        ArgumentError, ArgumentTypeError: ``batch_size`` is no int of at least 1.
        TrainingError: none of the images can be read or, with ``view``, is left, or more than a share ``max_bad_share``
            cannot be read.
    """
    check_count("batch_size", batch_size)
    check_caps(timeout, max_memory)
    check_view(view)
    share, out = Share.of_part(part), Path(out)
    progress = progress and share.is_main
    if (out / "model").exists() or (out / "log.jsonl").exists():
        raise ConfigError(f"out: {out} holds a training run, whose metrics stay as they are; choose another folder")
    claim_names(out, "evaluate", EVALUATION_FILES)
    classifier = load_classifier(model)
    # refused now, not after the last image
    read_prevalence(prevalence, classes or classifier.config.classes, classifier.config.multiclass)

    def read() -> tuple[LabelTable, Sequence[str]]:
        asked = classes or classifier.config.classes
        try:
            table = read_manifest(
                data, images=images, image_column=image_column, patient_column=patient_column, preset=preset,
                classes=asked, multiclass=classifier.config.multiclass, rename=rename,
            )  # fmt: skip
        except NoSuchClass as error:
            raise error.with_way_out(asked) from error
        listed = table.paths
        table = part_to_test(table, split, str(data), classifier, preset, allow_training_patients)
        if prepared is None:
            require_files(table, str(data), images)
        table = without_filtered(table, prepared, listed)
        refuse_mostly_seen(overlap_of(classifier, table.patients), table, split, allow_training_patients)
        return table, listed

    table, listed = share.from_main(read)
    inputs = inputs_of(table.paths, prepared, str(data), listed)
    stored = prepared_among(inputs)
    require_prepared_for(stored.values(), classifier.encoder.img_size[0], classifier.config.contour)
    notes = [*table.notes]
    if unknown := what_cannot_be_told(classifier):
        notes.append(f"{model}: {unknown}")
    if progress:
        for told in notes:
            note(visible(told))
    scorer = Scorer(classifier, classes, share.device(device), precision, compile)
    own = identity_of(scorer.model_print, data, split)
    refuse_other_evaluation(out, own, force)
    report: dict = {}

    def measure(found: Predictions) -> None:
        report.update(
            _measured(
                found, table, classifier, out, split=split, progress=progress, max_bad_share=max_bad_share,
                allow_training_patients=allow_training_patients, view=view, sheet=not classes, notes=notes,
                extra={"model": str(model), **own},
                reporting={
                    "bootstraps": bootstraps, "seed": bootstrap_seed, "prevalence": prevalence,
                    "images": stored, "workers": share.workers(workers), "timeout": timeout, "max_memory": max_memory,
                },
            )
        )  # fmt: skip

    waiting = predict_kept(
        inputs, scorer, parts_of(out / "predictions.csv"), measure, share=share, batch_size=batch_size,
        workers=workers, progress=progress, timeout=timeout, max_memory=max_memory,
    )  # fmt: skip
    return report if waiting is None else {"waiting": waiting}


def _measured(
    found: Predictions,
    table: LabelTable,
    classifier: Classifier,
    out: Path,
    *,
    split: str,
    progress: bool,
    max_bad_share: float,
    allow_training_patients: bool,
    view: str,
    extra: dict,
    sheet: bool,
    notes: list[str],
    reporting: dict,
) -> dict:
    """Metrics of what was found for the images of ``table``, with everything that is written about them."""
    new, chosen_in = [], classifier.config.precision
    if chosen_in not in ("", found.precision):
        new.append(
            f"computed in {found.precision}; the model's thresholds and the metrics of its run are of {chosen_in}, in "
            "which probabilities differ a little"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_quarantine(out / "unreadable.csv", found.quarantined)
    bad = len(found.quarantined)
    refuse_unreadable(bad, len(table), max_bad_share, out / "unreadable.csv")
    read, aside = len(found.images), found.not_frontal  # before any are left out
    if view == "frontal":
        found = frontal_only(found)
        if not found.images:
            raise TrainingError(f"view: none of the {read} images shows a frontal chest, by header or pixels")
    write_left_out(out / LEFT_OUT, found)
    extra |= {"unreadable": bad, "untrained": untrained(classifier, found.classes)}
    extra["left_out_by_view"] = len(found.left_out)
    extra["precision"] = found.precision
    place = {path: row for row, path in enumerate(found.images)}
    table = table.rows([row for row, path in enumerate(table.paths) if path in place])
    order = [place[path] for path in table.paths]
    overlap = overlap_of(classifier, table.patients, [found.hashes[row] for row in order], found.thumbnails[order])
    refuse_mostly_seen(overlap, table, split, allow_training_patients)
    extra["seen"] = overlap and overlap.as_dict()
    if overlap and (told := overlap.describe(table.paths)):
        new.append(f"warning: {told}; metrics on these flatter")
    if found.left_out:
        new.append(describe_left_out(aside, read, f"listed in {LEFT_OUT}"))
    elif told := describe_not_frontal(aside, read, FRONTAL_ALONE):
        new.append(f"warning: {told}")
    if extra["untrained"]:
        new.append(f"warning: never trained on: {', '.join(extra['untrained'])}")
    if bad:
        new.append(describe_unreadable(bad, "unreadable.csv"))
    for told in new if progress else ():
        note(visible(told))
    report = report_predictions(
        out, table, found.probabilities[order], found.thresholds, extra=extra, model=classifier if sheet else None,
        notes=[*notes, *new], views=[found.views[row] for row in order], **reporting,
    )  # fmt: skip
    return {**report, "unreadable": bad, "seen": extra["seen"]}
