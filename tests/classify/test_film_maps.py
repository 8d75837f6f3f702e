"""``predict`` for somebody who looks on: a table on the terminal, and pictures of where the model looked."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify import film_maps
from hdxray_fast.classify.attention_maps import describe_off_chest
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
from hdxray_fast.classify.film_maps import MOST, SIDE
from hdxray_fast.cli.main import main
from hdxray_fast.data.radiographs import read_radiograph

for package in ("jsonargparse", "loky", "pebble", "safetensors"):
    pytest.importorskip(package)

CLASSES = ["a", "b", "c", "d", "e"]


def classifier(head="linear", pool="mean", thresholds=(0.0,) * 5) -> Classifier:
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3)
    settings = {"head": head, "pool": pool, "thresholds": list(thresholds), "contour": "rectangle"}
    model = Classifier(encoder, ClassifierConfig(CLASSES, **settings)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def test_without_a_file_a_table_is_printed(radiographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hdxray_fast.cli.classify.MANY", 5)
    save_classifier(classifier(thresholds=[0, 1, 1, 1, 1]), tmp_path / "model")
    files = [str(radiographs / "0.png"), str(radiographs / "none.dcm")]
    (radiographs / "none.dcm").write_bytes(b"no image")
    words = ["predict", *files, "--model", str(tmp_path / "model"), "--workers", "0"]
    assert main([*words, "--maps", str(tmp_path / "maps")]) == 0
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    found = hx.predict(files, tmp_path / "model").probabilities[0]
    shown = [f"{value:.3f}{'*' * (name == 'a')}" for name, value in zip(CLASSES, found, strict=True)]
    assert head.strip() == files[0] and [line.split() for line in lines[:5]] == [
        *map(list, zip(CLASSES, shown, strict=True))
    ]
    assert lines[5] == "*: called present"
    assert f"unreadable: {files[1]}" in said.err and "predict: 2 of 2 images" in said.err
    assert [path.name for path in (tmp_path / "maps").glob("[!.]*")] == ["0.map.png"]
    for name in ("b.png", "c.png", "d.png", "e.png"):
        shutil.copyfile(files[0], radiographs / name)
    more = [str(radiographs / name) for name in ("b.png", "c.png", "d.png", "e.png")]
    assert main(["predict", *more, *words[1:]]) == 0  # as many films as classes: a line for each
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == CLASSES and [line.split() for line in lines[:5]] == [
        [film, *shown] for film in (*more, files[0])
    ]
    one_sided = [line for line in lines if line.startswith("warning: called")]  # of one film it means nothing
    assert one_sided == [
        "warning: called present in every image, so that the threshold tells nothing apart: a (from 0)",
        "warning: called present in no image, so that the threshold tells nothing apart: b (from 1), c (from 1), "
        "d (from 1), e (from 1)",
    ]
    told = ["warning: called present in no image, so that the threshold tells nothing apart: b (from 1)", "else"]
    (tmp_path / "metrics.json").write_text(json.dumps({"notes": told}))  # as a training leaves it beside its model
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"warning: when this model was tested: {told[0].removeprefix('warning: ')}" in said and "else" not in said
    assert main([*words, "--part", "1/2"]) == 2
    assert "--out: what several processes predict is joined in a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "pool", "thresholds", "panels"),
    [
        ("linear", "mean", [0, 0, 1, 1, 1], 2),  # what is called present
        ("linear", "mean", [0] * 5, MOST),
        ("linear", "mean", [1] * 5, 1),  # the most probable
        ("linear", "cls", [0] * 5, 1),  # the same map for every class
        ("attention", "mean", [0] * 5, 1),
    ],
)
def test_a_film_is_drawn_beside_the_maps_of_what_it_shows(radiographs, tmp_path, head, pool, thresholds, panels):
    model, films = classifier(head, pool, thresholds), [radiographs / "0.png", radiographs / "1.png"]
    found = hx.predict(films, model, maps=tmp_path / "maps")
    assert found.images == list(map(str, films))
    for name in ("0", "1"):
        picture = cv2.imread(str(tmp_path / "maps" / f"{name}.map.png"))
        assert picture.shape[1] == SIDE * (1 + panels) and picture.shape[0] > SIDE
        film = picture[:SIDE, :SIDE].astype(int)
        assert (film[..., 0] == film[..., 2]).all()
        assert np.abs(film - picture[:SIDE, SIDE : 2 * SIDE]).mean() > 3


def test_captions_say_what_is_no_frontal_chest_and_what_lies_off_the_chest(radiographs, monkeypatch):
    said, drawn = [], []
    monkeypatch.setattr(film_maps, "captioned", lambda picture, words: said.append(words) or picture)
    model, name = classifier(thresholds=[0, 1, 1, 1, 1]), str(radiographs / "0.png")
    found = hx.predict(name, model)
    chest = np.eye(4, dtype=bool)[::-1]  # hardly any, so that maps lie off it, whatever the model
    frontal = replace(read_radiograph(name, name, 64, 16, "rectangle"), flagged=False, inside=chest)
    for film in (frontal, replace(frontal, view="lateral")):
        film_maps._picture(model, found, 0, film, "0.png", drawn)
    assert len({len(words) for words in said[:2]}) == len({len(words) for words in said[2:]}) == 1
    reading = "where the model looked, which need not be where a finding is"
    assert said[0][:3] == ["0.png", reading, ""]
    assert said[2][:3] == ["0.png", reading, "shows no frontal chest (lateral)"]
    assert re.fullmatch(r"\d\d % of it lies outside the chest contour", said[3][3])
    told = "warning: 2 of 2 heat maps lie mostly outside the chest contour"
    assert describe_off_chest(drawn).startswith(told) and describe_off_chest(drawn).endswith(f"({name})")
    assert describe_off_chest([]) == ""


def test_maps_of_another_model_are_not_mixed_in(radiographs, tmp_path):
    first, second = classifier(), classifier(thresholds=[0] * 5)
    with torch.no_grad():
        next(second.parameters()).add_(1)
    film, maps = radiographs / "0.png", tmp_path / "maps"
    for _ in range(2):
        hx.predict(film, first, maps=maps)
    with pytest.raises(hx.ConfigError, match=r"maps: .* holds what predict drew in another call \(other model\)"):
        hx.predict(film, second, maps=maps)
    hx.predict(film, second, maps=maps, force=True)
    assert [path.name for path in maps.glob("[!.]*")] == ["0.map.png"]


def test_pictures_of_others_stay(radiographs, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "0.map.png").write_bytes(b"mine")
    with pytest.raises(hx.ConfigError, match=r"0.map.png would be written over, and nothing says that"):
        hx.predict(radiographs / "0.png", classifier(), maps=tmp_path / "maps")
    assert (tmp_path / "maps" / "0.map.png").read_bytes() == b"mine"
