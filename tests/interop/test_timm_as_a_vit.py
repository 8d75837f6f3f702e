"""What timm's own tests ask of a model: forward, backward, features, intermediates, head and configuration.

Where it is in question how a model should behave, timm's ViT of the same size stands beside ours.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig

SIZES = {"img_size": 64, "depth": 4, "embed_dim": 64, "num_heads": 2, "in_chans": 3}
OURS, THEIRS = "hdxray_vit_tiny_patch16_1280", "vit_tiny_patch16_224"
POOLS = {"token": {}, "avg": {"class_token": False, "fc_norm": True}, "map": {"class_token": False, "reg_tokens": 2}}
both = pytest.mark.parametrize("name", [OURS, THEIRS])
pytestmark = pytest.mark.usefixtures("timm")


def create(name: str, **options) -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, **SIZES | options)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@both
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("pool", POOLS)
def test_forward(name, batch, pool):
    if name == THEIRS and pool == "map":
        pytest.skip("its attention pooling has an MLP of its own")
    model = create(name, num_classes=10, global_pool=pool, **POOLS[pool]).eval()
    logits = model(images(batch))
    assert logits.shape == (batch, 10) and logits.isfinite().all()
    torch.testing.assert_close(model(images(batch)[:1]), logits[:1], atol=1e-5, rtol=1e-5)  # whatever is beside it


@both
def test_backward_reaches_every_parameter(name):
    model = create(name, num_classes=42).train()
    parameters = dict(model.named_parameters())
    model(images()).mean().backward()
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()] == []


@both
def test_gradients_with_and_without_checkpointing(name):
    plain = create(name, features_only=True, out_indices=(1, 3)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.model.set_grad_checkpointing(True)
    gradients = []
    for model in (plain, checkpointed):
        sum(features.square().mean() for features in model(images())).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
@pytest.mark.parametrize("stem", ["patch16", "stem64"])
def test_default_configs(timm, size, stem):
    name = f"hdxray_vit_{size}_{stem}_1280"
    assert timm.is_model(name) and name in timm.list_models(module="timm_models")
    with torch.device("meta"):
        model = timm.create_model(name, img_size=128, device="meta").eval()
    cfg, parameters = model.default_cfg, dict(model.named_parameters())
    assert cfg["architecture"] == name and cfg["input_size"] == (1, 128, 128) and cfg["fixed_input_size"]
    assert cfg["classifier"] == "head" and f"{cfg['classifier']}.weight" not in parameters  # no classes: no head
    assert cfg["num_classes"] == model.num_classes == 0
    first = model.get_submodule(cfg["first_conv"])
    assert isinstance(first, torch.nn.Conv2d) and first.in_channels == cfg["input_size"][0]
    model.reset_classifier(5)
    assert f"{cfg['classifier']}.weight" in dict(model.named_parameters())
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])


@both
def test_features_head_and_pre_logits(name):
    model = create(name, num_classes=10).eval()
    with torch.no_grad():
        tokens = model.forward_features(images())
        logits, before = model(images()), model.forward_head(tokens, pre_logits=True)
        assert tokens.shape == (2, 17, 64) and before.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(tokens), logits)
        model.reset_classifier(0)
        torch.testing.assert_close(model(images()), before)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(images()), tokens)
        model.reset_classifier(7, "avg")
        assert model(images()).shape == (2, 7) and model.num_classes == 7
        without = create(name, num_classes=0).eval()
        assert without(images()).shape == (2, without.num_features)


@both
def test_reset_classifier_keeps_the_pool(name):
    model = create(name, global_pool="max", num_classes=0).eval()
    before = model(images())
    model.reset_classifier(3)
    assert model.global_pool == "max"
    torch.testing.assert_close(model.forward_head(model.forward_features(images()), pre_logits=True), before)


@both
@pytest.mark.parametrize("how", ["getter", "hook"])
def test_features_only(name, how):
    model = create(name, features_only=True, feature_cls=how, out_indices=(0, 2)).eval()
    features = model(images())
    assert model.feature_info.channels() == [64, 64] and model.feature_info.reduction() == [16, 16]
    assert [m["module"] for m in model.feature_info.get_dicts(["module"])] == ["blocks.0", "blocks.2"]
    expected = (2, 64, 4, 4) if how == "getter" else (2, 17, 64)  # hooks give what the blocks give: tokens
    assert [f.shape for f in features] == [expected] * 2
    assert all(f.isfinite().all() for f in features)


@both
def test_the_getter_and_the_hooks_agree(name):
    getter, hook = (create(name, features_only=True, feature_cls=how, out_indices=(1, 3)) for how in ("getter", "hook"))
    for grid, tokens in zip(getter.eval()(images()), hook.eval()(images()), strict=True):
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_forward_intermediates():
    model, plain = create(OURS, num_classes=0).eval(), create(THEIRS, num_classes=0).eval()
    plain.load_state_dict(model.state_dict())
    first, *accepted = inspect.signature(plain.forward_intermediates).parameters
    ours = list(inspect.signature(model.forward_intermediates).parameters)
    assert (first, ours[0]) == ("x", "images") and ours[1 : len(accepted) + 1] == accepted
    for refused in ({"attn_mask": torch.ones(17, 17)}, {"is_causal": True}):
        with pytest.raises(hx.ArgumentError, match=rf"^{next(iter(refused))}: is not supported"):
            model.forward_intermediates(images(), **refused)
    with torch.no_grad():
        for asked in (
            {},
            {"indices": 2},
            {"indices": [-1]},
            {"indices": [0, 2], "stop_early": True, "intermediates_only": True},
            {"norm": True, "output_fmt": "NLC"},
            {"return_prefix_tokens": True, "output_dict": True},
        ):
            if asked.keys() - set(accepted):
                continue  # of newer versions of timm
            ours, theirs = (m.forward_intermediates(images(), **asked) for m in (model, plain))
            torch.testing.assert_close(ours, theirs if isinstance(theirs, tuple | list) else dict(theirs))
        last, maps = model.forward_intermediates(images(), 1, norm=True, output_fmt="NLC")
        torch.testing.assert_close(last[:, 1:], maps[0])
        torch.testing.assert_close(last, model.forward_features(images()))


def test_masks_are_refused_by_every_way_in():
    model = create(OURS, num_classes=2).eval()
    for way in (model, model.forward_features):
        torch.testing.assert_close(way(images(), attn_mask=None, is_causal=False), way(images()))
        for refused in ({"attn_mask": torch.ones(17, 17)}, {"is_causal": True}):
            with pytest.raises(hx.ArgumentError, match=rf"^{next(iter(refused))}: is not supported, accepted is"):
                way(images(), **refused)


def test_learning_rates_decay_with_the_depth_of_an_encoder():
    from timm.optim import create_optimizer_v2

    encoder = hx.create_encoder("vit_tiny_patch16", pool="attention", **SIZES)
    groups = create_optimizer_v2(encoder, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == [0.5**4, 0.5**3, 0.5**2, 0.5, 1]  # the stem and the first three blocks, the last with the pooling
    of_query = next(group for group in groups if any(p is encoder.attn_pool.query for p in group["params"]))
    assert of_query["lr_scale"] == 1 and of_query["weight_decay"] == 0


def test_learning_rates_decay_with_the_depth_of_a_classifier():
    from timm.optim import create_optimizer_v2

    model = Classifier(hx.create_encoder("vit_tiny_patch16", pool="mean", **SIZES), ClassifierConfig(["mass"]))
    scale_of = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
        for parameter in group["params"]
    }
    last = [scale_of[id(model.encoder.blocks[block].attn.qkv.weight)][0] for block in (0, -1)]
    assert scale_of[id(model.encoder.patch_embed.proj.weight)][0] < last[0] < last[1] < 1
    assert scale_of[id(model.head.fc.weight)] == (1, 0.1) and scale_of[id(model.encoder.cls_token)][1] == 0


def test_padding_counts_for_nothing_where_it_is_told():
    model = create(OURS, in_chans=1, num_classes=2).eval()
    film = torch.randint(256, (1, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    film[..., 32:] = 0
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[..., 2:] = False
    logits = model(film, valid=valid)
    torch.testing.assert_close(logits, model(model.normalise(film, valid)), atol=1e-5, rtol=1e-4)
    assert (logits - model(film)).abs().max() > 1e-3


@both
@pytest.mark.parametrize("norm", [False, True])
def test_pruned_models_use_every_parameter_that_is_left(name, norm):
    model = create(name, drop_rate=0.5, num_classes=10)
    assert model.prune_intermediate_layers([1], prune_norm=norm, prune_head=True) == [1]
    assert len(model.blocks) == 2
    final, maps = model.train().forward_intermediates(images(), [1])
    (final.square().mean() + maps[0].square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.eval()(images()).shape == (2, 17, 64) and model.num_classes == 0
    if name == OURS:
        pooled = create(name, global_pool="map")
        pooled.prune_intermediate_layers([1])
        assert not any(n.startswith("attn_pool") for n, _ in pooled.named_parameters())


@both
def test_other_inputs_and_batches_of_any_strides(name):
    model = create(name, num_classes=2).eval()
    expected = model(images())
    for form in (
        images().contiguous(memory_format=torch.channels_last),
        images().transpose(2, 3).clone().transpose(2, 3),
    ):
        torch.testing.assert_close(model(form), expected)
    with pytest.raises((AssertionError, hx.ArgumentError)):
        model(torch.randn(1, 3, 80, 64))
    if name == OURS or hasattr(model, "set_input_size"):  # newer versions of timm
        model.set_input_size(img_size=(80, 64))
        assert model(torch.randn(1, 3, 80, 64)).shape == (1, 2)
    half = create(name, num_classes=2).to(torch.bfloat16).eval()
    assert half(images().bfloat16()).dtype == torch.bfloat16


@both
def test_a_checkpoint_of_timm_comes_back(name, tmp_path):
    from timm.models import load_checkpoint, resume_checkpoint
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = create(name, num_classes=2).train()
    optimizer, ema = torch.optim.AdamW(model.parameters(), lr=1e-2), ModelEmaV3(model, decay=0.5)
    model(images()).square().mean().backward()
    optimizer.step()
    ema.update(model)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    (path,) = tmp_path.glob("checkpoint-0*")
    again, averaged = create(name, num_classes=2), create(name, num_classes=2)
    resume_checkpoint(again, str(path), torch.optim.AdamW(again.parameters()), log_info=False)
    load_checkpoint(averaged, str(path), use_ema=True)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images()), model.eval()(images()))
        torch.testing.assert_close(averaged.eval()(images()), ema.module.eval()(images()))


def test_no_torchscript_and_no_symbolic_tracing():
    """Shapes are checked and operators of this package called: ``torch.compile`` and ``torch.export`` are the ways."""
    model = create(OURS, num_classes=2).eval()
    with pytest.raises(hx.ArgumentTypeError, match=r"^images: got Proxy"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(Exception, match=r"(?i)script|annotat|support"):
        torch.jit.script(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), model(images()))
