"""A masked auto-encoder in one graph: ``torch.compile(fullgraph=True)``, and no new graph for new ragged lengths."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from view_helpers import maps, table_of

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig

SCALE, SHIFT = 1 / 127.5, -1.0


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(seed: int, predict: float) -> tuple[torch.Tensor, hx.MaskPlan]:
    torch.manual_seed(seed)
    inside = torch.rand(2, 8, 8) < 0.2 + 0.1 * seed
    plan = hx.plan_masks(inside, torch.ones_like(inside), 0.75, 0.5, predict=predict, seed=seed)
    return torch.randint(0, 256, (2, 1, 128, 128), dtype=torch.uint8), plan


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("decoder", ["cross", "self"])
@pytest.mark.parametrize("marked", [True, False])
def test_one_graph_for_all_lengths(decoder, marked):
    model = hx.create_mae(
        "vit_tiny_patch16", decoder=decoder, img_size=128, depth=1, decoder_embed_dim=64, decoder_depth=1
    )
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    lengths = set()
    for seed in range(5):
        images, plan = batch(seed, model.default_predict)
        lengths.add(plan.keep_ids.shape[0])
        model(images, plan, SCALE, SHIFT).loss.backward()
        expected = gradients(model)
        output = compiled(images, plan.mark_dynamic() if marked else plan, SCALE, SHIFT)
        torch.testing.assert_close(output.loss, model(images, plan, SCALE, SHIFT).loss)
        output.loss.backward()
        found = gradients(model)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert len(lengths) > 2
    assert counter.frame_count == (1 if marked else 2)  # unmarked, the second length is what tells that it changes

    inside = torch.rand(1, 8, 8).expand(2, 8, 8) < 0.5  # as many in both images: no other graph on a CPU
    plan = hx.plan_masks(inside, torch.ones_like(inside), 0.75, 0.5, predict=model.default_predict)
    assert plan.equal_counts == (True, True)
    output = compiled(images, plan.mark_dynamic() if marked else plan, SCALE, SHIFT)
    torch.testing.assert_close(output.loss, model(images, plan, SCALE, SHIFT).loss)
    assert counter.frame_count == (1 if marked else 2)


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_an_encoder_in_one_graph(keep):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=128, depth=2, pool="mean").eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(encoder, fullgraph=True, backend=counter)
    for seed in range(3):
        images, plan = batch(seed, 0.0)
        plan = None if keep == "all" else plan.mark_dynamic()
        with torch.no_grad():
            torch.testing.assert_close(compiled(images, plan, SCALE, SHIFT), encoder(images, plan, SCALE, SHIFT))
    assert counter.frame_count == 1


@pytest.mark.parametrize("keep", ["all", "contour"])
def test_a_classifier_that_sees_through_views_in_one_graph(keep):
    encoder = hx.create_encoder("vit_tiny_patch16", img_size=128, depth=2, in_chans=3)
    model = Classifier(encoder, ClassifierConfig(["mass"], head="attention"))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    scale, shift = torch.full((2,), SCALE), torch.full((2,), SHIFT)
    for seed in range(3):
        images, plan = batch(seed, 0.0)
        inputs = images.expand(-1, 3, -1, -1), None if keep == "all" else plan.mark_dynamic(), scale, shift
        view = hx.View(maps(128, 128, 5.0, batch=2), table_of(torch.uint8, 2))
        torch.testing.assert_close(compiled(*inputs, view=view), model(*inputs, view=view))
    assert counter.frame_count == 1
