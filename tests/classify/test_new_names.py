"""Label queries asked about names: their own, fourteen, and ones they have never seen."""

from __future__ import annotations

import csv
import hashlib
import json

import cv2
import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify import scoring
from hdxray_fast.classify import task as classify_task
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.evaluation import evaluate_files, predict
from hdxray_fast.classify.finetune import run_finetuning
from hdxray_fast.classify.scoring import ask
from hdxray_fast.cli.main import main

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
NAMES = [f"disease {i}" for i in range(14)]


def stub_embedding(names, model="stub"):
    """Like names, like vectors: the mean of a random vector per word, the same on every machine."""

    def word(text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=12)

    rows = [np.mean([word(part) for part in name.lower().split()], axis=0) for name in names]
    return torch.tensor(np.array(rows), dtype=torch.float32)


@pytest.fixture
def stub(monkeypatch):
    for room in (classify_task, scoring):
        monkeypatch.setattr(room, "embed_names", stub_embedding)


def saved(folder, names, text=True, head="label-query"):
    torch.manual_seed(0)
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3, contour="rectangle"
    )
    embedded = stub_embedding(names) if text else None
    told = {"thresholds": [0.3] * len(names), "text_model": "stub" if text else "", "contour": "rectangle"}
    config = ClassifierConfig(list(names), head, **told)
    model = Classifier(encoder, config, embedded if head == "label-query" else None)
    for parameter in model.head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return save_classifier(model, folder)


@pytest.mark.parametrize("count", [1, 14])
def test_new_names_leave_the_others_answers_alone(radiographs, tmp_path, stub, count):
    folder = saved(tmp_path / "model", NAMES[:count])
    own = predict(radiographs, folder)
    assert own.probabilities.shape == (5, count)
    asked = predict(radiographs, folder, classes=["hernia", NAMES[0], "lung mass"])
    assert asked.classes == ["hernia", NAMES[0], "lung mass"]
    assert asked.thresholds == [0.5, 0.3, 0.5]
    np.testing.assert_allclose(asked.probabilities[:, 1], own.probabilities[:, 0], atol=1e-6)
    alone = predict(radiographs, folder, classes=["lung mass"])
    np.testing.assert_allclose(asked.probabilities[:, 2], alone.probabilities[:, 0], atol=1e-5)
    assert np.abs(asked.probabilities[:, 0] - asked.probabilities[:, 2]).max() > 1e-4


def test_confident_answers_are_no_ties(radiographs, tmp_path, stub):
    """In float32, probabilities of logits above 17 are all 1: ranked by them, a good model is as good as chance."""
    folder = saved(tmp_path / "model", NAMES[:1], head="linear")
    model = load_classifier(folder)
    model.head.fc.weight.data *= 0.1
    model.head.fc.bias.data += 20
    own = predict(radiographs, model).probabilities[:, 0]
    assert own.dtype == np.float64 and own.min() > 1 - 1e-7 and len(set(own)) == len(own)


def test_who_cannot_be_asked_says_why(tmp_path, stub):
    cases = (("linear", True, "knows its own classes alone"), ("label-query", False, "learned vectors"))
    for number, (head, text, why) in enumerate(cases):
        model = load_classifier(saved(tmp_path / str(number), NAMES[:2], text, head))
        with pytest.raises(hx.ConfigError, match=rf"classes: 'hernia' is none of the classifier's .*{why}"):
            ask(model, ["hernia"])
        assert ask(model, [NAMES[1]]).columns == [1]
        with pytest.raises(hx.ConfigError, match="trained is 'disease 1': is that meant"):
            ask(model, ["Disease_1"])
    assert scoring.untrained(model, ["Disease 0", NAMES[1], "hernia"]) == [
        "Disease 0 [trained is 'disease 0': is that meant?]",
        "hernia",
    ]
    with pytest.raises(hx.ConfigError, match="different names"):
        ask(model, [NAMES[1], NAMES[1]])


