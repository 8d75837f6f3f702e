"""What steps on a large data set cost, in counts that hold on any machine: entries read, shards opened, rows held."""

import csv
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from prepared_helpers import contents, make_folder, prepare
from toy_radiographs import draw_radiograph

from hdxray_fast.classify.data import SetAside
from hdxray_fast.data.listing import image_names, list_images
from hdxray_fast.data.prepared import index, index_files, run, worker
from hdxray_fast.data.prepared.index import merge
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.prepared.shards import ShardFolder, arrow, write_lookup
from hdxray_fast.data.prepared.source_list import PartOfSources, read_sources, write_sources
from hdxray_fast.data.prepared.sources import Source, list_sources
from hdxray_fast.data.quarantine import write_quarantine
from hdxray_fast.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
IMAGES, SHARD = 100, 16


@pytest.fixture
def large(tmp_path):
    """All shards of a set of 100 synthetic images, not merged yet, and the settings it was begun with."""
    if not (BENCHMARKS / "harness").exists():
        pytest.skip("needs the project's benchmarks beside the tests")
    sys.path.insert(0, str(BENCHMARKS))
    from harness.synthetic_set import make_set

    return make_set(tmp_path / "set", tmp_path / "tree", IMAGES, img_size=64, shard_size=SHARD)


@pytest.fixture
def no_pictures(monkeypatch):
    """Merging in a tenth of the time."""

    def write(out: Path, *about: object) -> list:
        for name in ("summary.png", "contacts.png"):
            (out / name).write_bytes(b"")
        return []

    monkeypatch.setattr(index, "write_pictures", write)


