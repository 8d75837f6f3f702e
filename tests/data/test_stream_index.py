"""Chunks in a bucket are data: an index that would have code run, or files written elsewhere, is refused unread."""

from __future__ import annotations

import json
import pickle
import struct
import sys

import numpy as np
import pytest
from prepared_helpers import make_folder, prepare

import hdxray_fast as hx

pytest.importorskip("litdata")
from hdxray_fast.data.prepared.stream_writing import write_stream
from hdxray_fast.data.prepared.streaming import as_prepared, read_stream


@pytest.fixture(scope="module")
def chunks(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    prepare([make_folder(root / "films")], root / "set")
    write_stream(root / "set", root / "chunks")
    return root / "chunks"


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def copy_of(chunks, folder):
    folder.mkdir()
    for path in chunks.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder, json.loads((folder / "index.json").read_text())


def test_a_field_marked_pickle_does_not_run(chunks, tmp_path):
    """A chunk as litdata lays it out: number of items, where each begins; of an item the sizes of its fields first."""
    folder, index = copy_of(chunks, tmp_path / "bad")
    payload = pickle.dumps(Runs(str(tmp_path / "ran")))
    sample = [payload, b"", b"", b"", b"", b""]
    item = struct.pack("<6I", *map(len, sample)) + b"".join(sample)
    start = 4 * 3
    (folder / "chunk-0-0.bin").write_bytes(struct.pack("<3I", 1, start, start + len(item)) + item)
    index["chunks"] = [index["chunks"][0] | {"chunk_size": 1, "chunk_bytes": start + len(item)}]
    index["config"]["data_format"][0] = "pickle"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(hx.ConfigError, match="field pixels is read as 'pickle'"):
        read_stream(str(folder))[0]
    assert not (tmp_path / "ran").exists()


def leads_to_a_module(index):
    spec = json.loads(index["config"]["data_spec"])
    module = {"default_factory_module": "imported_by_a_stream", "default_factory_name": "run", "dict_context": []}
    spec[1] |= {"type": "collections.defaultdict", "context": json.dumps(module)}
    index["config"]["data_spec"] = json.dumps(spec)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (leads_to_a_module, "no dictionary of the fields"),
        (lambda i: i["chunks"][0].update(filename="../elsewhere.bin"), "lead elsewhere"),
        (lambda i: i["chunks"][0].update(filename="/etc/passwd"), "lead elsewhere"),
        (lambda i: i["chunks"][0].update(chunk_size=-1), "no chunk_size"),
        (lambda i: i["config"].update(compression="zstd"), "kind of compression"),
        (lambda i: i["config"].update(item_loader="TokensLoader"), "another loader"),
        (lambda i: i["config"]["data_format"].append("pickle"), "7 fields"),
        (lambda i: i["config"]["data_format"].__setitem__(3, "graph"), "field inside"),
        (lambda i: i.update(shards=[]), "another format"),
        (lambda i: i.pop("config"), "damaged"),
    ],
)
def test_other_indexes_are_refused(chunks, tmp_path, change, words):
    folder, index = copy_of(chunks, tmp_path / "bad")
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(hx.ConfigError, match=words):
        read_stream(str(folder))
    assert "imported_by_a_stream" not in sys.modules


def test_own_chunks_are_read_and_foreign_samples_named(chunks):
    sample = read_stream(str(chunks))[0]
    assert sample.pixels.dtype == np.uint8
    for words in ("raw 99999999 8", "raw 96", "pickle 96 8", "raw 96 64"):
        with pytest.raises(hx.ArgumentError, match="format"):
            as_prepared({"format": words})
