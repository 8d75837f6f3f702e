"""Features of encoders with converted weights equal those of the libraries the weights come from, block by block."""

from __future__ import annotations

import json

import pytest
import torch

import hdxray_fast as hx

pytest.importorskip("safetensors", reason="weights need safetensors (extra 'train')")

SIZES = [224, pytest.param((1280, 1024), marks=pytest.mark.slow)]
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def transformers(plain_mae):
    plain_mae.import_timm()  # transformers looks into torchvision too
    return pytest.importorskip("transformers")


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere: biases, norms, tokens and LayerScale too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    worst = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert worst <= 1e-4, f"{what}: {worst:.2e}"


@torch.no_grad()
def compare_with_timm(theirs, ours, size, in_chans: int = 3) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(1, in_chans, height, width)
    options = {"output_fmt": "NLC", "return_prefix_tokens": True}
    expected, expected_maps = theirs.forward_intermediates(images, **options)
    features, maps = ours.eval().forward_intermediates(images, **options)
    assert_close(features, expected, "features")
    for index, ((grid, prefix), pair) in enumerate(zip(maps, expected_maps, strict=True)):
        expected_grid, expected_prefix = pair if isinstance(pair, tuple | list) else (pair, prefix)
        assert_close(grid, expected_grid, f"block {index}")
        if prefix.numel():
            assert_close(prefix, expected_prefix, f"prefix of block {index}")


@torch.no_grad()
def compare_with_transformers(theirs, ours, size, **inputs) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(1, 3, height, width)
    out = theirs(pixel_values=images, output_hidden_states=True, **inputs)
    features, maps = ours.eval().forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=True)
    assert_close(features, out.last_hidden_state, "features")
    for index, ((grid, prefix), expected) in enumerate(zip(maps, out.hidden_states[1:], strict=True)):
        assert_close(torch.cat([prefix, grid], dim=1), expected, f"block {index}")


@pytest.mark.parametrize("size", SIZES)
def test_timm_vit_base_patch16_224(timm, tmp_path, size):
    """ViT-B's width and heads, fewer blocks to save time."""
    theirs = shaken(timm.create_model("vit_base_patch16_224", img_size=size, depth=4 if size == 224 else 2))
    timm.models.save_for_hf(theirs, tmp_path / "vit", safe_serialization=True)
    ours = hx.create_encoder(weights=tmp_path / "vit", img_size=size, in_chans=3)
    report = ours.load_report
    assert report.complete
    assert sorted(report.left_out) == ["head.bias", "head.weight"]
    assert report.assumed == [
        "num_heads 12, which the weights do not tell",
        "norm_eps 1e-06, which the weights do not tell",
    ]
    assert ours.normalisation == (0.5, 0.5)
    assert ours.config.learned_positions
    compare_with_timm(theirs, ours, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
        {"reg_tokens": 4, "init_values": 1e-5},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "reg_tokens": 2},
        {"qkv_bias": False},
    ],
    ids=["dinov2 reg4", "registers with positions", "no_embed_class", "fc_norm", "no class token", "no qkv bias"],
)
def test_timm_variants(timm, tmp_path, kwargs, size):
    from timm.models.vision_transformer import VisionTransformer

    theirs = shaken(VisionTransformer(img_size=size, num_classes=3, **TINY, **kwargs))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = hx.create_encoder(weights=tmp_path / "vit.pth", img_size=size, in_chans=3, num_heads=3)
    assert ours.load_report.complete
    compare_with_timm(theirs, ours, size)


def test_timm_fc_norm_comes_after_pooling(timm, tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    theirs = shaken(VisionTransformer(img_size=64, num_classes=0, global_pool="avg", **TINY))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = hx.create_encoder(weights=tmp_path / "vit.pth", img_size=64, in_chans=3, num_heads=3, pool="mean").eval()
    assert ours.config.fc_norm
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(ours(images), theirs(images), "pooled")
    again = hx.load_model(hx.save_model(ours, tmp_path / "again")).eval()
    with torch.no_grad():
        assert torch.equal(again(images), ours(images))


def test_timm_by_name(timm, tmp_path, monkeypatch):
    """As with published weights, which need a network: timm is asked for them and gives random ones."""
    create = timm.create_model
    made = []

    def without_network(name, pretrained, **kwargs):
        assert pretrained
        kwargs |= {"depth": 2} if name.startswith("vit") else {}
        made.append(shaken(create(name, pretrained=False, **kwargs)))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", without_network)
    ours = hx.create_encoder(weights="timm:vit_tiny_patch16_224", img_size=224, in_chans=3)
    assert ours.load_report.source == "timm:vit_tiny_patch16_224"
    assert not ours.load_report.assumed
    assert ours.normalisation == (0.5, 0.5)
    compare_with_timm(made[0], ours, 224)
    for name in ("resnet18", "vit_base_patch16_clip_quickgelu_224", "no_such_model", "vit_base_patch16_rpn_224"):
        with pytest.raises(hx.CheckpointError, match=f"^timm:{name}: "):
            hx.create_encoder(weights=f"timm:{name}")


@pytest.mark.parametrize("old", [True, False], ids=["published names", "names of transformers 5"])
@pytest.mark.parametrize("size", SIZES)
def test_transformers_vit(transformers, tmp_path, size, old):
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=100, image_size=size
    )
    theirs = shaken(transformers.ViTModel(config))
    save_transformers(theirs, tmp_path, old)
    ours = hx.create_encoder(weights=tmp_path, img_size=size, in_chans=3)
    assert ours.load_report.complete and ours.config.norm_eps == 1e-12
    assert ours.load_report.left_out == [n for n in ours.load_report.left_out if n.startswith("pooler.")] != []
    compare_with_transformers(theirs, ours, size)


