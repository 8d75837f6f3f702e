"""A classifier's answers for many files, whatever names it is asked about; kept on the disk while they are made."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data.inputs import Input, list_inputs, prepared_among, require_prepared_for
from ..data.listing import as_paths, manifest_patients
from ..data.quarantine import Quarantined
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps, worker_count
from ..data.table_text import TABLE_FILES
from ..errors import ArgumentTypeError, ConfigError
from ..features.embedding import Embedder, Embeddings
from ..features.filling import fill_and_join
from ..features.row_parts import RowParts
from ..features.shares import Share
from ..images.perceptual_hash import SIDE
from ..progress import note
from ..weights.fingerprint import settings_of, tensors_print, weights_print
from .calibration import as_probabilities
from .classifier import Classifier, load_classifier
from .heads import LabelQueryHead, embed_names
from .predictions import Predictions, called_present

NO_ANSWER = ("splits", "thresholds", "temperature")  # settings that logits do not hang on, or that are in the weights
ALONE = Share()
MODEL_DIGITS = 12  # of the weights' fingerprint, in tables of predictions


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


def untrained(model: Classifier, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that a classifier was not trained on, each with the trained one that may be meant."""
    known = model.config.classes
    return [name + _meant(name, known) for name in names if name not in known]


def _meant(name: str, known: Sequence[str]) -> str:
    plain = {other.lower().replace("_", " "): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("_", " "), plain, n=1, cutoff=0.8)
    return f" [trained is {plain[close[0]]!r}: is that meant?]" if close else ""


