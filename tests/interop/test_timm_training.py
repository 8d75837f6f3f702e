"""Options of timm's ViT for sizes and training, beside timm's own model with the same weights and the same seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import hdxray_fast as hx

SIZES = {"img_size": (32, 64), "depth": 3, "embed_dim": 48, "num_heads": 3}
NAME = "hdxray_vit_base_patch16_1280"
RATES = ("drop_rate", "drop_path_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # of tokens up to 10, in float32


def pair(timm, **options):
    """Our model and timm's with the same weights."""
    torch.manual_seed(0)
    ours = timm.create_model(NAME, num_classes=4, learned_positions=True, **SIZES | options)
    for parameter in ours.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs = timm.create_model("vit_base_patch16_224", num_classes=4, in_chans=1, **SIZES | options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("rates", [*((rate,) for rate in RATES), RATES], ids="-".join)
def test_dropout_is_timms_with_the_same_seed(timm, rates):
    ours, theirs = pair(timm, **dict.fromkeys(rates, 0.3))
    images, targets = torch.randn(8, 1, 32, 64), torch.randint(0, 4, (8,))
    results = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(7)
        logits = model(images)
        torch.nn.functional.cross_entropy(logits, targets).backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)
    torch.manual_seed(8)
    assert not torch.equal(ours(images), results[0][0])  # something is dropped
    with torch.no_grad():
        evaluated = ours.eval()(images)
        assert torch.equal(evaluated, ours(images))
        torch.testing.assert_close(evaluated, theirs.eval()(images))


def test_dropout_with_checkpointed_blocks_and_in_one_graph(timm):
    options = dict.fromkeys(RATES, 0.3)
    model, _ = pair(timm, **options)
    images, gradients = torch.randn(4, 1, 32, 64), []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(images).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])
    model.set_grad_checkpointing(False)
    torch.manual_seed(3)
    expected = model(images)
    torch.manual_seed(3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)


def test_without_rates_the_fused_path_is_taken(timm, monkeypatch):
    from hdxray_fast.models import layers

    calls, apply = [], layers.GeluLinear.apply
    monkeypatch.setattr(layers.GeluLinear, "apply", lambda *arguments: calls.append(1) or apply(*arguments))
    images = torch.randn(2, 1, 32, 64)
    for rate, training, expected in ((0.0, True, 3), (0.1, True, 0), (0.1, False, 3)):
        model = timm.create_model(NAME, proj_drop_rate=rate, **SIZES).train(training)
        model(images)
        assert len(calls) == expected, (rate, training)
        calls.clear()
    assert not any("drop" in name for name, _ in timm.create_model(NAME, **SIZES).blocks.named_modules())


def test_dropped_patches_leave_no_maps(timm):
    model = timm.create_model(NAME, patch_drop_rate=0.5, global_pool="map", reg_tokens=2, **SIZES).train()
    images = torch.randn(2, 1, 32, 64)
    assert model.forward_features(images).shape == (2, 3 + 4, 48)  # of 8 patches
    assert model(images).shape == (2, 48)
    with pytest.raises(hx.ArgumentError, match=r"^patch_drop_rate: "):
        model.forward_intermediates(images)
    with pytest.raises(hx.ArgumentError, match=r"^plan: .*patch_drop_rate"):
        model.forward_features(images, hx.plan_all(torch.ones(2, 2, 4, dtype=torch.bool)))
    assert model.eval().forward_features(images).shape == (2, 3 + 8, 48)
    assert model.forward_intermediates(images, 1, intermediates_only=True)[0].shape == (2, 48, 2, 4)


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}])
def test_images_of_any_size(timm, options):
    # square, for older versions of timm take positions to be so
    ours, theirs = pair(timm, dynamic_img_size=True, dynamic_img_pad=True, img_size=64, **options)
    ours.eval(), theirs.eval()
    for size in ((64, 64), (32, 128), (128, 32), (96, 48), (30, 65), (1, 17)):
        images = torch.randn(2, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), **CLOSE)
            maps = [m.forward_intermediates(images, [0, 2], intermediates_only=True) for m in (ours, theirs)]
        torch.testing.assert_close(*maps, **CLOSE)
    with pytest.raises(hx.ArgumentError, match=r"^images: got torch.uint8 of 30 x 65 pixels; .*multiples of 16"):
        ours(torch.zeros(1, 1, 30, 65, dtype=torch.uint8))
    assert ours(torch.randint(0, 256, (1, 1, 64, 16), dtype=torch.uint8)).shape == (1, 4)
    with pytest.raises(hx.ArgumentTypeError, match=r"^images: got str"):
        ours("a.png")
    model = timm.create_model(NAME, dynamic_img_size=True, **SIZES)
    with pytest.raises(hx.ArgumentError, match=r"with multiples of 16 for H and W"):
        model(torch.randn(1, 1, 30, 64))


def test_threads_share_a_model_of_any_size(timm):
    model = timm.create_model(NAME, dynamic_img_size=True, features_only=True, out_indices=(0, 2), **SIZES).eval()
    images = [torch.randn(2, 1, *size) for size in ((32, 64), (64, 32))]

    def maps(index: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return model(images[index % 2])

    expected = [maps(0), maps(1)]
    with ThreadPoolExecutor(2) as threads:
        for index, found in enumerate(threads.map(maps, range(40))):
            assert found[0].shape[-2:] == ((2, 4), (4, 2))[index % 2]
            torch.testing.assert_close(found, expected[index % 2])
