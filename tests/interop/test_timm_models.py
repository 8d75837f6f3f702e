"""The encoders as timm models: what a project written against timm does with a ViT."""

from __future__ import annotations

import warnings

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify.classifier import load_classifier, save_classifier

SIZES = {"img_size": (32, 64), "depth": 3, "embed_dim": 48, "num_heads": 3}
NAME = "hdxray_vit_base_patch16_1280"


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
    assert timm.get_pretrained_cfg(name).input_size == (1, 1280, 1280)
    assert model.default_cfg["input_size"] == (1, 32, 32)
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


def test_features_by_hooks_and_what_follows_no_graph(timm):
    from timm.utils import AttentionExtract

    torch.manual_seed(0)
    hooked = timm.create_model(NAME, features_only=True, feature_cls="hook", out_indices=(0, 2), **SIZES).eval()
    torch.manual_seed(0)  # the same weights again
    whole = timm.create_model(NAME, **SIZES).eval()
    images = torch.randn(2, 1, 32, 64)
    expected = whole.forward_intermediates(images, [0, 2], output_fmt="NLC", intermediates_only=True)
    for tokens, patches in zip(hooked(images), expected, strict=True):
        torch.testing.assert_close(tokens[:, 1:], patches)
    model = timm.create_model(NAME, **SIZES)
    with pytest.raises(hx.ArgumentTypeError, match=r"^images: got Proxy"):
        timm.create_model(NAME, features_only=True, feature_cls="fx", **SIZES)
    with pytest.raises(RuntimeError, match="attn_drop"):
        AttentionExtract(model, method="hook")


def test_one_graph_while_drop_path_trains(timm):
    model = timm.create_model(NAME, num_classes=2, drop_path_rate=0.5, global_pool="avgmax", **SIZES).train()
    logits = torch.compile(model, backend="eager", fullgraph=True)(torch.randn(4, 1, 32, 64))
    logits.sum().backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


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
    pooled = timm.create_model(NAME, num_classes=7, global_pool="map", **SIZES)
    pooled.reset_classifier(3, "avg")
    assert pooled(images).shape == (1, 3) and not hasattr(pooled, "attn_pool") and pooled.pool is None
    assert not any(name.startswith("attn_pool.") for name in pooled.state_dict())


def test_a_training_step_as_timm_writes_it(timm):
    from timm.optim import create_optimizer_v2

    options = {"drop_rate": 0.1, "drop_path_rate": 0.2, "layer_scale": 0.1}
    model = timm.create_model(NAME, num_classes=2, **SIZES, **options)
    assert (
        timm.create_model(NAME, layer_scale=0.1, num_classes=2, **SIZES).state_dict().keys()
        == model.state_dict().keys()
    )
    assert model.blocks[2].drop_path == pytest.approx(0.2)
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
    packed, cu_seqlens = x.flatten(0, 1), 5 * torch.arange(65, dtype=torch.int32)
    unchanged = (block.train()(packed, cu_seqlens, 5) == packed).all(dim=1).unflatten(0, (64, 5))
    assert torch.equal(unchanged.any(dim=1), unchanged.all(dim=1))  # no image loses some of its tokens
    assert 0 < unchanged.all(dim=1).sum() < 64


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_pools_with_the_largest_value(timm, pool):
    from timm.models.vision_transformer import global_pool_nlc

    model = shake(timm.create_model(NAME, num_classes=2, global_pool=pool, reg_tokens=2, **SIZES))
    tokens = torch.randn(2, model.num_prefix_tokens + 8, 48)
    expected = global_pool_nlc(tokens, pool, model.num_prefix_tokens)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)
    assert model(torch.randn(2, 1, 32, 64)).shape == (2, 2)