@pytest.fixture
def counted(monkeypatch):
    """How often things are called."""
    calls: Counter = Counter()

    def count(owner, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args, **options):
            calls[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    calls.of = count
    return calls


def change_a_shard(out: Path) -> None:
    """Give an image the pixels of another."""
    pa, path = arrow(), ShardFolder(out / "shards").facts(2)
    rows = pa.parquet.read_table(path)
    facts = rows.to_pylist()
    facts[3]["pixel_sha256"] = facts[1]["pixel_sha256"]
    pa.parquet.write_table(pa.Table.from_pylist(facts, schema=rows.schema), path)


def test_a_folder_is_asked_for_its_entries_and_nothing_else(tmp_path, counted):
    for number in range(50):
        (tmp_path / "tree" / f"{number}" / "deep").mkdir(parents=True)
        for place in (f"{number}/a.png", f"{number}/deep/b.png", f"{number}/a.b.png", f"{number}/notes.txt"):
            (tmp_path / "tree" / place).touch()
    for name in ("stat", "lstat", "scandir"):
        counted.of(os, name)
    found = list_sources([tmp_path / "tree"])
    assert len(found) == 150 and counted["scandir"] == 101
    assert counted["stat"] + counted["lstat"] < 50  # of the root and those above it
    assert [Path(one.path) for one in found] == sorted(Path(one.path) for one in found)


def test_names_below_the_working_folder_are_what_paths_are_called(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "b.png").touch()
    monkeypatch.chdir(tmp_path)
    assert image_names(Path(".")) == ["b.png", "sub/a.png"] == [str(path) for path in list_images(".")]


def test_a_manifest_is_parsed_once_and_the_last_row_tells_the_patient(tmp_path, counted):
    (tmp_path / "list.csv").write_text("image,patient\na.png,7\nb.png,\na.png,8\n")
    (tmp_path / "a.png").touch()  # a list none of whose files is there is refused
    counted.of(csv, "DictReader")
    found = list_sources([tmp_path / "list.csv"])
    assert [(Path(one.path).name, one.patient) for one in found] == [("a.png", "8"), ("b.png", "")]
    assert counted["DictReader"] == 1


def test_the_sources_are_listed_by_the_part_that_comes_first(tmp_path, counted):
    make_folder(tmp_path / "xrays")
    counted.of(run, "list_sources")
    prepare([tmp_path / "xrays"], tmp_path / "set", part="2/2")
    assert prepare([tmp_path / "xrays"], tmp_path / "set", part="1/2").summary["images"] == 6
    assert counted["list_sources"] == 1


def test_refused_sources_leave_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("gone", "empty"):
        with pytest.raises(ConfigError, match=r"^sources: "):
            prepare([tmp_path / source], tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_part_reads_the_rows_of_its_own_shards(tmp_path):
    every = [Source(f"/xrays/{n}.zip", f"{n}", offset=n) for n in range(103)]
    write_sources(tmp_path, every)
    assert read_sources(tmp_path) == every
    found = {}
    for which in range(3):
        part = PartOfSources(tmp_path, 10, which, 3)
        found |= {number: part.sources(number) for number in part.numbers}
        assert len(part._rows) == sum(map(part.count, part.numbers)) <= 40
    assert [one for number in sorted(found) for one in found[number]] == every


def test_a_merge_holds_a_group_of_rows_and_opens_each_shard_once(large, tmp_path, monkeypatch, counted):
    out, pa = tmp_path / "set", arrow()
    monkeypatch.setattr(index_files, "LOOKUP_ROWS", 32)
    counted.of(ShardFolder, "read_facts")
    held = []
    concatenate = pa.concat_tables

    def noted(tables, *args, **options):
        table = concatenate(tables, *args, **options)
        if "thumbnail" in table.column_names:
            held.append(len(table))
        return table

    monkeypatch.setattr(pa, "concat_tables", noted)
    summary = merge(out)
    monkeypatch.undo()
    assert counted["read_facts"] == -(-IMAGES // SHARD) and max(held) == 32 and sum(held) == summary["images"]
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    shards = ShardFolder(out / "shards")
    table = pa.concat_tables([shards.read_facts(n) for n in range(-(-IMAGES // SHARD))])
    good = table.filter(pa.compute.equal(table.column("status"), "ok")).drop_columns(["status", "reason", "left_out"])
    file = pa.parquet.ParquetFile(out / "index.parquet")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert file.read().equals(good) and set(groups[:-1]) == {32}
    looked_up = pa.ipc.open_file(pa.memory_map(str(out / "lookup.arrow"))).read_all()
    write_lookup(good, tmp_path / "whole.arrow")
    assert looked_up.equals(pa.ipc.open_file(pa.memory_map(str(tmp_path / "whole.arrow"))).read_all())


def test_small_sets_are_the_bytes_of_one_write(large, tmp_path):
    out, pa = tmp_path / "set", arrow()
    merge(out)
    tables = [ShardFolder(out / "shards").read_facts(n) for n in range(-(-IMAGES // SHARD))]
    table = pa.concat_tables(tables)
    good = table.filter(pa.compute.equal(table.column("status"), "ok"))
    good = good.filter(pa.array(np.ones(len(good), bool))).drop_columns(["status", "reason", "left_out"])
    pa.parquet.write_table(good, tmp_path / "index.parquet")
    write_lookup(good, tmp_path / "lookup.arrow")
    for name in ("index.parquet", "lookup.arrow"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_rerun_opens_each_shard_once_and_merges_only_what_is_not_merged(large, tmp_path, counted, no_pictures):
    out = tmp_path / "set"
    first = run.run_prepare(large, progress=False).summary
    before = contents(out)
    for owner, name in ((ShardFolder, "read_facts"), (index, "_merge"), (PartOfSources, "sources")):
        counted.of(owner, name)
    result = run.run_prepare(large, progress=False)
    assert result.summary == first and result.counts == {"ok": IMAGES} and not result.made
    assert counted == {"read_facts": -(-IMAGES // SHARD)}
    (out / "index.parquet").unlink()
    assert run.run_prepare(large, progress=False).summary == first and counted["_merge"] == 1
    assert contents(out) == before
    change_a_shard(out)
    assert run.run_prepare(large, progress=False).summary["images"] == IMAGES - 1 and counted["_merge"] == 2


class Killed(BaseException):
    """As if the process ended here."""


def test_a_merge_killed_at_any_file_leaves_a_whole_set_or_one_to_be_merged(large, tmp_path, no_pictures):
    out, work = tmp_path / "set", tmp_path / "work"
    merge(out)
    change_a_shard(out)
    shutil.copytree(out, tmp_path / "calm")
    merge(tmp_path / "calm")
    wanted = contents(tmp_path / "calm")
    replace, states = Path.replace, []
    for last in range(20):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(out, work)
        left = [last]

        def counting(path, target, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return replace(path, target)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Path, "replace", counting)
            try:
                merge(work)
                break
            except Killed:
                pass
        try:
            images = PreparedSet(work)
            states.append(len(images))
            assert len(images) == len(images.index) and images.index.column("offset").equals(images.column("offset"))
        except ConfigError as error:
            states.append(str(error).partition("merge")[1])
        (work / ".index.parquet.77.0123456789abcdef.tmp").touch()  # what a process leaves that ends by a signal
        prepared = merge(work, again=False)
        assert not list(work.glob(".*.tmp"))
        assert prepared["images"] == IMAGES - 1 and contents(work) == wanted
    assert {"merge", IMAGES - 1} == set(states) and len(states) == 7


def test_a_retry_reads_what_could_not_be_read_or_is_damaged_and_copies_the_rest(tmp_path, counted):
    folder = make_folder(tmp_path / "xrays")
    prepare([folder], tmp_path / "set")
    cv2.imwrite(str(folder / "cut.png"), draw_radiograph(99))
    cv2.imwrite(str(folder / "text.jpg"), draw_radiograph(98))
    shards = ShardFolder(tmp_path / "set" / "shards")
    number = next(n for n in range(3) if shards.outcome(n, (4, 4, 1)[n]).unreadable)
    damaged = bytearray(shards.pixels(number).read_bytes())
    damaged[7] ^= 1
    shards.pixels(number).write_bytes(damaged)
    for owner, name in ((worker, "read"), (run, "KeptRows")):
        counted.of(owner, name)
    again = prepare([folder], tmp_path / "set", retry=True)
    assert again.counts == {"ok": 9} and again.made == 2 and not again.unreadable
    assert counted["read"] == 3 and counted["KeptRows"] == 2
    prepare([folder], tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "set")


def test_a_file_that_is_set_aside_is_added_to_the_list(tmp_path):
    rows = [(f"=damaged-{n}.png", "ImageReadError", "cannot be decoded") for n in range(4)]
    listed = tmp_path / "quarantine.csv"
    listed.write_text("of a run that was killed")
    aside = SetAside(listed, 10, 0.5)
    aside.add(rows[:1])
    before = listed.stat().st_ino
    for row in rows[1:]:
        aside.add([row, rows[0]])
    assert listed.stat().st_ino == before and aside.rows == rows
    write_quarantine(tmp_path / "whole.csv", rows)
    assert listed.read_bytes() == (tmp_path / "whole.csv").read_bytes()
