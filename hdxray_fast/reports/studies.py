"""The table of studies: what is read, split and left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..data.missing_files import none_found
from ..data.prepared.finding import find_some
from ..data.prepared.reading import PreparedSet
from ..data.seen import Seen
from ..data.splits import SPLITS, canonical_split
from ..errors import ConfigError
from ..terminal import counted, first_names, visible
from .cleaning import is_blank
from .study_list import Studies, Study
from .study_splits import split_studies

LANGUAGES = ("en", "zh")
SECTIONS = ("findings", "impression", "both")
SHOWN = 3  # examples that a note names


@dataclass
class StudyTable:
    """Studies, and what was left out on the way.

    Attributes:
        studies: in the order of the source.
        notes: a sentence for everything that was left out, with its count.
        origin: how its splits came about, see :class:`.study_splits.StudySplits`; likewise ``drawn`` and ``known``.
        listed: how many studies of each split there were before any was left out.
    """

    studies: Studies
    notes: list[str] = field(default_factory=list)
    origin: dict = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    known: int = 0
    listed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.studies, Studies):
            self.studies = Studies(self.studies)

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def patients(self) -> list[str]:
        """Of each study; its id where the patient is not known."""
        ids = self.studies.column("id")
        return [patient or name for patient, name in zip(self.studies.column("patient"), ids, strict=True)]

    @property
    def splits(self) -> list[str]:
        """Of each study."""
        return self.studies.column("split")

    def split(self, name: str) -> Studies:
        """The studies of one split."""
        return self.studies.rows(row for row, split in enumerate(self.splits) if split == name)

    def leave_out(self, unwanted: Callable[[Study], bool], reason: str) -> None:
        """Remove studies and note how many, and where the first few stand."""
        out = [row for row, study in enumerate(self.studies) if unwanted(study)]
        if out:
            self.notes.append(with_names([self.studies[row].named for row in out], "study", reason))
            gone = set(out)
            self.studies = Studies(study for row, study in enumerate(self.studies) if row not in gone)


def with_names(names: Sequence[str], what: str, reason: str) -> str:
    """``"12 studies left out: reason (row 3, row 7, row 9, ...)"``; names are places or files, never ids, ``what`` is
    the word for one of them, and ``reason`` fits one and many."""
    return f"{counted(len(names), what)} {reason} ({first_names(names, SHOWN)})"


def chosen_sections(findings: str, impression: str, sections: str) -> str:
    """The text of the wanted sections, joined by a space."""
    parts = {"findings": [findings], "impression": [impression], "both": [findings, impression]}[sections]
    return " ".join(part.strip() for part in parts if part.strip())


def check_language(language: str, name: str = "language") -> str:
    """``language``, or a ConfigError if it is none of ``LANGUAGES``."""
    if language not in LANGUAGES:
        raise ConfigError(f"{name}: got {language!r}, accepted are {', '.join(map(repr, LANGUAGES))}")
    return language


def language_at(language: object, where: str) -> str:
    """Likewise, of a file that may hold anything: what stands there is not shown."""
    if language not in LANGUAGES:
        raise ConfigError(f"{where}: language is none of {', '.join(map(repr, LANGUAGES))}")
    return str(language)


def finish_table(
    table: StudyTable,
    source: str,
    val_share: float,
    test_share: float,
    split_seed: int,
    need_images: bool = True,
    prepared: str | os.PathLike | None = None,
    record: Seen | None = None,
    images: str | os.PathLike | None = None,
) -> StudyTable:
    """Fill in splits, leave out what cannot be used, and refuse what would make results worthless.

    Empty reports (without a letter or digit) and studies without any image file are left out and counted; of a study
    that lacks one image the others are kept. Studies without a split get one that depends on seed and patient alone, or
    is that of ``record``. Splits are of all studies that are listed, so that they are the same whatever can be read of
    them. Without ``need_images`` nothing is asked of images: texts are scored without them. With ``prepared`` images
    are those of a prepared data set, whatever files there are. ``images`` is the folder that was given for them.

    Raises:
        ConfigError: an id is there twice, a patient or an image is in two splits, or nothing is left.
    """
    first: dict[str, int] = {}
    ids = table.studies.column("id")
    if twice := [row for row, name in enumerate(ids) if first.setdefault(name, row) != row]:
        both = f"{table.studies[first[ids[twice[0]]]].named} and {table.studies[twice[0]].named}"
        raise ConfigError(f"{source}: {both} have one id: a study is listed more than once ({len(twice)} such rows)")
    if wrong := [row for row, split in enumerate(table.splits) if canonical_split(split) not in ("", *SPLITS)]:
        raise ConfigError(f"{source}: {table.studies[wrong[0]].named}: its split is none of {', '.join(SPLITS)}")
    found = split_studies(table.splits, table.patients, source, val_share, test_share, split_seed, record)
    table.studies = Studies(
        replace(study, split=split) for study, split in zip(table.studies, found.splits, strict=True)
    )
    table.origin, table.drawn, table.known = found.origin, found.drawn, found.known
    table.listed = dict(Counter(found.splits))
    # where texts are scored, studies without a word are kept, for their texts to be known and told of
    empty = is_blank if need_images else lambda report: not report.strip()
    table.leave_out(lambda study: empty(study.report), "left out: the report, or the section asked for, is empty")
    if need_images:
        table.leave_out(lambda study: not study.images, "left out: no image is named")
        _drop_missing(table, source, prepared, images)
    if not table.studies:
        raise ConfigError(f"{source}: no study can be used ({'; '.join(table.notes) or 'it is empty'})")
    table.notes += found.notes
    for kind, keys in (("patient", lambda study: [study.patient]), ("image", lambda study: study.images)):
        _refuse_leaks(table.studies, kind, keys, source)
    return table


def _drop_missing(
    table: StudyTable, source: str, prepared: str | os.PathLike | None, images: str | os.PathLike | None
) -> None:
    named = list(dict.fromkeys(path for study in table.studies for path in study.images))
    if not named:
        return
    if prepared is None:
        missing = [path for path in named if not Path(path).is_file()]
        if len(missing) == len(named):
            raise none_found(missing, source, images)
        what, where, left_out = "image file", "not found", "left out: none of the images exists"
    else:
        missing = [one.path for one in find_some(named, PreparedSet(prepared), source)[1]]
        what, where = "image", f"not in the prepared data set {visible(prepared)}"
        left_out = "left out: none of the images is there"
    if not missing:
        return
    gone, before = set(missing), table.studies
    table.studies = Studies(
        replace(study, images=tuple(path for path in study.images if path not in gone)) for study in before
    )
    less = sum(len(now.images) < len(study.images) for now, study in zip(table.studies, before, strict=True))
    none = sum(not study.images for study in table.studies)
    table.notes.append(with_names(missing, what, where))
    if less > none:
        table.notes.append(f"{counted(less - none, 'study')} read without an image that is missing")
    table.leave_out(lambda study: not study.images, left_out)


def _refuse_leaks(studies: Studies, kind: str, keys: Callable[[Study], Iterable[str]], source: str) -> None:
    splits = studies.column("split")
    seen: dict[str, int] = {}
    for row, study in enumerate(studies):
        for key in keys(study):
            if key and splits[first := seen.setdefault(key, row)] != study.split:
                raise ConfigError(
                    f"{source}: one {kind} is in two splits ({studies[first].named} is in {splits[first]}, "
                    f"{study.named} in {study.split}), which makes the result worthless; split by patient"
                )
