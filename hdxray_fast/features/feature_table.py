"""A table of features on disk (Parquet) that survives being interrupted: parts while it grows, one file in the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.quarantine import read_quarantine, write_quarantine
from ..errors import ConfigError
from ..names import require_utf8, unescaped
from ..parquet_files import open_parquet
from ..regular_files import reason_of
from .parts_folder import parts_of
from .row_columns import SETTINGS_KEY, NoFeaturesError, as_of_now, require_columns, require_values, row_schema
from .row_parts import RowParts
from .shares import Share

if TYPE_CHECKING:
    import pyarrow


class FeatureTable(RowParts):
    """``features.parquet`` in the making, with its parts in ``features.parquet.parts/``.

    Rows go through memory a row group at a time: when parts are joined, and when rows are added to a finished table,
    which is then copied (Parquet files cannot grow).

    Args:
        out: the Parquet file.
        settings, width, thumbnails, share, argument: as for :class:`.RowParts`.

    Raises:
        ConfigError, MissingDependencyError: as for :class:`.RowParts`; or what has the name of the list of unreadable
            files is none.
    """

    def __init__(
        self,
        out: str | Path,
        settings: dict,
        width: int,
        thumbnails: bool = False,
        share: Share | None = None,
        argument: str = "out",
    ) -> None:
        require_utf8(out, argument)  # whoever reads the table may know no other names
        self.out = Path(out)
        self.unreadable = self.out.with_suffix(".unreadable.csv")
        read_quarantine(self.unreadable, argument)  # what is no such list is refused now, not after the last image
        super().__init__(
            parts_of(self.out), settings, width, thumbnails=thumbnails, table=self.out,
            share=share, choose="choose another file, or folder of a probe", argument=argument,
        )  # fmt: skip

    def finish(self, order: Sequence[str]) -> None:
        """Join everything into one file, in the order given (rows of other paths first).

        Without a row there is no file. Of a file that changed the last row stays, or none if it cannot be read any
        more. Files of earlier runs that were unreadable stay listed, unless they were among these.
        """
        order = list(dict.fromkeys(order))
        numbers = self.numbers(order, others=True)
        if (len(numbers) or self.out.exists()) and not self._is_there(numbers):
            self.write(self.out, self.read(numbers), self.schema)
        given = set(order)
        bad = [path for path in self.bad if path not in given] + [path for path in order if path in self.bad]
        before = [row for row in read_quarantine(self.unreadable) if row[0] not in given and row[0] not in self.bad]
        write_quarantine(self.unreadable, [*before, *(self.bad[path][0] for path in bad)])

    def _is_there(self, numbers: np.ndarray) -> bool:
        """Whether the file holds these rows in this order, and nothing else."""
        if not self._sources or self._sources[0] != self.out:
            return False
        with open_parquet(self.out) as file:
            rows, schema = file.metadata.num_rows, file.schema
        alike = schema.equals(self.schema) and schema.metadata == self.schema.metadata
        return alike and np.array_equal(numbers, np.arange(rows))


def is_feature_table(path: str | os.PathLike) -> bool:
    """Whether a file is a table that this package wrote, as its own metadata say; with whatever settings."""
    try:
        import pyarrow
    except ImportError:  # FeatureTable says so
        return False
    try:
        with open_parquet(path) as file:
            return SETTINGS_KEY in (file.schema.metadata or {})
    except (OSError, ValueError, pyarrow.ArrowException):
        return False


def read_features(path: str | os.PathLike) -> dict:
    """Columns of a finished table: ``feature [N, D] float32``; ``path``, ``provenance_id`` and the others as lists.

    Paths are those of the files, whatever bytes they hold.

    Raises:
        ConfigError: it cannot be read as Parquet, or is no table of features.
    """
    import pyarrow

    try:
        with open_parquet(path) as file:
            width = width_of(file.schema)
            require_columns(file, row_schema({}, width, "thumbnail" in file.schema.names))
            names = [name for name in file.schema.names if name != "feature"]
            table = file.read(names)
            require_values(table)
            feature, first = np.empty((len(table), width), np.float32), 0
            alone = pyarrow.schema([row_schema({}, width, False).field("feature")])
            for batch in file.batches(1024, range(file.metadata.num_row_groups), ["feature"]):
                column = as_of_now(batch, alone, 0).column("feature").combine_chunks()
                flat = column.flatten().to_numpy(zero_copy_only=False)
                feature[first : first + len(batch)] = flat.reshape(len(batch), width)
                first += len(batch)
            columns = {name: table.column(name).to_pylist() for name in names}
            columns["path"] = [unescaped(path) for path in columns["path"]]
    except NoFeaturesError as error:
        raise ConfigError(f"{path}: is no table of features ({error})") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({reason_of(error)})") from error
    return {**columns, "feature": feature}


def width_of(schema: pyarrow.Schema) -> int:
    """Numbers in a feature."""
    import pyarrow

    places = schema.get_all_field_indices("feature")
    kind = schema.field(places[0]).type if len(places) == 1 else None
    if kind is None or not pyarrow.types.is_fixed_size_list(kind):
        raise NoFeaturesError("it has no column feature with as many numbers in each row")
    return kind.list_size
