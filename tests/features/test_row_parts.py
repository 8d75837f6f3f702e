"""Rows on the disk while they are made: order, shares, other settings, what lies there from before."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hdxray_fast as hx
from hdxray_fast import parquet_files
from hdxray_fast.data.quarantine import Quarantined
from hdxray_fast.features import row_parts
from hdxray_fast.features.embedding import Embeddings
from hdxray_fast.features.feature_table import FeatureTable, read_features
from hdxray_fast.features.parts_folder import PartsFolder
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


def test_a_table_is_opened_once_however_many_rows_are_read_of_it(tmp_path, monkeypatch):
    """Each opening goes through what the file says of all its row groups."""
    monkeypatch.setattr(row_parts, "GROUP", 4)
    out = tmp_path / "f.parquet"
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        add(table, [], bad=[90])  # parts without a row have no row group
        add(table, range(80))
        add(table, [], bad=[91])
        add(table, [80])
        finish(table, names(range(81)))
    opened, whole = [], parquet_files.open_parquet
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        add(table, [81, 82, 83, 84, 85])
        noted = lambda path, **more: opened.append(path) or whole(path, **more)  # noqa: E731
        monkeypatch.setattr(parquet_files, "open_parquet", noted)
        tables = list(table.read(table.numbers(names(range(86)))))
        assert opened == [out, table.folder / "1-of-1.00000000.parquet"]
        assert [path for some in tables for path in some.column("path").to_pylist()] == names(range(86))


def test_rows_from_before_there_were_views_go_on(tmp_path):
    """In parts and in tables; what was lateral is so no more when its file is another."""
    out = tmp_path / "f.parquet"
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        add(table, [0, 1])
        part = table.folder / "1-of-1.00000000.parquet"
    parquet.write_table(parquet.read_table(part).drop_columns("view"), part)
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        rows = some([2, 3])
        rows.views = ["lateral", "frontal"]
        table.append(rows, {name: Stamp(1, 1) for name in rows.sources})
        finish(table, names(range(4)))
    assert read_features(out)["view"] == [None, None, "lateral", "frontal"]
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        assert table.not_frontal == {"2.png": "lateral"}
        add(table, [2], stamp=2)
        assert not table.not_frontal
        finish(table, names(range(4)))
    assert read_features(out)["view"] == [None, None, "", "frontal"]
    parquet.write_table(parquet.read_table(out).drop_columns("view"), out)
    with FeatureTable(out, {"a": 1}, WIDTH) as table:
        assert len(table) == 4 and not table.not_frontal
        finish(table, names(range(4)))
    assert read_features(out)["view"] == [None] * 4


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


def test_of_shares_that_end_together_one_joins_and_the_others_know(tmp_path):
    count, done = 4, []
    together = threading.Barrier(count)

    def end(folder: Path, which: int) -> list[int] | None:
        place = PartsFolder(folder, Share(which, count))
        place.hold()
        place.part(0).write_bytes(b"x")
        place.end_share("plan")
        together.wait(30)
        return place.joined("plan", lambda: (time.sleep(0.02), done.append(len(place.parts()))))

    with ThreadPoolExecutor(count) as pool:
        for turn in range(10):
            done.clear()
            told = list(pool.map(end, [tmp_path / f"{turn}.parts"] * count, range(count)))
            assert sorted(told, key=lambda one: one is None) == [[], [], [], None] and done == [count]
            assert not list(tmp_path.iterdir())


def test_shares_with_nothing_left_to_make_end_as_others_do(tmp_path):
    files = names(range(4))
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        add(table, range(4))
        finish(table, files)
    for which, left in enumerate(([2], None)):
        with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(which, 2)) as table:
            plan = table.plan(files, 1)
            table.end_share(plan)
            assert table.joined(plan, files, lambda: None) == left
    assert not table.folder.exists()


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


def begun(tmp_path, count: int = 3) -> Path:
    """A part for each of some rows, in a folder that was left by a kill."""
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        for number in range(count):
            add(table, [number])
    return table.folder


def truncated(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])


def overwritten(part: Path) -> None:
    part.write_text("no Parquet")


def flipped(part: Path) -> None:
    """One bit of a feature, which nothing but a checksum tells."""
    content = bytearray(part.read_bytes())
    content[content.index(np.full(WIDTH, 1, "<f4").tobytes())] ^= 1
    part.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, overwritten, flipped])
def test_a_damaged_part_is_made_again(damage, tmp_path):
    damage(sorted(begun(tmp_path).glob("*.parquet"))[1])
    with pytest.warns(UserWarning, match=r"1-of-1\.00000001\.parquet: is damaged .*; its rows are made again"):
        table = FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)
    with table:
        assert [table.holds(name, Stamp(1, 1)) for name in names(range(3))] == [True, False, True]
        add(table, [1])
        finish(table, names(range(3)))
    assert read_features(table.out)["feature"][:, 0].tolist() == [0, 1, 2] and not table.folder.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["1-of-1.00000001.parquet", "1-of-1.done", "2-of-2.done"])
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    place = begun(tmp_path, 1)
    os.mkfifo(place / name)

    def goes_on() -> None:
        with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(0, int(name[5]))) as table:
            table.missing("")

    with pytest.raises(hx.ConfigError, match=f"{name} cannot be read .*is a pipe"):
        goes_on()
    assert (place / name).exists()


def test_somebody_elses_folder_is_refused_and_its_files_stay(tmp_path):
    place = tmp_path / "f.parquet.parts"
    place.mkdir()
    for name in ("1-of-1.00000000.parquet", "00000000.parquet", "1-of-1.done", "join.lock"):
        (place / name).write_text("somebody's")
        with pytest.raises(hx.ConfigError, match=f"{name} would be written over, and nothing says that"):
            FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)
        assert [path.name for path in place.iterdir()] == [name] and (place / name).read_text() == "somebody's"
        (place / name).unlink()
    for name in ("notes.txt", "other.parquet", "1-of-1.x.parquet", "other.lock"):
        (place / name).write_text("somebody's")
    with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH) as table:
        add(table, [0])
        finish(table, names([0]))
    assert {path.name: path.read_text() for path in place.iterdir()} == dict.fromkeys(
        ("notes.txt", "other.parquet", "1-of-1.x.parquet", "other.lock"), "somebody's"
    )


def test_a_table_of_others_is_refused_and_nothing_is_left_beside_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "f.parquet")
    with pytest.raises(hx.ConfigError, match="holds rows made with something else"):
        FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]


def test_parts_of_other_settings_are_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(hx.ConfigError, match=r"holds rows made with other settings \(a: 1 -> 2\)"):
        FeatureTable(tmp_path / "f.parquet", {"a": 2}, WIDTH)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"weights": "b"}, r"other weights, most likely those of the encoder that came with an earlier version"),
        ({"weights": "b", "shipped": "tiny"}, r"other weights, those of the encoder that came with an earlier version"),
        ({"weights": "b", "encoder": {"depth": 12}}, r"other weights, most likely those of the encoder that came with"),
        ({"weights": "b", "shipped": None}, r"rows made with other settings \(weights\); choose"),
        ({"weights": "b", "shipped": "tiny", "pool": "cls"}, r"other settings \(pool: cls -> None; weights\)"),
    ],
)
def test_features_of_an_earlier_versions_encoder_are_told_and_made_anew(before, told, tmp_path):
    now = {"weights": "a", "shipped": "tiny"} | ({"encoder": {"depth": 8}} if "encoder" in before else {})
    with FeatureTable(tmp_path / "f.parquet", before, WIDTH) as table:
        add(table, [0])
        finish(table, names([0]))
    with pytest.raises(hx.ConfigError, match=told) as refusal:
        FeatureTable(tmp_path / "f.parquet", now, WIDTH)
    if "earlier" in told:  # what it says to do works
        assert f"remove {tmp_path / 'f.parquet'} and give the same command again" in str(refusal.value)
        (tmp_path / "f.parquet").unlink()
        FeatureTable(tmp_path / "f.parquet", now, WIDTH)


def test_rows_from_before_the_packages_encoder_was_told_go_on(tmp_path):
    with FeatureTable(tmp_path / "f.parquet", {"weights": "a"}, WIDTH) as table:
        add(table, [0])
        finish(table, names([0]))
    assert len(FeatureTable(tmp_path / "f.parquet", {"weights": "a", "shipped": "tiny"}, WIDTH)) == 1


def test_a_share_that_ended_without_its_parts_is_told_of(tmp_path):
    files = names(range(4))
    first = FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(0, 2))
    with first:
        add(first, [0, 2])
        first.end_share(first.plan(files, 1))
    next(first.folder.glob("1-of-2.*.parquet")).unlink()
    second = FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(1, 2))
    plan = second.plan(files, 1)
    with second:
        add(second, [1, 3])
        second.end_share(plan)
        with pytest.raises(hx.ConfigError, match=r"2 files have no rows, such as 0\.png: parts in .* were removed"):
            second.join(plan, files, lambda: pytest.fail("rows are missing"))
    with first:
        assert first.missing(plan) == [1]  # it has begun again


def test_the_latest_row_counts_whichever_share_wrote_it(tmp_path):
    """Shares may be cut otherwise after a kill, and a file may have changed meanwhile."""
    for number, which in enumerate((1, 0)):
        with FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH, share=Share(which, 2)) as table:
            add(table, [0], stamp=number + 1)
        part = next(table.folder.glob(f"{which + 1}-of-2.*.parquet"))
        os.utime(part, ns=(number, number))
    table = FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)
    assert table.holds("0.png", Stamp(1, 2))


def test_what_cannot_be_read_is_tried_again_once_all_files_have_been(tmp_path):
    """Else a run that is refused for too many of them would be for ever, whatever time or memory it gave them."""

    def opened() -> FeatureTable:
        return FeatureTable(tmp_path / "f.parquet", {"a": 1}, WIDTH)

    with opened() as table:
        add(table, [0], bad=[1])
    with opened() as table:
        assert table.holds("1.png", Stamp(1, 1))
        table.end_share(table.plan(names([0, 1]), 1))
    with opened() as table:
        assert table.holds("0.png", Stamp(1, 1)) and not table.holds("1.png", Stamp(1, 1))
