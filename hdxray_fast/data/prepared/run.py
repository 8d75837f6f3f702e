"""``hdxray-fast prepare``: which shards are to be made, made, and joined into one data set."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path

from ...errors import ConfigError
from ...files import claim_names, make_folder, refuse_foreign, remove_leftovers, written_whole
from ...locks import locked
from ...names import escaped, require_utf8, unescaped
from ...regular_files import check_regular, reason_of
from ...terminal import visible
from ..reader_pool import worker_count
from .config import PrepareConfig
from .index import MERGED, SKIPPED, merge, read_skipped, write_rows
from .patient_key import KEY, find_key, make_key, read_key
from .pool import prepared_rows
from .shards import FORMAT, FORMAT_VERSION, ShardFolder, arrow, read_json, write_json, writing
from .sources import Source, list_sources
from .worker import UNREADABLE, Row, patient_hash

SETTINGS, SOURCES, MAKER = "settings.json", "sources.parquet", "prepare"
FILES = (SETTINGS, SOURCES, "shards", *MERGED)
SCRATCH = ".unpacked-{}-of-{}"  # a folder of each part
COLUMNS = tuple(column.name for column in fields(Source))  # of sources.parquet
REQUIRED = ("path", "member", "patient", "offset", "size")  # those that the first of its version has


@dataclass
class PrepareResult:
    """What a preparation did.

    Attributes:
        out: folder of the data set.
        key: file of the secret that its patients' ids are hashed with.
        counts: sources of this part by ``"ok"``, ``"unreadable"`` and ``"filtered"``, those of earlier runs included.
        made: shards made now; found: shards that were there.
        unreadable: source and reason of those of ``counts``.
        summary: of the whole data set, if all its shards are there (see :func:`hdxray_fast.data.prepared.index.merge`).
    """

    out: Path
    key: Path
    counts: Counter = field(default_factory=Counter)
    made: int = 0
    found: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    summary: dict | None = None


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
    listing = _look(out, config)
    make_folder(out)
    with writing(out):
        return _run(out, config, listing, progress, on_row)


@dataclass
class Listing:
    """What the configuration's sources hold now, and what was left out for its suffix."""

    sources: list[Source] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def _look(out: Path, config: PrepareConfig) -> Listing:
    """Everything that can be refused, before anything is written; empty if the data set's own list holds."""
    for source in map(Path, config.sources):
        if source.is_dir() and source.resolve() == out.resolve():
            raise ConfigError(f"out: {out} is a source itself; choose another folder, inside it or elsewhere")
    _settings(out, config)
    refuse_foreign(out, MAKER, _names(out), _is_begun(out))
    if config.patient_key:
        _patient_key(out, config)
    if (out / SOURCES).exists() and not config.add:
        return Listing()
    listing = Listing()
    listing.sources = list_sources(
        config.sources, config.images, exclude=(out,), on_skip=listing.skipped.append,
        workers=worker_count(config.workers), timeout=config.timeout, max_memory=config.max_memory,
        max_members=config.max_members,
    )  # fmt: skip
    listing.skipped = [name for name in listing.skipped if not name.endswith(KEY)]
    return listing


