"""Whoever uses an encoder finds the contour as its training did, and not by the network alone."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.data import radiographs
from hdxray_fast.images.contour import find_contour
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import PretrainTask

SMALL = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The methods that files are read with."""
    methods: list[str] = []

    def found(canvas, method, **options):
        methods.append(method)
        return find_contour(canvas, "rectangle", **options)

    monkeypatch.setattr(radiographs, "find_contour", found)
    return methods


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        image[4 + 36 * (i % 2) :][:18, 20:44] = 200
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        rows.append(f"{i}.png,p{i},{i % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(["image,patient,high", *rows]) + "\n")
    return tmp_path


def test_the_method_is_kept_from_pretraining_to_probe_and_prediction(folder, asked):
    for package in ("sklearn", "pandas", "matplotlib", "pyarrow"):
        pytest.importorskip(package)
    mae = PretrainTask(
        PretrainConfig(data="x", out="y", model="vit_tiny_patch16", img_size=64, contour="prior")
    ).build()
    hx.save_model(mae, folder / "pretrained")
    encoder = hx.create_encoder(weights=folder / "pretrained")
    assert encoder.contour == "prior"
    hx.embed([str(folder / "0.png")], encoder, keep="contour")
    assert asked == ["prior"]
    config = hx.ProbeConfig(
        str(folder / "labels.csv"), str(folder / "probe"), str(folder / "pretrained"), bootstraps=0, workers=0
    )
    hx.run_probe(config, progress=False)
    model = hx.load_classifier(folder / "probe")
    assert model.config.contour == model.encoder.contour == "prior"
    hx.predict([str(folder / "1.png")], model)
    assert set(asked) == {"prior"}
    told = json.loads((folder / "probe" / "model" / "preprocessor_config.json").read_text())
    assert told["contour"] == "prior"


def test_arrays_are_looked_at_in_the_same_way():
    torch.manual_seed(0)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 1, 64, 64)).astype(np.uint8))
    kept = {}
    for method in ("rectangle", "prior"):
        encoder = hx.create_encoder("vit_tiny_patch16", contour=method, keep="contour", margin=0, **SMALL)
        kept[method] = encoder.kept_patches(image)
        inside = find_contour(hx.Canvas(image[0, 0].numpy(), (0, 0, 64, 64), {}), method, 16).inside
        assert kept[method][0].numpy().tolist() == inside.tolist()
    assert kept["rectangle"].tolist() != kept["prior"].tolist()


def test_an_encoder_of_an_earlier_release_takes_the_network(tmp_path):
    hx.save_model(hx.create_encoder("vit_tiny_patch16", **SMALL), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["contour"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hx.load_model(tmp_path).contour == "network"
    with pytest.raises(hx.HDXrayError, match=r"^contour: got 'edges', accepted are 'network'"):
        hx.create_encoder("vit_tiny_patch16", contour="edges", **SMALL)
