"""Parquet files that are far larger in memory than on the disk: refused before they are."""

from __future__ import annotations

import io
import os
import threading

import numpy as np
import pytest
from caps import limits

import hdxray_fast as hx
from hdxray_fast import parquet_files
from hdxray_fast.errors import NotAFileError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from hdxray_fast.features.feature_table import read_features  # noqa: E402
from hdxray_fast.parquet_files import count_rows, open_parquet, read_parquet  # noqa: E402


def repeated(count: int, word: str):
    return pa.table({"path": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([word]))})


def test_tables_are_read_as_pyarrow_reads_them(tmp_path):
    table = pa.table(
        {
            "path": pa.array(["a", None, "b"]),
            "data": pa.array([b"\xff", b"", None]),
            "flags": pa.array([["x", "y"], [], None]),
            "feature": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        },
        metadata={"format": "mine"},
    )
    pq.write_table(table, tmp_path / "some.parquet")
    found = read_parquet(tmp_path / "some.parquet")
    theirs = pq.read_table(tmp_path / "some.parquet")
    assert found.equals(theirs) and found.schema.equals(theirs.schema, check_metadata=True)
    assert read_parquet(tmp_path / "some.parquet", ["flags", "path"]).equals(theirs.select(["flags", "path"]))
    assert count_rows(tmp_path / "some.parquet") == 3
    with pytest.raises(pa.ArrowInvalid, match="no column gone"):
        read_parquet(tmp_path / "some.parquet", ["gone"])


PACKED = {"use_dictionary": False, "compression": "zstd", "write_statistics": False}


@pytest.mark.parametrize(
    ("table", "options", "what"),
    [
        (lambda: repeated(8192, "x" * (1 << 20)), {}, "text"),  # 530 bytes for 8 GiB
        (lambda: repeated(1 << 22, "x"), {}, "rows"),
        (lambda: pa.table({"path": pa.nulls(1 << 22, pa.string())}), {}, "rows"),
        (lambda: pa.table({"path": ["x" * (300 << 20)]}), PACKED, "bytes"),
        (lambda: pa.table({"path": pa.nulls(1 << 13, pa.binary(1 << 16))}), {}, "bytes"),  # 411 bytes for 512 MiB
        (lambda: pa.table({f"c{number}": ["x"] for number in range(2000)}), {}, "columns"),
    ],
)
def test_what_unpacks_to_far_more_than_it_holds(tmp_path, table, options, what):
    path = tmp_path / "features.parquet"
    pq.write_table(table(), path, **options)
    assert path.stat().st_size < 1 << 20
    with limits(), pytest.raises(NotAFileError, match=f"has more {what} than any table of"):
        read_parquet(path)
    rows = table()
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(rows), np.float32)), 1)
    pq.write_table(rows.append_column("feature", features), path, **options)
    with limits(), pytest.raises(hx.ConfigError, match=f"features.parquet: cannot be read as Parquet .has more {what}"):
        read_features(path)


def test_by_row_groups_texts_are_counted_together(tmp_path):
    """Each table is small; all of them are more than any file of this size holds."""
    path = tmp_path / "some.parquet"
    pq.write_table(repeated(8192, "x" * (1 << 20)), path, row_group_size=1024)
    with limits(), open_parquet(path) as file:
        assert file.schema.field("path").type == pa.string() and file.metadata.num_row_groups == 8
        groups = file.batches(16, range(8), ["path"])  # 16 MiB each
        assert [len(next(groups)) for _ in range(16)] == [16] * 16
        with pytest.raises(NotAFileError, match="has more text than any table of"):
            list(groups)


def test_names_of_any_bytes(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet")
    table = pa.table({"path": ["a", "b", "a"], "number": [1, 2, 3]})
    with open(path, "wb") as stream:
        pq.write_table(table, stream, row_group_size=2)
    assert read_parquet(path).equals(table) and count_rows(path) == 3
    with open_parquet(path, page_checksum_verification=True) as file:
        assert [rows.to_pydict() for rows in file.batches(1, [1], ["path"])] == [{"path": ["a"]}]


def test_files_are_read_by_the_thread_that_asks(tmp_path, monkeypatch):
    """A thread of pyarrow's that held a buffer of Python's when the process ended would abort it."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"name": [str(n) for n in range(1000)], "value": range(1000)}), path, row_group_size=100)
    readers = set()

    class Watched(io.FileIO):
        def readinto(self, buffer):
            readers.add(threading.get_ident())
            return super().readinto(buffer)

        def read(self, size=-1):
            readers.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr(parquet_files, "open_regular", Watched)
    with open_parquet(path) as file:
        assert file.read().num_rows == 1000
        assert sum(part.num_rows for part in file.batches(50, range(10), ["value"])) == 1000
    assert readers == {threading.get_ident()}
