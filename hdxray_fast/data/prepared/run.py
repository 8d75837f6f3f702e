"""``hdxray-fast prepare``: which shards are to be made, made, and joined into one data set."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ...errors import ConfigError
from ...files import claim_names, make_folder, refuse_foreign, remove_leftovers
from ...locks import locked
from ...names import escaped, require_utf8
from ...progress import progress_bar
from ..reader_pool import LATER, Later, worker_count
from .config import PrepareConfig
from .index import MERGED, SKIPPED, is_merged, merge, read_skipped, write_rows
from .kept_rows import KeptRows
from .merged import NOTE
from .patient_key import KEY, find_key, make_key, read_key
from .pool import prepared_rows
from .shards import FORMAT, FORMAT_VERSION, SETTINGS, ShardFolder, arrow, read_settings, write_json, writing
from .slots import Placed, Slot, slot_size
from .source_list import SOURCES, PartOfSources, read_sources, write_sources
from .sources import Source, list_sources, require_source
from .worker import Row, patient_hash

BEGIN_LOCK, MAKER = ".begin.lock", "prepare"
FILES = (SETTINGS, SOURCES, SKIPPED, "shards", *MERGED, NOTE)
SCRATCH = ".unpacked-{}-of-{}"  # a folder of each part

# Rows per worker that may be made before their turn, a minute's work: as long as a file may take. Of a row some 10 kB
# are in memory; its pixels are in their shard.
ROWS_AHEAD = 1024
KEPT_AHEAD = 16  # shards whose facts are in memory because few of their rows are made again

Listing = tuple[list[Source], list[str]]  # what there is, and what was left out for its suffix


@dataclass
class PrepareResult:
    """What a preparation did.

    Attributes:
        out: folder of the data set.
        key: file of the secret that its patients' ids are hashed with.
        counts: sources of this part by ``"ok"``, ``"unreadable"`` and ``"filtered"``, those of earlier runs included.
        made: shards made now; found: shards that were there.
        unreadable: source and reason of those of ``counts``.
        was_whole: nothing was to be done: all shards were there, and joined.
        summary: of the whole data set, if all its shards are there (see :func:`hdxray_fast.data.prepared.index.merge`).
    """

    out: Path
    key: Path
    counts: Counter = field(default_factory=Counter)
    made: int = 0
    found: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    summary: dict | None = None
    was_whole: bool = False


def run_prepare(
    config: PrepareConfig, *, progress: bool = True, on_row: Callable[[Row], None] | None = None
) -> PrepareResult:
    """Prepare this part of the sources; with all parts done, merge them.

    Which source goes into which shard is written down at the start, so a run that was killed makes the shards that are
    missing, and the result is that of a run that was not.

    Raises:
        ConfigError: settings that contradict each other or those the data set was begun with, or no source.
        TrainingError: not one of the sources can be used, or the disk is full.
        MissingDependencyError: pyarrow, pebble or loky is not installed.
    """
    arrow()  # missing: said before anything else
    require_utf8(config.out, "out")
    out = Path(config.out)
    _look(out, config)
    is_new = not out.exists()
    make_folder(out)
    try:
        with writing(out):
            return _run(out, config, progress, on_row)
    except BaseException:
        if is_new:
            _remove_empty(out)
        raise


def _look(out: Path, config: PrepareConfig) -> None:
    """What can be refused before the sources are listed and before anything is written."""
    for source in map(Path, config.sources):
        if source.is_dir() and source.resolve() == out.resolve():
            raise ConfigError(f"out: {out} is a source itself; choose another folder, inside it or elsewhere")
        if config.add or not (out / SOURCES).exists():  # else the list that was made then holds
            require_source(source)
    _settings(out, config)
    refuse_foreign(out, MAKER, _names(out), _is_begun(out))
    if config.patient_key:
        _patient_key(out, config)


def _run(out: Path, config: PrepareConfig, progress: bool, on_row: Callable[[Row], None] | None) -> PrepareResult:
    which, of = config.share()
    found = _list(out, config) if config.add else None  # by each part: none waits for the others
    with locked(out / BEGIN_LOCK):  # machines that start together agree on one list, which one of them makes
        key = _begin(out, config, found)
    shards = ShardFolder(out / "shards")
    part = PartOfSources(out, config.shard_size, which, of)
    result = PrepareResult(out, find_key(out, config.patient_key))

    def refuse() -> None:
        raise ConfigError(f"part: {config.part} of {out} is being prepared by another process")

    with locked(out / f".part-{which + 1}-of-{of}.lock", refuse):
        shards.clean(part.numbers)
        if of == 1:  # a process of another machine cannot be told from one that was killed
            remove_leftovers(out)
        shutil.rmtree(_scratch(out, which, of), ignore_errors=True)  # of a run that was killed
        outcomes = {number: shards.outcome(number, part.count(number)) for number in part.numbers}
        to_make = {
            number: part.count(number) if outcome is None else len(outcome.unreadable)
            for number, outcome in outcomes.items()
            if outcome is None or (config.retry and outcome.unreadable)
        }
        result.made, result.found = len(to_make), len(outcomes) - len(to_make)
        total = sum(map(part.count, part.numbers))
        label = "prepare" if of == 1 else f"prepare {config.part}"
        with progress_bar(total, label, done=total - sum(to_make.values()), show=progress) as bar:
            kept = [number for number in to_make if outcomes[number] is not None]
            with closing(_Making(out, config, key, shards, part, to_make, kept)) as making:
                counted = _counting(making.read, bar, on_row)
                for number in to_make:
                    outcomes[number] = shards.write(number, making.of_shard(number, counted), making.begun(number))
        for outcome in outcomes.values():
            result.counts.update(outcome.counts)
            result.unreadable += outcome.unreadable
    if all(shards.facts(number).exists() for number in range(part.shards)):
        result.was_whole = not result.made and is_merged(out)
        result.summary = merge(out, again=False)
    return result


class _Making:
    """Rows of the shards that are to be made; of those in ``kept`` what could be read is copied.

    Attributes:
        read: a row for each source that is to be read, shard by shard.
    """

    def __init__(
        self,
        out: Path,
        config: PrepareConfig,
        key: bytes,
        shards: ShardFolder,
        part: PartOfSources,
        numbers: Iterable[int],
        kept: Iterable[int],
    ) -> None:
        self.shards, self.part, self.kept = shards, part, set(kept)
        self._open: dict[int, KeptRows] = {}  # those that are not written yet
        self._begun: dict[int, Path] = {}  # pixels of shards that are not written yet
        self._slot_size = slot_size(config.recipe())
        self.read = prepared_rows(
            self._to_read(numbers),
            config.recipe(),
            key,
            workers=worker_count(config.workers),
            timeout=config.timeout,
            max_memory=config.max_memory,
            max_scratch=config.max_scratch,
            scratch=_scratch(out, *config.share()),
            ahead=ROWS_AHEAD,
        )

    def close(self) -> None:
        """End the workers, then remove what they began."""
        self.read.close()
        for path in self._begun.values():
            path.unlink(missing_ok=True)

    def of_shard(self, number: int, read: Iterator[Row]) -> Iterator[Row]:
        """All rows of a shard, of which some are taken from those that were read."""
        if number in self.kept:
            yield from self._kept(number).rows(read)
            del self._open[number]  # not before: what is to be read of it may have been asked for only now
        else:
            yield from islice(read, self.part.count(number))
        del self._begun[number]

    def begun(self, number: int) -> Path:
        """The file that becomes a shard's pixels."""
        if number not in self._begun:
            self._begun[number] = self.shards.begin(number)
        return self._begun[number]

    def _to_read(self, numbers: Iterable[int]) -> Iterator[Placed | Later]:
        size = self._slot_size
        for number in numbers:
            while number in self.kept and number not in self._open and len(self._open) >= KEPT_AHEAD:
                yield LATER
            sources = self.part.sources(number)
            for place in self._kept(number).again if number in self.kept else range(len(sources)):
                yield Placed(sources[place], Slot(str(self.begun(number)), place * size, size))

    def _kept(self, number: int) -> KeptRows:
        if number not in self._open:
            self._open[number] = KeptRows(self.shards, number)
        return self._open[number]


