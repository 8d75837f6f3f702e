"""The encoder as a transformers model: folders both sides read, outputs, images, what is refused."""

from __future__ import annotations

import json
import shutil
import warnings

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("transformers")
SIZE = 64


def small(**kwargs) -> Encoder:
    options = {"img_size": SIZE, "depth": 2, "embed_dim": 48, "num_heads": 3, **kwargs}
    encoder = hx.create_encoder("vit_tiny_patch16", **options).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 2, "layer_scale": 0.1, "pool": "attention", "in_chans": 3},
        {"class_token": False, "pool": "mean", "fc_norm": True, "normalisation": (0.5, 0.25), "img_size": (32, 64)},
        {"learned_positions": True, "keep": "contour"},
    ],
    ids=["plain", "attention pool", "fc_norm", "contour"],
)
def test_folders_are_read_by_both_sides(transformers, tmp_path, options):
    encoder = small(**options)
    hx.save_model(encoder, tmp_path / "ours")
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert not model.training and model.config.encoder_config() == encoder.config
    assert model.encoder.pos_embed.requires_grad == encoder.pos_embed.requires_grad
    model.save_pretrained(tmp_path / "theirs")
    files = ["README.md", "config.json", "import_hdxray_fast.py", "model.safetensors", "preprocessor_config.json"]
    for folder in ("ours", "theirs"):
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == files
    readers = {
        "load_model": hx.load_model(tmp_path / "theirs"),
        "AutoModel": transformers.AutoModel.from_pretrained(tmp_path / "theirs").encoder,
        "create_encoder": hx.create_encoder(weights=tmp_path / "theirs"),
    }
    for reader, again in readers.items():
        assert again.config == encoder.config, reader
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), (reader, name)


