"""Index files of prepared data sets, damaged or made to harm: refused by name, nothing foreign read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prepared_helpers import make_folder, prepare

import hdxray_fast as hx
from hdxray_fast.data.prepared.reading import PreparedSet

FUZZ = Path(__file__).parents[1] / "helpers" / "index_fuzz.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lookup")
    prepare([make_folder(root / "films")], root / "set")
    return root / "set"


@pytest.fixture
def made(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "set")


def write(folder: Path, table, rows: int = 1 << 16) -> None:
    with pa.OSFile(str(folder / "lookup.arrow"), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        for start in range(0, len(table), rows):
            writer.write_batch(table.slice(start, rows).combine_chunks().to_batches()[0])


def lookup(folder: Path):
    with pa.OSFile(str(folder / "lookup.arrow"), "rb") as stream:
        return pa.ipc.open_file(stream).read_all()


@pytest.mark.parametrize("column", ["polygon", "inside"])
@pytest.mark.parametrize("values", [(2**30, 2**30, 2**30), (-8, 0, 8), (2**31 - 8, 8, 16)])
def test_offsets_that_lead_elsewhere_are_refused(made, column, values):
    """Three offsets of a contour or a grid put in place of the right ones: they were followed."""
    batch = lookup(made).combine_chunks().to_batches()[0]
    offsets = np.frombuffer(batch.column(column).buffers()[1], np.int32)[: len(batch) + 1]
    path = made / "lookup.arrow"
    data = path.read_bytes()
    place = data.index(offsets.tobytes()) + 4 * 2
    path.write_bytes(data[:place] + struct.pack("<3i", *values) + data[place + 12 :])
    with pytest.raises(hx.ConfigError, match=r"lookup\.arrow: is damaged"):
        PreparedSet(made)[1]


def replaced(table, name, values, kind=None):
    column = table.schema.get_field_index(name)
    return table.set_column(column, name, pa.array(values, kind or table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["crc32"]), "crc32 is missing"),
        (lambda t: t.append_column("scale", t.column("scale")), "more than once"),
        (lambda t: replaced(t, "shard", [0] * len(t), pa.int64()), "holds int64"),
        (lambda t: replaced(t, "offset", [None] * len(t)), "without a value"),
        (lambda t: replaced(t, "offset", [-1] * len(t)), "negative"),
        (lambda t: replaced(t, "length", [2**50] * len(t)), "more bytes"),
        (lambda t: replaced(t, "valid_box", [[0, 0, 97, 96]] * len(t)), "leaves the canvas"),
        (lambda t: replaced(t, "valid_box", [[0, 2**31 - 1, 1, 2**31 - 1]] * len(t)), "leaves the canvas"),
        (lambda t: replaced(t, "polygon", [[1.0, 2.0, 3.0]] * len(t)), "without its y"),
        (lambda t: replaced(t, "polygon", [[1.0, None]] * len(t)), "lacks a value"),
        (lambda t: replaced(t, "inside", [b"12"] * len(t)), "another size"),
    ],
)
def test_values_that_no_set_has_are_refused(made, change, words):
    write(made, change(lookup(made)))
    with pytest.raises(hx.ConfigError, match=words):
        PreparedSet(made)


def test_short_batches_are_refused(made):
    write(made, lookup(made), rows=2)
    with pytest.raises(hx.ConfigError, match="batch 0 has 2 rows"):
        PreparedSet(made)


def test_mutated_index_files_crash_nothing():
    """A few of those that ``index_fuzz.py`` makes, in a process of its own."""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), *sys.path]))
    command = [sys.executable, str(FUZZ), "--count", "150", "--seed", "1"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert ", 0 foreign errors" in done.stdout.splitlines()[-1], done.stdout
