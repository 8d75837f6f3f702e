"""Models on disk: what is written is read back bit for bit, and damage is refused by name with nothing half-loaded."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.weights.model_folders import load_mae_state_dict, read_mae_checkpoint, to_mae_state_dict

pytest.importorskip("safetensors", reason="checkpoints need safetensors (extra 'train')")

FILES = ["README.md", "config.json", "import_hdxray_fast.py", "model.safetensors", "preprocessor_config.json"]


def small_mae(decoder: str = "self", **kwargs) -> torch.nn.Module:
    sizes = {"depth": 1, "embed_dim": 48, "num_heads": 3, "decoder_embed_dim": 32, "decoder_depth": 1}
    return hx.create_mae("vit_tiny_patch16", decoder=decoder, img_size=(32, 48), **{**sizes, **kwargs})


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_round_trip(tmp_path, decoder):
    model = small_mae(decoder, norm_pix_loss=False)
    folder = hx.save_model(model, tmp_path / "deep" / "model")
    assert sorted(p.name for p in folder.iterdir()) == FILES
    again = hx.load_model(folder)
    assert again.config == model.config
    assert again.norm_pix_loss is False
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_overwriting_leaves_no_temporary_files(tmp_path):
    hx.save_model(small_mae(), tmp_path)
    newer = small_mae()
    hx.save_model(newer, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert torch.equal(hx.load_model(tmp_path).encoder.cls_token, newer.encoder.cls_token)


def test_interrupted_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    old = small_mae()
    hx.save_model(old, tmp_path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(hx.CheckpointError, match="No space left"):
        hx.save_model(small_mae(), tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert torch.equal(hx.load_model(tmp_path).encoder.cls_token, old.encoder.cls_token)


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(hx.CheckpointError, match="file"):
        hx.save_model(small_mae(), tmp_path / "file")


def damage(folder, kind: str) -> None:
    model, config = folder / "model.safetensors", folder / "config.json"
    content = json.loads(config.read_text())
    if kind == "empty folder":
        model.unlink()
        config.unlink()
    elif kind == "no tensors":
        model.unlink()
    elif kind == "truncated tensors":
        model.write_bytes(model.read_bytes()[:-100])
    elif kind == "truncated header":
        model.write_bytes(model.read_bytes()[:20])
    elif kind == "empty tensors":
        model.write_bytes(b"")
    elif kind == "text for tensors":
        model.write_text("these are not tensors")
    elif kind == "config is no JSON":
        config.write_text("{")
    elif kind == "config is binary":
        config.write_bytes(b"\xff\xfe\x00")
    elif kind == "foreign config":
        config.write_text(json.dumps({"model_type": "vit"}))
    elif kind == "config is a list":
        config.write_text("[1]")
    elif kind == "newer format":
        config.write_text(json.dumps({**content, "format_version": 99}))
    elif kind == "unknown preset":
        content["model"]["name"] = "vit_giant_patch14"
        config.write_text(json.dumps(content))
    elif kind == "unknown option":
        content["model"]["window"] = 7
        config.write_text(json.dumps(content))
    elif kind == "bad option":
        content["model"]["img_size"] = None
        config.write_text(json.dumps(content))
    elif kind == "other size":
        content["model"]["embed_dim"] = 96
        config.write_text(json.dumps(content))
    elif kind == "other decoder":
        content["model"]["decoder"] = "cross"
        config.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "named", "says"),
    [
        ("empty folder", "config.json", "is missing"),
        ("no tensors", "model.safetensors", "is missing"),
        ("truncated tensors", "model.safetensors", "damaged"),
        ("truncated header", "model.safetensors", "damaged"),
        ("empty tensors", "model.safetensors", "damaged"),
        ("text for tensors", "model.safetensors", "damaged"),
        ("config is no JSON", "config.json", "no JSON"),
        ("config is binary", "config.json", "no JSON"),
        ("foreign config", "config.json", "hdxray_fast.mae"),
        ("config is a list", "config.json", "hdxray_fast.mae"),
        ("newer format", "config.json", "99"),
        ("unknown preset", "config.json", "vit_giant_patch14"),
        ("unknown option", "config.json", "window"),
        ("bad option", "config.json", "img_size"),
        ("other size", "model.safetensors", r"encoder\.cls_token is \[1, 1, 48\], the model has \[1, 1, 96\]"),
        ("other decoder", "model.safetensors", r"missing decoder\.wfm"),
    ],
)
def test_damage_is_named(tmp_path, kind, named, says):
    hx.save_model(small_mae(), tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(hx.CheckpointError, match=says) as caught:
        hx.load_model(tmp_path)
    assert named in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_mae_layout_is_loaded_whole_or_not_at_all():
    model, other = small_mae(), small_mae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    good = to_mae_state_dict(other)
    for change, says in (
        (lambda d: d.pop("norm.weight"), r"missing encoder\.norm\.weight"),
        (lambda d: d.update({"head.weight": torch.zeros(3)}), r"unexpected encoder\.head\.weight"),
        (lambda d: d.update({"cls_token": torch.zeros(1, 1, 7)}), r"cls_token is \[1, 1, 7\]"),
        (lambda d: d.update({"cls_token": torch.zeros(1, 1, 48, dtype=torch.int64)}), "int64"),
    ):
        bad = dict(good)
        change(bad)
        with pytest.raises(hx.CheckpointError, match=says):
            load_mae_state_dict(model, bad, source="some.pth")
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
    load_mae_state_dict(model, good)
    assert torch.equal(model.encoder.cls_token, other.encoder.cls_token)


@pytest.mark.parametrize("wrapped", [True, False])
def test_legacy_file_with_a_namespace_is_read(tmp_path, wrapped):
    tensors = to_mae_state_dict(small_mae())
    content = {"model": tensors, "args": argparse.Namespace(lr=1e-3), "epoch": 3} if wrapped else tensors
    torch.save(content, tmp_path / "mae.pth")
    read = read_mae_checkpoint(tmp_path / "mae.pth")
    assert read.keys() == tensors.keys()
    load_mae_state_dict(small_mae(), read)


class Bomb:
    """Pickles into a call; loading it would leave a trace."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (self.trace, "w")


