"""Generated reports against references: scores under their labels, lengths, repeats."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..data.seen import Overlap
from ..errors import ConfigError
from .cleaning import UNKNOWN, R2GenReferences, is_blank, mostly_chinese
from .clinical import check_clinical, clinical_scores
from .exchange import exchanged_scores
from .intervals import score_intervals
from .known_images import KNOWN_FILE, read_known_images
from .layouts import guess_layout
from .metrics import Convention, Scores, conventions, score_reports
from .own_split import drawn_as, overlap_with, read_own_split, record_of_model, record_of_predictions
from .predictions import Prediction, read_predictions
from .r2gen_sets import SIZES, check_count, own_data_set, per_image, text_per_image
from .statistics import duplicate_statistics, length_statistics
from .studies import Study, check_language, with_names

UNKNOWN_MOST = 0.1  # share of the references' words that may be unknown unsaid; in IU X-ray 0.015 are
R2GEN_CHOICES = ("iu-xray", "mimic-cxr", "none")


@dataclass
class Evaluation:
    """What was compared, and how it came out.

    Attributes:
        rows: one per study: ``id``, ``language``, ``generated``, ``reference``, ``images``, ``patient``, and its own
            scores under the language's first convention.
        metrics: what ``metrics.json`` holds.
    """

    rows: list[dict]
    metrics: dict

    @property
    def notes(self) -> list[str]:
        """A sentence for everything that was left out or is odd, with its count."""
        return self.metrics["notes"]


def evaluate_reports(
    predictions: str | Path | Sequence[Prediction],
    *,
    data: str | Path | None = None,
    layout: str | None = None,
    images: str | Path | None = None,
    split: str = "test",
    sections: str = "findings",
    report_column: str | None = None,
    image_column: str | None = None,
    patient_column: str | None = None,
    language: str = "en",
    val_share: float | None = None,
    test_share: float | None = None,
    split_seed: int | None = None,
    model: str | Path | None = None,
    allow_training_patients: bool = False,
    count: str = "studies",
    r2gen: str | None = None,
    partial: bool = False,
    clinical: Sequence[str] = (),
    radgraph_model: str = "radgraph-xl",
    device: str | None = None,
    bootstraps: int = 1000,
    bootstrap_seed: int = 0,
    meteor: bool = True,
) -> Evaluation:
    """Score generated reports.

    Args:
        predictions: see :func:`~hdxray_fast.reports.predictions.read_predictions`. Where no id is a study's, ids that
            are paths are taken as the study of that radiograph.
        data: studies to take references from, by id, as :func:`~hdxray_fast.reports.layouts.read_studies` reads them
            (with ``layout``, ``images``, ``sections``, ``report_column``, ``image_column``,
            ``patient_column``); left out, the predictions hold their references.
        split: of ``data``: ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
        language: ``"en"`` or ``"zh"``, of studies that do not say.
        val_share, test_share, split_seed: of splits that ``data`` has not; left out, as the model's were.
        model: folder of the report model behind the predictions, whose own split is taken; left out, what
            ``report generate`` wrote beside the predictions tells.
        allow_training_patients: score also what is mostly of patients that the model was trained or validated on.
        count: ``"studies"``, or ``"images"``: a study counts once for each radiograph that ``data`` names, as R2Gen
            counts MIMIC-CXR.
        r2gen: score in R2Gen's manner as well: ``"iu-xray"``, ``"mimic-cxr"`` or ``"none"``; left out, what the layout
            says, or that R2Gen's own file is given. Its rare words are those of the training split of ``data``.
        partial: go on, and count, where studies of the split have no generated text.
        clinical: of ``"radgraph"`` and ``"chexbert"``.
        radgraph_model: see :func:`~hdxray_fast.reports.clinical.clinical_scores`; likewise ``device``.
        bootstraps: drawings of patients for the 95 % intervals (of studies, where patients are not known); 0 for none.
        bootstrap_seed: of these drawings.
        meteor: METEOR too, where Java is; ``False`` saves its seconds.

    Raises:
        ConfigError: the files cannot be read or do not fit each other, texts are in another language than said, or
            most of what is tested on is of the model's training.
    """
    check_language(language)
    check_clinical(clinical)
    if check_count(count) == "images" and data is None:
        raise ConfigError("count: images are those that data names; give data (--data)")
    if r2gen not in (None, *R2GEN_CHOICES):
        raise ConfigError(f"r2gen: got {r2gen!r}, accepted are {', '.join(map(repr, R2GEN_CHOICES))}")
    named = str(predictions) if isinstance(predictions, (str, Path)) else "predictions"
    made = read_predictions(predictions) if isinstance(predictions, (str, Path)) else list(predictions)
    made = [row if row.place else replace(row, place=f"text {number}") for number, row in enumerate(made, start=1)]
    notes: list[str] = []
    training: list[str] = []
    overlap: Overlap | None = None
    own: str | None = None
    drawn: dict | None = None
    if data is None:
        studies = _own_references(made, named, language)
    else:
        layout = layout or guess_layout(Path(data))
        record = record_of_model(model) if model else record_of_predictions(named) if named != "predictions" else None
        table = read_own_split(
            data,
            record,
            layout=layout,
            images=images,
            sections=sections,
            report_column=report_column,
            image_column=image_column,
            patient_column=patient_column,
            language=language,
            val_share=val_share,
            test_share=test_share,
            split_seed=split_seed,
            need_images=False,
        )
        drawn = drawn_as(table, record, val_share, test_share, split_seed)
        notes += table.notes
        training = [study.report for study in table.split("train") if study.language == "en"]
        studies = table.studies if split == "all" else table.split(split)
        if not studies:
            raise ConfigError(f"split: {data} has no study in {split!r}, accepted are 'train', 'val', 'test' and 'all'")
        known = read_known_images(Path(named).parent / KNOWN_FILE) if named != "predictions" else None
        overlap = overlap_with(record, studies, split, str(data), allow_training_patients, known)
        if overlap and known is None:
            notes.append(
                f"patients are compared with those of the training, radiographs are not: no {KNOWN_FILE} of report "
                "generate lies beside the predictions"
            )
        elif overlap and record and record.limits:
            notes.append(f"the model: {record.limits}")
        if overlap and (told := overlap.describe([study.named for study in studies])):
            notes.append(told)
        own = own_data_set(layout, table.listed)
        r2gen = r2gen or own or (layout if layout in R2GEN_CHOICES else None)
    if count == "images":
        made, studies = text_per_image(made, studies), per_image(studies)
    rows, unpaired = _pair(made, studies, named, partial)
    notes += unpaired
    _check_languages(rows, named)
    references = None
    if r2gen not in (None, "none"):
        references = R2GenReferences.fit(training, r2gen)
        whole = own == r2gen and split == "test" and len(rows) == SIZES[r2gen]["test"]
        references = replace(references, own=whole, words=references.words if training else None)
    notes += _unknown_words(rows, references)
    languages = {}
    for name in sorted({row["language"] for row in rows}):
        mine = [row for row in rows if row["language"] == name]
        found = _evaluate_language(mine, name, references, bootstraps, bootstrap_seed, meteor)
        texts, truths = ([row[key] for row in mine] for key in ("generated", "reference"))
        found["clinical"] = clinical_scores(
            texts, truths, clinical, language=name, radgraph_model=radgraph_model, device=device
        )
        if empty := found["lengths"]["generated"]["empty"]:
            notes.append(f"{empty} generated texts are empty; they are scored as they are")
        languages[name] = found
    metrics = {
        "predictions": named,
        "data": None if data is None else str(data),
        "split": None if data is None else split,
        "splits": drawn,
        "sections": None if data is None else sections,
        "studies": len(rows),
        "count": count,
        "seen": overlap and overlap.as_dict(),
        "notes": notes,
        "languages": languages,
        "versions": _versions(),
    }
    return Evaluation(rows, metrics)


def _unknown_words(rows: list[dict], references: R2GenReferences | None) -> list[str]:
    """A note where so many words of R2Gen's references are ``<unk>`` that texts match by what they do not say."""
    if references is None or references.words is None:
        return []
    words = [word for row in rows if row["language"] == "en" for word in references(row["reference"]).split()]
    share = words.count(UNKNOWN) / max(1, len(words))
    if share <= UNKNOWN_MOST:
        return []
    return [
        f"{share:.0%} of the words of R2Gen's references are {UNKNOWN}, seen fewer than "
        f"{references.threshold} times in the training reports: texts match by what they do not say"
    ]


