"""A finished table of features as a CSV, for programs that read no Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..data.result_files import write_rows
from ..parquet_files import open_parquet

BEGINS = ("path", "confidence", "flagged", "provenance_id", "kept")  # what tables of earlier releases begin with, too
BEFORE = (*BEGINS, "view")  # the columns before feature_0, feature_1, ...


def write_csv(table: Path, place: Path) -> None:
    """Write the rows of a finished table: ``path``, what the contour and the view were like, then a column a number.

    Args:
        table: the Parquet file.
        place: the CSV.
    """

    def rows(file) -> Iterator[list]:
        for batch in file.batches(1024, range(file.metadata.num_row_groups), [*BEFORE, "feature"]):
            *columns, features = (batch.column(name).to_pylist() for name in [*BEFORE, "feature"])
            yield from ([*values, *feature] for *values, feature in zip(*columns, features, strict=True))

    with open_parquet(table) as file:
        width = file.schema.field("feature").type.list_size
        write_rows(place, [*BEFORE, *(f"feature_{number}" for number in range(width))], rows(file), names=("path",))
