"""A config that asks for more than its weights hold is refused at transformers' doors before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from caps import limits

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier

SIZES = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
HUGE = 10**9
ENCODER = [{"depth": HUGE}, {"embed_dim": 1 << 28}, {"img_size": [16384, 16384]}, {"reg_tokens": HUGE}]


def encoder():
    torch.manual_seed(0)
    return hx.create_encoder("vit_tiny_patch16", **SIZES)


def change(path: Path, room: str, **settings) -> None:
    content = json.loads(path.read_text())
    content[room].update(settings)
    path.write_text(json.dumps(content))


@pytest.fixture
def classifier(tmp_path) -> Path:
    model = Classifier(encoder(), ClassifierConfig(["a", "b"], head="label-query"), torch.randn(2, 8))
    return save_classifier(model, tmp_path / "classifier")


@pytest.mark.parametrize("settings", ENCODER)
def test_doors_of_transformers(transformers, tmp_path, classifier, settings):
    from hdxray_fast.interop.hf import HDXrayBackbone  # AutoBackbone of some versions opens no folder

    folder = hx.save_model(encoder(), tmp_path / "model")
    doors = [
        (transformers.AutoModel, folder),
        (HDXrayBackbone, folder),
        (transformers.AutoModelForImageClassification, folder),
        (transformers.AutoModelForImageClassification, classifier),
    ]
    for door, place in doors:
        with limits():
            assert door.from_pretrained(str(place)) is not None
    for place in (folder, classifier):
        change(place / "config.json", "model", **settings)
    for door, place in doors:
        with limits(), pytest.raises(hx.CheckpointError, match="asks for"):
            door.from_pretrained(str(place))


def test_settings_of_transformers_alone(transformers, tmp_path, classifier):
    folder = hx.save_model(hx.create_mae("vit_tiny_patch16", **SIZES, decoder_embed_dim=32, decoder_depth=1), tmp_path)
    change(folder / "config.json", "model", decoder_depth=HUGE)  # not even built for its encoder's settings
    with limits():
        assert transformers.AutoConfig.from_pretrained(folder).depth == 2
    content = json.loads((classifier / "config.json").read_text())
    for name in ("id2label", "label2id"):
        content.pop(name)
    (classifier / "config.json").write_text(json.dumps(content | {"num_labels": HUGE}))
    with limits(), pytest.raises(hx.ArgumentError, match="num_labels"):
        transformers.AutoConfig.from_pretrained(classifier)