def _scratch(out: Path, which: int, of: int) -> Path:
    return out / SCRATCH.format(which + 1, of)


def _counting(rows, bar, on_row):
    counts = Counter()
    for row in rows:
        counts[row.status] += 1
        bar.update()
        bar.set_postfix(counts, refresh=False)
        if on_row:
            on_row(row)
        yield row


def _names(out: Path) -> list[str]:
    """What may be written over or removed, the scratch folders of all parts among it."""
    return [*FILES, *sorted(path.name for path in out.glob(SCRATCH.format("*", "*")))]


def _is_begun(out: Path) -> bool:
    """Whether the folder holds a data set (releases before left no mark); that it is sound :func:`_settings` sees."""
    return (out / SETTINGS).exists()


def _settings(out: Path, config: PrepareConfig) -> dict:
    """What is written down of the configuration; refused if the data set was begun otherwise."""
    given = [escaped(str(source)) for source in config.sources]
    settings = {"format": FORMAT, "format_version": FORMAT_VERSION, "recipe": config.recipe(), "sources": given}
    if (out / SETTINGS).exists():
        found = read_settings(out)
        if found.get("cache"):
            raise ConfigError(f"out: {out} is the cache of a training run; choose another folder")
        if found.get("chunks"):
            raise ConfigError(f"out: {out} holds chunks that hdxray-fast stream wrote; choose another folder")
        differing = [
            f"{'img_size' if name == 'size' else name}: {found['recipe'].get(name)!r} -> {value!r}"
            for name, value in settings["recipe"].items()
            if found["recipe"].get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"out: {out} was begun with other settings ({'; '.join(differing)}); use the same ones, or choose "
                "another folder"
            )
        new = [source for source in given if source not in found.get("sources", [])]
        if new and not config.add:
            raise ConfigError(
                f"sources: {out} was begun without {', '.join(new)}; --add takes them in, or choose another folder"
            )
        settings["sources"] = [*found.get("sources", []), *new]
    return settings


