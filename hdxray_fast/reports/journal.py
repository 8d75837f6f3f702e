"""Reports are kept as they come: who writes them again after a kill goes on where the run before had ended."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..data.quarantine import Quarantined
from ..files import size_and_time, written_whole
from ..images.perceptual_hash import SIDE
from ..names import escaped
from ..regular_files import lines, open_regular, parse_json
from ..weights.fingerprint import weights_print
from .known_images import ReadImages
from .model import ReportModel
from .studies import Study
from .writing_options import WritingOptions

JOURNAL = "predictions.unfinished.jsonl"


@dataclass
class Progress:
    """What has become of the studies so far.

    Attributes:
        studies: that are done, from the first on.
        texts: of those on which a report was written: place among the studies, text, sentences, name of the picture.
        without, fewer: places of those none of whose radiographs could be read, and of those with some that could not.
        quarantined: radiographs that cannot be read.
        read: the others.
        notes: on pictures that could not be made.
    """

    studies: int = 0
    texts: list[tuple[int, str, list[str], str]] = field(default_factory=list)
    without: list[int] = field(default_factory=list)
    fewer: list[int] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    read: ReadImages = field(default_factory=ReadImages)
    notes: list[str] = field(default_factory=list)


class Journal:
    """A file with a line of JSON for each batch of studies that is done, below one that tells what they are made with.

    A line that was cut by a kill, and what stands below it, is made again. Batches are those of a run that was never
    interrupted, and so are the texts.

    Args:
        path: of the file, which this process alone writes.
        made_with: of :func:`made_with`; a journal of other studies, of another model or other options is begun anew.

    Attributes:
        progress: what is done.
    """

    def __init__(self, path: Path, made_with: str) -> None:
        self.path, self.progress = path, Progress()
        head = json.dumps({"made_with": made_with})
        kept = []
        for line in self._lines(head):
            try:
                _take(self.progress, parse_json(line))
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        with written_whole(path) as temporary:
            temporary.write_text("\n".join([head, *kept, ""]), encoding="ascii")
        self._written = _lengths(self.progress)

    def _lines(self, head: str) -> list[str]:
        """Whole lines below the head, if that is the one that is looked for."""
        try:
            with open_regular(self.path, "r", encoding="ascii", errors="replace") as stream:
                found = list(lines(stream, self.path))
        except FileNotFoundError:
            return []
        whole = [line[:-1] for line in found if line.endswith("\n")]
        return whole[1:] if whole[:1] == [head] else []

    def add(self) -> None:
        """Write down what came to :attr:`progress` since the last time."""
        line = json.dumps(_since(self.progress, self._written))
        with self.path.open("a", encoding="ascii") as stream:
            stream.write(line + "\n")
        self._written = _lengths(self.progress)

    def remove(self) -> None:
        """The reports are where they belong."""
        self.path.unlink(missing_ok=True)


def made_with(model: ReportModel, studies: Sequence[Study], options: WritingOptions, **more: int | str) -> str:
    """Tells apart what reports depend on: weights and settings, options, studies, and each file's size and time."""
    digest = hashlib.sha256(weights_print(model).encode())
    digest.update(json.dumps([asdict(model.config), asdict(options), more], sort_keys=True).encode())
    for study in studies:
        files = [(escaped(path), *(size_and_time(path) or (-1, -1))) for path in study.images]
        digest.update(json.dumps([escaped(study.id), study.language, files]).encode())
    return digest.hexdigest()


def _lists(progress: Progress) -> dict[str, list]:
    read = progress.read
    return {
        "texts": progress.texts, "without": progress.without, "fewer": progress.fewer,
        "quarantined": progress.quarantined, "notes": progress.notes,
        "read_studies": read.studies, "read_names": read.names, "read_hashes": read.hashes,
        "read_thumbnails": read.thumbnails,
    }  # fmt: skip


def _lengths(progress: Progress) -> dict[str, int]:
    return {name: len(held) for name, held in _lists(progress).items()}


def _since(progress: Progress, written: dict[str, int]) -> dict:
    new: dict = {name: held[written[name] :] for name, held in _lists(progress).items()}
    new["quarantined"] = [asdict(one) for one in new["quarantined"]]
    new["read_thumbnails"] = [base64.b64encode(picture.tobytes()).decode() for picture in new["read_thumbnails"]]
    return {"studies": progress.studies, **new}


def _take(progress: Progress, line: dict) -> None:
    """Add what a line tells; all of it, or nothing where it is damaged."""
    new = {name: list(line[name]) for name in _lists(progress)}
    new["texts"] = [
        (int(at), str(text), [str(one) for one in said], str(name)) for at, text, said, name in new["texts"]
    ]
    new["quarantined"] = [Quarantined(**one) for one in new["quarantined"]]
    new["read_thumbnails"] = [
        np.frombuffer(base64.b64decode(text), np.uint8).reshape(SIDE, SIDE) for text in new["read_thumbnails"]
    ]
    studies = int(line["studies"])
    for name, held in _lists(progress).items():
        held += new[name]
    progress.studies = studies