def _evaluate_language(
    rows: list[dict], language: str, r2gen: R2GenReferences | None, bootstraps: int, seed: int, meteor: bool
) -> dict:
    """Scores, lengths and repeats of the studies of one language; their own scores go into the rows."""
    texts, truths, patients = ([row[key] for row in rows] for key in ("generated", "reference", "patient"))
    scored, missing = _score(texts, truths, language, r2gen, meteor)
    for key, values in scored[0].each.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    first = scored[0].convention
    unit = "patients" if any(patient.startswith("patient ") for patient in patients) else "studies"
    return {
        "studies": len(rows),
        "scores": [
            {**scores.as_dict(), "intervals": score_intervals(texts, truths, patients, scores, bootstraps, seed)}
            for scores in scored
        ],
        "drawn": f"{len(set(patients))} {unit}",
        "not_scored": missing,
        "lengths": {
            "unit": first.unit,
            "generated": length_statistics(texts, first.split),
            "references": length_statistics(truths, first.split),
        },
        "repeats": duplicate_statistics(texts, truths, first.split),
        "exchanged": exchanged_scores(texts, truths, patients, scored[0], bootstraps, seed),
    }


def _own_references(made: list[Prediction], named: str, language: str) -> list[Study]:
    without = [prediction.place for prediction in made if prediction.reference is None]
    if without:
        raise ConfigError(
            f"{named}: {len(without)} of {len(made)} have no reference (the first is {without[0]}); give data "
            "(--data), or a column 'reference'"
        )
    return [Study(p.id, (), p.reference or "", language=p.language or language, place=p.place) for p in made]


