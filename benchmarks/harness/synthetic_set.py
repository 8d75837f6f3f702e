"""Prepared data sets of any size in seconds: facts as ``prepare`` writes them, and next to no pixels.

All shards are links to one file of pixels, an image of them a blank PNG; every thumbnail, hash and name is its own, as
in a real set, since these are what a set's tables weigh.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from hdxray_fast.data.prepared.config import PrepareConfig
from hdxray_fast.data.prepared.patient_key import beside
from hdxray_fast.data.prepared.shards import FORMAT, FORMAT_VERSION, ShardFolder, schema, write_json
from hdxray_fast.data.prepared.sources import Source
from hdxray_fast.data.prepared.worker import encode

PER_FOLDER = 1000  # files of a folder of the tree
PER_LINK = 30_000  # names of one file: file systems have a limit
ABOUT = 4  # images of a patient
BAD = (100, 200)  # places in a shard of 256 of what could not be read: 0.8 %
REASON = "ImageReadError: cannot be decoded"


def names(root: Path, count: int) -> list[str]:
    """What the files of :func:`make_tree` are called, in order."""
    return [str(root / f"{n // PER_FOLDER:05d}" / f"{n:08d}.png") for n in range(count)]


def make_tree(root: Path, count: int) -> None:
    """A folder of ``count`` small radiographs, 1,000 to a folder: links to few files."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(40, 200, (9, 8), np.uint8), (160, 180), interpolation=cv2.INTER_CUBIC)
    first = ""
    for number, name in enumerate(names(root, count)):
        if number % PER_FOLDER == 0:
            os.makedirs(os.path.dirname(name))
        if number % PER_LINK == 0:
            cv2.imwrite(name, pixels)
            first = name
        else:
            os.link(first, name)


def make_manifest(path: Path, tree: Path, count: int) -> None:
    """A CSV with the image, its patient and its sex."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("image,patient,sex\n")
        stream.writelines(f"{name},P{n // ABOUT:07d},F\n" for n, name in enumerate(names(tree, count)))


def config_of(out: Path, tree: Path, **settings) -> PrepareConfig:
    """The settings that :func:`make_set` says the set was begun with."""
    plain = {"format": "png", "contour": "rectangle", "view": "any", "workers": 0}
    return PrepareConfig([str(tree)], str(out), **{**plain, **settings})


def make_set(out: Path, tree: Path, count: int, **settings) -> PrepareConfig:
    """All shards of a set of ``count`` images that are not merged yet, the sources in a tree that need not be there.

    Returns:
        The settings to prepare or retry it with.
    """
    config = config_of(out, tree, **settings)
    (out / "shards").mkdir(parents=True)
    with open(os.open(beside(out), os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        stream.write("a key of a set of nobody's radiographs\n")
    every = names(tree, count)
    columns = {field.name: [field.default] * count for field in dataclasses.fields(Source) if field.name != "path"}
    parquet.write_table(pa.table({"path": every, **columns}), out / "sources.parquet")
    settings = {"format": FORMAT, "format_version": FORMAT_VERSION, "recipe": config.recipe(), "sources": [str(tree)]}
    write_json(out / "settings.json", settings)
    shards, size = ShardFolder(out / "shards"), config.shard_size
    blank = encode(np.full((config.img_size, config.img_size), 77, np.uint8), config.format)
    for number in range(-(-count // size)):
        rows = every[number * size : (number + 1) * size]
        table = _facts(number, rows, blank, config.img_size)
        parquet.write_table(table, shards.facts(number))
        good = pa.compute.sum(table.column("length")).as_py() or 0
        twin = shards.pixels(number - 1) if number % PER_LINK else None
        if twin is not None and twin.exists() and twin.stat().st_size == good:
            os.link(twin, shards.pixels(number))
        else:
            shards.pixels(number).write_bytes(blank * (good // len(blank)))
    return config


def _facts(number: int, rows: list[str], blank: bytes, side: int) -> pa.Table:
    count, rng = len(rows), np.random.default_rng(number)
    grid, cells = side // 16, (side // 16) ** 2
    inside = np.zeros((grid, grid), bool)
    inside[grid // 5 : -grid // 5, grid // 5 : -grid // 5] = True
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    polygon = (side / 2 + side * 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32).ravel()
    read = np.ones(count, bool)
    read[[place for place in BAD if place < count]] = False
    told = {"decoder": "opencv 4.13.0", "polarity": "as stored", "original_size": [2544, 3056], "tone": "none"}
    texts = {
        "method": "network", "format": "png", "view": "frontal", "view_evidence": "pixels", "body_part": "",
        "provenance": json.dumps({**told, "window": [0, 4095], "spacing_mm": [0.139, 0.139], "orientation": "none"}),
    }  # fmt: skip
    values: dict[str, list | np.ndarray] = {name: [text] * count for name, text in texts.items()}
    values |= {
        "source": rows, "status": np.where(read, "ok", "unreadable").tolist(),
        "reason": np.where(read, "", REASON).tolist(), "shard": np.full(count, number, np.int32),
        "offset": (np.cumsum(read) - read) * len(blank), "length": np.full(count, len(blank)),
        "crc32": [zlib.crc32(blank)] * count, "valid_box": [[0, 0, side, side]] * count,
        "polygon": [polygon] * count, "inside": [np.packbits(inside).tobytes()] * count,
        "inside_share": np.full(count, inside.sum() / cells, np.float32),
        "confidence": rng.uniform(0.5, 1, count).astype(np.float32), "flagged": rng.random(count) < 0.01,
        "scale": np.full(count, 0.02, np.float32), "shift": rng.normal(-2.5, 0.3, count).astype(np.float32),
        "pixel_sha256": [rng.bytes(32).hex() for _ in rows], "height": [3056] * count, "width": [2544] * count,
        "patient": [f"{(number * 256 + row) // ABOUT:016x}" for row in range(count)], "flags": [[]] * count,
        "view_probability": rng.random(count).astype(np.float32), "left_out": [None] * count,
        "thumbnail": [rng.bytes(48 * 48) for _ in rows],
        "perceptual_hash": [hashed.tobytes() for hashed in rng.normal(0, 40, (count, 90)).astype(np.int8)],
    }  # fmt: skip
    always = ("source", "status", "reason", "shard")
    arrays = [
        pa.array(values[field.name], field.type, mask=None if field.name in always else ~read) for field in schema()
    ]
    return pa.Table.from_arrays(arrays, schema=schema())
