"""A config that asks for far more than the weights beside it hold is refused before anything of that size is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from caps import limits

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from hdxray_fast.files import checksum, save_tensors
from hdxray_fast.weights.model_folders import MODEL_FILE
from hdxray_fast.weights.stored_sizes import stored_in

SIZES = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
HUGE = 10**9


def encoder():
    torch.manual_seed(0)
    return hx.create_encoder("vit_tiny_patch16", **SIZES)


def change(path: Path, room: str | None, **settings) -> None:
    content = json.loads(path.read_text())
    (content if room is None else content[room]).update(settings)
    path.write_text(json.dumps(content))


def shard(folder: Path) -> None:
    """Its tensors in two files, as Hugging Face writes large models."""
    from safetensors.torch import load_file

    tensors = load_file(folder / MODEL_FILE)
    (folder / MODEL_FILE).unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        save_tensors({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    (folder / f"{MODEL_FILE}.index.json").write_text(json.dumps({"weight_map": places}))


ENCODER = [
    {"depth": HUGE},
    {"embed_dim": 1 << 28},
    {"embed_dim": 1 << 20, "num_heads": 1},
    {"img_size": [16384, 16384]},
    {"reg_tokens": HUGE},
    {"mlp_ratio": 1e6},
]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("settings", ENCODER)
def test_encoder(tmp_path, settings, sharded):
    folder = hx.save_model(encoder(), tmp_path / "model")
    if sharded:
        shard(folder)
    with limits():
        assert hx.load_model(folder).config.depth == 2
    change(folder / "config.json", "model", **settings)
    for load in (hx.load_model, lambda folder: hx.create_encoder(weights=folder)):
        with limits(), pytest.raises(hx.CheckpointError, match=r"config\.json: asks for"):
            load(folder)


@pytest.mark.parametrize(
    "settings", [{"depth": HUGE}, {"decoder_depth": HUGE}, {"decoder_embed_dim": 4 * HUGE}, {"img_size": 16384}]
)
def test_auto_encoder(tmp_path, settings):
    folder = hx.save_model(hx.create_mae("vit_tiny_patch16", **SIZES, decoder_embed_dim=32, decoder_depth=1), tmp_path)
    change(folder / "config.json", "model", **settings)
    with limits(), pytest.raises(hx.CheckpointError, match=r"config\.json: asks for"):
        hx.load_model(folder)


def test_sizes_that_differ_by_little_are_named_tensor_by_tensor(tmp_path):
    folder = hx.save_model(encoder(), tmp_path)
    change(folder / "config.json", "model", depth=3)
    with pytest.raises(hx.CheckpointError, match=r"does not fit the model: missing blocks\.2"):
        hx.load_model(folder)


def test_header_alone_is_read(tmp_path):
    folder = hx.save_model(encoder(), tmp_path)
    found, tensors = stored_in(folder / MODEL_FILE), encoder().state_dict()
    assert found.tensors == len(tensors)
    assert found.numbers == sum(tensor.numel() for tensor in tensors.values())
    with (folder / MODEL_FILE).open("r+b") as stream:
        stream.truncate((folder / MODEL_FILE).stat().st_size - 1)
    with pytest.raises(hx.CheckpointError, match=MODEL_FILE):
        stored_in(folder / MODEL_FILE)


@pytest.fixture
def classifier(tmp_path) -> Path:
    model = Classifier(encoder(), ClassifierConfig(["a", "b"], head="label-query"), torch.randn(2, 8))
    return save_classifier(model, tmp_path / "classifier")


def test_classifier(classifier):
    with limits():
        assert load_classifier(classifier).config.text_dim == 8
    change(classifier / "classifier.json", None, text_dim=HUGE)
    with limits(), pytest.raises(hx.CheckpointError, match=r"classifier\.json: asks for"):
        load_classifier(classifier)


@pytest.mark.parametrize(
    ("file", "room", "settings"),
    [
        ("encoder/config.json", "model", {"depth": HUGE}),
        ("report.json", "model", {"visual_tokens": HUGE, "pool": "attention"}),
        ("report.json", "model", {"max_views": HUGE}),
        ("decoder/config.json", None, {"encoder_layers": HUGE}),
        ("decoder/config.json", None, {"decoder_layers": HUGE}),
        ("decoder/config.json", None, {"vocab_size": HUGE}),
        ("decoder/config.json", None, {"d_model": HUGE}),
        ("decoder/config.json", None, {"decoder_ffn_dim": HUGE}),
        ("decoder/config.json", None, {"max_position_embeddings": HUGE}),
    ],
)
def test_report_model(tmp_path, file, room, settings):
    pytest.importorskip("transformers")
    from hdxray_fast.reports.saving import load_report_model

    source = Path(__file__).parents[1] / "formats" / "report_model"
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    with limits():
        load_report_model(folder, "cpu")
    change(folder / file, room, **settings)
    if file != "report.json":
        report = json.loads((folder / "report.json").read_text())
        report["parts"][file] = checksum(folder / file)
        (folder / "report.json").write_text(json.dumps(report))
    with limits(), pytest.raises(hx.CheckpointError, match=f"{Path(file).name}: asks for"):
        load_report_model(folder, "cpu")


@pytest.mark.parametrize("settings", [{"num_hidden_layers": HUGE}, {"hidden_size": 1 << 24}, {"vocab_size": HUGE}])
def test_language_model(tmp_path, settings):
    pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    from report_model_makers import small_language_model

    from hdxray_fast.reports.language_model import load_language_model

    folder = small_language_model(tmp_path / "lm")
    with limits():
        load_language_model(str(folder))
    change(folder / "config.json", None, **settings)
    with limits(), pytest.raises(hx.CheckpointError, match=r"config\.json: asks for"):
        load_language_model(str(folder))


def test_code_beside_an_encoder_is_told_and_not_run(tmp_path, recwarn):
    folder, ran = hx.save_model(encoder(), tmp_path / "model"), tmp_path / "ran"
    hx.load_model(folder)
    assert not [warning for warning in recwarn if "is code" in str(warning.message)]  # import_hdxray_fast.py is ours
    (folder / "modelling.py").write_text(f"open({str(ran)!r}, 'w')\n")
    change(folder / "config.json", None, auto_map={"AutoModel": "modelling.Model"})
    for load in (hx.load_model, lambda folder: hx.create_encoder(weights=folder)):
        with pytest.warns(UserWarning, match=r"modelling\.py: is code; it is not run") as found:
            load(folder)
        assert len([warning for warning in found if "is code" in str(warning.message)]) == 1
    assert not ran.exists()
