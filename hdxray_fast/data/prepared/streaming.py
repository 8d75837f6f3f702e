"""A prepared data set in an object store, through litdata: written once, read in chunks that are fetched ahead.

hdxray-fast stream sets/chest chunks && aws s3 sync chunks s3://bucket/chest
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import ArgumentError, ConfigError, HDXrayError, MissingDependencyError
from .reading import Prepared, PreparedSet, decode, inside_grid
from .shards import FORMATS
from .stream_index import check_stream_index

MAX_SIDE = 1 << 14  # of a canvas, pixels; a sample that says more is none of ours
CHUNK = 64 << 20  # bytes of a chunk, about; 40 raw images of 1280 x 1280


def _litdata():
    try:
        import litdata
    except ImportError as error:
        raise MissingDependencyError("object stores need litdata: pip install 'hdxray-fast[streaming]'") from error
    return litdata


def write_stream(
    folder: str | os.PathLike, out: str | os.PathLike, *, chunk_bytes: int = CHUNK, progress: bool = False
) -> int:
    """A prepared data set as litdata's chunks, in the order of its index; the same data set gives the same chunks.

    Nothing of the index that names a file or tells patients apart goes along.

    Args:
        folder: of the prepared data set, merged.
        out: an empty folder; copy it to the object store with the store's own tool.
        chunk_bytes: about how large a chunk is; one is fetched at a time.
        progress: show a bar.

    Returns:
        Images written.

    Raises:
        ConfigError: no prepared data set, or ``out`` holds something or cannot be written.
        ShardError: an image is damaged.
        MissingDependencyError: litdata is not installed.
    """
    _litdata()
    from litdata.streaming.writer import BinaryWriter
    from tqdm.auto import tqdm

    data = PreparedSet(folder, verify=True)
    data.check()
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        if any(Path(out).iterdir()):
            raise ConfigError(f"out: {out} is not empty; choose another folder")
        writer = BinaryWriter(str(out), chunk_bytes=chunk_bytes)
        for row in tqdm(range(len(data)), desc="stream", unit="image", disable=not progress, dynamic_ncols=True):
            writer.add_item(row, _as_sample(data, row))
        writer.done()
        writer.merge(1)
    except HDXrayError:
        raise
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror or error})") from error
    return len(data)


def _as_sample(data: PreparedSet, row: int) -> dict:
    sample, recipe = data[row], data.recipe
    return {
        "pixels": data.encoded(row).tobytes(),
        "valid_box": np.asarray(sample.valid_box, np.int32),
        "polygon": np.ascontiguousarray(sample.polygon),
        "inside": np.packbits(sample.inside).tobytes(),
        "tone": np.asarray((sample.scale, sample.shift), np.float64),
        "format": f"{recipe['format']} {recipe['size']} {recipe['bits']}",
    }


def as_prepared(sample: dict) -> Prepared:
    """What :class:`PreparedSet` gives, from a sample of :func:`write_stream`."""
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
        address: what :func:`write_stream` wrote: a folder, or an address in an object store.
        **options: of ``litdata.StreamingDataset``, such as ``shuffle=True``, ``seed`` and ``max_cache_size``.

    Raises:
        ConfigError: there are no chunks, or their index is none that :func:`write_stream` writes: another could have
            code run. It is looked at before the first chunk is read.
        MissingDependencyError: litdata is not installed.
    """
    litdata = _litdata()
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
