"""Everything that a command wrote, to be searched."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path


def everything_in(folder: Path, leave_out: Collection[str] = ()) -> dict[str, bytes]:
    """Every file below a folder as it lies there, tables and archives also as what they hold, by path."""
    found: dict[str, bytes] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in leave_out):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes()
        if path.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            found[f"{name} as a table"] = (repr(table.to_pydict()) + repr(table.schema)).encode()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{name}::{member}": archive.read(member) for member in archive.namelist()}
    return found
