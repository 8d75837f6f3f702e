"""Parquet files that are far larger in memory than on the disk: refused before they are."""

from __future__ import annotations

import numpy as np
import pytest
from caps import limits

import hdxray_fast as hx
from hdxray_fast.errors import NotAFileError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from hdxray_fast.features.feature_table import read_features  # noqa: E402
from hdxray_fast.parquet_files import count_rows, read_parquet  # noqa: E402


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


@pytest.mark.parametrize(
    ("table", "options", "what"),
    [
        (lambda: repeated(8192, "x" * (1 << 20)), {}, "text"),  # 530 bytes for 8 GiB
        (lambda: repeated(1 << 22, "x"), {}, "rows"),
        (lambda: pa.table({"path": pa.nulls(1 << 22, pa.string())}), {}, "rows"),
        (lambda: pa.table({"path": ["x" * (300 << 20)]}), {"use_dictionary": False, "compression": "zstd"}, "bytes"),
        (lambda: pa.table({f"c{number}": ["x"] for number in range(2000)}), {}, "columns"),
    ],
)
def test_what_unpacks_to_far_more_than_it_holds(tmp_path, table, options, what):
    path = tmp_path / "features.parquet"
    pq.write_table(table(), path, **options)
    assert path.stat().st_size < 1 << 20
    with limits(), pytest.raises(NotAFileError, match=f"has more {what} than any table of"):
        read_parquet(path)
    with limits(), pytest.raises(hx.ConfigError, match=f"features.parquet: cannot be read as Parquet .has more {what}"):
        read_features(path)
