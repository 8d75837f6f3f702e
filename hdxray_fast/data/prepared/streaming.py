"""A prepared data set in an object store, through litdata: read in chunks that are fetched ahead."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import ArgumentError, ConfigError
from .reading import Prepared, decode, inside_grid
from .shards import FORMATS
from .stream_index import check_stream_index, litdata_or_error

MAX_SIDE = 1 << 14  # of a canvas, pixels; a sample that says more is none of ours


def as_prepared(sample: dict) -> Prepared:
    """What :class:`PreparedSet` gives, from a sample of :func:`.write_stream`."""
    try:
        kind, size, bits = sample["format"].split()
        known = kind in FORMATS and 0 < int(size) <= MAX_SIDE and bits in ("8", "16")
    except ValueError:
        known = False
    if not known:
        raise ArgumentError(f"format: got {sample['format'][:40]!r}, accepted is such as 'png 1280 8'")
    recipe = {"format": kind, "size": int(size), "bits": int(bits)}
    scale, shift = (float(value) for value in sample["tone"])
    return Prepared(
        decode(bytes(sample["pixels"]), recipe),
        tuple(int(value) for value in sample["valid_box"]),
        np.asarray(sample["polygon"], np.float32).reshape(-1, 2),
        inside_grid(bytes(sample["inside"]), recipe["size"]),
        scale,
        shift,
    )


def read_stream(address: str, **options):
    """A ``litdata.StreamingDataset`` that gives :class:`Prepared` samples.

    Batch it with ``litdata.StreamingDataLoader(read_stream(...), batch_size=8, collate_fn=collate)``, ``collate`` of
    ``hdxray_fast.data.prepared.loader``; it deals images out to the ranks of torch.distributed, and its ``state_dict``
    resumes it.

    Args:
        address: what :func:`.write_stream` wrote: a folder, or an address in an object store.
        **options: of ``litdata.StreamingDataset``, such as ``shuffle=True``, ``seed`` and ``max_cache_size``.

    Raises:
        ConfigError: there are no chunks, or their index is none that :func:`.write_stream` writes: another could have
            code run. It is looked at before the first chunk is read.
        MissingDependencyError: litdata is not installed.
    """
    litdata = litdata_or_error()
    if "://" not in address and not (Path(address) / "index.json").is_file():
        raise ConfigError(
            f"{address}: holds no chunks of litdata (index.json is missing); hdxray-fast stream writes it"
        )
    if "://" not in address:  # before anything acts on it
        check_stream_index(Path(address) / "index.json", address)
    # this fetches the index and looks at names and sizes of chunks; what it says of fields counts at the first read
    dataset = litdata.StreamingDataset(address, transform=as_prepared, **options)
    check_stream_index(Path(dataset.input_dir.path) / "index.json", address)
    return dataset
