"""A study: the radiographs of one examination and the report on them; and the table of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..data.seen import Seen
from ..data.splits import SPLITS, canonical_split
from ..errors import ConfigError
from ..terminal import visible
from .study_splits import split_studies

LANGUAGES = ("en", "zh")
SECTIONS = ("findings", "impression", "both")
SHOWN = 3  # examples that a note names


@dataclass(frozen=True)
class Study:
    """One examination.

    Attributes:
        id: unique within a table.
        images: paths, frontal views first where the views are known.
        report: as it was written (the sections asked for); cleaning never changes it.
        split: ``"train"``, ``"val"`` or ``"test"``.
        language: ``"en"`` or ``"zh"``.
        patient: ``""`` if it is not known.
        part_of: id of the study, where this is one radiograph of it.
        place: where it stands in its source, for messages, which hold no id: ``"row 5"``.
    """

    id: str
    images: tuple[str, ...]
    report: str
    split: str = ""
    language: str = "en"
    patient: str = ""
    part_of: str = ""
    place: str = field(default="", compare=False)

    @property
    def named(self) -> str:
        """The study in words that hold nothing of the patient: its place or, where there is none, its first file."""
        return self.place or (visible(self.images[0]) if self.images else "a study without images")


@dataclass
class StudyTable:
    """Studies, and what was left out on the way.

    Attributes:
        studies: in the order of the source.
        notes: a sentence for everything that was left out, with its count.
        origin: how its splits came about, see :class:`.study_splits.StudySplits`; likewise ``drawn`` and ``known``.
        listed: how many studies of each split there were before any was left out.
    """

    studies: list[Study]
    notes: list[str] = field(default_factory=list)
    origin: dict = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    known: int = 0
    listed: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def patients(self) -> list[str]:
        """Of each study; its id where the patient is not known."""
        return [study.patient or study.id for study in self.studies]

    @property
    def splits(self) -> list[str]:
        """Of each study."""
        return [study.split for study in self.studies]

    def split(self, name: str) -> list[Study]:
        """The studies of one split."""
        return [study for study in self.studies if study.split == name]

    def leave_out(self, unwanted: Callable[[Study], bool], reason: str) -> None:
        """Remove studies and note how many, and where the first few stand."""
        out = [study for study in self.studies if unwanted(study)]
        if out:
            gone = {study.id for study in out}
            self.studies = [study for study in self.studies if study.id not in gone]
            self.notes.append(counted([study.named for study in out], "studies", reason))


def counted(names: Sequence[str], what: str, reason: str) -> str:
    """``"12 studies left out: reason (row 3, row 7, row 9, ...)"``; names are places or files, never ids."""
    shown = ", ".join(map(visible, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {what} {reason} ({shown})"


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
    record: Seen | None = None,
) -> StudyTable:
    """Fill in splits, leave out what cannot be used, and refuse what would make results worthless.

    Empty reports and studies without any image file are left out and counted; of a study that lacks one image the
    others are kept. Studies without a split get one that depends on seed and patient alone, or is that of ``record``.
    Splits are of all studies that are listed, so that they are the same whatever can be read of them. Without
    ``need_images`` nothing is asked of images: texts are scored without them.

    Raises:
        ConfigError: an id is there twice, a patient or an image is in two splits, or nothing is left.
    """
    first: dict[str, Study] = {}
    if twice := [study for study in table.studies if first.setdefault(study.id, study) is not study]:
        both = f"{first[twice[0].id].named} and {twice[0].named}"
        raise ConfigError(f"{source}: {both} have one id: a study is listed more than once ({len(twice)} such rows)")
    if wrong := [study for study in table.studies if canonical_split(study.split) not in ("", *SPLITS)]:
        raise ConfigError(f"{source}: {wrong[0].named}: its split is none of {', '.join(SPLITS)}")
    found = split_studies(table.splits, table.patients, source, val_share, test_share, split_seed, record)
    table.studies = [replace(study, split=split) for study, split in zip(table.studies, found.splits, strict=True)]
    table.origin, table.drawn, table.known = found.origin, found.drawn, found.known
    table.listed = dict(Counter(found.splits))
    table.leave_out(lambda study: not study.report.strip(), "left out: the report, or the section asked for, is empty")
    if need_images:
        table.leave_out(lambda study: not study.images, "left out: no image is named")
        _drop_missing_files(table, source)
    if not table.studies:
        raise ConfigError(f"{source}: no study can be used ({'; '.join(table.notes) or 'it is empty'})")
    table.notes += found.notes
    for kind, keys in (("patient", lambda study: [study.patient]), ("image", lambda study: study.images)):
        _refuse_leaks(table.studies, kind, keys, source)
    return table


def _drop_missing_files(table: StudyTable, source: str) -> None:
    named = dict.fromkeys(path for study in table.studies for path in study.images)
    missing = [path for path in named if not Path(path).is_file()]
    if not missing:
        return
    gone = set(missing)
    whole = [study for study in table.studies if not gone & set(study.images)]
    left = [replace(study, images=tuple(path for path in study.images if path not in gone)) for study in table.studies]
    kept = sum(bool(study.images) for study in left)
    if not kept:
        raise ConfigError(
            f"{source}: none of the {len(missing)} images exists, the first is {missing[0]}; name their folder with "
            "images"
        )
    table.studies = left
    table.notes.append(counted(missing, "image files", "are missing"))
    if kept > len(whole):
        table.notes.append(f"{kept - len(whole)} studies go on without an image that is missing")
    table.leave_out(lambda study: not study.images, "left out: none of the images exists")


def _refuse_leaks(studies: Iterable[Study], kind: str, keys: Callable[[Study], Iterable[str]], source: str) -> None:
    seen: dict[str, Study] = {}
    for study in studies:
        for key in keys(study):
            if key and (first := seen.setdefault(key, study)).split != study.split:
                raise ConfigError(
                    f"{source}: one {kind} is in two splits ({first.named} is in {first.split}, {study.named} in "
                    f"{study.split}), which makes the result worthless; split by patient"
                )