def _run(
    out: Path, config: PrepareConfig, listing: Listing, progress: bool, on_row: Callable[[Row], None] | None
) -> PrepareResult:
    from tqdm.auto import tqdm

    which, of = config.share()
    with locked(out / ".begin.lock"):  # machines that start together agree on one list
        claim_names(out, MAKER, _names(out), _is_begun(out))
        make_folder(out / "shards")
        key = _patient_key(out, config)
        sources = _begin(out, config, key, listing)
    shards = ShardFolder(out / "shards")
    numbers = range(which, -(-len(sources) // config.shard_size), of)
    result = PrepareResult(out, find_key(out, config.patient_key))

    def refuse() -> None:
        raise ConfigError(f"part: {config.part} of {out} is being prepared by another process")

    with locked(out / f".part-{which + 1}-of-{of}.lock", refuse):
        shards.clean(numbers)
        if of == 1:  # a process of another machine cannot be told from one that was killed
            remove_leftovers(out)
        scratch = out / SCRATCH.format(which + 1, of)
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        chosen = {number: _sources_of(sources, number, config.shard_size) for number in numbers}
        missing = [
            number
            for number in numbers
            if not shards.is_whole(number, len(chosen[number]), without_unreadable=config.retry)
        ]
        result.found = len(numbers) - len(missing)
        total = sum(map(len, chosen.values()))
        bar = tqdm(
            total=total, initial=total - sum(len(chosen[number]) for number in missing), unit="image",
            desc="prepare" if of == 1 else f"prepare {config.part}", disable=not progress, dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 20,  # logs of batch jobs stay short
        )  # fmt: skip
        rows = prepared_rows(
            (source for number in missing for source in chosen[number]),
            config.recipe(),
            key,
            workers=worker_count(config.workers),
            timeout=config.timeout,
            max_memory=config.max_memory,
            max_scratch=config.max_scratch,
            scratch=scratch,
        )
        with bar:
            counted = _counting(rows, bar, on_row)
            for number in missing:
                shards.write(number, islice(counted, len(chosen[number])))
                result.made += 1
        for number in numbers:
            facts = shards.read_facts(number).select(["source", "status", "reason"]).to_pylist()
            result.counts.update(fact["status"] for fact in facts)
            bad = [fact for fact in facts if fact["status"] == UNREADABLE]
            result.unreadable += [(unescaped(fact["source"]), fact["reason"]) for fact in bad]
    total_shards = range(-(-len(sources) // config.shard_size))
    if all(shards.facts(number).exists() for number in total_shards):
        result.summary = merge(out)
    return result


def _counting(rows, bar, on_row):
    counts = Counter()
    for row in rows:
        counts[row.status] += 1
        bar.update()
        bar.set_postfix(counts, refresh=False)
        if on_row:
            on_row(row)
        yield row


def _sources_of(sources: list[Source], number: int, size: int) -> list[Source]:
    return sources[number * size : (number + 1) * size]


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
        found = read_json(out / SETTINGS)
        if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
            raise ConfigError(f"out: {out} is no prepared data set of this version; choose another folder")
        if found.get("cache"):
            raise ConfigError(f"out: {out} is the cache of a training run; choose another folder")
        differing = [
            f"{name}: {found['recipe'].get(name)!r} -> {value!r}"
            for name, value in settings["recipe"].items()
            if found["recipe"].get(name) != value
        ]
        if differing:
            raise ConfigError(
                f"out: {out} was begun with other settings ({'; '.join(differing)}); use the same ones, or choose "
                "another folder"
            )
        new = [source for source in given if source not in found["sources"]]
        if new and not config.add:
            raise ConfigError(
                f"sources: {out} was begun without {', '.join(new)}; --add takes them in, or choose another folder"
            )
        settings["sources"] = found["sources"] + new
    return settings


def _begin(out: Path, config: PrepareConfig, key: bytes, listing: Listing) -> list[Source]:
    """The list of sources, as it was when the data set was begun (and added to since)."""
    settings = _settings(out, config)  # again: another machine may have begun it meanwhile
    known = _read_sources(out)
    if known and not config.add:
        if not (out / SETTINGS).exists():  # killed between the two
            write_json(out / SETTINGS, settings)
        return known
    names = {source.name for source in known}
    added = [
        replace(source, patient=patient_hash(key, source.patient))
        for source in listing.sources
        if source.name not in names
    ]
    skipped = dict.fromkeys(read_skipped(out) + listing.skipped)
    write_rows(out / SKIPPED, ("source",), ([name] for name in skipped))
    if added:
        _write_sources(out, known + added)
    write_json(out / SETTINGS, settings)
    return known + added


def _read_sources(out: Path) -> list[Source]:
    if not (out / SOURCES).exists():
        return []
    pa = arrow()
    try:
        check_regular(out / SOURCES)
        table = pa.parquet.read_table(out / SOURCES)
        names = [name for name in COLUMNS if name in (*table.column_names, *REQUIRED)]  # earlier ones have fewer
        rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        found = [Source(**dict(zip(names, values, strict=True))) for values in rows]
        return [replace(one, path=unescaped(one.path), member=unescaped(one.member)) for one in found]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"out: {out / SOURCES} is damaged ({reason_of(error)}); choose another folder") from error


def _write_sources(out: Path, sources: list[Source]) -> None:
    pa = arrow()
    named = [
        replace(one, path=escaped(one.path), member=escaped(one.member), refused=visible(one.refused))
        for one in sources
    ]
    columns = {name: [getattr(source, name) for source in named] for name in COLUMNS}
    with written_whole(out / SOURCES) as temporary:
        pa.parquet.write_table(pa.table(columns), temporary)


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