def test_legacy_file_with_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"model": to_mae_state_dict(small_mae()), "extra": Bomb(str(trace))}, tmp_path / "bomb.pth")
    with pytest.raises(hx.CheckpointError, match=r"bomb\.pth: refused"):
        read_mae_checkpoint(tmp_path / "bomb.pth")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip"])
def test_legacy_file_that_is_none(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(hx.CheckpointError, match=r"broken\.pth"):
        read_mae_checkpoint(tmp_path / "broken.pth")


def test_legacy_file_truncated_missing_or_without_tensors(tmp_path):
    torch.save(to_mae_state_dict(small_mae()), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-500])
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("cut.pth", "missing.pth", "number.pth", "list.pth"):
        with pytest.raises(hx.CheckpointError, match=name):
            read_mae_checkpoint(tmp_path / name)


def test_what_is_no_model_or_no_path_is_refused_by_name(tmp_path):
    model = hx.create_mae("vit_tiny_patch16", img_size=64, decoder_embed_dim=32, decoder_depth=1)
    with pytest.raises(hx.ArgumentTypeError, match="model"):
        hx.save_model(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(hx.ArgumentTypeError, match="directory"):
        hx.load_model(None)
    hx.save_model(model, tmp_path / "run" / "model")
    with pytest.raises(hx.CheckpointError, match="give the folder"):
        hx.load_model(tmp_path / "run" / "model" / "model.safetensors")


def test_a_saved_model_can_be_read_by_others(tmp_path):
    hx.save_model(hx.create_mae("vit_tiny_patch16", img_size=64, decoder_embed_dim=32, decoder_depth=1), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_an_encoder_comes_back(tmp_path):
    options = {"img_size": (64, 96), "depth": 1, "keep": "contour", "pool": "mean", "normalisation": (0.5, 0.25)}
    encoder = hx.create_encoder("vit_tiny_patch16", reg_tokens=2, **options)
    again = hx.load_model(hx.save_model(encoder, tmp_path / "encoder"))
    assert again.config == encoder.config
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