def test_adapters_are_named_and_their_merged_model_is_saved(transformers, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(small(), peft.LoraConfig(target_modules=["qkv", "fc2"], init_lora_weights=False))
    with pytest.raises(hx.ArgumentTypeError, match="merge_and_unload"):
        hx.save_model(model, tmp_path)
    with pytest.raises(hx.ArgumentError, match="merge_and_unload"):
        hx.save_model(model.get_base_model(), tmp_path)
    images = torch.randn(1, 1, 64, 64)
    expected = model.eval()(images)
    merged = model.merge_and_unload()
    hx.save_model(merged, tmp_path)
    loaded = hx.load_model(tmp_path)
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_shards_are_read(transformers, tmp_path):
    encoder = small()
    hx.save_model(encoder, tmp_path / "ours")
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    for again in (hx.load_model(tmp_path / "theirs"), hx.create_encoder(weights=tmp_path / "theirs")):
        expected = encoder.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_outputs_are_those_of_the_encoder():
    from hdxray_fast.interop.hf import HDXrayModel

    encoder = small(reg_tokens=2)
    model = HDXrayModel.from_encoder(encoder)
    assert model.encoder is encoder
    images = torch.randn(2, 1, SIZE, SIZE)
    with torch.no_grad():
        outputs = model(images, output_hidden_states=True)
        features, maps = encoder.forward_intermediates(images, return_prefix_tokens=True, output_fmt="NLC")
    torch.testing.assert_close(outputs.last_hidden_state, features)
    torch.testing.assert_close(outputs.pooler_output, features[:, 0])
    assert len(outputs.hidden_states) == 3
    for state, (grid, prefix) in zip(outputs.hidden_states[1:], maps, strict=True):
        torch.testing.assert_close(state, torch.cat([prefix, grid], dim=1))
    embedded = encoder.add_prefix(encoder.patch_embed.embed_images(images))
    torch.testing.assert_close(outputs.hidden_states[0], embedded)
    last = model(images, return_dict=False)[0]
    torch.testing.assert_close(last, features)
    assert model(images).hidden_states is None
    assert model.get_input_embeddings() is encoder.patch_embed
    assert model(images.byte()).pooler_output.shape == (2, 48)  # integer images are normalised by the model


def test_keep_contour_through_processor_and_model(transformers, tmp_path):
    encoder = small(keep="contour", pool="mean", margin=0)
    hx.save_model(encoder, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    inputs = processor([draw_radiograph(0), draw_radiograph(1)], return_tensors="pt")
    assert inputs["inside"].dtype == torch.bool and inputs["inside"].any()
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        expected = encoder(inputs["pixel_values"], inside=inputs["inside"], valid=inputs["valid"])
    torch.testing.assert_close(outputs.pooler_output, expected)
    kept = (outputs.last_hidden_state[:, 1:].abs().sum(-1) > 0).view(2, 4, 4)
    assert torch.equal(kept, inputs["inside"])
    assert torch.equal((outputs.hidden_states[0][:, 1:].abs().sum(-1) > 0).view(2, 4, 4), inputs["inside"])


def test_config_speaks_both_languages(transformers, tmp_path):
    from hdxray_fast.interop.hf_config import HDXrayConfig

    config = HDXrayConfig("vit_base_patch16", image_size=[512, 256], num_channels=3, num_hidden_layers=2)
    assert (config.hidden_size, config.depth, config.num_attention_heads, config.intermediate_size) == (
        768,
        2,
        12,
        3072,
    )
    assert config.encoder_config() == hx.EncoderConfig(
        img_size=(512, 256), patch_size=16, in_chans=3, embed_dim=768, depth=2, num_heads=12
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "hdxray_vit" and saved["format"] == "hdxray_fast.encoder"
    assert "depth" not in saved and saved["model"]["depth"] == 2
    again = transformers.AutoConfig.from_pretrained(tmp_path, pool="mean", hidden_size=96, num_heads=3)
    assert (again.pool, again.embed_dim) == ("mean", 96)
    assert transformers.AutoModel.from_config(again).encoder.pool == "mean"
    assert HDXrayConfig().encoder_config() == hx.create_encoder().config
    with pytest.raises(hx.ArgumentError, match=r"^img_size: got 100"):
        HDXrayConfig(image_size=100)
    with pytest.raises(hx.ArgumentError, match=r"^dept: is no option"):
        HDXrayConfig(model={"dept": 3})
    with pytest.raises(hx.CheckpointError, match="format_version 2"):
        HDXrayConfig(format_version=2)


def test_training_checkpoints_and_gradient_checkpointing(transformers, tmp_path):
    model = transformers.AutoModel.from_config(_config())
    model.train()
    with warnings.catch_warnings():  # newer versions have another name for it
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()
    assert model.encoder.grad_checkpointing and model.gradient_checkpointing
    images = torch.randn(1, 1, SIZE, SIZE)
    model(images).pooler_output.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model._set_gradient_checkpointing(False)
    assert not model.encoder.grad_checkpointing
    model.zero_grad()
    model(images).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(parameter.grad, grads[name])
    assert "encoder.blocks.0.attn.qkv.weight" in grads and "encoder.pos_embed" not in grads
    # a trainer hands over its own state dict, and reads the file back by load_state_dict
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    other = transformers.AutoModel.from_config(_config())
    assert not any(other.load_state_dict(load_file(tmp_path / "model.safetensors")))
    assert not any(torch.nn.Sequential(other).load_state_dict(torch.nn.Sequential(model).state_dict()))
    assert torch.equal(other.encoder.cls_token, model.encoder.cls_token)


def _config():
    from hdxray_fast.interop.hf_config import HDXrayConfig

    return HDXrayConfig("vit_tiny_patch16", img_size=SIZE, depth=2, embed_dim=48, num_heads=3)


def test_another_input_size(transformers, tmp_path):
    model = transformers.AutoModel.from_config(_config()).eval()
    model.set_input_size((32, 96))
    assert model(torch.randn(1, 1, 32, 96)).last_hidden_state.shape == (1, 13, 48)
    model.save_pretrained(tmp_path)
    assert tuple(transformers.AutoConfig.from_pretrained(tmp_path).image_size) == (32, 96)
    assert transformers.AutoModel.from_pretrained(tmp_path).encoder.grid_size == (2, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions(transformers, tmp_path, dtype):
    encoder = small()
    hx.save_model(encoder, tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(tmp_path / "model", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    expected = encoder(torch.ones(1, 1, SIZE, SIZE)).values[0]
    features = model(torch.ones(1, 1, SIZE, SIZE, dtype=dtype)).pooler_output[0]
    assert features.dtype == dtype
    torch.testing.assert_close(features.float(), expected, rtol=0.05, atol=0.1)


def test_what_is_refused(transformers, tmp_path):
    hx.save_model(small(), tmp_path / "good")
    model = transformers.AutoModel.from_pretrained(tmp_path / "good")
    images = torch.randn(1, 1, SIZE, SIZE)
    with pytest.raises(hx.ArgumentError, match=r"^output_attentions:"):
        model(images, output_attentions=True)
    with pytest.raises(hx.ArgumentError, match=r"^interpolate_pos_encoding:"):
        model(images, interpolate_pos_encoding=True)
    with pytest.raises(hx.ArgumentError, match=r"^pixel_values: got shape \[1, 3, 64, 64\]"):
        model(images.expand(1, 3, -1, -1))
    with pytest.raises(hx.ArgumentTypeError, match=r"^pixel_values: got NoneType"):
        model()
    with pytest.raises(hx.CheckpointError, match=r"good.*lack encoder\.blocks\.2"):
        transformers.AutoModel.from_pretrained(tmp_path / "good", depth=3)
    with pytest.raises(hx.CheckpointError, match=r"good.*set_input_size"):
        transformers.AutoModel.from_pretrained(tmp_path / "good", img_size=[96, 96])
    shutil.copytree(tmp_path / "good", tmp_path / "cut")
    data = (tmp_path / "good" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(hx.CheckpointError, match=r"cut.*damaged"):
        transformers.AutoModel.from_pretrained(tmp_path / "cut")
    told = transformers.AutoModel.from_pretrained(tmp_path / "good", img_size=[96, 96], ignore_mismatched_sizes=True)
    assert torch.equal(told.encoder.pos_embed, hx.create_encoder(**_sizes(96)).pos_embed)
    with pytest.raises(hx.CheckpointError, match=r"good.*hold (encoder\.)?blocks\.1"):
        transformers.AutoModel.from_pretrained(tmp_path / "good", depth=1)
    with pytest.raises(hx.ArgumentTypeError, match=r"^encoder: got Linear"):
        type(model).from_encoder(torch.nn.Linear(2, 2))


def _sizes(img_size: int) -> dict:
    return {"name": "vit_tiny_patch16", "img_size": img_size, "depth": 2, "embed_dim": 48, "num_heads": 3}


def test_the_processor_prepares_images_as_embed_does(transformers, tmp_path):
    encoder = small(pool="mean", in_chans=3)
    hx.save_model(encoder, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    pixels = draw_radiograph(3)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), pixels)
    expected = hx.embed([path], encoder, device="cpu").features
    inputs = processor(path, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIZE, SIZE) and set(inputs) == {"pixel_values"}
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).pooler_output.numpy(), expected, rtol=1e-4, atol=1e-5)
    from PIL import Image

    same = {
        "array": pixels,
        "PIL": Image.fromarray(pixels),
        "palette": Image.fromarray(pixels).convert("P"),
        "RGB": Image.fromarray(pixels).convert("RGB"),
        "channels first": np.stack([pixels] * 3),
        "tensor": torch.from_numpy(pixels)[None],
        "batch": torch.from_numpy(pixels)[None, None],
    }
    for kind, image in same.items():
        np.testing.assert_array_equal(
            processor(image, return_tensors="np")["pixel_values"], inputs["pixel_values"], kind
        )
    raw = processor([path, pixels], do_normalize=False, return_grids=True, size=32, return_tensors="pt")
    assert raw["pixel_values"].dtype == torch.uint8 and raw["pixel_values"].shape == (2, 3, 32, 32)
    assert raw["inside"].shape == raw["valid"].shape == (2, 2, 2)
    deep = pixels.astype(np.uint16) * 257  # more than 8 bits are windowed
    from_pil, from_array = (
        processor(image, return_tensors="np")["pixel_values"] for image in (Image.fromarray(deep), deep)
    )
    np.testing.assert_array_equal(from_pil, from_array)
    fixed = transformers.AutoImageProcessor.from_pretrained(tmp_path, normalisation=[0.5, 0.25], size=32)
    values = fixed(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(values[0, 0], torch.from_numpy(hx.read_canvas(pixels, size=32).pixels) / 63.75 - 2)


def test_what_the_processor_refuses(tmp_path):
    from hdxray_fast.interop.hf_images import HDXrayImageProcessor

    processor = HDXrayImageProcessor(size=32)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(hx.ImageReadError, match=r"bad\.png"):
        processor([draw_radiograph(0), tmp_path / "bad.png"])
    with pytest.raises(hx.ImageReadError, match=r"none\.dcm"):
        processor(tmp_path / "none.dcm")
    with pytest.raises(hx.ArgumentTypeError, match=r"^images: holds a int"):
        processor([3])
    with pytest.raises(hx.ArgumentError, match=r"^images: got an empty list"):
        processor([])
    with pytest.raises(hx.ArgumentError, match=r"^do_pad: is no option"):
        processor(draw_radiograph(0), do_pad=True)
    with pytest.raises(hx.ArgumentError, match=r"^size: got 32 x 64"):
        processor(draw_radiograph(0), size={"height": 32, "width": 64})
    with pytest.raises(hx.ArgumentTypeError, match=r"^size: got 'large'"):
        processor(draw_radiograph(0), size="large")


def test_the_processor_takes_options_that_change_nothing(transformers, tmp_path):
    hx.save_model(small(), tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, do_resize=True, do_rescale=True)
    pixels = draw_radiograph(0)
    expected = processor(pixels, return_tensors="pt")["pixel_values"]
    channels_last, channels_first = np.stack([pixels] * 3, axis=-1), np.stack([pixels] * 3)
    first = transformers.image_utils.ChannelDimension.FIRST
    for options in (
        {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_center_crop": False},
        {"device": "cpu", "data_format": "channels_first", "do_convert_rgb": False},
        {"device": torch.device("cpu"), "data_format": first, "input_data_format": None},
    ):
        assert torch.equal(processor(pixels, return_tensors="pt", **options)["pixel_values"], expected), options
    for image, order in ((channels_last, "channels_last"), (channels_first, first), (pixels, "channels_last")):
        found = processor(image, input_data_format=order, return_tensors="pt")["pixel_values"]
        assert torch.equal(found, expected)
    canvas = hx.read_canvas(pixels, size=SIZE).pixels  # of the right size already
    same = processor(canvas, do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(same, processor(canvas, return_tensors="pt")["pixel_values"])
    raw = processor(pixels, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    assert raw.dtype == np.uint8
    assert processor(pixels, return_tensors="pt", device="meta")["pixel_values"].device.type == "meta"
    for options, message in (
        ({"do_resize": False}, r"^do_resize: got False for an image of 150 x 130 pixels.*canvas of the encoder's size"),
        ({"do_rescale": False}, r"^do_rescale: got False with do_normalize=True"),
        ({"do_rescale": True, "do_normalize": False}, r"^do_rescale: got True with do_normalize=False"),
        ({"rescale_factor": 1.0}, r"^rescale_factor: got 1.0, accepted is 1/255"),
        ({"data_format": "channels_last"}, r"^data_format: got 'channels_last'.*\[B, C, H, W\]"),
        ({"do_center_crop": True}, r"^do_center_crop: got True.*cut off"),
        ({"device": "meta", "return_tensors": "np"}, r"^device: got meta, which needs return_tensors='pt'"),
        ({"image_mean": [0.5]}, r"^image_mean: is no option"),
    ):
        with pytest.raises(hx.ArgumentError, match=message):
            processor(pixels, **options)
    with pytest.raises(hx.ArgumentError, match=r"^input_data_format: got 'channels_first' for an image of shape"):
        processor(channels_last, input_data_format="channels_first")
    with pytest.raises(hx.ArgumentError, match=r"^do_rescale: got False"):
        type(processor)(size=SIZE, do_rescale=False)


def test_a_pipeline_extracts_features(transformers, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    transformers.AutoModel.from_config(_config()).save_pretrained(tmp_path)
    pipe = transformers.pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    assert np.array(pipe(image_module.fromarray(draw_radiograph(0)))).shape == (1, 17, 48)


def test_model_cards_keep_whose_radiographs_the_weights_know(transformers, tmp_path):
    hx.save_model(small(began_from="vit_tiny_patch16"), tmp_path / "ours")
    transformers.AutoModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    hx.save_model(hx.create_encoder(weights=tmp_path / "theirs"), tmp_path / "back")
    cards = [(tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("ours", "theirs", "back")]
    assert "ChestX-ray14" in cards[0] and cards.count(cards[0]) == 3


def test_model_card_and_push_to_hub(transformers, tmp_path, monkeypatch):
    from hdxray_fast.interop.hf import HDXrayModel

    model = HDXrayModel.from_encoder(small(keep="contour"))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    for words in (
        "## Preprocessing",
        "## Intended use",
        "not a medical device",
        "## Licence",
        "inside the chest contour",
    ):
        assert words in card
    (tmp_path / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"

    pushed = {}

    def upload(self, working_dir, repo_id, *args, **kwargs):
        from pathlib import Path

        pushed.update({p.name: p.read_bytes() for p in Path(working_dir).iterdir()}, repo_id=repo_id)

    hub = transformers.utils.hub
    generated = hub.ModelCard("---\ntags: []\n---\nThis model card has been automatically generated.")
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: generated)
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    if hasattr(hub, "hf_api"):

        class Hub:
            def create_repo(self, repo_id, **kwargs):
                return type("Repo", (), {"repo_id": repo_id})

        monkeypatch.setattr(hub, "hf_api", Hub)
    else:
        monkeypatch.setattr(hub.PushToHubMixin, "_create_repo", lambda self, repo_id, **kwargs: repo_id)
    monkeypatch.chdir(tmp_path)
    model.push_to_hub("someone/encoder")
    assert pushed["repo_id"] == "someone/encoder"
    assert pushed["README.md"].decode() == card
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(pushed)
