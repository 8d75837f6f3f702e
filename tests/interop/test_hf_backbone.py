"""The encoder as a backbone of transformers, and auto-encoders' folders as their encoders."""

from __future__ import annotations

import json
import logging

import pytest
import torch

import hdxray_fast as hx

pytestmark = pytest.mark.usefixtures("transformers")
SIZES = {"img_size": (32, 64), "depth": 3, "embed_dim": 48, "num_heads": 3}


def small(**options):
    torch.manual_seed(2)
    encoder = hx.create_encoder("vit_tiny_patch16", **{**SIZES, **options}).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "keep": "valid"}, {"class_token": False, "fc_norm": True}])
def test_feature_maps_are_those_of_the_encoder(tmp_path, options):
    from hdxray_fast.interop.hf import HDXrayBackbone

    encoder = small(**options)
    hx.save_model(encoder, tmp_path)
    images = torch.randn(2, 1, 32, 64)
    grids = {}
    if "keep" in options:
        valid = torch.ones(2, 2, 4, dtype=torch.bool)
        valid[1, :, 3] = False
        grids = {"valid": valid}
    for norm in (True, False):
        backbone = HDXrayBackbone.from_pretrained(tmp_path, out_indices=[0, 1, -1], apply_layernorm=norm)
        with torch.no_grad():
            outputs = backbone(images, **grids, output_hidden_states=True)
            stages = {"intermediates_only": True, "norm": norm}
            expected = encoder.forward_intermediates(images, [0, 2], **stages, **grids)
            hidden = encoder.forward_hidden(images, **grids, all_depths=True)[2]
        assert [tuple(m.shape) for m in outputs.feature_maps] == [(2, 48, 2, 4)] * 3
        assert torch.equal(outputs.feature_maps[1], expected[0]) and torch.equal(outputs.feature_maps[2], expected[1])
        stem = hidden[0][:, encoder.num_prefix_tokens :]
        if norm:
            stem = encoder.norm(stem) * (stem != 0).any(-1, keepdim=True)
        torch.testing.assert_close(outputs.feature_maps[0], stem.transpose(1, 2).unflatten(2, (2, 4)))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.hidden_states, hidden, strict=True))
        if grids:
            assert outputs.feature_maps[1][1, :, :, 3].eq(0).all()
    assert backbone(images, **grids, return_dict=False)[0][1].shape == (2, 48, 2, 4)


def test_it_has_what_detectors_ask_a_backbone_for(transformers, tmp_path):
    """Names, widths and choices as DINOv2's backbone has them."""
    from hdxray_fast.interop.hf import HDXrayBackbone, HDXrayConfig

    plain = transformers.Dinov2Backbone(
        transformers.Dinov2Config(
            hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=32, out_features=["stage1", "stage3"]
        )
    )
    config = HDXrayConfig("vit_tiny_patch16", **SIZES, out_features=["stage1", "stage3"])
    ours = transformers.AutoBackbone.from_config(config)
    assert isinstance(ours, HDXrayBackbone)
    for name in ("stage_names", "out_features", "out_indices", "channels", "num_features", "out_feature_channels"):
        assert getattr(ours, name) == getattr(plain, name), name
    assert ours.config.out_features == ["stage1", "stage3"] and ours.config.stage_names == plain.config.stage_names
    ours.out_indices = [0, 2]
    assert ours.out_features == ["stem", "stage2"] and len(ours(torch.randn(1, 1, 32, 64)).feature_maps) == 2
    filtered = ours.forward_with_filtered_kwargs(torch.randn(1, 1, 32, 64), output_attentions=False, nothing=1)
    assert len(filtered.feature_maps) == 2
    ours.save_pretrained(tmp_path)
    again = HDXrayBackbone.from_pretrained(tmp_path)
    assert again.out_indices == [0, 2] and torch.equal(again.encoder.cls_token, ours.encoder.cls_token)
    assert hx.load_model(tmp_path).config == ours.encoder.config
    for wrong, message in (
        ({"out_features": ["stage4"]}, r"^out_features: got 'stage4'"),
        ({"out_indices": [4]}, r"^out_indices: got 4"),
        ({"out_indices": [2, 1]}, r"^out_indices: got \[2, 1\]"),
        ({"out_features": ["stage1"], "out_indices": [2]}, r"^out_indices: got \[2\], which are not"),
    ):
        with pytest.raises(hx.ArgumentError, match=message):
            HDXrayConfig("vit_tiny_patch16", **SIZES, **wrong)


def test_the_auto_class_opens_folders_where_it_opens_others(transformers, tmp_path):
    """Some versions of transformers ask the hub whether a folder's name exists there, and refuse every folder."""
    plain = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=28)
    transformers.Dinov2Backbone(plain).save_pretrained(tmp_path / "plain")
    hx.save_model(small(), tmp_path / "ours")
    try:
        transformers.AutoBackbone.from_pretrained(tmp_path / "plain")
    except Exception as error:
        pytest.skip(f"AutoBackbone opens no folder, DINOv2's neither ({type(error).__name__})")
    backbone = transformers.AutoBackbone.from_pretrained(tmp_path / "ours", out_features=["stage2"])
    assert backbone.out_indices == [2] and backbone.channels == [48]


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_auto_encoder_opens_as_its_encoder(transformers, tmp_path, caplog, monkeypatch, decoder):
    from hdxray_fast.interop.hf import HDXrayBackbone

    sizes = {**SIZES, "img_size": 64, "decoder_embed_dim": 32, "decoder_depth": 1}
    mae = hx.create_mae("vit_tiny_patch16", decoder=decoder, **sizes)
    hx.save_model(mae, tmp_path / "run" / "model")
    transformers.utils.logging.set_verbosity_warning()
    # On a machine that says it runs CI, the library hands its records on to the root logger, where caplog listens too.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", False)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        models = [
            transformers.AutoModel.from_pretrained(tmp_path / "run" / "model"),
            transformers.AutoModel.from_pretrained(tmp_path / "run", subfolder="model"),
            HDXrayBackbone.from_pretrained(tmp_path / "run" / "model"),
            transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model", num_labels=3),
        ]
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
        transformers.utils.logging.set_verbosity_error()
    told = [record.getMessage() for record in caplog.records if "decoder" in record.getMessage()]
    assert len(told) == len(models) and all("its decoder was left" in line and len(line) < 400 for line in told), told
    for model in models:
        assert model.encoder.config == mae.encoder.config
        for name, tensor in mae.encoder.state_dict().items():
            assert torch.equal(tensor, model.encoder.state_dict()[name]), name
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.size == {"height": 64, "width": 64}
    models[0].save_pretrained(tmp_path / "encoder")
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["format"] == "hdxray_fast.encoder"
    assert type(hx.load_model(tmp_path / "encoder")).__name__ == "Encoder"
    assert type(hx.load_model(tmp_path / "run" / "model")).__name__ == "MaskedAutoencoder"
