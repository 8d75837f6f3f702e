"""Packed tables of labels and of reports: read as plain ones, and refused where they unpack to too much."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

import hdxray_fast as hx
from hdxray_fast import packed_tables
from hdxray_fast.classify.label_csv import read_csv
from hdxray_fast.reports.csv_rows import read_rows

pytest.importorskip("pandas")


def zipped(data: bytes, names=("table.csv",)) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return stream.getvalue()


PACK = {"gz": gzip.compress, "GZ": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}
TABLE = "\ufeffimage,sick\na.png,1\nb.png,0\n".encode()


@pytest.mark.parametrize("read", [read_csv, read_rows])
@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_table_is_read_and_has_a_cap(tmp_path, monkeypatch, suffix, read):
    path = tmp_path / f"table.csv.{suffix}"
    path.write_bytes(PACK[suffix](TABLE))
    found = read(path)
    rows = found if isinstance(found, list) else found.to_dict("records")
    assert rows == [{"image": "a.png", "sick": "1"}, {"image": "b.png", "sick": "0"}]
    monkeypatch.setattr(packed_tables, "UNPACKED", 1 << 16)
    path.write_bytes(PACK[suffix](TABLE + b"a.png,1\n" * 50_000))
    with pytest.raises(hx.ConfigError, match=r"table\.csv\..*unpacks to more than 0 MiB"):
        read(path)


@pytest.mark.parametrize("read", [read_csv, read_rows])
@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_table_that_is_damaged(tmp_path, suffix, read):
    path = tmp_path / f"table.csv.{suffix}"
    for data in (b"image,sick\n", PACK[suffix](TABLE)[:-6]):
        path.write_bytes(data)
        with pytest.raises(hx.ConfigError, match=r"table\.csv\..*cannot be unpacked"):
            read(path)
    if suffix == "zip":
        path.write_bytes(zipped(TABLE, ("a.csv", "b.csv")))
        with pytest.raises(hx.ConfigError, match="it holds 2 files, and not one"):
            read(path)
