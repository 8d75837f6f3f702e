"""Files to a table of features: ``hdxray-fast embed``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..data.inputs import Input, list_inputs, prepared_among, require_prepared_for
from ..data.listing import as_paths
from ..data.quarantine import Quarantined
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..data.result_files import file_named_by, refuse_other_table
from ..models.encoder import Encoder
from ..models.layers import check_count
from ..names import require_utf8
from ..ranks import acquainted
from ..weights.create import create_encoder, encoder_of_size
from ..weights.fingerprint import settings_of
from ..weights.shipped import PRETRAINED
from .embedding import Embedder
from .feature_csv import BEGINS, write_csv
from .feature_table import FeatureTable
from .filling import fill_and_join
from .shares import Share
from .table_settings import SHIPPED

USUAL = ("contour", "network")  # has no part in what tells tables apart, as before there was a choice


@dataclass(frozen=True)
class EmbeddedFiles:
    """What :func:`embed_files` did.

    Attributes:
        out: the file that was asked for; without ``rows`` there is none.
        table: the Parquet file with the rows, which later calls add to.
        rows: of the table.
        new: rows that were not there before.
        width: numbers in a feature.
        unreadable: files that could not be read this time.
        unreadable_csv: lists them.
        quarantined: the same files, with their reasons.
        precision: ``"fp32"`` or ``"bf16"``, what all rows were computed in.
        waiting: shares of other processes, counted from 1, that have not ended; while there are some, or where another
            process joins the table, ``rows`` are those of the parts that this process knows of.
        joined: whether this process joined the table.
        not_frontal: rows that show no frontal chest, by path, with their views (``"lateral"``, ``"other"``).
        others: rows of files that were not asked for, from calls before.
    """

    out: Path
    table: Path
    rows: int
    new: int
    width: int
    unreadable: int
    unreadable_csv: Path
    quarantined: list[Quarantined] = field(default_factory=list)
    precision: str = "fp32"
    waiting: list[int] = field(default_factory=list)
    joined: bool = True
    not_frontal: dict[str, str] = field(default_factory=dict)
    others: int = 0


@acquainted()
def embed_files(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    weights: str | os.PathLike | Encoder = PRETRAINED,
    *,
    pool: str | None = None,
    keep: str | None = None,
    img_size: int | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
    precision: str = "auto",
    compile: str = "auto",
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    part: str = "1/1",
    image_column: str | None = None,
) -> EmbeddedFiles:
    """Write a row of features per radiograph to a Parquet file; files that it already holds are not read again, unless
    they have changed since: in size or time, or in the pixels that were prepared.

    Args:
        paths: files, folders, CSV manifests, prepared data sets, or one of these. Rows of a prepared image have the
            path of the file that it was prepared from.
        out: the Parquet file, which is not written if no file can be read; ``<out>.parts/`` holds what is done while
            the run lasts, ``*.unreadable.csv`` beside it names the files that could not be read. A ``.csv`` is written
            from the Parquet file beside it, of its name; in a folder it is ``features.parquet``.
        weights: as for :func:`hdxray_fast.create_encoder`, or an encoder; left out, the pre-trained one that comes with
            the package.
        img_size: canvas side, pixels; left out, the encoder's.
        workers: processes that read files ahead; -1 takes one per core.
        pool, keep, batch_size, device, progress, precision, compile, timeout, max_memory: as for
            :func:`hdxray_fast.embed`; the precision is one of the settings that the table holds to.
        part: ``i/n``: the i-th of n shares of the files, counted from 1, for as many processes with the same arguments,
            on any machines that see ``out``; the one that ends last joins the table. Ranks of torchrun share a part
            among them, and the main one joins.
        image_column: the column of the manifests' files, where it goes by none of the usual names.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not as described.
        ConfigError: a path names no image, ``out`` has another ending or holds features made with other settings, or a
            cap is not above 0.
        MissingDependencyError: pyarrow is not installed.
    """
    paths = as_paths(paths, instead="embed takes arrays and tensors")
    require_utf8(out, "out")
    place = file_named_by(out, "features.parquet", (".parquet", ".csv"))
    as_csv = place.suffix.lower() == ".csv"
    if as_csv:
        refuse_other_table(place, BEGINS, "features")
    inputs = Share.of_part(part).from_main(lambda: list_inputs(paths, image_column=image_column))
    table = place.with_suffix(".parquet") if as_csv else place
    done = embed_list(
        inputs, table, weights, pool=pool, keep=keep, img_size=img_size, batch_size=batch_size, workers=workers,
        device=device, progress=progress, precision=precision, compile=compile, timeout=timeout, max_memory=max_memory,
        part=part,
    )  # fmt: skip
    if as_csv and done.joined and done.rows:
        write_csv(done.table, place)
    return replace(done, out=place)


def embed_list(
    inputs: Sequence[Input],
    out: str | os.PathLike,
    weights: str | os.PathLike | Encoder,
    *,
    pool: str | None = None,
    keep: str | None = None,
    img_size: int | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
    precision: str = "auto",
    compile: str = "auto",
    thumbnails: bool = False,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    part: str = "1/1",
    argument: str = "out",
) -> EmbeddedFiles:
    """:func:`embed_files` for inputs as they are listed; missing files count as unreadable.

    With ``thumbnails`` the table keeps one of each image, by which near duplicates are found; ``argument`` named
    ``out``, for errors.
    """
    check_count("batch_size", batch_size)
    check_caps(timeout, max_memory)
    share = Share.of_part(part)
    encoder = encoder_of_size(weights, img_size)
    require_prepared_for(prepared_among(inputs).values(), encoder.img_size[0], encoder.contour, resizes=True)
    job = Embedder(encoder, pool=pool, keep=keep, device=share.device(device), precision=precision, compile=compile)
    weights_print = fingerprint(encoder)
    settings = {
        "encoder": {name: value for name, value in settings_of(encoder.config).items() if (name, value) != USUAL},
        "weights": weights_print,
        SHIPPED: shipped_name(encoder, weights_print),
        "pool": job.pool,
        "keep": job.keep,
        "precision": job.precision,
    }
    reading = {"workers": workers, "timeout": timeout, "max_memory": max_memory}
    files = list(dict.fromkeys(one.name for one in inputs))
    with FeatureTable(out, settings, encoder.num_features, thumbnails, share, argument) as table:
        new, waiting = fill_and_join(
            table, job, inputs, lambda: table.finish(files), batch_size=batch_size, progress=progress, **reading
        )
        bad = [table.bad[file][0] for file in files if file in table.bad]
        return EmbeddedFiles(
            table.out, table.out, len(table), new, table.width, len(bad), table.unreadable, bad, job.precision,
            waiting or [], waiting is None, dict(table.not_frontal), max(0, len(table) - len(files) + len(bad)),
        )  # fmt: skip


def shipped_name(encoder: Encoder, weights_print: str) -> str | None:
    """Which encoder of the package it is, as that comes with this version; ``None`` if it was trained further."""
    name = encoder.config.began_from
    if name is None or encoder.img_size[0] != encoder.img_size[1]:
        return None
    shipped = create_encoder(name, weights=PRETRAINED, img_size=encoder.img_size[0], depth=encoder.config.depth)
    return name if fingerprint(shipped) == weights_print else None


def fingerprint(encoder: Encoder) -> str:
    """Hash of all weights, so that features of two models are never mixed in one table."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
