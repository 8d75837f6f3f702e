"""transformers: a classifier in `Trainer` and the pipeline, a folder in `AutoModel`, features as the encoder's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from integrations_helpers import same
from toy_radiographs import draw_radiograph

import hdxray_fast as hx


@pytest.fixture
def transformers(timm):
    return pytest.importorskip("transformers", reason="transformers is not installed: make integrations")


@pytest.fixture
def xray(tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), draw_radiograph(0))
    return tmp_path / "image.png"


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_features_of_a_folder(transformers, tmp_path, xray, keep):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=128, depth=2, embed_dim=32, num_heads=2, pool="mean")
    encoder.keep = keep
    hx.save_model(encoder.eval(), tmp_path / "encoder")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    with torch.no_grad():
        features = model(**processor([str(xray)], return_tensors="pt")).pooler_output
    same(features, torch.from_numpy(hx.embed([xray], encoder).features))


def test_a_new_classifier_trains_and_answers(transformers, tmp_path, xray):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1, embed_dim=32, num_heads=2)
    hx.save_model(encoder, tmp_path / "encoder")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "encoder")
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "encoder", num_labels=2, id2label={0: "clear", 1: "effusion"}, label2id={"clear": 0, "effusion": 1}
    )
    pixels = processor([str(xray)], return_tensors="pt")
    rows = [{name: value[0] for name, value in pixels.items()} | {"labels": index % 2} for index in range(4)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    before = [parameter.detach().clone() for parameter in model.head.parameters()]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)
    assert not all(torch.equal(a, b.cpu()) for a, b in zip(before, model.head.parameters(), strict=True))
    trainer.save_model(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    answer = transformers.pipeline("image-classification", model=str(tmp_path / "trained"), device="cpu")(str(xray))
    assert {row["label"] for row in answer} == {"clear", "effusion"}
    with torch.no_grad():
        expected = model.cpu().eval()(**pixels).logits.softmax(-1)[0]
    found = {row["label"]: row["score"] for row in answer}
    assert found["effusion"] == pytest.approx(expected[1].item(), abs=1e-5)
