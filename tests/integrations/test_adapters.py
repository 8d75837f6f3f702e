"""peft: LoRA and what surrounds it learn what they learn on a plain ViT, merge, and are saved."""

from __future__ import annotations

import pytest
import torch
from integrations_helpers import same

import hdxray_fast as hx


@pytest.fixture
def peft(timm):
    return pytest.importorskip("peft", reason="peft is not installed: make integrations")


TARGETS = ["qkv", "attn.proj", "fc1", "fc2", "patch_embed.proj"]


def adapted(peft, backbone, targets, **options):
    torch.manual_seed(2)
    return peft.get_peft_model(backbone, peft.LoraConfig(r=4, target_modules=targets, **options))


@pytest.mark.parametrize("targets", [[name] for name in TARGETS] + [TARGETS], ids=[*TARGETS, "all"])
def test_lora_learns_as_on_a_plain_vit_and_merges(peft, pair, images, targets):
    results = []
    for backbone in (pair.ours, pair.plain):
        model = adapted(peft, backbone, targets, init_lora_weights=False)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            assert all(parameter.grad is not None and parameter.grad.any() for parameter in learned)
            optimizer.step()
        with torch.no_grad():
            active = model.eval()(images)
            merged = model.merge_and_unload()(images)
        same(merged, active)
        results.append(active)
    same(*results, tolerance=1e-3)


def test_adapters_are_saved_and_found_again(peft, pair, images, tmp_path):
    model = adapted(peft, pair.ours, ["qkv", "fc2"], init_lora_weights=False).eval()
    expected = model(images).detach()
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(hx.HDXrayError, match="merge_and_unload"):
        hx.save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    plain = model.unload()
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    same(again(images).detach(), expected)
    hx.save_model(again.merge_and_unload(), tmp_path / "model")
    same(hx.create_encoder(weights=tmp_path / "model").eval()(images).detach(), expected)


@pytest.mark.parametrize("method", ["IA3Config", "LoHaConfig", "OFTConfig"])
def test_other_adapters(peft, pair, images, method):
    options = {"target_modules": ["qkv", "fc2"]}
    if method == "IA3Config":
        options["feedforward_modules"] = ["fc2"]
    if method == "OFTConfig":
        options |= {"r": 0, "oft_block_size": 8}
    results = []
    for backbone in (pair.ours, pair.plain):
        torch.manual_seed(2)
        model = peft.get_peft_model(backbone, getattr(peft, method)(**options)).eval()
        model(images).square().mean().backward()
        learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert learned and all(grad is not None for grad in learned.values())
        results.append(learned)
    for (name, ours), (other, plain) in zip(results[0].items(), results[1].items(), strict=True):
        assert name == other
        if plain.any():
            same(ours, plain, tolerance=1e-3)