@pytest.mark.parametrize("class_token", [True, False])
def test_intermediates_as_timms_vit_gives_them(timm, class_token):
    options = {"class_token": class_token, "global_pool": "avg"}
    model = shake(timm.create_model(NAME, **options, **SIZES))
    plain = timm.create_model(
        "vit_base_patch16_224", num_classes=0, in_chans=1, fc_norm=False, **options, **SIZES
    ).eval()
    weights = model.state_dict()
    plain.load_state_dict(weights, strict=True)
    images = torch.randn(2, 1, 32, 64)
    assert model.has_class_token == plain.has_class_token == class_token
    with torch.no_grad():
        torch.testing.assert_close(model.patch_embed(images), plain.patch_embed(images))
        torch.testing.assert_close(model(images), plain(images))
        for given in ({}, {"return_prefix_tokens": True, "norm": True}, {"intermediates_only": True}):
            ours, theirs = (m.forward_intermediates(images, [0, 2], output_dict=True, **given) for m in (model, plain))
            assert ours.keys() == theirs.keys()
            torch.testing.assert_close(ours, dict(theirs))
        for given in ({}, {"n": [0, -1], "reshape": True}, {"n": 2, "return_prefix_tokens": class_token, "norm": True}):
            ours, theirs = (list(m.get_intermediate_layers(images, **given)) for m in (model, plain))
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(hx.ArgumentError, match=r"^attn_mask:"):
        model.forward_intermediates(images, attn_mask=torch.ones(9, 9))


def test_the_stem_embeds_whole_images():
    embed = hx.create_encoder("vit_base_stem64", img_size=128, depth=1, embed_dim=48, num_heads=3).patch_embed
    images = torch.randn(2, 1, 128, 128)
    torch.testing.assert_close(embed(images), embed.embed_images(images))
    assert embed(images).shape == (2, 4, 48)


def test_another_input_size(timm):
    model = timm.create_model(NAME, **SIZES)
    model.set_input_size(img_size=[64, 64])
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 48)
    model.set_input_size(patch_size=16)
    with pytest.raises(hx.ArgumentError, match=r"^patch_size:"):
        model.set_input_size(patch_size=8)


@pytest.mark.filterwarnings("ignore:weights. were trained on images of mean 0")
@pytest.mark.parametrize("num_classes", [0, 5])
def test_weights_by_timms_ways_and_by_ours(timm, tmp_path, num_classes):
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


@pytest.mark.filterwarnings("ignore:weights. were trained on images of mean 0")
def test_a_folder_keeps_its_size_channels_and_pixels(timm, tmp_path, monkeypatch):
    monkeypatch.setattr("hdxray_fast.interop.timm_models._told", [])
    from timm.data import resolve_model_data_config

    encoder = shake(hx.create_encoder("vit_base_patch16", in_chans=3, normalisation=(0.4, 0.2), **SIZES))
    folder = hx.save_model(encoder, tmp_path / "fixed")
    narrow = {name: value for name, value in SIZES.items() if name != "img_size"}
    model = timm.create_model(NAME, weights=folder, **narrow).eval()
    assert model.config.img_size == (32, 64) and model.config.in_chans == 3
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["mean"], data["std"]) == ((3, 32, 64), (0.4,) * 3, (0.2,) * 3)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        by_timm, own = model((images / 255 - mean) / std), encoder.forward_features(images)[:, 0]
    torch.testing.assert_close(by_timm, own, atol=1e-4, rtol=1e-4)
    larger = timm.create_model(NAME, weights=folder, img_size=64, features_only=True, out_indices=(0,), **narrow)
    assert larger.pretrained_cfg["input_size"] == (3, 64, 64)
    folder = hx.save_model(hx.create_encoder("vit_base_patch16", **SIZES), tmp_path / "per_image")
    with pytest.warns(UserWarning, match=r"^weights: .*model\.transform\(\)"):
        timm.create_model(NAME, weights=folder, **narrow)


