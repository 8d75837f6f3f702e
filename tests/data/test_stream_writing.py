"""Chunks for an object store are written by parts, go on after a stop, and are the same either way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from prepared_helpers import SIZE, make_folder, prepare

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.data.order import generator
from hdxray_fast.data.prepared.index import merge
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.errors import ConfigError

pytest.importorskip("litdata")
from hdxray_fast.data.prepared import stream_writing
from hdxray_fast.data.prepared.stream_writing import write_stream
from hdxray_fast.data.prepared.streaming import read_stream

TWO_IMAGES = 2 * SIZE * SIZE


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    prepare([make_folder(root / "films")], root / "set")
    return root / "set"


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """What one process writes undisturbed: three chunks of two images, and their index."""
    out = tmp_path_factory.mktemp("whole") / "chunks"
    assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES) == 6
    made = files_in(out)
    chunks = ["chunk-0-0.bin", "chunk-0-1.bin", "chunk-0-2.bin"]
    assert sorted(made) == [*chunks, "index.json", "index.parquet", "lookup.arrow", "settings.json"]
    return made


def test_parts_in_any_order_give_the_same_files(prepared, whole, tmp_path, capsys):
    out = tmp_path / "chunks"
    for part, images in (("3/4", 0), ("2/4", 0), ("4/4", 0), ("1/4", 6)):  # the fourth has no chunk
        assert not (out / "index.json").exists()
        assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part=part) == images
    assert files_in(out) == whole
    assert main(["stream", str(prepared), "--out", str(tmp_path / "half"), "--part", "2/2"]) == 0
    assert "other parts are missing" in capsys.readouterr().out
    assert main(["stream", str(prepared), "--out", str(tmp_path / "half"), "--part", "1/2"]) == 0
    assert f"6 images in {tmp_path / 'half'}" in capsys.readouterr().out
    with pytest.raises(hx.ConfigError, match="part: got '5/4'"):
        write_stream(prepared, out, part="5/4")


def test_what_is_there_is_not_made_again(prepared, whole, tmp_path, monkeypatch):
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="1/3")
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="2/3")
    (out / "chunk-0-1.bin").write_bytes(b"cut")  # by a full disk
    made, write = [], stream_writing._Chunks.write
    monkeypatch.setattr(
        stream_writing._Chunks, "write", lambda self, number: (made.append(number), write(self, number))
    )
    assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES) == 6
    assert made == [1, 2]
    assert files_in(out) == whole


def test_other_chunks_and_other_folders_are_left_alone(prepared, whole, tmp_path):
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="1/2")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(hx.ConfigError, match=r"^out: .*chunks of another data set, or of another chunk size"):
        write_stream(prepared, out, chunk_bytes=3 * SIZE * SIZE, part="2/2")
    (out / ".stream" / "set.json").write_text("[1]")
    with pytest.raises(hx.ConfigError, match=r"^out: .*chunks of another data set"):
        write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="2/2")
    (out / ".stream" / "set.json").write_bytes(before[out / ".stream" / "set.json"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="2/2") == 6
    with pytest.raises(hx.ConfigError, match=r"^out: .* is not empty, it holds chunks that are finished"):
        write_stream(prepared, out, chunk_bytes=3 * SIZE * SIZE)
    assert files_in(out) == whole
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".stream").mkdir()
    with pytest.raises(hx.ConfigError, match=r"^out: .*chunks of another data set"):
        write_stream(prepared, tmp_path / "mine")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other file systems refuse such names")
def test_a_folder_whose_name_is_not_utf8_is_refused_before_it_is_made(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"^out: .*bad\\xe9 has a name that is not UTF-8"):
        write_stream(prepared, tmp_path / os.fsdecode(b"bad\xe9"))
    assert not any(tmp_path.iterdir())


def test_nothing_is_done_where_all_is_there(prepared, whole, tmp_path, monkeypatch):
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES)
    (out / ".stream").mkdir()  # a kill while the folder of work was removed, its mark before the rest
    (out / ".stream" / "1.json").write_text("{}")
    monkeypatch.setattr(stream_writing._Chunks, "write", None)
    assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="2/3") == 6
    assert files_in(out) == whole
    # another part ends after this one has begun, and the marks of chunks are gone
    monkeypatch.setattr(stream_writing._Chunks, "begin", lambda self: None)
    assert write_stream(prepared, out, chunk_bytes=TWO_IMAGES, part="2/3") == 6
    monkeypatch.undo()
    (out / "chunk-0-1.bin").write_bytes(b"cut")
    with pytest.raises(hx.ConfigError, match=r"^out: .* chunks that are finished, and not those of this data set"):
        write_stream(prepared, out, chunk_bytes=TWO_IMAGES)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_at_any_moment_it_goes_on(prepared, whole, tmp_path):
    words = [sys.executable, "-c", PRINTING, str(prepared), str(tmp_path / "chunks"), str(TWO_IMAGES)]
    rng, kills = random.Random(0), 0
    while True:
        running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        begun = [running.stdout.readline() for _ in range(rng.randint(2, 5))]  # a line before each image
        if not begun[-1]:
            break
        time.sleep(rng.uniform(0, 0.01))
        running.kill()
        running.communicate()
        kills += 1
    assert running.wait() == 0
    assert 0 < kills < 10
    assert files_in(tmp_path / "chunks") == whole


PRINTING = """
import sys
from hdxray_fast.data.prepared import stream_writing
sample = stream_writing._as_sample
stream_writing._as_sample = lambda *given: (print("image", flush=True), sample(*given))[1]
stream_writing.write_stream(sys.argv[1], sys.argv[2], chunk_bytes=int(sys.argv[3]))
"""


def test_a_chunk_is_as_mixed_as_the_whole_set(prepared, whole, tmp_path):
    """Chunks follow no folder: the first one is a draw from all of the images, and no image comes twice."""
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES)
    data = PreparedSet(prepared)
    rows = {data[row].pixels.tobytes(): row for row in range(6)}
    found = [rows[sample.pixels.tobytes()] for sample in read_stream(str(out))]
    assert sorted(found) == list(range(6))
    assert found == np.random.Generator(np.random.Philox(key=[0, 0])).permutation(6).tolist()
    assert json.loads((out / "index.json").read_text())["chunks"][0]["chunk_size"] == 2


# --- chunks as a prepared set -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "bits"), [("raw", 16), ("png", 8)])
def test_a_copy_of_the_chunks_is_a_prepared_set(tmp_path, kind, bits):
    folder, out = tmp_path / "set", tmp_path / "chunks"
    prepare([make_folder(tmp_path / "films")], folder, format=kind, bits=bits)
    write_stream(folder, out, chunk_bytes=TWO_IMAGES)
    data, found = PreparedSet(folder), PreparedSet(out, verify=True)
    order = generator(stream_writing.SEED, 0).permutation(6)
    found.check()
    assert (len(found), found.recipe) == (6, data.recipe)
    for place, row in enumerate(order.tolist()):
        for one, two in zip(found[place], data[row], strict=True):
            np.testing.assert_array_equal(one, two)
    for one, two in zip(found.shares_by_image(), data.shares_by_image(), strict=True):
        np.testing.assert_array_equal(one, two[order])
    np.testing.assert_array_equal(found.checksums(), data.checksums()[order])
    assert found.source(0) == "chunk-0-0.bin[0]" and len(set(found.sources())) == 6
    told = found.index.to_pydict()
    for name in ("patient", "pixel_sha256", "provenance", "thumbnail", "perceptual_hash"):
        assert set(told[name]) == {None}  # nothing that names a file or tells patients apart
    again = tmp_path / "again"  # written anew in another order
    assert write_stream(out, again, chunk_bytes=TWO_IMAGES) == 6
    assert sorted(PreparedSet(again).checksums()) == sorted(data.checksums())


def test_chunks_that_are_gone_cut_or_damaged_are_named(prepared, tmp_path):
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES)
    data = bytearray((out / "chunk-0-1.bin").read_bytes())
    data[1000] ^= 1
    (out / "chunk-0-1.bin").write_bytes(data)
    (out / "chunk-0-2.bin").unlink()
    found = PreparedSet(out, verify=True)
    with pytest.raises(hx.HDXrayError, match=r"chunk-0-1\.bin: the image of row 2 is damaged; copy the chunk again"):
        found[2]
    with pytest.raises(hx.HDXrayError, match=r"chunk-0-2\.bin: cannot be read .*copy the chunk again"):
        found[4]
    with pytest.raises(hx.HDXrayError, match=r"chunk-0-2\.bin: has 0 bytes"):
        found.check()


def test_other_commands_leave_chunks_alone(prepared, tmp_path):
    out = tmp_path / "chunks"
    write_stream(prepared, out)
    before = files_in(out)
    with pytest.raises(hx.ConfigError, match="holds chunks that hdxray-fast stream wrote"):
        merge(out)
    with pytest.raises(hx.ConfigError, match=r"^out: .* holds chunks that hdxray-fast stream wrote"):
        prepare([prepared.parent / "films"], out)
    assert {name: data for name, data in files_in(out).items() if not name.endswith(".lock")} == before


@pytest.mark.parametrize("shuffle", ["global", "blocks"])
def test_pretraining_takes_chunks(prepared, tmp_path, shuffle):
    out = tmp_path / "chunks"
    write_stream(prepared, out, chunk_bytes=TWO_IMAGES)
    words = ["--img-size", str(SIZE), "--model", "vit_tiny_patch16", "--steps", "2", "--batch-size", "2"]
    words += ["--decoder-embed-dim", "32", "--decoder-depth", "1", "--workers", "0", "--shuffle", shuffle]
    words += ["--contour", "rectangle", "--augment", "false"]
    assert main(["pretrain", "--data", str(out), "--out", str(tmp_path / "run"), *words]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert not any(path.name.endswith(".parquet") for path in (tmp_path / "run").glob("cache/**/*"))
    record = (tmp_path / "run" / "data.parquet").read_bytes()
    assert b"chunk-0-0.bin" in record and b"films" not in record
