"""Columns of rows on the disk: those of now, those of earlier releases, and what has the names of neither."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..images.perceptual_hash import SIDE

if TYPE_CHECKING:
    import pyarrow

    from ..parquet_files import CheckedParquet

SETTINGS_KEY, UNREADABLE_KEY = b"hdxray_fast", b"hdxray_fast_unreadable"
NEVER_NULL = ("path", "feature", "mtime_ns")


class NoFeaturesError(ValueError):
    """A table has the settings of features in it, and not their columns."""


def row_schema(settings: dict, width: int, thumbnails: bool) -> pyarrow.Schema:
    """Columns and settings of rows that are written now, as :class:`.RowParts` lists them.

    Args:
        settings: JSON-able; what made the rows.
        width: numbers in a feature.
        thumbnails: there is a column of them.
    """
    import pyarrow as pa

    fields = [
        ("path", pa.string()),
        ("feature", pa.list_(pa.float32(), width)),
        ("confidence", pa.float32()),
        ("flagged", pa.bool_()),
        ("provenance_id", pa.string()),
        ("kept", pa.int32()),
        ("view", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
    if thumbnails:
        fields.append(("thumbnail", pa.binary(SIDE * SIDE)))
    return pa.schema(fields, metadata={SETTINGS_KEY: json.dumps(settings).encode()})


def require_columns(file: CheckedParquet, wanted: pyarrow.Schema) -> None:
    """Before rows are read: a table has the columns of features, of types that can be told as those of now.

    Args:
        file: the table.
        wanted: of :func:`row_schema`.

    Raises:
        NoFeaturesError: it lacks one, has one twice, or of another kind; or a row has no feature.
    """
    found = file.schema
    stamps = ("size", "mtime_ns") if "mtime_ns" in found.names else ()  # earlier releases had none
    if lacking := [name for name in ("path", "feature", *stamps) if name not in found.names]:
        raise NoFeaturesError(f"it has no column {lacking[0]}")
    as_of_now(found.empty_table(), wanted, 0)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    numbers = sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == "feature")
    if numbers != file.metadata.num_rows * wanted.field("feature").type.list_size:  # a missing one counts as one
        raise NoFeaturesError("it has rows without feature")


def require_values(table: pyarrow.Table) -> None:
    """Raise a NoFeaturesError if rows lack what each row has."""
    if empty := [name for name in NEVER_NULL if name in table.column_names and table.column(name).null_count]:
        raise NoFeaturesError(f"it has rows without {empty[0]}")


def as_of_now(table: pyarrow.Table, schema: pyarrow.Schema, written: int) -> pyarrow.Table:
    """Rows of earlier releases in the columns of now.

    Args:
        table: the rows.
        schema: those columns of :func:`row_schema` that are wanted; what the rows lack of them is null there.
        written: stamps rows from before files were stamped, nanoseconds.

    Raises:
        NoFeaturesError: a column is of another kind, or there twice; or a row lacks what each has.
    """
    import pyarrow as pa

    try:
        for name in schema.names:
            if name not in table.column_names:
                kind = schema.field(name).type
                known = pa.array([written] * len(table), kind) if name == "mtime_ns" else pa.nulls(len(table), kind)
                table = table.append_column(name, known)
        table = table.select(schema.names).cast(schema)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise NoFeaturesError(str(error.args[0] if error.args else error)) from error
    require_values(table)
    return table
