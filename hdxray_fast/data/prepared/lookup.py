"""What a reader maps of a prepared data set, ``lookup.arrow``: nothing of it is used before all of it was looked at.

Arrow reads offsets and counts as a file states them, and follows them without looking. A file that was damaged, or made
to harm, would lead readers into foreign memory; so it is validated whole when it is opened: milliseconds for 10^6
images, because offsets are looked at and not what they point to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...regular_files import check_regular
from .shards import LOOKED_UP, LOOKUP_ROWS, arrow, schema
from .worker import PATCH

SLACK = 1 << 20  # bytes that an encoded image may have more than its pixels: headers


def read_lookup(path: Path, size: int):
    """The table of ``lookup.arrow``, mapped, and its batches of ``LOOKUP_ROWS`` rows each.

    Args:
        path: of the file.
        size: canvas side, pixels.

    Raises:
        ValueError: it is no such file, or not as :func:`write_lookup` writes it; says what is wrong.
        OSError: it cannot be read.
    """
    pa = arrow()
    try:
        check_regular(path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        table = pa.Table.from_batches(batches, reader.schema)
        for batch in batches:
            batch.validate(full=True)
    except OSError:
        raise
    except Exception as error:  # foreign bytes raise errors of Arrow, of Python's memory and of its codecs
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    _check_columns(table)
    for number, batch in enumerate(batches):
        if (len(batch) != LOOKUP_ROWS and number + 1 < len(batches)) or len(batch) > LOOKUP_ROWS:
            raise ValueError(f"batch {number} has {len(batch)} rows instead of {LOOKUP_ROWS}")
        _check_rows(batch, size)
    return table, batches


def _check_columns(table) -> None:
    types = schema()
    for name in LOOKED_UP:
        if table.column_names.count(name) != 1:
            raise ValueError(f"column {name} is missing, or there more than once")
        found = table.schema.field(name).type
        if found != types.field(name).type:
            raise ValueError(f"column {name} holds {found} instead of {types.field(name).type}")
        if table.column(name).null_count:
            raise ValueError(f"column {name} has rows without a value")


def _check_rows(batch, size: int) -> None:
    """That no value leads out of the canvas, and that contours and grids have their lengths."""
    boxes, polygons = batch.column("valid_box").values, batch.column("polygon").values  # flatten() would copy
    if boxes.null_count or polygons.null_count or len(boxes) != 4 * len(batch):
        raise ValueError("a box or a contour lacks a value")
    for name in ("shard", "offset", "length"):
        if np.asarray(batch.column(name)).min(initial=0) < 0:
            raise ValueError(f"column {name} has a negative value")
    if np.asarray(batch.column("length")).max(initial=0) > 4 * size * size + SLACK:
        raise ValueError(f"an image takes more bytes than any of {size} x {size} pixels")
    sides = np.asarray(boxes).reshape(-1, 4)
    if len(sides) and (sides.min() < 0 or sides.max() > size or (sides[:, :2] + sides[:, 2:]).max() > size):
        raise ValueError(f"a box leaves the canvas of {size} pixels")
    ends = np.asarray(batch.column("polygon").offsets)
    if (np.diff(ends) % 2).any():
        raise ValueError("a contour has an x without its y")
    packed = -(-((size // PATCH) ** 2) // 8)
    ends = np.frombuffer(batch.column("inside").buffers()[1] or b"", np.int32)[: len(batch) + 1]
    if (np.diff(ends) != packed).any():
        raise ValueError(f"a grid has another size than the {packed} bytes of this canvas")