def _pair(made: list[Prediction], studies: list[Study], named: str, partial: bool) -> tuple[list[dict], list[str]]:
    """Rows of generated text and reference in the order of the studies, and notes on what has no partner."""
    notes = []
    known = {study.id for study in studies}
    if not any(prediction.id in known for prediction in made):
        made, matched = _by_radiograph(made, studies, named)
        notes += matched
    texts = {prediction.id: prediction.generated for prediction in made}
    without = [study.named for study in studies if study.id not in texts]
    if len(without) == len(studies):
        raise ConfigError(
            f"{named}: none of its {len(made)} ids is among those of the {len(studies)} studies; compare its "
            f"{made[0].place} with {studies[0].named} of the data"
        )
    if without and not partial:
        raise ConfigError(
            f"{named}: {with_names(without, 'study', 'without generated text')}; generate theirs too, or score the "
            "others with partial (--partial)"
        )
    if without:
        notes.append(with_names(without, "study", "not scored: no generated text"))
    if extra := [prediction.place for prediction in made if prediction.id not in known]:
        notes.append(with_names(extra, "generated text", "not scored: no such study is in the data and split"))
    rows, bare = [], []
    for study in studies:
        if study.id not in texts:
            continue
        if is_blank(study.report):
            bare.append(study.named)
            continue
        rows.append(
            {
                "id": study.id,
                "place": study.named,
                "language": study.language,
                "generated": texts[study.id],
                "reference": study.report,
                "images": study.images,
                "patient": f"patient {study.patient}" if study.patient else f"study {study.part_of or study.id}",
            }
        )
    if bare:
        notes.append(with_names(bare, "study", "not scored: the reference is empty"))
    if not rows:
        raise ConfigError(f"{named}: nothing can be scored ({'; '.join(notes)})")
    return rows, notes


def _by_radiograph(made: list[Prediction], studies: list[Study], named: str) -> tuple[list[Prediction], list[str]]:
    """Predictions whose id is the path or the name of a study's radiograph, under the study's own id; and a note if
    there are any.

    Raises:
        ConfigError: several are of one study: which of them is meant cannot be told.
    """
    images = [(image, study.id) for study in studies for image in study.images]
    names = [(os.path.abspath(image), study) for image, study in images]
    names += [(Path(image).stem, study) for image, study in images]
    count, place = Counter(name for name, _ in names), dict(names)
    matched = [
        next((place[name] for name in (os.path.abspath(one.id), one.id) if count[name] == 1), None) for one in made
    ]
    often = {name for name, times in Counter(filter(None, matched)).items() if times > 1}
    if twice := [study.named for study in studies if study.id in often]:
        raise ConfigError(
            f"{named}: its ids are radiographs, and {with_names(twice, 'study', 'with several of them')}; write one "
            "report a study, with generate --data"
        )
    renamed = [
        prediction if name is None else replace(prediction, id=name)
        for prediction, name in zip(made, matched, strict=True)
    ]
    found = len(made) - matched.count(None)
    told = f"{found} of {len(made)} predictions are matched by their radiograph's path or name"
    return renamed, [told] if found else []


def _check_languages(rows: list[dict], named: str) -> None:
    for language in {row["language"] for row in rows}:
        chinese = mostly_chinese(row["reference"] for row in rows if row["language"] == language)
        if chinese != (language == "zh"):
            raise ConfigError(
                f"{named}: the references are said to be {language!r} and are mostly "
                f"{'Chinese' if chinese else 'not Chinese'}; give language (--language), one of 'en', 'zh'"
            )


def _score(
    texts: list[str], truths: list[str], language: str, r2gen: R2GenReferences | None, meteor: bool
) -> tuple[list[Scores], list[str]]:
    scored, missing = [], []
    for convention in conventions(language, r2gen):
        if isinstance(convention, Convention):
            scored.append(score_reports(texts, truths, convention, meteor))
        else:
            missing.append(convention)
    return scored, missing


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("hdxray-fast", "pycocoevalcap", "jieba", "radgraph", "f1chexbert"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