@pytest.mark.parametrize("how", ["new", "pretrained", "folder"])
def test_what_timm_saved_is_read_as_it_was(timm, tmp_path, how):
    tiny, options = "hdxray_vit_tiny_patch16_1280", {"img_size": 32, "depth": 2}
    if how == "folder":
        hx.save_model(
            hx.create_encoder("vit_tiny_patch16", normalisation=(0.4, 0.2), norm_eps=1e-5, **options), tmp_path / "own"
        )
        options = {"weights": tmp_path / "own", "depth": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(tiny, pretrained=how == "pretrained", **options)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    again = hx.create_encoder(weights=tmp_path / "saved", img_size=None)
    assert again.config == model.config and not again.load_report.assumed
    assert again.config.began_from == ("vit_tiny_patch16" if how == "pretrained" else None)
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(again.eval().forward_features(images), model.eval().forward_features(images))


@pytest.mark.parametrize("learned", [True, False])
def test_pretrained_weights_at_another_size(timm, tmp_path, learned):
    sizes = SIZES | {"learned_positions": learned, "num_classes": 2}
    encoder = hx.create_encoder("vit_base_patch16", **{n: v for n, v in sizes.items() if n != "num_classes"})
    if learned:
        shake(encoder)
    cfg = {"file": str(hx.save_model(encoder, tmp_path) / "model.safetensors"), "input_size": (1, 32, 64)}
    (tmp_path / "config.json").unlink()  # weights alone, as timm has them; the test below reads it
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=cfg, **sizes | {"img_size": (64, 96)})
    encoder.set_input_size((64, 96))
    torch.testing.assert_close(model.pos_embed, encoder.pos_embed)
    assert torch.equal(model.blocks[1].attn.qkv.weight, encoder.blocks[1].attn.qkv.weight)
    assert model(torch.randn(1, 1, 64, 96)).shape == (1, 2)
    del cfg["input_size"]
    if learned:  # the fixed table tells its grid
        with pytest.raises(hx.CheckpointError, match=r"^pretrained weights: its position table has 9 rows"):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=cfg, **sizes | {"img_size": (64, 96)})


