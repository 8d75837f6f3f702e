"""Saved classifiers on new files, and on those of a table with labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data.listing import list_images, manifest_patients
from ..data.quarantine import Quarantined, write_quarantine
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps, worker_count
from ..errors import ArgumentTypeError, ConfigError, TrainingError
from ..features.embedding import Embedder
from ..files import claim_names
from ..images.perceptual_hash import no_thumbnails
from ..terminal import visible
from .calibration import as_probabilities
from .classifier import Classifier, load_classifier
from .heads import LabelQueryHead, embed_names
from .labels import read_manifest, require_files
from .operating_points import read_prevalence
from .predictions import RESULT_FILES, Predictions, called_present, report_predictions
from .tested import overlap_of, part_to_test, refuse_mostly_seen, what_cannot_be_told

EVALUATION_FILES = (*RESULT_FILES, "unreadable.csv")


def predict(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    model: Classifier | str | os.PathLike,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Predictions:
    """Probabilities of a saved classifier for files, folders or CSV manifests.

    Args:
        paths: what to look at.
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
    model = load_classifier(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(model, Classifier):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, accepted are a Classifier (load_classifier; of transformers' model: "
            "to_classifier) and the folder of one"
        )
    names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = list(dict.fromkeys(str(file) for name in names for file in list_images(name, argument="paths")))
    patients: dict[str, str] = {}
    for path in map(Path, names):  # before the first image: what is refused here costs no prediction
        if path.suffix.lower() == ".csv" and path.is_file():
            patients |= manifest_patients(path, "paths")
    found = predict_list(
        files, model, batch_size, workers, device, progress, classes, precision, compile, timeout, max_memory
    )
    known = [patients.get(file, "") for file in found.images]
    found.patients = known if any(known) else []
    found.overlap = overlap_of(model, known, found.hashes, found.thumbnails)
    if progress and model.seen is not None and model.seen.limits:
        print(f"the model: {model.seen.limits}")
    if progress and found.overlap and (told := found.overlap.describe(found.images)):
        print(f"warning: {visible(told)}")
    return found


def predict_list(
    files: Sequence[str],
    model: Classifier,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
    classes: Sequence[str] | None = None,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Predictions:
    """:func:`predict` for files as they are listed; missing ones count as unreadable."""
    check_caps(timeout, max_memory)
    questions = ask(model, classes)
    if progress and (strange := untrained(model, questions.names)):
        print(f"not trained: {', '.join(strange)} (asked by name; threshold 0.5)")
    scorer = _Scorer(model, device, questions, precision, compile)
    jobs = [(file, file) for file in files]
    images: list[str] = []
    hashes: list[str] = []
    bad: list[Quarantined] = []
    thumbnails = [no_thumbnails()]
    trained, new = model.config.classes, 0 if questions.new_names is None else len(questions.new_names)
    rows = [np.zeros((0, len(trained) + new), np.float32)]
    reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory}
    for part in scorer.batches(jobs, batch_size=batch_size, progress=progress, **reading):
        bad += part.quarantined
        if len(part):
            images += part.sources
            hashes += part.provenance_ids
            thumbnails.append(part.thumbnails)
            rows.append(part.features)
    answers = as_probabilities(np.concatenate(rows), model.config.multiclass)
    asked = answers[:, questions.columns]
    if model.config.multiclass:  # the most probable of all classes, whichever were asked about
        winners = called_present(answers, trained, [], multiclass=True)
        present = [[name for name in row if name in questions.names] for row in winners]
    else:
        present = called_present(asked, questions.names, questions.thresholds, multiclass=False)
    return Predictions(
        images, asked, questions.names, questions.thresholds, bad, present, scorer.precision, hashes,
        thumbnails=np.concatenate(thumbnails),
    )  # fmt: skip


def untrained(model: Classifier, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that a classifier was not trained on, each with the trained one that may be meant."""
    known = model.config.classes
    return [name + _meant(name, known) for name in names if name not in known]


def _meant(name: str, known: Sequence[str]) -> str:
    plain = {other.lower().replace("_", " "): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("_", " "), plain, n=1, cutoff=0.8)
    return f" [trained is {plain[close[0]]!r}: is that meant?]" if close else ""


def refuse_unreadable(bad: int, total: int, limit: float, listed: Path) -> None:
    """Raise a TrainingError if more than a share ``limit`` of the images cannot be read."""
    if bad == total:
        raise TrainingError(f"none of the {total} images could be read; they are listed in {listed}")
    if bad > limit * total:
        raise TrainingError(
            f"{bad} of {total} images cannot be read, more than max_bad_share={limit:g} allows; they are listed in "
            f"{listed}"
        )


@dataclass
class Questions:
    """Names asked about, of which a classifier was trained on some.

    Attributes:
        names: ``C'``.
        thresholds: of each; 0.5 of a name that was never trained.
        columns: where the answers stand among those for the trained classes and, behind them, the new names.
        new_names: text embeddings of the new names ``[N, T]``, or ``None`` if there are none.
    """

    names: list[str]
    thresholds: list[float]
    columns: list[int]
    new_names: torch.Tensor | None = None


def ask(model: Classifier, classes: Sequence[str] | None) -> Questions:
    """What a classifier has to work out to answer for ``classes`` (left out: its own).

    Raises:
        ConfigError: it cannot answer for one of them.
        MissingDependencyError: a new name, and no sentence-transformers to embed it.
    """
    config = model.config
    names = list(classes) if classes else list(config.classes)
    if len(set(names)) != len(names):
        raise ConfigError(f"classes: got {', '.join(names)}, accepted are different names")
    new = [name for name in names if name not in config.classes]
    if new:
        why = ""
        if not isinstance(model.head, LabelQueryHead):
            why = f"its head {config.head!r} knows its own classes alone"
        elif not config.text_model:
            why = "its label queries are learned vectors, without the names' text"
        elif config.multiclass:
            why = "its classes exclude each other"
        if why:
            raise ConfigError(
                f"classes: {new[0]!r} is none of the classifier's ({', '.join(config.classes)}), and it cannot be "
                f"asked about others: {why}{_meant(new[0], config.classes)}"
            )
    order = [*config.classes, *new]
    thresholds = [*config.thresholds, *[0.5] * len(new)]
    columns = [order.index(name) for name in names]
    embedded = embed_names(new, config.text_model) if new else None
    return Questions(names, [thresholds[column] for column in columns], columns, embedded)


def evaluate_files(
    model: str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
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
    prevalence: str | float | None = None,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> dict:
    """Metrics of a saved classifier on one split of a manifest, or on ``"all"`` of it (an external test set).

    Uncertain labels count for nothing, whatever training made of them. Thresholds are those chosen on validation when
    the classifier was made; ``prevalence`` is as for :func:`.evaluate_predictions`, and ``classes``, ``precision``,
    ``compile``, ``timeout`` and ``max_memory`` as for :func:`predict`, so that names it has never seen can be put to
    the test. Writes what :func:`report_predictions` writes, and ``unreadable.csv``; the metrics also count those files
    as ``unreadable``, and say in which ``precision`` the model computed. ``split`` takes the words that a manifest may
    have for its splits; if training drew them, from this manifest, they are as they were there.

    Patients, stored pixels and the look of the images are compared with those that the classifier was trained and
    validated on, whatever manifest they come in; how many there are is printed and is in ``metrics.json`` under
    ``seen`` (``None`` for a classifier without a record of them).

    Raises:
        ConfigError: the manifest lacks a class of the classifier, lists an image twice or a patient in two splits, or
            has no image in the split; more than half of the images of ``"test"`` or ``"all"`` are of training or
            validation, and ``allow_training_patients`` is not given; or ``out`` holds a training run, or files of these
            names that no evaluation made.
        TrainingError: none of the images can be read, or more than a share ``max_bad_share`` cannot.
    """
    out = Path(out)
    if (out / "model").exists() or (out / "log.jsonl").exists():
        raise ConfigError(f"out: {out} holds a training run, whose metrics stay as they are; choose another folder")
    claim_names(out, "evaluate", EVALUATION_FILES)
    classifier = load_classifier(model)
    read_prevalence(prevalence, classes or classifier.config.classes)  # refused now, not after the last image
    table = read_manifest(
        data, images=images, preset=preset, classes=classes or classifier.config.classes,
        multiclass=classifier.config.multiclass,
    )  # fmt: skip
    table = part_to_test(table, split, str(data), classifier, preset, allow_training_patients)
    require_files(table, str(data))
    refuse_mostly_seen(overlap_of(classifier, table.patients), table, split, allow_training_patients)
    if progress:
        print("\n".join(map(visible, table.notes)), end="\n" if table.notes else "")
        if unknown := what_cannot_be_told(classifier):
            print(f"{visible(model)}: {unknown}")
    asked = classes, precision, compile, timeout, max_memory
    found = predict_list(table.paths, classifier, batch_size, workers, device, progress, *asked)
    chosen_in = classifier.config.precision
    if progress and chosen_in not in ("", found.precision):
        print(
            f"note: computed in {found.precision}; the model's thresholds and the metrics of its run are of "
            f"{chosen_in}, in which probabilities differ a little"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_quarantine(out / "unreadable.csv", found.quarantined)
    bad = len(found.quarantined)
    refuse_unreadable(bad, len(table), max_bad_share, out / "unreadable.csv")
    extra = {"model": str(model), "split": split, "unreadable": bad, "untrained": untrained(classifier, found.classes)}
    extra["precision"] = found.precision
    place = {path: row for row, path in enumerate(found.images)}
    table = table.rows([row for row, path in enumerate(table.paths) if path in place])
    order = [place[path] for path in table.paths]
    overlap = overlap_of(classifier, table.patients, [found.hashes[row] for row in order], found.thumbnails[order])
    refuse_mostly_seen(overlap, table, split, allow_training_patients)
    extra["seen"] = overlap and overlap.as_dict()
    if progress and overlap and (told := overlap.describe(table.paths)):
        print(f"warning: {visible(told)}; metrics on these flatter")
    scores = found.probabilities[order]
    report = report_predictions(
        out, table, scores, found.thresholds, bootstraps=bootstraps, seed=bootstrap_seed, extra=extra,
        model=None if classes else classifier, prevalence=prevalence, workers=workers, timeout=timeout,
        max_memory=max_memory,
    )  # fmt: skip
    return {**report, "unreadable": bad, "seen": extra["seen"]}


class _Logits(nn.Module):
    """A classifier's answers, also for names that it was not trained on."""

    def __init__(self, model: Classifier, new_names: torch.Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("new_names", new_names)

    def forward(self, images, plan=None, scale=None, shift=None) -> torch.Tensor:
        return self.model(images, plan, scale, shift, self.new_names)


class _Scorer(Embedder):
    """Reads and batches as :func:`hdxray_fast.embed` does, with logits in the place of features."""

    def __init__(
        self, model: Classifier, device: str | None, questions: Questions, precision: str, compile: str
    ) -> None:
        self._logits = _Logits(model, questions.new_names)
        super().__init__(model.encoder, pool="mean", device=device, precision=precision, compile=compile)
        self.contour = model.config.contour

    def _model(self) -> nn.Module:
        return self._logits
