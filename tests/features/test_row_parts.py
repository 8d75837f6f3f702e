"""Rows on the disk while they are made: order, shares, other settings, what lies there from before."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast.data.quarantine import Quarantined
from hdxray_fast.features import row_parts
from hdxray_fast.features.embedding import Embeddings
from hdxray_fast.features.feature_table import FeatureTable, read_features
from hdxray_fast.features.row_parts import RowParts
from hdxray_fast.features.shares import Share
from hdxray_fast.features.stamps import Stamp

parquet = pytest.importorskip("pyarrow.parquet")

WIDTH = 3


def some(numbers, bad=()) -> Embeddings:
    """Rows that tell their number."""
    count = len(numbers)
    return Embeddings(
        np.repeat(np.array(numbers, np.float32)[:, None], WIDTH, axis=1).reshape(count, WIDTH),
        [f"{number}.png" for number in numbers],
        np.ones(count, np.float32),
        np.zeros(count, bool),
        [f"hash {number}" for number in numbers],
        np.full(count, 4, np.int32),
        [Quarantined(f"{number}.png", "ImageReadError", "no image") for number in bad],
        np.array(numbers, np.uint8)[:, None, None].repeat(48, 1).repeat(48, 2).reshape(count, 48, 48),
    )


def add(parts: RowParts, numbers, bad=(), stamp: int = 1) -> None:
    parts.append(some(numbers, bad), {f"{n}.png": Stamp(1, stamp) for n in (*numbers, *bad)})


def finish(table: FeatureTable, order, files=None) -> None:
    plan = table.plan(order, 1)
    table.end_share(plan)
    assert table.join(plan, order if files is None else files, lambda: table.finish(order))


def names(numbers) -> list[str]:
    return [f"{number}.png" for number in numbers]


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("most", [1, 1 << 30])
def test_rows_come_in_any_order_that_is_asked_for(pictures, most, tmp_path, monkeypatch):
    """Of many parts and row groups, in memory for few of them; what was one large row group, too."""
    monkeypatch.setattr(row_parts, "GROUP", 4)
    monkeypatch.setattr(row_parts, "MOST_AT_ONCE", most)
    out, order = tmp_path / "f.parquet", list(range(90))
    for turn in range(3):
        random.Random(turn).shuffle(order)
        with FeatureTable(out, {"a": 1}, WIDTH, pictures) as table:
            if turn == 0:
                for first in range(0, 90, 7):
                    add(table, [n for n in range(first, min(90, first + 7)) if n % 10])
            wanted = [n for n in order if n % 10]
            finish(table, names(order), names(wanted))
        found = read_features(out)
        assert found["path"] == names(wanted) and found["feature"][:, 0].tolist() == wanted
        assert found["provenance_id"] == [f"hash {n}" for n in wanted]
        if pictures:
            assert [one[0] for one in found["thumbnail"]] == wanted
        if turn == 0:
            parquet.write_table(parquet.read_table(out), out)
            assert parquet.read_metadata(out).num_row_groups == 1


def test_rows_are_held_a_row_group_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(row_parts, "GROUP", 8)
    out = tmp_path / "f.parquet"
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        for first in range(0, 80, 5):
            add(table, range(first, first + 5))
        finish(table, names(range(80)))
    assert parquet.read_metadata(out).num_row_groups == 10
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        add(table, [80])
        opened, whole = [], parquet.ParquetFile.iter_batches

        def counting(self, size, groups, *more):
            opened.extend(groups)
            return whole(self, size, groups, *more)

        monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counting)
        assert [len(some) for some in table.read(table.numbers(names(range(81))))] == [8] * 10 + [1]
        assert len(opened) == 11  # each row group once


def test_a_table_with_nothing_new_is_not_written(tmp_path):
    out, seen = tmp_path / "f.parquet", set()
    for turn in range(3):
        with FeatureTable(out, {"a": 1}, WIDTH) as table:
            add(table, [] if turn else [0, 1], bad=[2])
            finish(table, names(range(3)))
        seen.add((out.stat().st_mtime_ns, out.stat().st_ino))
        assert "2.png" in table.unreadable.read_text() and not table.folder.exists()
    assert len(seen) == 1


def test_files_that_cannot_be_read_are_noted_beside_the_rows(tmp_path):
    """So that a run that goes on does not wait for them again; one that begins does."""

    def opened():
        return FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)

    with opened() as table:
        add(table, [0], bad=[1])
    with opened() as table:
        assert table.holds("1.png", Stamp(1, 1)) and not table.holds("1.png", Stamp(1, 2))
        assert not table.holds("1.png", None)
        finish(table, names([0, 1]))
    with opened() as table:
        assert table.holds("0.png", Stamp(1, 1)) and not table.holds("1.png", Stamp(1, 1))
        add(table, [], bad=[0], stamp=2)  # it was readable once
    with opened() as table:
        finish(table, names([0]))
    assert read_features(table.out)["path"] == []


def test_shares_are_whole_batches_and_all_of_them_the_whole(monkeypatch):
    files = list(range(31))
    for of, batch in ((1, 4), (3, 4), (4, 1), (40, 2)):
        shares = [Share.of_part(f"{which}/{of}").take(files, batch) for which in range(1, of + 1)]
        assert sorted(file for some in shares for file in some) == files
        assert {tuple(some[i : i + batch]) for some in shares for i in range(0, len(some), batch)} == {
            tuple(files[i : i + batch]) for i in range(0, len(files), batch)
        }
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Share.of_part("2/3") == Share(3, 6, 1, 2)
    for wrong in ("0/2", "3/2", "2", "a/b", "-1/2", "1/0"):
        with pytest.raises(hx.ConfigError, match=r"^part: got "):
            Share.of_part(wrong)


def test_the_last_share_joins_and_another_share_is_no_hindrance(tmp_path):
    out, files = tmp_path / "f.parquet", names(range(6))
    first, second = (FeatureTable(out, {"a": 1}, WIDTH, share=Share(which, 2)) for which in range(2))
    with first, second:
        add(first, [0, 2, 4])
        add(second, [1, 3], bad=[5])
        plan = first.plan(files, 1)
        first.end_share(plan)
        assert not first.join(plan, files, lambda: first.finish(files)) and not out.exists()
        assert first.missing(plan) == [2]
        second.end_share(plan)
        assert second.join(plan, files, lambda: second.finish(files))
    assert read_features(out)["path"] == files[:5] and not second.folder.exists()
    assert "5.png" in second.unreadable.read_text()
    assert not first.join(plan, files, lambda: pytest.fail("it has been joined"))
    assert not first.folder.exists()


def test_shares_of_other_lists_are_not_taken_for_these(tmp_path):
    tables = [FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(which, 2)) for which in range(2)]
    plans = [table.plan(files, 1) for table, files in zip(tables, (names([0]), names([0, 1])), strict=True)]
    for table, plan in zip(tables, plans, strict=True):
        table.end_share(plan)
    assert tables[1].missing(plans[1]) == [1]
    assert tables[0].plan(names([0]), 2) != plans[0]  # batches of another size are dealt out otherwise


def test_a_share_is_written_by_one_process(tmp_path):
    with (
        FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH),
        pytest.raises(hx.ConfigError, match="another process writes part 1-of-1"),
        FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH),
    ):
        pass


def test_what_killed_processes_left_is_removed(tmp_path):
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        add(table, [0])
        left = table.folder / f".x.parquet.{2**22 + 1}.0123456789abcdef.tmp"  # no process has this number
        left.write_bytes(b"half")
        finish(table, names([0]))
    assert not table.folder.exists()


def test_parts_of_earlier_releases_go_on(tmp_path):
    """They had a number for a name, and no list of what could not be read."""
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        add(table, [0, 1])
    (part,) = table.folder.glob("*.parquet")
    rows = parquet.read_table(part)
    rows = rows.replace_schema_metadata({row_parts.SETTINGS_KEY: rows.schema.metadata[row_parts.SETTINGS_KEY]})
    parquet.write_table(rows, table.folder / "00000000.parquet")
    part.unlink()
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        assert table.holds("1.png", Stamp(1, 1))
        add(table, [2])
        finish(table, names(range(3)))
    assert read_features(table.out)["path"] == names(range(3))


def test_names_of_any_bytes(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    with RowParts(Path(tmp_path / "parts"), {"a": 1}, WIDTH) as parts:
        rows = some([0])
        rows.sources, rows.quarantined = [odd], [Quarantined(odd + "x", "ImageReadError", f"{odd}: no image")]
        parts.append(rows, {odd: Stamp(1, 1)})
    again = RowParts(parts.folder, {"a": 1}, WIDTH)
    assert again.holds(odd, Stamp(1, 1)) and again.bad[odd + "x"][0] == rows.quarantined[0]
