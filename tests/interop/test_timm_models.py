"""The encoders as timm models: what a project written against timm does with a ViT."""

from __future__ import annotations

import pytest
import torch

import hdxray_fast as hx

SIZES = {"img_size": (32, 64), "depth": 3, "embed_dim": 48, "num_heads": 3}
NAME = "hdxray_vit_base_patch16_1280"


@pytest.fixture(scope="module")
def timm(plain_mae):
    if plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    return pytest.importorskip("timm")


def shake(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
def test_the_presets_are_there(timm, size):
    (name,) = timm.list_models(f"hdxray_vit_{size}_patch16_1280")
    model = timm.create_model(name, depth=1, img_size=32)
    expected = hx.create_encoder(f"vit_{size}_patch16", depth=1, img_size=32)
    assert model.config == expected.config
    assert model.default_cfg["input_size"] == (1, 1280, 1280)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in expected.state_dict().items()}


def test_without_arguments_it_is_the_preset(timm):
    with torch.device("meta"):
        model = timm.create_model("hdxray_vit_tiny_patch16_1280")
    assert model.config == hx.create_encoder("vit_tiny_patch16").config
    assert model.num_classes == 0 and isinstance(model.get_classifier(), torch.nn.Identity)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg", "class_token": False, "fc_norm": True},
        {"global_pool": "avg", "reg_tokens": 4, "layer_scale": 0.1},
        {"global_pool": "map"},
        {"global_pool": ""},
    ],
    ids=["token", "avg, fc_norm", "avg, registers", "map", "none"],
)
def test_features_and_logits(timm, options):
    model = shake(timm.create_model(NAME, num_classes=7, in_chans=3, **SIZES, **options))
    images = torch.randn(2, 3, 32, 64)
    pool = {"token": "cls", "avg": "mean", "map": "attention", "": None}[options.get("global_pool", "token")]
    kept = {k: v for k, v in options.items() if k != "global_pool"}
    ours = hx.create_encoder("vit_base_patch16", in_chans=3, pool=pool, **SIZES, **kept).eval()
    ours.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("head.")})
    with torch.no_grad():
        features = model.forward_features(images)
        torch.testing.assert_close(features, ours.forward_features(images))
        before = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(before, ours(images) if pool else features)
        logits = model(images)
    torch.testing.assert_close(logits, model.head(before))
    assert logits.shape == ((2, 7) if pool else (2, features.shape[1], 7))
    assert model.num_features == model.head_hidden_size == 48


