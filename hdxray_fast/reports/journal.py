"""Reports are kept as they come: who writes them again after a kill goes on where the run before had ended."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..data.prepared.image import PreparedImage
from ..data.quarantine import Quarantined
from ..errors import ConfigError
from ..features.parts_folder import PartsFolder
from ..features.shares import Share
from ..files import size_and_time, written_whole
from ..images.perceptual_hash import SIDE
from ..names import escaped
from ..regular_files import lines, open_regular, parse_json
from ..weights.fingerprint import weights_print
from .known_images import ReadImages
from .model import ReportModel
from .studies import Study
from .writing_options import WritingOptions


@dataclass
class WrittenBatch:
    """What has become of a few studies.

    Attributes:
        number: of the batch.
        texts: of studies on which a report was written: place among all, text, sentences, name of the picture.
        without, fewer: places of those none of whose radiographs could be read, and of those with some that could not.
        quarantined: radiographs that cannot be read.
        read: the others.
        notes: on pictures that could not be made.
    """

    number: int
    texts: list[tuple[int, str, list[str], str]] = field(default_factory=list)
    without: list[int] = field(default_factory=list)
    fewer: list[int] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    read: ReadImages = field(default_factory=ReadImages)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, batches: Iterable[WrittenBatch]) -> WrittenBatch:
        """All that happened, in the order of the studies, whichever process wrote what."""
        whole = cls(0)
        for batch in sorted(batches, key=lambda one: one.number):
            for mine, theirs in zip(whole._lists().values(), batch._lists().values(), strict=True):
                mine += theirs
        return whole

    def as_line(self) -> str:
        """JSON on a line."""
        held = {**self._lists(), "quarantined": [asdict(one) for one in self.quarantined]}
        held["read_thumbnails"] = [base64.b64encode(one.tobytes()).decode() for one in self.read.thumbnails]
        return json.dumps({"batch": self.number, **held})

    @classmethod
    def of_line(cls, line: str) -> WrittenBatch:
        """What :meth:`as_line` wrote; a ValueError, KeyError or TypeError about anything else."""
        told, batch = parse_json(line), cls(0)
        batch.number = int(told["batch"])
        for name, held in batch._lists().items():
            held += told[name]
        batch.texts = [
            (int(at), str(text), [str(one) for one in said], str(name)) for at, text, said, name in batch.texts
        ]
        batch.quarantined = [Quarantined(**one) for one in batch.quarantined]
        batch.read.thumbnails = [
            np.frombuffer(base64.b64decode(text), np.uint8).reshape(SIDE, SIDE) for text in batch.read.thumbnails
        ]
        return batch

    def _lists(self) -> dict[str, list]:
        read = self.read
        return {
            "texts": self.texts, "without": self.without, "fewer": self.fewer, "quarantined": self.quarantined,
            "notes": self.notes, "read_studies": read.studies, "read_names": read.names, "read_hashes": read.hashes,
            "read_thumbnails": read.thumbnails, "read_views": read.views,
        }  # fmt: skip


class Journal:
    """A file for each share of the studies, with a line for each batch that is done below one that tells what it is of.

    A line that was cut by a kill, and what stands below it, is made again. Batches are those of a run that was never
    interrupted, by one process, and so are the texts.

    It is a context: within, no other process writes this share.

    Args:
        folder: of the files; made if needed.
        made_with: of :func:`made_with`; batches of other studies, of another model or other options are made anew.
        count: of all batches.
        share: of this process.

    Attributes:
        batches: of this share, those that are done, by number.
    """

    def __init__(self, folder: Path, made_with: str, count: int, share: Share) -> None:
        self.batches: dict[int, WrittenBatch] = {}
        self._place = PartsFolder(folder, share, suffix="jsonl")
        self._place.claim([path.name for path in self._place.parts()])
        self._share, self._count = share, count
        self._head = json.dumps({"made_with": made_with, "batches": count, "shares": share.of})

    def __enter__(self) -> Journal:
        self._place.hold()
        self.batches = self._read(self._place.part(0))
        text = "\n".join([self._head, *(batch.as_line() for batch in self.batches.values()), ""])
        with written_whole(self._place.part(0)) as temporary:
            temporary.write_text(text, encoding="ascii")
        return self

    def __exit__(self, *error: object) -> None:
        self._place.release()

    def left(self) -> list[int]:
        """Batches of this share that are not done: dealt out in turn."""
        mine = range(self._share.which, self._count, self._share.of)
        return [number for number in mine if number not in self.batches]

    def add(self, batch: WrittenBatch) -> None:
        """Write down what became of a batch."""
        with self._place.part(0).open("a", encoding="ascii") as stream:
            stream.write(batch.as_line() + "\n")
        self.batches[batch.number] = batch

    def end_share(self) -> None:
        """Note that all batches of this share are done."""
        self._place.end_share(self._head)

    def joined(self, work: Callable[[list[WrittenBatch]], None]) -> list[int] | None:
        """Once all shares have ended: do ``work`` on the batches of all of them, by one process, and remove the files.

        Returns:
            ``None`` if that was done here, otherwise the shares, counted from 1, that have not ended (none: another
            process joins them).

        Raises:
            ConfigError: lines of a share that has ended are gone.
        """
        return self._place.joined(self._head, lambda: work(self._all()))

    def _all(self) -> list[WrittenBatch]:
        found: dict[int, WrittenBatch] = {}
        for path in self._place.parts():
            found |= self._read(path)
        if lost := self._count - len(found):
            raise ConfigError(
                f"out: {lost} of {self._count} batches are lost: files in {self._place.path} were removed or damaged "
                "after their share had ended; start all shares again (what is there is not made again)"
            )
        return list(found.values())

    def _read(self, path: Path) -> dict[int, WrittenBatch]:
        """Batches of a file that is of these studies; whole lines, as long as they can be read."""
        found: dict[int, WrittenBatch] = {}
        try:
            with open_regular(path, "r", encoding="ascii", errors="replace") as stream:
                whole = [line[:-1] for line in lines(stream, path) if line.endswith("\n")]
        except FileNotFoundError:
            return found
        for line in whole[1:] if whole[:1] == [self._head] else []:
            try:
                batch = WrittenBatch.of_line(line)
            except (ValueError, KeyError, TypeError):
                break
            found[batch.number] = batch
        return found


def made_with(
    model: ReportModel,
    studies: Iterable[Study],
    options: WritingOptions,
    stored: Mapping[str, PreparedImage],
    **more: int | str,
) -> str:
    """Tells apart what reports depend on: weights and settings, options, studies, and each file's size and time.

    ``stored`` are the images that are read of prepared data sets, by path.
    """
    digest = hashlib.sha256(weights_print(model).encode())
    digest.update(json.dumps([asdict(model.config), asdict(options), more], sort_keys=True).encode())
    for study in studies:
        stamps = [stored[path].stamp if path in stored else size_and_time(path) or (-1, -1) for path in study.images]
        files = [(escaped(path), *stamp) for path, stamp in zip(study.images, stamps, strict=True)]
        digest.update(json.dumps([escaped(study.id), study.language, files]).encode())
    return digest.hexdigest()
