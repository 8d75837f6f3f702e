"""Radiographs in, reports out: text, a table of predictions, and a picture of what each sentence was read off."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.listing import IMAGE_SUFFIXES, list_images
from ..data.quarantine import Quarantined
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps, worker_count
from ..data.seen import SEEN_FILE
from ..data.seen_key import KEY_FILE, keep_key
from ..errors import ArgumentError, ConfigError
from ..files import claim_names, free_name, refuse_foreign, written_somewhere
from ..models.inference import PRECISIONS, autocast, check_word, find_precision
from ..models.inputs import as_batch
from .attention_picture import draw_attention, sentence_maps
from .journal import JOURNAL, Journal, Progress, made_with
from .known_images import KNOWN_FILE, write_known_images
from .model import ReportModel
from .predictions import Prediction, write_predictions
from .saving import load_report_model
from .sentences import sentence_tokens
from .studies import Study, counted
from .visual_tokens import Views
from .writing_options import WritingOptions

MAKER = "report-generate"


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
    """

    study: Study
    text: str
    sentences: list[str] = field(default_factory=list)
    attention: np.ndarray | None = None
    radiographs: list[Radiograph] = field(default_factory=list)
    picture: Path | None = None


@dataclass
class WrittenReports:
    """Reports, and what was left out on the way.

    Attributes:
        rows: in the order of the studies.
        notes: a sentence for everything that was left out, with its count.
        quarantined: radiographs that cannot be read.
        predictions: CSV that ``report evaluate`` reads, where one was written.
        precision: ``"fp32"`` or ``"bf16"``, what the model computed in.
        known: study, radiograph and ``"pixels"`` or ``"near"`` for each radiograph that the model was trained or
            validated on; ``None`` where it has no record of that.
    """

    rows: list[WrittenReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    predictions: Path | None = None
    precision: str = "fp32"
    known: list[tuple[str, str, str]] | None = None


def studies_of_files(paths: Sequence[str | os.PathLike], together: bool = False, language: str = "en") -> list[Study]:
    """A study for each radiograph among files, folders and manifests; ``together``: one study of all of them.

    Its id is the file's name without the suffix or, where several files are called alike, the path.

    Raises:
        ConfigError: a path does not exist or names no image.
    """
    files = list(dict.fromkeys(str(file) for path in paths for file in list_images(path, argument="paths")))
    if several := next((file for file in files if ";" in file and not os.path.exists(file)), None):
        raise ConfigError(f"paths: {several} names several radiographs of one study; give such a CSV with --data")
    if together:
        return [Study(Path(files[0]).stem, tuple(files), "", language=language)]
    stems = Counter(Path(file).stem for file in files)
    ids = [file if stems[Path(file).stem] > 1 else Path(file).stem for file in files]
    return [Study(name, (file,), "", language=language) for name, file in zip(ids, files, strict=True)]


def write_reports(
    studies: Sequence[Study] | str | os.PathLike,
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
) -> WrittenReports:
    """Write a report on each study.

    With ``out``, a run that was killed goes on where it had ended, if model, studies, files and options are the same;
    of reports from before no ``attention`` is at hand.

    Args:
        studies: from ``read_studies`` or :func:`studies_of_files`; or a radiograph or a folder of them.
        model: a report model, or its folder.
        options: of the search for words.
        out: folder for ``predictions.csv``, the pictures and what the model has seen; left out, nothing is written.
        pictures: the first so many studies get a picture; without ``out`` their ``attention`` alone is computed.
        batch_size: studies at once.
        workers: processes that read files ahead; 0 reads in this process, -1 takes one per core.
        device: where the model runs; left out, a GPU if there is one.
        progress: show a progress bar.
        precision, timeout, max_memory: as for :func:`hdxray_fast.embed`.

    Raises:
        ArgumentError, ConfigError: an argument is not as described, or no radiograph is named.
        CheckpointError: the model cannot be loaded.
    """
    if batch_size < 1 or pictures < 0:
        raise ArgumentError("batch_size is at least 1, and pictures at least 0")
    check_word("precision", precision, PRECISIONS)
    check_caps(timeout, max_memory)
    of_files = isinstance(studies, (str, os.PathLike))
    if of_files:
        studies = studies_of_files([studies])
    if not studies:
        raise ConfigError("studies: there is none to write a report on")
    if out is not None:
        refuse_other_files(out, studies, pictures)
    if not isinstance(model, ReportModel):
        model = load_report_model(model, device)
    elif device is not None:
        model = model.to(device)
    model.eval()
    if of_files:
        studies = [replace(study, language=model.config.language) for study in studies]
    if out is not None:
        claim_names(Path(out), MAKER, _names(studies, pictures))
    options = options or WritingOptions()
    done = WrittenReports(precision=find_precision(precision, next(model.visual.parameters()).device))
    journal, so_far = None, Progress()
    if out is not None:
        more = {"precision": done.precision, "batch_size": batch_size, "pictures": pictures}
        journal = Journal(Path(out) / JOURNAL, made_with(model, studies, options, **more))
        so_far = journal.progress
    reading = {"workers": worker_count(workers), "timeout": timeout, "max_memory": max_memory}
    _go_on(done, so_far, studies, out)
    with _bar(len(studies), len(done.rows), progress) as bar:
        for places, chunk in _chunks(_read(model, studies, reading, so_far), batch_size):
            drawn = max(0, min(len(chunk), pictures - len(done.rows)))
            rows = _write_chunk(model, chunk, options, drawn, done.precision)
            for place, row in zip(places, rows, strict=True):
                if out is not None and row.attention is not None:
                    _draw(Path(out), row, model, so_far)
                name = row.picture.name if row.picture else ""
                so_far.texts.append((place, row.text, row.sentences, name))
                row.radiographs = row.radiographs if row.attention is not None else []
            done.rows += rows
            if journal is not None:
                journal.add()
            bar.update(len(rows))
    _note(done, so_far, model, studies)
    if out is not None:
        done.predictions = Path(out) / "predictions.csv"
        rows = [Prediction(r.study.id, r.text, r.study.report or None, r.study.language) for r in done.rows]
        written_somewhere(done.predictions, lambda path: write_predictions(path, rows), "the reports")
        if model.seen is not None:  # so that an evaluation finds the model's own split
            model.seen.save(Path(out) / SEEN_FILE)
            if model.seen.key is not None and model.seen.knows_patients:
                keep_key(out, model.seen.key)
            write_known_images(Path(out) / KNOWN_FILE, done.known or [])
        journal.remove()
    return done


def _go_on(done: WrittenReports, so_far: Progress, studies: Sequence[Study], out: str | os.PathLike | None) -> None:
    """Take what a run that was killed had written."""
    for place, text, sentences, picture in so_far.texts:
        row = WrittenReport(studies[place], text, sentences)
        row.picture = Path(out) / picture if picture else None
        done.rows.append(row)
    if so_far.texts:
        done.notes.append(f"{len(so_far.texts)} reports were there already, of a run that had not come to its end")


def _note(done: WrittenReports, so_far: Progress, model: ReportModel, studies: Sequence[Study]) -> None:
    """What was left out on the way."""
    done.notes += so_far.notes
    done.quarantined = so_far.quarantined
    most = model.config.max_views
    more = [place for place, study in enumerate(studies) if len(study.images) > most]
    for places, what in (
        (so_far.without, "left out: none of their radiographs can be read"),
        (so_far.fewer, "go on without a radiograph that cannot be read"),
        (more, f"are read by their first {most} radiographs (max_views)"),
    ):
        if places:
            done.notes.append(counted([studies[place].named for place in places], "studies", what))
    if model.seen is not None:
        done.known, notes = so_far.read.known_to(model.seen)
        done.notes += notes
    empty = [row.study.named for row in done.rows if not row.text]
    if empty:
        done.notes.append(counted(empty, "studies", "got an empty report"))


def _draw(out: Path, row: WrittenReport, model: ReportModel, so_far: Progress) -> None:
    taken = {Path(name).stem.lower() for _, _, _, name in so_far.texts if name}
    place = out / f"{_file_name(row.study.place or row.study.id, taken)}.png"
    views = [radiograph.pixels for radiograph in row.radiographs]
    valid, tokens = [radiograph.valid for radiograph in row.radiographs], model.config.visual_tokens
    try:
        row.picture = draw_attention(place, views, row.sentences, row.attention, tokens, valid)
    except Exception as error:  # the text does not hang on it
        so_far.notes.append(f"{place}: left out, it cannot be made ({type(error).__name__}: {error})")


def refuse_other_files(out: str | os.PathLike, studies: Sequence[Study], pictures: int) -> None:
    """Raise a ConfigError, before a model is loaded, if :func:`write_reports` would write over files of others."""
    refuse_foreign(Path(out), MAKER, _names(studies, pictures))


def _names(studies: Sequence[Study], pictures: int) -> list[str]:
    """Of what is written for these studies."""
    stems: set[str] = set()
    drawings = [f"{_file_name(one.place or one.id, stems)}.png" for one in studies] if pictures > 0 else []
    return ["predictions.csv", JOURNAL, SEEN_FILE, KEY_FILE, KNOWN_FILE, *drawings]


def _read(
    model: ReportModel, studies: Sequence[Study], reading: dict, so_far: Progress
) -> Iterator[tuple[int, tuple[Study, list[Radiograph]]]]:
    """Place, study and readable radiographs of each study that is not done; what is not readable is noted."""
    side = model.encoder.img_size
    if side[0] != side[1]:
        raise ConfigError(f"model: its encoder takes {side[0]} x {side[1]} images, reports are read off square ones")
    most = model.config.max_views
    jobs = [(path, path) for study in studies[so_far.studies :] for path in study.images[:most]]
    images = read_ahead(jobs, side[0], model.encoder.patch_size, method=model.encoder.contour, **reading)
    for place, study in enumerate(studies[so_far.studies :], so_far.studies):
        wanted = len(study.images[:most])
        found = [next(images) for _ in range(wanted)]
        good = [image for image in found if isinstance(image, Radiograph)]
        so_far.quarantined += [image for image in found if isinstance(image, Quarantined)]
        so_far.studies = place + 1
        if not good:
            so_far.without.append(place)
            continue
        so_far.read.add(study, good)
        if len(good) < wanted:
            so_far.fewer.append(place)
        yield place, (study, good)


def _chunks(items: Iterator[tuple[int, Any]], size: int) -> Iterator[tuple[list[int], list]]:
    """Of so many items their places, and themselves."""
    while chunk := list(islice(items, size)):
        yield [place for place, _ in chunk], [item for _, item in chunk]


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
        if number < drawn:
            grid = model.encoder.grid_size
            row.attention = (
                sentence_maps(words[number].numpy(), places, grid).astype(np.float32)
                if sentences
                else np.zeros((0, len(found), *grid), np.float32)
            )
        rows.append(row)
    return rows


def _file_name(study: str, taken: set[str]) -> str:
    """The last part of a study's id as a file name, numbered if it is taken."""
    last = Path(study).name
    if Path(study).suffix.lower() in IMAGE_SUFFIXES:
        last = Path(study).stem
    stem = re.sub(r"[^\w.-]+", "_", last).strip("._")[:80] or "study"
    return free_name(stem, taken)


def _bar(total: int, done: int, show: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, unit="study", desc="write", disable=not show, dynamic_ncols=True)