def _begin(out: Path, config: PrepareConfig, found: Listing | None) -> bytes:
    """Have the list of sources, as it was when the data set was begun, and with what was found to add; gives the
    patients' key."""
    settings = _settings(out, config)  # again: another machine may have begun it meanwhile
    if found is None and not (out / SOURCES).exists():
        found = _list(out, config)
    claim_names(out, MAKER, _names(out), _is_begun(out))
    make_folder(out / "shards")
    key = _patient_key(out, config)
    if found is not None:
        sources, skipped = found
        known = read_sources(out)
        names = {source.name for source in known}
        added = [
            replace(source, patient=patient_hash(key, source.patient)) if source.patient else source
            for source in sources
            if source.name not in names
        ]
        write_rows(out / SKIPPED, ("source",), ([name] for name in dict.fromkeys(read_skipped(out) + skipped)))
        if added:
            write_sources(out, known + added)
    if found is not None or not (out / SETTINGS).exists():  # killed between the two
        write_json(out / SETTINGS, settings)
    return key


def _list(out: Path, config: PrepareConfig) -> Listing:
    """What the configuration's sources hold now, and what was left out for its suffix."""
    left_out: list[str] = []
    sources = list_sources(
        config.sources, config.images, exclude=(out,), on_skip=left_out.append,
        image_column=config.image_column, patient_column=config.patient_column,
        workers=worker_count(config.workers), timeout=config.timeout, max_memory=config.max_memory,
        max_members=config.max_members,
    )  # fmt: skip
    return sources, [name for name in left_out if not name.endswith(KEY)]


def _remove_empty(out: Path) -> None:
    """Remove a folder that was made for a data set, if nothing came of it."""
    with suppress(OSError):
        if os.listdir(out) == [BEGIN_LOCK]:
            (out / BEGIN_LOCK).unlink()
            out.rmdir()


def _patient_key(out: Path, config: PrepareConfig) -> bytes:
    """The secret of the patients' hashes; without it nobody can try ids against them."""
    path = find_key(out, config.patient_key)
    if not os.path.lexists(path) and not config.patient_key:
        if (out / SOURCES).exists():  # another key would make two patients of one
            raise ConfigError(
                f"patient_key: {out} was begun with a key, which is neither {path} nor {out / KEY}; fetch it from "
                "where the data set was made, or name it with patient_key"
            )
        make_key(path)
    return read_key(path)