def test_features_only(timm):
    model = shake(timm.create_model(NAME, features_only=True, out_indices=(0, -2), **SIZES))
    maps = model(torch.randn(2, 1, 32, 64))
    assert [m.shape for m in maps] == [(2, 48, 2, 4)] * 2
    assert model.feature_info.channels() == [48, 48] and model.feature_info.reduction() == [16, 16]
    assert len(model.model.blocks) == 2  # the blocks behind the last one asked for are dropped
    images = torch.randn(1, 1, 32, 64)
    whole = timm.create_model(NAME, **SIZES).eval()
    whole.load_state_dict(model.model.state_dict(), strict=False)
    expected = whole.forward_intermediates(images, [0, 1], intermediates_only=True)
    for a, b in zip(model(images), expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(hx.ArgumentError, match=r"^indices:"):
        whole.prune_intermediate_layers([3])


def test_reset_classifier(timm):
    model = timm.create_model(NAME, num_classes=7, **SIZES)
    images = torch.randn(1, 1, 32, 64)
    model.reset_classifier(3)
    assert model(images).shape == (1, 3) and model.num_classes == 3
    model.reset_classifier(0, "avg")
    assert model(images).shape == (1, 48) and model.global_pool == "avg"
    model.reset_classifier(0, "")
    assert model(images).shape == (1, 9, 48)
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got 'map'"):
        model.reset_classifier(0, "map")


def test_a_training_step_as_timm_writes_it(timm):
    from timm.optim import create_optimizer_v2

    options = {"drop_rate": 0.1, "drop_path_rate": 0.2, "layer_scale": 0.1}
    model = timm.create_model(NAME, num_classes=2, **SIZES, **options)
    assert (
        timm.create_model(NAME, layer_scale=0.1, num_classes=2, **SIZES).state_dict().keys()
        == model.state_dict().keys()
    )
    assert model.blocks[2].ls1.drop_path.drop_prob == pytest.approx(0.2)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert decays[id(names["cls_token"])] == 0 and decays[id(names["blocks.0.attn.qkv.weight"])] == 0.05
    order = ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.2.attn.qkv.weight", "head.weight"]
    rising = [scales[id(names[name])] for name in order]
    assert rising == sorted(rising) and rising[0] < rising[1] < rising[2] <= rising[3]
    model.set_grad_checkpointing()
    model.train()
    loss = torch.nn.functional.cross_entropy(model(torch.randn(2, 1, 32, 64)), torch.tensor([0, 1]))
    loss.backward()
    before = names["head.weight"].detach().clone()
    optimizer.step()
    assert not torch.equal(before, names["head.weight"])


def test_stochastic_depth_drops_whole_images(timm):
    model = timm.create_model(NAME, drop_path_rate=0.9, **SIZES)
    block, x = model.blocks[2].train(), torch.randn(64, 5, 48)
    unchanged = (block(x) == x).flatten(1).all(dim=1)
    assert 0 < unchanged.sum() < 64
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()


def test_another_input_size(timm):
    model = timm.create_model(NAME, **SIZES)
    model.set_input_size(img_size=[64, 64])
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 48)
    model.set_input_size(patch_size=16)
    with pytest.raises(hx.ArgumentError, match=r"^patch_size:"):
        model.set_input_size(patch_size=8)


@pytest.mark.parametrize("num_classes", [0, 5])
def test_weights_by_timms_ways_and_by_ours(timm, tmp_path, num_classes):
    pytest.importorskip("safetensors")
    encoder = shake(hx.create_encoder("vit_base_patch16", **SIZES))
    folder = hx.save_model(encoder, tmp_path)
    file = str(folder / "model.safetensors")
    options = {"num_classes": num_classes, **SIZES}
    models = [
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": file}, **options),
        timm.create_model(NAME, weights=folder, **options),
    ]
    if num_classes == 0:
        models.append(timm.create_model(NAME, checkpoint_path=file, **options))
    for model in models:
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        assert model(torch.randn(1, 1, 32, 64)).shape == (1, num_classes or 48)
    if num_classes == 0:
        again = hx.load_model(hx.save_model(models[0], tmp_path / "again"))
        assert torch.equal(again.pos_embed, encoder.pos_embed)


def test_what_is_refused(timm):
    for unfit in ({"keep": "contour"}, {"pool": "mean"}, {"margin": 2}):
        with pytest.raises(hx.ArgumentError, match=rf"^{next(iter(unfit))}: is no option here"):
            timm.create_model(NAME, **SIZES, **unfit)
    with pytest.raises(hx.ArgumentError, match=r"^dynamic_img_size: is no option of an encoder"):
        timm.create_model(NAME, dynamic_img_size=True, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got 'max'"):
        timm.create_model(NAME, global_pool="max", **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got 'token'"):
        timm.create_model(NAME, global_pool="token", class_token=False, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^img_size: got 30 x 64"):
        timm.create_model(NAME, **{**SIZES, "img_size": (30, 64)})
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model(NAME, pretrained=True, **SIZES)


def test_a_model_with_a_head_is_no_encoder_to_save(timm, tmp_path):
    model = timm.create_model(NAME, num_classes=3, **SIZES)
    with pytest.raises(hx.ArgumentTypeError, match=r"^model: has a head"):
        hx.save_model(model, tmp_path / "model")
    model.reset_classifier(0)
    again = hx.load_model(hx.save_model(model, tmp_path / "model"))
    assert again.config == model.config
    with pytest.raises(hx.ArgumentError, match=r"^num_classes: got -1"):
        timm.create_model(NAME, num_classes=-1, **SIZES)