def save_transformers(model, folder, published: bool = True) -> None:
    """As ``save_pretrained`` does, which writes the published names; or with the names of the modules."""
    model.save_pretrained(folder)
    if not published:
        from safetensors.torch import save_file

        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "for pre-training"])
@pytest.mark.parametrize("size", SIZES)
def test_transformers_vit_mae(transformers, plain_mae, tmp_path, size, whole):
    side = size if isinstance(size, int) else 512
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=side,
        mask_ratio=0.0,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    model = (transformers.ViTMAEForPreTraining if whole else transformers.ViTMAEModel)(config)
    theirs = model.vit if whole else model
    shaken(model)
    # as published ones have; a fresh model's are zeros in some versions of transformers
    theirs.embeddings.position_embeddings.data = plain_mae.sincos_2d(48, (side // 16, side // 16))
    model.save_pretrained(tmp_path)
    ours = hx.create_encoder(weights=tmp_path, img_size=size, in_chans=3)
    assert ours.load_report.complete
    assert not ours.config.learned_positions and not ours.pos_embed.requires_grad
    assert bool(ours.load_report.left_out) == whole
    assert all(name.startswith("decoder.") for name in ours.load_report.left_out)
    if side != size:  # theirs takes squares alone: it is given the positions that pre-training would have made
        assert ours.load_report.resized == ["pos_embed: 32 x 32 to 80 x 64, sine-cosine, made anew"]
        theirs.embeddings.patch_embeddings.image_size = theirs.embeddings.image_size = size
        theirs.embeddings.position_embeddings.data = plain_mae.sincos_2d(48, (80, 64))
    noise = torch.arange(ours.pos_embed.shape[1] - 1, dtype=torch.float32).unsqueeze(0)  # nothing is shuffled
    compare_with_transformers(theirs, ours, size, noise=noise)


@pytest.mark.parametrize("old", [True, False], ids=["published names", "names of transformers 5"])
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("size", [224, pytest.param((1274, 1022), marks=pytest.mark.slow)])
def test_transformers_dinov2(transformers, tmp_path, size, registers, old):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14}
    config = getattr(transformers, f"{kind}Config")(image_size=224, **options)
    theirs = shaken(getattr(transformers, f"{kind}Model")(config))
    save_transformers(theirs, tmp_path, old)
    ours = hx.create_encoder(weights=tmp_path, img_size=size, in_chans=3)
    assert ours.load_report.complete
    assert ours.load_report.left_out == ["embeddings.mask_token"]
    assert ours.config.layer_scale is not None and ours.num_prefix_tokens == (5 if registers else 1)
    if size != 224 and not registers:  # Dinov2Model resamples without antialiasing
        theirs.embeddings.interpolate_pos_encoding = lambda embeddings, height, width: ours.pos_embed
    compare_with_transformers(theirs, ours, size)


def test_transformers_with_a_head_on_top(transformers, tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, patch_size=14, image_size=42
    )
    theirs = shaken(transformers.Dinov2ForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    transformers_bin = tmp_path / "model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(transformers_bin), tmp_path / "pytorch_model.bin")
    transformers_bin.unlink()
    ours = hx.create_encoder(weights=tmp_path, img_size=42, in_chans=3)
    assert sorted(ours.load_report.left_out) == [
        "classifier.bias",
        "classifier.weight",
        "dinov2.embeddings.mask_token",
    ]
    compare_with_transformers(theirs.dinov2, ours, 42)


def test_transformers_shards(transformers, tmp_path):
    config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=64)
    theirs = shaken(transformers.ViTModel(config, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert not (tmp_path / "model.safetensors").exists()
    ours = hx.create_encoder(weights=tmp_path, img_size=64, in_chans=3)
    compare_with_transformers(theirs, ours, 64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["more"] = next(iter(index["weight_map"].values()))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(hx.CheckpointError, match=r"index\.json: more is not in model-"):
        hx.create_encoder(weights=tmp_path)
    next(tmp_path.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(hx.CheckpointError, match="is missing"):
        hx.create_encoder(weights=tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "swin"}, "model_type 'swin'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"architecture": "vit_base_patch16_rpn_224", "model_type": None}, "rpn"),
        ({"model_args": {"act_layer": "gelu_tanh"}, "model_type": None}, "act_layer 'gelu_tanh'"),
    ],
)
def test_configs_of_other_architectures(transformers, tmp_path, change, says):
    config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=64)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    for strict in (True, False):
        with pytest.raises(hx.CheckpointError, match=f"another architecture.*{says}"):
            hx.create_encoder(weights=tmp_path, strict=strict)


@pytest.mark.parametrize("kind", ["SwinModel", "BeitModel", "DeiTModel", "Dinov2Model"])
@pytest.mark.parametrize("with_config", [True, False])
def test_tensors_of_other_architectures(transformers, tmp_path, kind, with_config):
    """Refused by config.json, and by the tensors if there is none."""
    config = getattr(transformers, kind.replace("Model", "Config"))(
        image_size=64, patch_size=4 if "Swin" in kind else 16
    )
    if kind == "SwinModel":
        config.embed_dim, config.depths, config.num_heads, config.window_size = 24, [1, 1, 1], [1, 1, 1], 4
    else:
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads = 48, 1, 3
        config.use_swiglu_ffn = True
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    if not with_config:
        (tmp_path / "config.json").unlink()
    with pytest.raises(hx.CheckpointError, match=str(tmp_path)):
        hx.create_encoder(weights=tmp_path, num_heads=3, img_size=64)