def test_trained_on_some_names_and_tested_on_another(tmp_path, stub, capsys):
    """Squares above, below, left and right: what was learned of 'high square' answers for 'high mark'."""
    rng = np.random.default_rng(0)
    lines = ["image,patient,split,high square,right square,high mark"]
    for i in range(80):
        image = rng.integers(60, 100, (64, 64)).astype(np.uint8)
        high, right = int(rng.integers(2)), int(rng.integers(2))
        top, left = 4 if high else 40, 40 if right else 6
        image[top : top + 18, left : left + 18] = rng.integers(180, 250)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        split = "train" if i < 48 else "val" if i < 60 else "test"
        lines.append(f"{i}.png,p{i},{split},{high},{right},{high}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(1)
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=64, depth=2, embed_dim=24, num_heads=3)
    hx.save_model(encoder, tmp_path / "weights")
    out = tmp_path / "run"
    (result,) = run_finetuning(
        FinetuneConfig(
            data=str(tmp_path / "labels.csv"), out=str(out), weights=str(tmp_path / "weights"), head="label-query",
            classes=["high square", "right square"], contour="rectangle", epochs=25, batch_size=8, lr=6e-3,
            augment="none", bootstraps=10, workers=0, threads=1, tensorboard=False,
        ),
        progress=False,
    )  # fmt: skip
    assert result.report["mean"]["auroc"]["value"] > 0.9
    assert load_classifier(out / "model").config.text_model
    options = {"data": tmp_path / "labels.csv", "bootstraps": 10, "progress": False}
    report = evaluate_files(out / "model", out=tmp_path / "new", classes=["high mark", "right square"], **options)
    assert report["classes"]["high mark"]["auroc"]["value"] > 0.8
    assert report["classes"]["high mark"]["threshold"] == 0.5
    assert report["classes"]["right square"] == result.report["classes"]["right square"] | {
        name: report["classes"]["right square"][name]
        for name in ("auroc", "auprc", "f1", "balanced_accuracy", "calibration_error")
    }
    files = [str(tmp_path / "0.png"), "--out", str(tmp_path / "p.csv"), "--model", str(out / "model")]
    assert main(["predict", *files, "--workers", "0", "--classes", "high mark", "right square"]) == 0
    with (tmp_path / "p.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    extra = ["view", "model", "threshold high mark", "threshold right square"]
    assert list(row) == ["image", "high mark", "right square", "present", *extra]
    learned = load_classifier(out / "model").config.thresholds[1]
    assert f"present from 0.5 (high mark), {learned:.3g} (right square)" in capsys.readouterr().out
    called = [name for name, least in (("high mark", 0.5), ("right square", learned)) if float(row[name]) >= least]
    assert row["present"] == "|".join(called)
    assert main(["predict", *files, "--classes", "a", "a"]) == 2
    assert "different names" in capsys.readouterr().err


def test_the_real_text_model(tmp_path):
    """Needs sentence-transformers and its model on this machine (it is not fetched in a test)."""
    pytest.importorskip("sentence_transformers")
    from huggingface_hub import try_to_load_from_cache

    from hdxray_fast.classify.heads import TEXT_MODEL, embed_names

    if not isinstance(try_to_load_from_cache(TEXT_MODEL, "config.json"), str):
        pytest.skip(f"{TEXT_MODEL} is not in the cache of the Hugging Face hub")
    vectors = torch.nn.functional.normalize(embed_names(["Pleural_Effusion", "pleural effusion", "rib fracture"]))
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.99
    assert likeness[0, 2] < 0.8


def test_a_text_model_that_cannot_be_had_is_named(tmp_path):
    pytest.importorskip("sentence_transformers")
    from hdxray_fast.classify.heads import embed_names

    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(hx.MissingDependencyError, match="cannot be loaded"):
        embed_names(["mass"], str(tmp_path))
