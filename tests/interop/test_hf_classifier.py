"""Classifiers as transformers models: folders both sides read, losses, pipelines, a trainer's step, new heads."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier

pytestmark = pytest.mark.usefixtures("transformers")
SIZE = 64
CLASSES = ["Effusion", "Nodule", "Edema"]


def classifier(head: str = "linear", multiclass: bool = False, text: torch.Tensor | None = None, **encoder):
    options = {"img_size": SIZE, "depth": 2, "embed_dim": 48, "num_heads": 3, **encoder}
    torch.manual_seed(1)
    model = Classifier(
        hx.create_encoder("vit_tiny_patch16", **options),
        ClassifierConfig(CLASSES, head=head, multiclass=multiclass, thresholds=[0.3, 0.4, 0.6]),
        text,
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def files(tmp_path):
    (tmp_path / "xrays").mkdir()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / "xrays" / f"{seed}.png"), draw_radiograph(seed))
    return sorted(map(str, (tmp_path / "xrays").glob("*.png")))


@pytest.mark.parametrize(
    ("head", "multiclass", "options"),
    [
        ("linear", False, {}),
        ("linear", True, {"class_token": False, "fc_norm": True}),
        ("probe", False, {"in_chans": 3, "normalisation": (0.5, 0.25)}),
        ("attention", True, {"keep": "contour", "margin": 0}),
        ("label-query", False, {"keep": "valid", "reg_tokens": 2}),
        ("label-query with text", False, {}),
    ],
)
def test_folders_of_classifiers_are_read_by_both_sides(transformers, tmp_path, files, head, multiclass, options):
    text = torch.randn(3, 8) if "text" in head else None
    ours = classifier(head.split()[0], multiclass, text, **options)
    save_classifier(ours, tmp_path / "ours")
    auto = transformers.AutoModelForImageClassification
    model = auto.from_pretrained(tmp_path / "ours")
    assert not model.training and same(model.encoder, ours.encoder) and same(model.head, ours.head)
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.label2id["Edema"] == 2
    assert model.config.problem_type == f"{'single' if multiclass else 'multi'}_label_classification"

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        outputs = model(**processor(files, return_tensors="pt"), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3 and outputs.loss is None
    expected = hx.predict(files, tmp_path / "ours", device="cpu", precision="fp32")
    found = outputs.logits.softmax(-1) if multiclass else outputs.logits.sigmoid()
    np.testing.assert_allclose(found.numpy(), expected.probabilities, rtol=1e-4, atol=1e-5)

    model.save_pretrained(tmp_path / "theirs")
    again = load_classifier(tmp_path / "theirs")
    assert vars(again.config) == vars(ours.config) and same(again.encoder, ours.encoder) and same(again.head, ours.head)
    assert same(auto.from_pretrained(tmp_path / "theirs"), model)
    for encoder in (
        hx.load_model(tmp_path / "theirs"),
        hx.create_encoder(weights=tmp_path / "theirs"),
        transformers.AutoModel.from_pretrained(tmp_path / "theirs").encoder,
    ):
        assert same(encoder, ours.encoder)
    assert "AutoModelForImageClassification" in (tmp_path / "theirs" / "README.md").read_text()


def test_a_folder_written_over_by_the_other_side(transformers, tmp_path):
    first, second = classifier(), classifier("attention")
    save_classifier(first, tmp_path)
    transformers.AutoModelForImageClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert not (tmp_path / "head.safetensors").exists() and same(load_classifier(tmp_path), first)
    save_classifier(second, tmp_path)
    assert same(load_classifier(tmp_path), second)
    assert same(transformers.AutoModelForImageClassification.from_pretrained(tmp_path).head, second.head)


def test_folders_from_before_their_config_named_the_classes(transformers, tmp_path):
    save_classifier(classifier("attention", multiclass=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("id2label", "label2id", "problem_type", "classifier", "auto_map"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["HDXrayModel"]}))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == dict(enumerate(CLASSES)) and same(model.head, load_classifier(tmp_path).head)
    assert model.config.problem_type == "single_label_classification"


def test_the_models_of_a_classifier_share_its_weights():
    from hdxray_fast.interop.hf import HDXrayForImageClassification

    ours = classifier("attention")
    model = HDXrayForImageClassification.from_classifier(ours)
    assert model.encoder is ours.encoder and model.head is ours.head and model.config.id2label[1] == "Nodule"
    images = torch.randn(2, 1, SIZE, SIZE)
    torch.testing.assert_close(model(images).logits, ours(images))
    torch.testing.assert_close(model(images, return_dict=False)[0], ours(images))
    with pytest.raises(hx.ArgumentTypeError, match=r"^classifier: got Encoder"):
        HDXrayForImageClassification.from_classifier(ours.encoder)


def test_losses_are_those_of_transformers(transformers):
    from hdxray_fast.interop.hf import HDXrayConfig, HDXrayForImageClassification

    def fresh(**labels):
        config = HDXrayConfig("vit_tiny_patch16", img_size=SIZE, depth=1, embed_dim=48, num_heads=3, **labels)
        return HDXrayForImageClassification(config)

    images = torch.randn(4, 1, SIZE, SIZE)
    many, one = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), torch.tensor([2, 0, 1, 1])
    plain = transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, num_labels=3)
    )
    for labels, problem in ((many.float(), "multi_label_classification"), (one, "single_label_classification")):
        for said in (problem, None):
            model = fresh(num_labels=3, problem_type=said)
            outputs = model(images, labels)
            assert model.config.problem_type == problem
            plain.config.problem_type = problem
            expected = plain.loss_function(labels, outputs.logits, plain.config)
            torch.testing.assert_close(outputs.loss, expected)
    model = fresh(num_labels=3, problem_type="multi_label_classification")
    labels = many.float()
    labels[0, 1] = torch.nan  # not known
    loss = model(images, labels).loss
    loss.backward()
    logits = model(images).logits
    known = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    torch.testing.assert_close(loss, known[~labels.isnan()].mean())
    assert model.encoder.patch_embed.proj.weight.grad.isfinite().all()
    torch.testing.assert_close(model(images, many).loss, model(images, many.float()).loss)  # whole numbers too
    single = fresh(num_labels=1)
    assert single(images, torch.tensor([1, 0, 1, 1])).loss > 0
    assert single.config.problem_type == "multi_label_classification"
    known = single(images[:2], torch.tensor([1, 0])).loss
    torch.testing.assert_close(single(images, torch.tensor([1, 0, -100, -100])).loss, known)
    for blind in (fresh(num_labels=3), single):  # a batch in which nothing is known
        loss = blind(images, torch.full((4,), -100)).loss
        loss.backward()
        assert loss == 0 and not any(p.grad.any() for p in blind.parameters() if p.grad is not None)
    with pytest.raises(hx.ArgumentError, match=r"^labels: got shape \[4, 2\]"):
        model(images, torch.zeros(4, 2))
    with pytest.raises(hx.ArgumentError, match=r"^problem_type: got 'regression'"):
        fresh(num_labels=1, problem_type="regression")
    with pytest.raises(hx.ArgumentError, match=r"^classifier: 'heads' is no setting"):
        fresh(classifier={"heads": "linear"})


def test_an_encoder_gets_a_new_head(transformers, tmp_path, caplog):
    encoder = classifier().encoder
    hx.save_model(encoder, tmp_path)
    auto = transformers.AutoModelForImageClassification
    names = dict(enumerate("abcde"))
    model = auto.from_pretrained(
        tmp_path, num_labels=5, id2label=names, label2id={name: key for key, name in names.items()},
        problem_type="multi_label_classification", classifier={"head": "attention"},
    )  # fmt: skip
    assert same(model.encoder, encoder) and model.head.fc.weight.shape == (5, 48)
    weights = {name: p for name, p in model.head.named_parameters() if p.dim() > 1}
    assert all(0 < p.abs().max() < 1 for p in weights.values()), "a head that nobody initialised"
    assert model.head.norm.weight.eq(1).all() and model.head.norm.bias.eq(0).all()
    model.save_pretrained(tmp_path / "five")
    again = load_classifier(tmp_path / "five")
    assert again.config.classes == list("abcde") and again.config.head == "attention"
    assert again.config.thresholds == [0.5] * 5 and not again.config.multiclass and same(again.head, model.head)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "five")
    assert auto.from_config(config).head.fc.weight.shape == (5, 48)


def test_other_classes_than_the_trained_ones(transformers, tmp_path):
    save_classifier(classifier(), tmp_path / "linear")
    auto = transformers.AutoModelForImageClassification
    for folder in ("linear", "again"):
        config = transformers.AutoConfig.from_pretrained(
            tmp_path / folder, num_labels=2, id2label={0: "x", 1: "y"}, label2id={"x": 0, "y": 1}
        )
        with pytest.raises(hx.CheckpointError, match="ignore_mismatched_sizes"):
            auto.from_pretrained(tmp_path / folder, config=config)
        model = auto.from_pretrained(tmp_path / folder, config=config, ignore_mismatched_sizes=True)
        assert model.head.fc.weight.shape == (2, 48) and 0 < model.head.fc.weight.abs().max() < 1e-3
        assert same(model.encoder, load_classifier(tmp_path / folder).encoder)
        auto.from_pretrained(tmp_path / "linear").save_pretrained(tmp_path / "again")
    save_classifier(classifier("label-query", text=torch.randn(3, 8)), tmp_path / "text")
    names = {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}
    with pytest.raises(hx.CheckpointError, match="embeddings of their names"):
        auto.from_pretrained(tmp_path / "text", ignore_mismatched_sizes=True, **names)
    (tmp_path / "linear" / "head.safetensors").unlink()
    with pytest.raises(hx.CheckpointError, match=r"linear: is a classifier whose weights lack head\.fc\.bias"):
        auto.from_pretrained(tmp_path / "linear")
    with pytest.raises(hx.CheckpointError, match=r"head\.safetensors: is missing"):
        load_classifier(tmp_path / "linear")


def test_the_pipeline_gives_the_probabilities_of_predict(transformers, tmp_path, files, monkeypatch):
    image_module = pytest.importorskip("PIL.Image")
    questions = []  # whether code of the folder may run: nothing is to be asked
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    for multiclass in (False, True):
        save_classifier(classifier(multiclass=multiclass, keep="contour"), tmp_path / "model")
        expected = hx.predict(files, tmp_path / "model", device="cpu", precision="fp32")
        pipe = transformers.pipeline("image-classification", model=str(tmp_path / "model"), device="cpu")
        answers = pipe(files, top_k=3)
        answers += [pipe(image_module.open(file), top_k=3) for file in files]
        for answer, row in zip(answers, [*expected.probabilities] * 2, strict=True):
            scores = {item["label"]: item["score"] for item in answer}
            np.testing.assert_allclose([scores[name] for name in CLASSES], row, rtol=1e-3, atol=1e-5)
    sigmoids = {item["label"]: item["score"] for item in pipe(files[0], function_to_apply="sigmoid")}
    softmax = {item["label"]: item["score"] for item in pipe(files[0])}
    assert abs(sum(softmax.values()) - 1) < 1e-5 and sigmoids.keys() == softmax.keys() and sigmoids != softmax
    assert questions == []


def test_a_trainer_takes_a_step_and_goes_on(transformers, tmp_path):
    """The calls of transformers' run_image_classification.py."""
    pytest.importorskip("accelerate")
    hx.save_model(classifier().encoder, tmp_path / "encoder")
    config = transformers.AutoConfig.from_pretrained(
        tmp_path / "encoder", num_labels=2, label2id={"no": "0", "yes": "1"}, id2label={"0": "no", "1": "yes"},
        finetuning_task="image-classification", trust_remote_code=False,
    )  # fmt: skip
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "encoder", config=config, ignore_mismatched_sizes=False, trust_remote_code=False
    )
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "encoder", trust_remote_code=False)
    samples = [{**processor(draw_radiograph(seed), return_tensors="pt"), "labels": seed % 2} for seed in range(4)]
    samples = [{**sample, "pixel_values": sample["pixel_values"][0]} for sample in samples]
    settings = {
        "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "save_steps": 1, "max_steps": 1,
    }  # fmt: skip
    before = model.head.fc.weight.detach().clone()

    def trainer(**more):
        args = transformers.TrainingArguments(str(tmp_path / "run"), **{**settings, **more})
        return transformers.Trainer(
            model, args, train_dataset=samples, eval_dataset=samples, processing_class=processor,
            compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
        )  # fmt: skip

    first = trainer()
    assert np.isfinite(first.train().training_loss)
    assert not torch.equal(model.head.fc.weight, before)
    metrics = first.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1 and metrics["eval_loss"] > 0
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first.save_model(str(tmp_path / "out"))
    saved = load_classifier(tmp_path / "out")
    assert saved.config.classes == ["no", "yes"] and saved.config.multiclass
    with torch.no_grad():
        model.head.fc.weight.zero_()
    trainer(max_steps=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert not torch.equal(model.head.fc.weight, torch.zeros_like(before)), "the head was not read from the checkpoint"
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in trained.items())
