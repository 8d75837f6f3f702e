"""What save_model writes, load_model reads: whatever was done to the model, or nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError, CheckpointError

SIZES = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}


def encoder_of() -> nn.Module:
    return hx.create_encoder("vit_tiny_patch16", **SIZES)


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def compiled(model):
    return torch.compile(model, backend="eager")


def blocks_compiled(model):
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


WRAPPED = {
    "compiled": compiled,
    "compiled in place": lambda model: model.compile(backend="eager") or model,
    "blocks compiled": blocks_compiled,
    "data parallel": nn.DataParallel,
    "both": lambda model: compiled(nn.DataParallel(model)),
    "half": lambda model: model.half(),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("kind", ["encoder", "auto-encoder"])
def test_wrappers_come_off(tmp_path, how, kind):
    if kind == "encoder":
        model = encoder_of()
    else:
        model = hx.create_mae("vit_tiny_patch16", decoder_embed_dim=32, decoder_depth=1, **SIZES)
        if how == "blocks compiled":
            pytest.skip("of an encoder")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hx.save_model(WRAPPED[how](model), tmp_path)
    loaded = hx.load_model(tmp_path).state_dict()
    assert loaded.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(loaded[name], tensor.half().float() if how == "half" else tensor)


def pruned(model):
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", 0.5)


def weight_normed(model):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.blocks[0].mlp.fc1)


def quantised(model):
    model.blocks[0].mlp.fc1.weight = nn.Parameter(torch.zeros(128, 32, dtype=torch.int8), requires_grad=False)


def quantised_layers(model):
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def resized(model):
    model.blocks[0].mlp.fc1 = nn.Linear(32, 64)


def on_meta(model):
    model.to("meta")


def lost(model):
    model.norm = nn.Identity()


CHANGED = {
    "pruned": (pruned, r"prune\.remove"),
    "parametrised": (lambda m: parametrizations.weight_norm(m.blocks[0].mlp.fc1), "remove_parametrizations"),
    "weight norm": (weight_normed, "remove_weight_norm"),
    "quantised": (quantised, "int8"),
    "quantised layers": (quantised_layers, "it is quantised .* model of floats"),
    "resized": (resized, r"\[64, 32\], its config says \[128, 32\]"),
    "without values": (on_meta, "meta device"),
    "without its norm": (lost, r"norm\.(weight|bias) is missing"),
}


@pytest.mark.parametrize("how", CHANGED)
def test_what_no_load_would_take_is_refused_before_anything_is_written(tmp_path, how):
    hx.save_model(encoder_of(), tmp_path / "good")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    model = encoder_of()
    change, says = CHANGED[how]
    change(model)
    for folder in ("good", "new"):
        with pytest.raises(ArgumentError, match=f"model: cannot be saved.*{says}"):
            hx.save_model(model, tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()} == kept


def in_shards(folder, shards: int = 3) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{index % shards:05d}-of-{shards:05d}.safetensors" for index, name in enumerate(tensors)}
    for place in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == place}, folder / place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_are_read(tmp_path):
    model = encoder_of()
    hx.save_model(model, tmp_path)
    in_shards(tmp_path)
    assert same(hx.load_model(tmp_path), model)


def test_shards_that_are_not_whole_are_named(tmp_path):
    hx.save_model(encoder_of(), tmp_path)
    places = in_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    first = next(iter(places))
    for map_, says in (
        ({**places, first: "../elsewhere.safetensors"}, "names a file outside its folder"),
        ({**places, "no.such": places[first]}, "no.such is not in"),
        ([], "no index of shards"),
        ({**places, first: "gone.safetensors"}, "gone.safetensors: is missing"),
    ):
        index.write_text(json.dumps({"weight_map": map_}))
        with pytest.raises(CheckpointError, match=says):
            hx.load_model(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="no index of shards"):
        hx.load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": {first: "model.safetensors"}}))  # which it is itself
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        hx.create_encoder(weights=tmp_path)