class _Logits(nn.Module):
    """A classifier's answers, also for names that it was not trained on."""

    def __init__(self, model: Classifier, new_names: torch.Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("new_names", new_names)

    def forward(self, images, plan=None, scale=None, shift=None) -> torch.Tensor:
        return self.model(images, plan, scale, shift, self.new_names)


def model_print(model: Classifier) -> str:
    """A few digits that tell a classifier's weights from others."""
    return weights_print(model)[:MODEL_DIGITS]


class Scorer(Embedder):
    """Reads and batches as :func:`hdxray_fast.embed` does, with logits in the place of features.

    Args:
        model: the classifier.
        classes: names to ask about; left out, its own.
        device, precision, compile: as for :func:`hdxray_fast.embed`.

    Raises:
        ConfigError, MissingDependencyError: as for :func:`ask`.
    """

    label = "predict"

    def __init__(
        self,
        model: Classifier,
        classes: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        precision: str = "auto",
        compile: str = "auto",
    ) -> None:
        self.classifier, self.questions = model, ask(model, classes)
        self._weights = weights_print(model)
        self._logits = _Logits(model, self.questions.new_names)
        super().__init__(model.encoder, pool="mean", device=device, precision=precision, compile=compile)
        self.contour = model.config.contour

    @property
    def width(self) -> int:
        new = self.questions.new_names
        return len(self.classifier.config.classes) + (0 if new is None else len(new))

    def _model(self) -> nn.Module:
        return self._logits

    @property
    def model_print(self) -> str:
        """A few digits that tell the classifier's weights from others."""
        return self._weights[:MODEL_DIGITS]

    @property
    def settings(self) -> dict:
        """What decides the logits, JSON-able."""
        config, new = vars(self.classifier.config), self.questions.new_names
        return {
            "encoder": settings_of(self.encoder.config),
            "classifier": {name: value for name, value in config.items() if name not in NO_ANSWER},
            "weights": self._weights,
            "keep": self.keep,
            "names": "" if new is None else tensors_print([("new", new)]),
            "precision": self.precision,
        }

    def predictions(self, rows: Embeddings) -> Predictions:
        """What the logits ``rows.features`` ``[N, width]`` say of the names that were asked about."""
        config, questions = self.classifier.config, self.questions
        answers = as_probabilities(rows.features, config.multiclass)
        asked = answers[:, questions.columns]
        if config.multiclass:  # the most probable of all classes, whichever were asked about
            winners = called_present(answers, config.classes, [], multiclass=True)
            present = [[name for name in row if name in questions.names] for row in winners]
        else:
            present = called_present(asked, questions.names, questions.thresholds, multiclass=False)
        return Predictions(
            rows.sources, asked, questions.names, questions.thresholds, rows.quarantined, present, self.precision,
            rows.provenance_ids, thumbnails=rows.thumbnails, multiclass=config.multiclass,
            flagged=[source for source, flag in zip(rows.sources, rows.flagged, strict=True) if flag],
            views=list(rows.views), model=self.model_print,
        )  # fmt: skip


def what_is_asked(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    model: Classifier | str | os.PathLike,
    image_column: str | None,
    timeout: float,
    max_memory: int,
    share: Share = ALONE,
) -> tuple[Classifier, list[Input], dict[str, str]]:
    """The model, what it is to look at, and the patients of those that manifests tell of."""
    check_caps(timeout, max_memory)
    model = load_classifier(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(model, Classifier):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, accepted are a Classifier (load_classifier; of transformers' model: "
            "to_classifier) and the folder of one"
        )
    names = as_paths(paths, instead="load_classifier(...)(images) takes tensors")
    inputs, patients = share.from_main(lambda: _listed(names, image_column))
    require_prepared_for(prepared_among(inputs).values(), model.encoder.img_size[0], model.config.contour)
    return model, inputs, patients


def _listed(names: Sequence[str | os.PathLike], image_column: str | None) -> tuple[list[Input], dict[str, str]]:
    """What the model is to look at, and the patients of those that manifests tell of."""
    inputs = list_inputs(names, image_column=image_column)
    patients: dict[str, str] = {}
    for path in map(Path, names):  # before the first image: what is refused here costs no prediction
        if path.suffix.lower() in TABLE_FILES and path.is_file():
            patients |= manifest_patients(path, "paths", image_column)
    return inputs, patients


def predict_list(
    inputs: Sequence[Input],
    scorer: Scorer,
    *,
    batch_size: int = 4,
    workers: int = 0,
    progress: bool = False,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> Predictions:
    """:func:`hdxray_fast.predict` for inputs as they are listed; missing files count as unreadable."""
    _tell_untrained(scorer, progress)
    reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory}
    rows = scorer.batches(inputs, batch_size=batch_size, progress=progress, **reading)
    return scorer.predictions(Embeddings.join(list(rows), scorer.width))


def predict_kept(
    inputs: Sequence[Input],
    scorer: Scorer,
    folder: Path,
    work: Callable[[Predictions], None],
    *,
    share: Share,
    batch_size: int = 4,
    workers: int = 0,
    progress: bool = False,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
) -> list[int] | None:
    """:func:`predict_list` with answers on the disk while they are made: a call that was ended at any moment goes on.

    Args:
        inputs: of all shares.
        scorer: the model, and what it is asked.
        folder: for the answers; it goes when ``work`` is done with them.
        work: is given the predictions of all inputs, once all shares are there, in the process that joins them.
        share: of this process.
        batch_size, workers, progress, timeout, max_memory: as for :func:`hdxray_fast.embed`.

    Returns:
        ``None`` if ``work`` was done here, otherwise the shares, counted from 1, that have not ended (none: another
        process joins them).

    Raises:
        ConfigError: ``folder`` holds answers of another model, or for other names.
    """
    _tell_untrained(scorer, progress and share.is_main)
    reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
    choose = "finish that run, remove the folder, or choose another out"
    files = [one.name for one in inputs]
    with RowParts(folder, scorer.settings, scorer.width, thumbnails=True, share=share, choose=choose) as parts:
        _, waiting = fill_and_join(
            parts, scorer, inputs, lambda: work(scorer.predictions(_all_rows(parts, files))), batch_size=batch_size,
            progress=progress, **reading,
        )  # fmt: skip
        return waiting


def _all_rows(parts: RowParts, files: Sequence[str]) -> Embeddings:
    """Rows of ``files`` in their order, without what no prediction needs."""
    numbers = parts.numbers(files)
    sources = [file for file in files if parts.has_row(file)]
    features = np.empty((len(numbers), parts.width), np.float32)
    thumbnails = np.empty((len(numbers), SIDE, SIDE), np.uint8)
    flagged = np.empty(len(numbers), bool)
    hashes: list[str] = []
    views: list[str] = []
    for table in parts.read(numbers, ("feature", "flagged", "provenance_id", "view", "thumbnail")):
        some = slice(len(hashes), len(hashes) + len(table))
        flagged[some] = table.column("flagged").to_numpy()
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table.column("feature").chunks]
        features[some] = np.concatenate(flat).reshape(-1, parts.width)
        pictures = b"".join(table.column("thumbnail").to_pylist())
        thumbnails[some] = np.frombuffer(pictures, np.uint8).reshape(-1, SIDE, SIDE)
        hashes += table.column("provenance_id").to_pylist()
        views += [view or "" for view in table.column("view").to_pylist()]  # none in parts of earlier releases
    bad: list[Quarantined] = [parts.bad[file][0] for file in files if file in parts.bad]
    none, count = np.full(len(sources), np.nan, np.float32), np.zeros(len(sources), np.int32)
    return Embeddings(features, sources, none, flagged, hashes, count, bad, thumbnails, views)


def _tell_untrained(scorer: Scorer, progress: bool) -> None:
    if progress and (strange := untrained(scorer.classifier, scorer.questions.names)):
        note(f"not trained: {', '.join(strange)} (asked by name; threshold 0.5)")
