"""A study: the radiographs of one examination and the report on them; and many of them in little memory.

A million studies as objects of Python, each with a dozen of its own, are gigabytes in every process, and a forked one
copies them as it looks at them. Here their texts are one buffer, and a study is made of it when it is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from ..terminal import visible


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

    @property
    def files(self) -> str:
        """The names of its radiographs' files, as a user looks for them; its place where it has none."""
        return ", ".join(dict.fromkeys(Path(image).name for image in self.images)) or self.named


TEXTS = ("id", "report", "split", "language", "patient", "part_of", "place")  # cells of a study, before its images


class Studies(Sequence[Study]):
    """Studies in their order.

    Parts of it share its memory, 50 bytes a study beside the text; forked processes do, too.

    Args:
        studies: what it begins with.
    """

    def __init__(self, studies: Iterable[Study] = ()) -> None:
        self._text = bytearray()
        self._cells = array("I")  # bytes of each
        self._firsts, self._starts = array("q"), array("q")  # of each study: its first cell, and where its text begins
        self._rows: Sequence[int] | None = None  # of a part
        for study in studies:
            self.append(study)

    def append(self, study: Study) -> None:
        """Add a study; not to a part."""
        if self._rows is not None:
            raise TypeError("a part of some studies does not grow")
        self._firsts.append(len(self._cells))
        self._starts.append(len(self._text))
        for cell in (*(getattr(study, name) for name in TEXTS), *study.images):
            encoded = cell.encode("utf-8", "surrogatepass")  # names of any bytes, and whatever JSON holds
            self._text += encoded
            self._cells.append(len(encoded))

    def rows(self, rows: Iterable[int]) -> Studies:
        """Some of them, in an order of their own."""
        part = object.__new__(Studies)
        part.__dict__.update(self.__dict__)
        part._rows = array("q", rows if self._rows is None else (self._rows[row] for row in rows))
        return part

    def column(self, name: str) -> list[str]:
        """One of ``TEXTS`` of each study."""
        cell = TEXTS.index(name)
        return [self._cell(row, cell) for row in (range(len(self._firsts)) if self._rows is None else self._rows)]

    def __len__(self) -> int:
        return len(self._firsts if self._rows is None else self._rows)

    @overload
    def __getitem__(self, place: int) -> Study: ...
    @overload
    def __getitem__(self, place: slice) -> Studies: ...
    def __getitem__(self, place: int | slice) -> Study | Studies:
        if isinstance(place, slice):
            return self.rows(range(len(self))[place])
        row = range(len(self))[place]
        row = row if self._rows is None else self._rows[row]
        first, start = self._firsts[row], self._starts[row]
        last = self._firsts[row + 1] if row + 1 < len(self._firsts) else len(self._cells)
        texts = []
        for length in self._cells[first:last]:
            texts.append(_decoded(self._text[start : start + length]))
            start += length
        return Study(**dict(zip(TEXTS, texts, strict=False)), images=tuple(texts[len(TEXTS) :]))

    def __iter__(self) -> Iterator[Study]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(own == theirs for own, theirs in zip(self, other, strict=True))

    __hash__ = None

    def _cell(self, row: int, cell: int) -> str:
        first = self._firsts[row]
        start = self._starts[row] + sum(self._cells[first : first + cell])
        return _decoded(self._text[start : start + self._cells[first + cell]])


def _decoded(text: bytearray) -> str:
    return text.decode("utf-8", "surrogatepass")