def test_the_config_beside_a_pretrained_file_is_read(timm, tmp_path):
    options = {"learned_positions": True, "reg_tokens": 2, "in_chans": 3, "normalisation": (0.4, 0.2)}
    encoder = shake(hx.create_encoder("vit_base_patch16", **SIZES, **options))
    file = str(hx.save_model(encoder, tmp_path) / "model.safetensors")
    narrow = {name: value for name, value in SIZES.items() if name != "img_size"}  # the name's own are others
    for size in ((32, 64), (64, 96)):
        more = {} if size == (32, 64) else {"img_size": size}
        overlay = {"file": file, "num_classes": -1}  # what timm's train.py makes of --pretrained-path
        model = timm.create_model(
            NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2, **narrow, **more
        ).eval()
        cfg = model.pretrained_cfg
        assert (cfg["input_size"], cfg["mean"], cfg["std"]) == ((3, *size), (0.4,) * 3, (0.2,) * 3)
        assert model.num_classes == 2 and model.config.reg_tokens == 2
        encoder.set_input_size(size)
        images = torch.rand(1, 3, *size) * 4 - 2
        torch.testing.assert_close(model.forward_features(images), encoder.forward_features(images))
    with pytest.raises(hx.HDXrayError, match=r"cls_token is .1, 1, 48., the encoder has"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": file}, embed_dim=96)
    (tmp_path / "config.json").write_text('{"architecture": "of somebody else"}')
    with pytest.raises(RuntimeError, match="reg_token"):  # weights alone, into what the options say
        timm.create_model(
            NAME, pretrained=True, pretrained_cfg_overlay={"file": file, "input_size": (3, 32, 64)}, in_chans=3, **SIZES
        )


def test_the_config_follows_the_pixels(timm):
    from timm.data import resolve_model_data_config

    for options, mean, std in (
        ({}, (0.5,), (0.25,)),  # rough values
        ({"in_chans": 3}, (0.5,) * 3, (0.25,) * 3),  # timm's loaders take one for each channel
        ({"normalisation": (0.4, 0.2)}, (0.4,), (0.2,)),
        ({"normalisation": (0.4, 0.2), "in_chans": 3}, (0.4,) * 3, (0.2,) * 3),
        ({"normalisation": "per_image", "in_chans": 3}, (0.5,) * 3, (0.25,) * 3),
        ({"normalisation": (0.4, 0.2), "pretrained_cfg_overlay": {"mean": (0.3,)}}, (0.3,), (0.2,)),
        ({"normalisation": (0.4, 0.2), "pretrained_cfg": {"mean": (0.3,)}}, (0.3,), (0.2,)),
        ({"normalisation": (0.4, 0.2), "pretrained_cfg": timm.get_pretrained_cfg(NAME)}, (0.4,), (0.2,)),
    ):
        data = resolve_model_data_config(timm.create_model(NAME, **SIZES, **options))
        assert (data["mean"], data["std"]) == (mean, std), options
        assert data["input_size"] == (options.get("in_chans", 1), 32, 64)
    with pytest.raises(hx.ArgumentError, match=r"^normalisation: "):
        timm.create_model(NAME, normalisation=(0.4, 0.0), **SIZES)


def test_options_of_timms_vit(timm):
    model = timm.create_model(NAME, init_values=0.25, device="meta", dtype=torch.bfloat16, **SIZES)
    assert {(t.device.type, t.dtype) for t in model.state_dict().values()} == {("meta", torch.bfloat16)}
    assert model.config.layer_scale == 0.25
    model = timm.create_model(NAME, init_values=0.25, dtype=torch.bfloat16, num_classes=2, **SIZES)
    assert model(torch.randn(1, 1, 32, 64)).dtype == torch.bfloat16
    assert model.blocks[0].ls1.gamma.eq(0.25).all()


def test_what_is_refused(timm):
    for unfit in ({"keep": "contour"}, {"pool": "mean"}, {"margin": 2}):
        with pytest.raises(hx.ArgumentError, match=rf"^{next(iter(unfit))}: is no option here"):
            timm.create_model(NAME, **SIZES, **unfit)
    with pytest.raises(hx.ArgumentError, match=r"^dynamic_img_pad: got True, accepted is that with dynamic_img_size"):
        timm.create_model(NAME, dynamic_img_pad=True, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^nonsense: .*global_pool.*img_size.*num_classes"):
        timm.create_model(NAME, nonsense=1, **SIZES)
    for option in ("drop_rate", "drop_path_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"):
        with pytest.raises(hx.ArgumentError, match=rf"^{option}: got 1.0, accepted is a share"):
            timm.create_model(NAME, **{option: 1.0}, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^attn_drop_rate: .* there are drop_rate, .*, proj_drop_rate"):
        timm.create_model(NAME, attn_drop_rate=0.1, **SIZES)
    for option, value in {"qk_norm": True, "pre_norm": True, "attn_drop_rate": 0.1}.items():
        with pytest.raises(hx.ArgumentError, match=rf"^{option}: got {value}, accepted is"):
            timm.create_model(NAME, **{option: value}, **SIZES)
        timm.create_model(NAME, **{option: type(value)()}, **SIZES)  # what changes nothing is taken
    with pytest.raises(hx.ArgumentError, match=r"^init_values: "):
        timm.create_model(NAME, init_values=0.1, layer_scale=0.1, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^weights: given with pretrained=True"):
        timm.create_model(NAME, pretrained=True, weights="a_folder")
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got 'prr', accepted are .*'avgmax'"):
        timm.create_model(NAME, global_pool="prr", **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got 'token'"):
        timm.create_model(NAME, global_pool="token", class_token=False, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"^img_size: got 30 x 64"):
        timm.create_model(NAME, **{**SIZES, "img_size": (30, 64)})
    with pytest.raises(hx.ArgumentError, match=r"no pre-trained vit_base_patch16 comes .* there is vit_tiny_patch16"):
        timm.create_model(NAME, pretrained=True, **SIZES)


def test_the_encoder_that_comes_with_the_package(timm, monkeypatch):
    monkeypatch.setattr("hdxray_fast.interop.timm_models._told", [])
    with pytest.warns(UserWarning, match="mean 0 and deviation 1"):
        model = timm.create_model("hdxray_vit_tiny_patch16_1280", pretrained=True, img_size=64, num_classes=2).eval()
    own = hx.create_encoder("vit_tiny_patch16", weights="pretrained", img_size=64).eval()
    torch.testing.assert_close(model.blocks[5].attn.qkv.weight, own.blocks[5].attn.qkv.weight)
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 2)
    assert timm.list_models("hdxray*", pretrained=True) == ["hdxray_vit_tiny_patch16_1280"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once in a process
        again = timm.create_model(
            "hdxray_vit_tiny_patch16_1280", pretrained=True, img_size=64, pretrained_cfg_overlay={"mean": (0.4,)}
        )
    torch.testing.assert_close(again.blocks[5].attn.qkv.weight, own.blocks[5].attn.qkv.weight)
    assert tuple(again.pretrained_cfg["mean"]) == (0.4,)


def test_pooling_that_was_trained_is_that_of_the_folder(timm, tmp_path):
    model = timm.create_model(NAME, num_classes=0, global_pool="avg", **SIZES).eval()
    again = hx.load_model(hx.save_model(model, tmp_path)).eval()
    images = torch.randn(2, again.config.in_chans, *again.img_size)
    assert again.pool == "mean"
    torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize("learned", [True, False])
def test_a_checkpoint_of_another_size(timm, learned):
    """Fixed positions are made for the model's own size, by whatever way a state is loaded; learned ones are not."""
    sizes = {**SIZES, "num_classes": 2, "learned_positions": learned}
    model, larger = (shake(timm.create_model(NAME, **{**sizes, "img_size": size})) for size in ((32, 64), (64, 32)))
    larger.set_input_size((64, 48))
    if learned:
        with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
            larger.load_state_dict(model.state_dict())
        return
    expected = larger.pos_embed.clone()
    larger.load_state_dict(model.half().state_dict())
    torch.testing.assert_close(larger.pos_embed, expected, rtol=0, atol=1e-3)
    assert torch.equal(larger.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight.float())
    larger.set_input_size((64, 32))  # as many patches, and other places
    larger.load_state_dict(model.state_dict())
    assert not torch.allclose(larger.pos_embed, model.pos_embed.float(), atol=0.1)
    with torch.device("meta"):
        bare = timm.create_model(NAME, **sizes)
    bare.load_state_dict(model.state_dict(), assign=True)
    assert not bare.pos_embed.is_meta
    bare.load_state_dict({**model.state_dict(), "pos_embed": torch.ones_like(model.pos_embed)})  # of no grid: as it is
    assert (bare.pos_embed == 1).all()


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_a_trained_head_is_a_classifier(timm, global_pool, tmp_path):
    names = ["effusion", "mass", "nodule"]
    model = shake(timm.create_model(NAME, num_classes=3, global_pool=global_pool, fc_norm=True, **SIZES))
    made = model.to_classifier(names, [0.2, 0.3, 0.4])
    again = load_classifier(save_classifier(made, tmp_path / "model"))
    assert (again.config.classes, again.config.thresholds, again.training) == (names, [0.2, 0.3, 0.4], False)
    images = torch.randint(0, 256, (2, 1, 32, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(images)
        for one in (made, again):
            torch.testing.assert_close(one(images), logits, rtol=1e-4, atol=1e-5)
        model.head.bias += 1
        torch.testing.assert_close(made(images), logits, rtol=1e-4, atol=1e-5)  # it has weights of its own
    for wrong, message in (((names[:2],), "^classes: got 2 names, the head has 3"), ((names, [0.5]), "^thresholds: ")):
        with pytest.raises(hx.ArgumentError, match=message):
            model.to_classifier(*wrong)
    model.reset_classifier(3, "max")
    with pytest.raises(hx.ArgumentError, match=r"^global_pool: got a model with 'max', accepted are token and avg"):
        model.to_classifier(names)


def test_a_model_with_a_head_is_no_encoder_to_save(timm, tmp_path):
    model = timm.create_model(NAME, num_classes=3, **SIZES)
    with pytest.raises(hx.ArgumentTypeError, match=r"^model: has a head"):
        hx.save_model(model, tmp_path / "model")
    model.reset_classifier(0)
    again = hx.load_model(hx.save_model(model, tmp_path / "model"))
    assert again.config == model.config
    with pytest.raises(hx.ArgumentError, match=r"^num_classes: got -1"):
        timm.create_model(NAME, num_classes=-1, **SIZES)
