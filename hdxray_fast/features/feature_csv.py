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

    Numbers have the digits that give their float32 back, nine at most, and not the seventeen of a float64.

    Args:
        table: the Parquet file.
        place: the CSV.
    """

    def rows(file) -> Iterator[list]:
        for batch in file.batches(1024, range(file.metadata.num_row_groups), [*BEFORE, "feature"]):
            columns = [_values(batch.column(name)) for name in BEFORE]
            numbers = _values(batch.column("feature").combine_chunks().flatten())
            features = (numbers[start : start + width] for start in range(0, len(numbers), width))
            yield from ([*values, *feature] for *values, feature in zip(*columns, features, strict=True))

    with open_parquet(table) as file:
        width = file.schema.field("feature").type.list_size
        write_rows(place, [*BEFORE, *(f"feature_{number}" for number in range(width))], rows(file), names=("path",))


def _values(column) -> list:
    import pyarrow

    if column.type != pyarrow.float32():
        return column.to_pylist()
    return [None if text is None else float(text) for text in column.cast(pyarrow.string()).to_pylist()]
