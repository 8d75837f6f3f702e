"""Radiographs in, reports out: text, a table of predictions, and a picture of what each sentence was read off."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.film_views import describe_not_frontal, describe_view
from ..data.inputs import Input, list_inputs, prepared_images, require_prepared_for
from ..data.prepared.finding import find_prepared
from ..data.prepared.image import PreparedImage
from ..data.prepared.reading import PreparedSet, is_prepared
from ..data.quarantine import Quarantined
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..data.seen import SEEN_FILE, Seen
from ..data.seen_key import KEY_FILE, keep_key
from ..errors import ArgumentError, ArgumentTypeError, ConfigError
from ..features.parts_folder import parts_of
from ..features.shares import Share
from ..files import claim_names, refuse_foreign, written_somewhere, written_whole
from ..models.inference import PRECISIONS, autocast, check_word, find_precision
from ..models.inputs import as_batch
from ..names import ESCAPES
from ..progress import progress_bar
from ..ranks import acquainted
from ..terminal import counted
from .attention_picture import draw_attention, picture_names, sentence_maps
from .journal import Journal, WrittenBatch, made_with
from .known_images import KNOWN_FILE, write_known_images
from .model import ReportModel
from .predictions import Prediction, write_predictions
from .saving import load_report_model
from .sentences import sentence_tokens
from .studies import Study, StudyTable, with_names
from .study_list import Studies
from .visual_tokens import Views
from .writing_options import WritingOptions
from .written import WrittenReport, WrittenReports
from .written_page import written_page

MAKER = "report-generate"
PREDICTIONS, PAGE = "predictions.csv", "reports.html"


def studies_of_files(paths: Sequence[str | os.PathLike], together: bool = False) -> list[Study]:
    """A study for each radiograph among files, folders, manifests and prepared data sets.

    ``together``: one study of all of them.

    Its id is the file's name without the suffix or, where several files are called alike, the path.

    Raises:
        ConfigError: a path does not exist or names no image.
    """
    inputs = list_inputs(paths)
    files = [one.name for one in inputs]
    if several := next((file for file in _files_of(inputs) if ";" in file and not os.path.exists(file)), None):
        raise ConfigError(f"paths: {several} names several radiographs of one study; give such a CSV with --data")
    if together:
        return [Study(Path(files[0]).stem, tuple(files), "")]
    stems = Counter(Path(file).stem for file in files)
    ids = [file if stems[Path(file).stem] > 1 else Path(file).stem for file in files]
    return [Study(name, (file,), "") for name, file in zip(ids, files, strict=True)]


def _files_of(inputs: Sequence[Input]) -> list[str]:
    return [one.name for one in inputs if isinstance(one.image, str)]


def write_reports(
    studies: StudyTable | Sequence[Study] | str | os.PathLike | Sequence[str | os.PathLike],
    model: ReportModel | str | os.PathLike,
    *,
    options: WritingOptions | None = None,
    out: str | os.PathLike | None = None,
    pictures: int = 8,
    batch_size: int = 4,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    precision: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    prepared: Sequence[str | os.PathLike] = (),
    part: str = "1/1",
) -> WrittenReports:
    """Write a report on each study.

    With ``out``, a run that was killed goes on where it had ended, if model, studies, files and options are the same;
    of reports from before, or of other processes, no ``attention`` is at hand.

    Args:
        studies: from ``read_studies`` or :func:`studies_of_files`; or radiographs, folders of them or prepared data
            sets: one, or a list.
        model: a report model, or its folder.
        options: of the search for words.
        out: folder for ``predictions.csv``, ``reports.html``, the pictures and what the model has seen; left out,
            nothing is written.
        pictures: the first so many studies get a picture; without ``out`` their ``attention`` alone is computed.
        batch_size: studies at once.
        workers: processes that read files ahead; 0 reads in this process, -1 takes one per core.
        device: where the model runs; left out, a GPU if there is one.
        progress: show a progress bar.
        precision, timeout, max_memory: as for :func:`hdxray_fast.embed`.
        prepared: folders of prepared data sets, whose images are read in place of the studies' files.
        part: ``i/n``: the i-th of n shares of the studies, counted from 1, for as many processes with the same
            arguments, on any machines that see ``out``; the one that ends last joins them. Ranks of torchrun share a
            part among them, and the main one joins.

    Raises:
        ArgumentError, ArgumentTypeError, ConfigError: an argument is not as described, no radiograph is named, or a
            data set was prepared otherwise than the model reads files.
        CheckpointError: the model cannot be loaded.
        TrainingError: another rank is gone.
    """
    if batch_size < 1 or pictures < 0:
        raise ArgumentError("batch_size is at least 1, and pictures at least 0")
    check_word("precision", precision, PRECISIONS)
    check_caps(timeout, max_memory)
    share = Share.of_part(part)
    if share.of > 1 and out is None:
        raise ConfigError("part: shares are joined in the folder out; name it")
    studies = studies.studies if isinstance(studies, StudyTable) else studies
    paths = [studies] if isinstance(studies, (str, os.PathLike)) else studies
    of_files = bool(paths) and all(isinstance(path, (str, os.PathLike)) for path in paths)
    if of_files:
        prepared = [*prepared, *filter(is_prepared, paths)]
        studies = studies_of_files(paths)
    elif not isinstance(studies, Studies) and not all(isinstance(study, Study) for study in studies):
        raise ArgumentTypeError("studies: got a list of neither studies nor paths alone; read_studies gives studies")
    if not studies:
        raise ConfigError("studies: there is none to write a report on")
    if out is not None:
        refuse_other_files(out, studies, pictures)
    device = share.device(device)
    if not isinstance(model, ReportModel):
        model = load_report_model(model, device)
    elif device is not None:
        model = model.to(device)
    model.eval()
    if of_files:
        studies = Studies(replace(study, language=model.config.language) for study in studies)
    stored = _stored(studies, prepared, model)
    if out is not None:
        claim_names(Path(out), MAKER, _names(studies, pictures))
    precision = find_precision(precision, next(model.visual.parameters()).device)
    reading = {"workers": share.workers(workers), "timeout": timeout, "max_memory": max_memory}
    job = _Job(model, studies, options or WritingOptions(), batch_size, pictures, precision, stored, reading, out)
    count = -(-len(studies) // batch_size)
    progress = progress and share.is_main
    if out is None:
        return job.told(list(job.batches(range(count), progress)), model.seen)
    more = {"precision": precision, "batch_size": batch_size, "pictures": pictures}
    made = made_with(model, studies, job.options, stored, **more)
    done = WrittenReports(precision=precision, joined=False)

    def write(batches: list[WrittenBatch]) -> None:
        nonlocal done
        done = job.told(batches, model.seen, before)
        done.predictions = _write_all(Path(out), done, model)

    with acquainted(), Journal(parts_of(Path(out) / PREDICTIONS), made, count, share) as journal:
        before = sum(len(batch.texts) for batch in journal.batches.values())
        with share.together():
            for batch in job.batches(journal.left(), progress):
                journal.add(batch)
            journal.end_share()
        done.waiting = journal.joined(write) or []
    return done


def _stored(
    studies: Sequence[Study], prepared: Sequence[str | os.PathLike], model: ReportModel
) -> dict[str, PreparedImage]:
    """By path, what is read of prepared data sets."""
    stored: dict[str, PreparedImage] = {}
    paths = dict.fromkeys(path for study in studies for path in study.images) if prepared else {}
    for folder in prepared:
        left = [path for path in paths if path not in stored]
        stored |= prepared_images(find_prepared(left, PreparedSet(folder, verify=True)))
    require_prepared_for(stored.values(), model.encoder.img_size[0], model.encoder.contour)
    return stored


@dataclass
class _Job:
    """How reports are written on some studies, and those that this process wrote.

    Attributes:
        model, studies, options, batch_size, pictures: as of :func:`write_reports`.
        precision: ``"fp32"`` or ``"bf16"``.
        stored: images of prepared data sets, by path.
        reading: workers and caps.
        out: folder for the pictures, if there is one.
        rows: by place, what was written here, with the attention of the first.
    """

    model: ReportModel
    studies: Sequence[Study]
    options: WritingOptions
    batch_size: int
    pictures: int
    precision: str
    stored: Mapping[str, PreparedImage]
    reading: dict
    out: str | os.PathLike | None
    rows: dict[int, WrittenReport] = field(default_factory=dict)

    def batches(self, numbers: Sequence[int], progress: bool) -> Iterator[WrittenBatch]:
        """Write reports on the studies of these batches, one after the other."""
        total = sum(len(self._places(number)) for number in numbers)
        names = picture_names(self.studies, self.pictures)
        with progress_bar(total, "write", "study", show=progress) as bar:
            for batch, places, chunk in self._read(numbers):
                drawn = sum(place < self.pictures for place in places)
                rows = _write_chunk(self.model, chunk, self.options, drawn, self.precision) if chunk else []
                for place, row in zip(places, rows, strict=True):
                    if self.out is not None and row.attention is not None:
                        _draw(Path(self.out) / names[place], row, self.model, batch)
                    name = row.picture.name if row.picture else ""
                    batch.texts.append((place, row.text, row.sentences, name))
                    row.radiographs = row.radiographs if row.attention is not None else []
                    self.rows[place] = row
                yield batch
                bar.update(len(self._places(batch.number)))

    def told(self, batches: Sequence[WrittenBatch], seen: Seen | None, before: int = 0) -> WrittenReports:
        """All reports, with what was left out on the way; ``before``: how many of this share were there already."""
        found = self.model.validated
        done = WrittenReports(precision=self.precision, warning=found.warning() if found else "")
        whole = WrittenBatch.join(batches)
        for place, text, sentences, picture in whole.texts:
            row = self.rows.get(place) or WrittenReport(self.studies[place], text, sentences)
            row.picture = Path(self.out) / picture if picture else None
            done.rows.append(row)
        if before:
            done.notes.append(f"{counted(before, 'report')} written already, by a run that had not come to its end")
        views = dict(zip(whole.read.names, whole.read.views, strict=True))
        for row in done.rows:
            row.views = {path: views[path] for path in row.study.images if path in views}
        aside = {path: view for row in done.rows for path, view in row.not_frontal.items()}
        if told := describe_not_frontal(aside, len(views)):
            done.notes.append(told)
        done.notes += whole.notes
        done.quarantined = whole.quarantined
        most = self.model.config.max_views
        more = [place for place, study in enumerate(self.studies) if len(study.images) > most]
        for places, what in (
            (whole.without, "left out: none of their radiographs can be read"),
            (whole.fewer, "read without a radiograph that cannot be read"),
            (more, f"read by the first {most} radiographs alone (max_views)"),
        ):
            if places:
                done.notes.append(with_names([self.studies[place].named for place in places], "study", what))
        if seen is not None:
            done.known, notes = whole.read.known_to(seen)
            done.notes += notes
        empty = [row.study.named for row in done.rows if not row.text]
        if empty:
            done.notes.append(with_names(empty, "study", "with an empty report"))
        if self.out is not None and self.pictures < len(self.studies):
            done.notes.append(f"the first {self.pictures} of {len(self.studies)} studies get a picture (--pictures)")
        return done

    def _places(self, number: int) -> range:
        return range(number * self.batch_size, min((number + 1) * self.batch_size, len(self.studies)))

    def _read(
        self, numbers: Sequence[int]
    ) -> Iterator[tuple[WrittenBatch, list[int], list[tuple[Study, list[Radiograph]]]]]:
        """Of each batch what could not be read, and the places and readable radiographs of the other studies.

        Which studies share a batch does not hang on what can be read of them.
        """
        side, model = self.model.encoder.img_size, self.model
        if side[0] != side[1]:
            raise ConfigError(
                f"model: its encoder takes {side[0]} x {side[1]} images, reports are read off square ones"
            )
        most = model.config.max_views
        jobs = (
            (self.stored.get(path, path), path)
            for number in numbers for place in self._places(number) for path in self.studies[place].images[:most]
        )  # fmt: skip
        images = read_ahead(jobs, side[0], model.encoder.patch_size, method=model.encoder.contour, **self.reading)
        for number in numbers:
            batch, places, chunk = WrittenBatch(number), [], []
            for place in self._places(number):
                study = self.studies[place]
                found = [next(images) for _ in study.images[:most]]
                good = [image for image in found if isinstance(image, Radiograph)]
                batch.quarantined += [image for image in found if isinstance(image, Quarantined)]
                if not good:
                    batch.without.append(place)
                    continue
                batch.read.add(study, good)
                if len(good) < len(found):
                    batch.fewer.append(place)
                places.append(place)
                chunk.append((study, good))
            yield batch, places, chunk


def _write_all(out: Path, done: WrittenReports, model: ReportModel) -> Path:
    """The table of the reports, and what an evaluation wants to know of the model."""
    rows = [
        Prediction(
            row.study.id,
            row.text,
            row.study.report or None,
            row.study.language,
            view="|".join(row.views.values()),
            image="|".join(Path(image).name for image in row.study.images),
        )
        for row in done.rows
    ]
    written_somewhere(out / PREDICTIONS, lambda path: write_predictions(path, rows), "the reports")
    if model.seen is not None:  # so that an evaluation finds the model's own split
        model.seen.save(out / SEEN_FILE)
        if model.seen.key is not None and model.seen.knows_patients:
            keep_key(out, model.seen.key)
        write_known_images(out / KNOWN_FILE, done.known or [])
    with written_whole(out / PAGE) as temporary:
        temporary.write_text(written_page(done), encoding="utf-8", errors=ESCAPES)
    done.page = out / PAGE
    return out / PREDICTIONS


def _draw(place: Path, row: WrittenReport, model: ReportModel, batch: WrittenBatch) -> None:
    views = [radiograph.pixels for radiograph in row.radiographs]
    valid, tokens = [radiograph.valid for radiograph in row.radiographs], model.config.visual_tokens
    told = [describe_view(row.not_frontal.get(radiograph.source)) for radiograph in row.radiographs]
    try:
        row.picture = draw_attention(place, views, row.sentences, row.attention, tokens, valid, told)
    except Exception as error:  # the text does not hang on it
        batch.notes.append(f"{place}: left out, it cannot be made ({type(error).__name__}: {error})")


def refuse_other_files(out: str | os.PathLike, studies: Sequence[Study], pictures: int) -> None:
    """Raise a ConfigError, before a model is loaded, if :func:`write_reports` would write over files of others."""
    refuse_foreign(Path(out), MAKER, _names(studies, pictures))


def _names(studies: Sequence[Study], pictures: int) -> list[str]:
    """Of what is written for these studies."""
    parts = parts_of(Path(PREDICTIONS)).name
    return [PREDICTIONS, PAGE, parts, SEEN_FILE, KEY_FILE, KNOWN_FILE, *picture_names(studies, pictures)]


@torch.no_grad()
def _write_chunk(
    model: ReportModel,
    chunk: list[tuple[Study, list[Radiograph]]],
    options: WritingOptions,
    drawn: int,
    precision: str,
) -> list[WrittenReport]:
    """Reports on a few studies; the first ``drawn`` of them with their attention."""
    device = next(model.visual.parameters()).device
    radiographs = [radiograph for _, found in chunk for radiograph in found]
    batch = as_batch(radiographs, device)
    views = Views.of_counts([len(found) for _, found in chunk]).to(device)
    with autocast(precision, device):
        inputs = model.inputs(batch)
        plan, tokens = inputs["plan"], model.encoder.encode(**inputs)
        view_tokens = model.resample(tokens, plan)
        texts, ids = model.write(view_tokens, views, options)
        words: list[Tensor] = []
        if drawn:
            shares = model.visual.shares(tokens, plan, model.encoder.num_prefix_tokens)
            words = model.attention(view_tokens, views, ids, shares)
    rows = []
    for number, ((study, found), text) in enumerate(zip(chunk, texts, strict=True)):
        sentences, places = sentence_tokens(model.tokenizer, ids[number])
        row = WrittenReport(study, text, sentences, radiographs=found)
        row.views = {radiograph.source: radiograph.view for radiograph in found}
        if number < drawn:
            grid = model.encoder.grid_size
            row.attention = (
                sentence_maps(words[number].numpy(), places, grid).astype(np.float32)
                if sentences
                else np.zeros((0, len(found), *grid), np.float32)
            )
        rows.append(row)
    return rows
