"""The encoder that comes with the package, by every door."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.weights.fingerprint import settings_print
from hdxray_fast.weights.load import convert
from hdxray_fast.weights.shipped import pretrained_card, read_pretrained

NAME = "vit_tiny_patch16"


@pytest.fixture(scope="module")
def encoder():
    return hx.create_encoder(weights="pretrained", img_size=64).eval()


def test_it_is_small_and_half_precision_and_has_been_trained(encoder):
    folder = pretrained_card().parent
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert files["model.safetensors"] <= 12e6
    tensors = read_pretrained().tensors
    assert {tensor.dtype for name, tensor in tensors.items() if name != "pos_embed"} == {torch.float16}
    named = hx.create_encoder(NAME, weights="pretrained")
    assert named.img_size == (1280, 1280) and named.load_report.complete
    torch.testing.assert_close(named.pos_embed, hx.create_encoder(NAME).pos_embed)
    assert named.blocks[0].norm1.weight.std() > 1e-3  # ones, before any training
    assert hx.list_encoders(pretrained=True) == [NAME]
    assert set(hx.list_encoders()) > {NAME}


def test_the_card_says_whose_radiographs_and_what_it_is_not():
    card = pretrained_card().read_text(encoding="utf-8")
    for words in ("ChestX-ray14", "NIH Clinical Center", "not a medical device", "AUROC", "tools/train_pretrained.py"):
        assert words in card
    config = json.loads((pretrained_card().parent / "config.json").read_text())
    assert config["format"] == "hdxray_fast.encoder"


def test_what_there_is_none_of_is_named():
    with pytest.raises(hx.ArgumentError, match=rf"^weights: no pre-trained vit_base_patch16 .* there is {NAME}$"):
        hx.create_encoder("vit_base_patch16", weights="pretrained")
    with pytest.raises(hx.CheckpointError, match=r"^pretrained \(vit_tiny_patch16\): was not loaded: missing"):
        hx.create_encoder(weights="pretrained", depth=13)


def test_its_first_blocks_are_an_encoder(encoder):
    """Without its name those that are read best."""
    assert len(encoder.blocks) == 8 and encoder.load_report.complete
    assert {name.split(".")[1] for name in encoder.load_report.left_out} == {"8", "9", "10", "11"}
    whole = hx.create_encoder(NAME, weights="pretrained")
    assert len(whole.blocks) == 12 and whole.load_report.left_out == []
    three = hx.create_encoder(NAME, weights="pretrained", depth=3)
    for other in (encoder, three):
        torch.testing.assert_close(other.blocks[2].mlp.fc1.weight, whole.blocks[2].mlp.fc1.weight)
    assert len(three.blocks) == 3 and len(hx.create_encoder(weights="pretrained", depth=12).blocks) == 12


def test_embed_takes_it_where_no_encoder_is_named(monkeypatch, encoder):
    films = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 1, 64, 64), dtype=np.uint8))
    asked = []

    def create(weights, **options):
        asked.append(weights)
        return encoder

    monkeypatch.setattr("hdxray_fast.features.embedding.create_encoder", create)
    found = hx.embed(films)
    assert asked == ["pretrained"] and found.features.shape == (2, 192)


def test_a_converted_folder_has_its_card_and_gives_the_same_features(encoder, tmp_path, capsys):
    assert main(["convert", "pretrained", str(tmp_path / "folder"), "--img-size", "64"]) == 0
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert card.startswith(pretrained_card().read_text(encoding="utf-8"))
    assert "## In this folder\n\nThe first 8 blocks, for images of 64 x 64 pixels.\n" in card
    image = torch.rand(1, 1, 64, 64)
    again = hx.create_encoder(weights=tmp_path / "folder").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(image), encoder(image))


def test_a_card_goes_with_its_weights_and_what_somebody_wrote_stays(tmp_path, monkeypatch):
    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1), tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pretrained"  # a folder, which the weights of that name are not in
    for source, credit in (("pretrained", True), ("other", False), ("pretrained", True), ("pretrained", True)):
        assert main(["convert", source, "pretrained", "--img-size", "64"]) == 0
        assert ("ChestX-ray14" in (folder / "README.md").read_text(encoding="utf-8")) == credit
    written = (folder / "README.md").read_text(encoding="utf-8")
    for own in ("My own words.\n", written.replace("\n## ", "\nMeasured by us: 0.8.\n\n## ", 1), f"{written}More.\n"):
        (folder / "README.md").write_text(own, encoding="utf-8")
        for source in ("pretrained", "other"):
            assert main(["convert", source, "pretrained", "--img-size", "64"]) == 0
            assert (folder / "README.md").read_text(encoding="utf-8") == own


def test_pretraining_goes_on_from_it(tmp_path):
    from hdxray_fast.pretrain.config import PretrainConfig
    from hdxray_fast.pretrain.start import started_model

    config = {"data": "x", "out": str(tmp_path), "img_size": 64, "weights": "pretrained"}
    model, said = started_model(PretrainConfig(model=NAME, **config))
    torch.testing.assert_close(model.encoder.blocks[3].mlp.fc1.weight, read_pretrained().tensors[
        "blocks.3.mlp.fc1.weight"].float())  # fmt: skip
    assert "begins anew" in said
    with pytest.raises(hx.ConfigError, match=r"^weights: pretrained is no vit_small_patch16 .*give the model it is of"):
        started_model(PretrainConfig(model="vit_small_patch16", **config))


CREDITS = ("## Weights it began from", NAME, "ChestX-ray14 (NIH Clinical Center)", "CVPR 2017", "nihcc.app.box.com")


def credited(folder) -> bool:
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").replace("**", "").split())
    return all(words in card for words in CREDITS)


def test_what_is_made_of_it_says_whose_radiographs_it_knows(encoder, tmp_path):
    from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier
    from hdxray_fast.pretrain.config import PretrainConfig
    from hdxray_fast.pretrain.start import started_model

    hx.save_model(hx.create_encoder(NAME, weights="pretrained", img_size=64), tmp_path / "copy")
    again = hx.create_encoder(weights=tmp_path / "copy", keep="contour")  # as finetune, probe and report train begin
    save_classifier(Classifier(again, ClassifierConfig(["mass"])), tmp_path / "classifier")
    config = PretrainConfig(model=NAME, data="x", out=str(tmp_path), img_size=64, weights=str(tmp_path / "copy"))
    hx.save_model(started_model(config)[0], tmp_path / "further")
    hx.load_model(tmp_path / "further")
    convert(tmp_path / "further", tmp_path / "converted")
    for name in ("copy", "classifier", "further", "converted"):
        assert credited(tmp_path / name), name
    hx.save_model(hx.create_encoder(NAME, img_size=64), tmp_path / "new")
    assert not credited(tmp_path / "new") and "began from" not in (tmp_path / "new" / "README.md").read_text()
    assert encoder.config == replace(encoder.config, began_from=None)
    assert settings_print(encoder.config) == settings_print(replace(encoder.config, began_from=None))
    with pytest.raises(hx.ArgumentError, match=r"^began_from: got 'else', accepted are None"):
        hx.create_encoder(NAME, began_from="else")
