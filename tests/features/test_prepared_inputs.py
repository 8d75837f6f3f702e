"""Prepared data sets in the place of files: the same rows under the same names, or a refusal that says why."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from film_makers import draw_film
from prepared_helpers import prepare
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast.data.inputs import inputs_of, list_inputs
from hdxray_fast.data.quarantine import Quarantined
from hdxray_fast.features.embedding_files import embed_files
from hdxray_fast.features.feature_table import read_features
from hdxray_fast.features.neighbours import find_similar

pytest.importorskip("pyarrow")

SIZE, CONTOUR = 96, "classical"


def encoder(**settings):
    torch.manual_seed(1)
    small = {"img_size": SIZE, "depth": 1, "embed_dim": 24, "num_heads": 3, "keep": "contour", "contour": CONTOUR}
    return hx.create_encoder("vit_tiny_patch16", **{**small, **settings}).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("films") / "xrays"
    root.mkdir()
    for number in range(5):
        film = draw_film(number)[: 300 - 20 * number]
        cv2.imwrite(str(root / f"{number}.png"), (film.astype(np.uint16) << 4) if number == 2 else film)
    return root


@pytest.fixture(scope="module")
def prepared(folder) -> Path:
    out = folder.parent / "set"
    prepare([folder], out, img_size=SIZE, contour=CONTOUR, view="any")
    return out


@pytest.mark.parametrize("settings", [{}, {"patch_size": 8}, {"keep": "all"}])
@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_the_files_to_the_last_bit(folder, prepared, settings, workers):
    files = hx.embed(folder, encoder(**settings))
    stored = hx.embed(prepared, encoder(**settings), workers=workers)
    assert len(files) == 5 and not stored.quarantined
    for column in fields(files):
        np.testing.assert_array_equal(getattr(files, column.name), getattr(stored, column.name), column.name)


def test_a_table_is_that_of_the_files_and_nothing_is_embedded_twice(folder, prepared, tmp_path):
    files, stored = tmp_path / "files.parquet", tmp_path / "stored.parquet"
    embed_files(folder, files, encoder(), progress=False)
    assert embed_files(prepared, stored, encoder(), progress=False).new == 5
    ours, theirs = read_features(stored), read_features(files)
    for name in ("path", "feature", "confidence", "flagged", "provenance_id", "kept", "view"):
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    assert embed_files(prepared, stored, encoder(), progress=False).new == 0
    # of one name the first counts; a file is no image of the set, whose pixels may be others
    assert embed_files([folder, prepared], stored, encoder(), progress=False).new == 5


def test_a_prepared_film_is_found_in_the_table_by_its_file(folder, prepared, tmp_path):
    embed_files(prepared, tmp_path / "stored.parquet", encoder(), progress=False)
    found = find_similar(folder / "2.png", tmp_path / "stored.parquet")  # without weights: nothing is embedded anew
    assert len(found.neighbours) == 4 and str(folder / "2.png") not in [near.path for near in found.neighbours]


def test_the_view_of_a_prepared_film_is_that_of_its_file(tmp_path):
    dicom(tmp_path / "a.dcm", draw_film(0), ViewPosition="LL")
    prepare([tmp_path / "a.dcm"], tmp_path / "set", img_size=SIZE, contour=CONTOUR, view="any")
    assert [hx.embed(tmp_path / place, encoder()).views for place in ("a.dcm", "set")] == [["lateral"], ["lateral"]]


def test_a_set_that_was_moved_needs_no_file(folder, prepared, tmp_path):
    root = tmp_path / "moved"
    shutil.copytree(folder, root / "xrays")
    prepare([root / "xrays"], root / "set", img_size=SIZE, contour=CONTOUR, view="any")
    shutil.rmtree(root / "xrays")
    found = hx.embed([prepared, (root / "set").rename(tmp_path / "set")], encoder())
    assert found.sources == [str(place / f"{n}.png") for place in (folder, root / "xrays") for n in range(5)]
    np.testing.assert_array_equal(found.features[:5], found.features[5:])


def test_what_was_prepared_otherwise_is_refused_before_anything_is_written(folder, prepared, tmp_path):
    out = tmp_path / "f.parquet"
    with pytest.raises(hx.ConfigError, match=r"set: was prepared with img_size=96, .* with 64; give img_size=96, or "):
        embed_files(prepared, out, encoder(), img_size=64, progress=False)
    with pytest.raises(hx.ConfigError, match=r"set: was prepared with contour=classical, and .* with rectangle; "):
        embed_files([prepared, folder], out, encoder(contour="rectangle"), progress=False)
    assert not list(tmp_path.iterdir())


def test_different_images_of_one_name_are_no_one_image(folder, prepared, tmp_path):
    prepare([folder], tmp_path / "other", img_size=64, contour=CONTOUR, view="any")
    assert len(list_inputs([prepared, prepared])) == 5
    with pytest.raises(hx.ConfigError, match=r"^paths: .*set and .*other have different images of one name"):
        list_inputs([prepared, tmp_path / "other"])


def test_a_damaged_shard_costs_its_images(folder, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "set")
    shard = tmp_path / "set" / "shards" / "00001.bin"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    found = hx.embed(tmp_path / "set", encoder())
    assert found.sources == [str(folder / f"{n}.png") for n in range(4)]
    (bad,) = found.quarantined
    assert (bad.path, bad.error) == (str(folder / "4.png"), "ShardError") and str(shard) in bad.reason


def test_what_a_set_lacks_of_a_manifest_is_unreadable(folder, prepared):
    names = [str(folder / name) for name in ("3.png", "gone.png", "0.png")]
    inputs = inputs_of(names, prepared, "labels.csv")
    assert [one.name for one in inputs] == names
    assert [type(one.image) is Quarantined for one in inputs] == [False, True, False]
    with pytest.raises(hx.ConfigError, match=r"^prepared: .*set holds none of the images of labels.csv"):
        inputs_of(["elsewhere/9.png"], prepared, "labels.csv")


@pytest.mark.parametrize("changes", [{"format": "png"}, {"bits": 16}, {"format": "jpeg"}])
def test_sets_of_other_formats_are_read_in_eight_bits(folder, changes, tmp_path):
    prepare([folder], tmp_path / "set", img_size=SIZE, contour=CONTOUR, view="any", **changes)
    files, stored = hx.embed(folder, encoder()), hx.embed(tmp_path / "set", encoder())
    assert stored.sources == files.sources
    exact = "format" in changes and changes["format"] == "png"
    np.testing.assert_allclose(stored.features, files.features, atol=0 if exact else 0.05)
