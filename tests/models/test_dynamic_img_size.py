"""Images of any size in one encoder: the size is a call's, so that threads may share the encoder."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import hdxray_fast as hx

SIZES = {"img_size": (64, 96), "depth": 2, "embed_dim": 48, "num_heads": 3}


def make(learned: bool, **options) -> hx.Encoder:
    torch.manual_seed(0)
    encoder = hx.create_encoder("vit_base_patch16", learned_positions=learned, **SIZES, **options).eval()
    if learned:
        torch.nn.init.normal_(encoder.pos_embed, std=0.5)
    return encoder


def resized(encoder: hx.Encoder, size: tuple[int, int]) -> hx.Encoder:
    fixed = copy.deepcopy(encoder)
    fixed.dynamic_img_size = False
    fixed.set_input_size(size)
    return fixed


@pytest.mark.parametrize("options", [{}, {"class_token": False}, {"reg_tokens": 2, "pool": "mean"}])
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "sine-cosine"])
def test_each_call_is_as_of_an_encoder_of_its_size(learned, options):
    encoder = make(learned, **options)
    encoder.dynamic_img_size = True
    table = encoder.pos_embed.clone()
    for size in ((64, 96), (96, 64), (32, 128), (16, 16)):  # the second has as many patches as the first
        expected, images = resized(encoder, size), torch.randn(2, 1, *size)
        plan = hx.plan_all(torch.rand(2, size[0] // 16, size[1] // 16) < 0.9) if size[0] > 16 else None
        with torch.no_grad():
            for one, other in zip(encoder(images, plan), expected(images, plan), strict=True):
                assert torch.equal(one, other)
            assert torch.equal(encoder.forward_features(images), expected.forward_features(images))
            maps = encoder.forward_intermediates(images, [0, 1], intermediates_only=True, plan=plan)
            assert maps[0].shape == (2, 48, size[0] // 16, size[1] // 16)
            theirs = expected.forward_intermediates(images, [0, 1], intermediates_only=True, plan=plan)
            assert all(map(torch.equal, maps, theirs))
            pixels = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
            assert torch.equal(encoder.forward_features(pixels), expected.forward_features(pixels))
            assert torch.equal(encoder.forward_hidden(images)[1], expected.forward_hidden(images)[1])
    assert torch.equal(encoder.pos_embed, table) and encoder.img_size == (64, 96)


def test_learned_positions_learn_through_another_size():
    encoder = make(learned=True)
    encoder.dynamic_img_size = True
    encoder(torch.randn(1, 1, 32, 32)).values.sum().backward()
    assert (encoder.pos_embed.grad[0].abs().sum(1) > 0).all()


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "sine-cosine"])
def test_one_graph_for_a_size(learned):
    encoder = make(learned)
    encoder.dynamic_img_size = True
    compiled = torch.compile(encoder.forward_features, backend="eager", fullgraph=True, dynamic=False)
    for size in ((32, 48), (64, 64)):
        images = torch.randn(2, 1, *size)
        torch.testing.assert_close(compiled(images), encoder.forward_features(images))


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "sine-cosine"])
def test_threads_of_different_sizes_share_an_encoder(learned):
    encoder = make(learned)
    encoder.dynamic_img_size = True
    sizes = [(32, 64), (64, 32)]  # equal numbers of patches: a mistaken grid would not be noticed by its shape
    images = [torch.randn(2, 1, *size) for size in sizes]
    with torch.no_grad():
        expected = [resized(encoder, size).forward_features(x) for size, x in zip(sizes, images, strict=True)]
    start = Barrier(2)

    def work(index: int) -> list[torch.Tensor]:
        start.wait(timeout=60)
        with torch.no_grad():
            return [encoder.forward_features(images[index]) for _ in range(50)]

    with ThreadPoolExecutor(2) as threads:
        for index, outputs in enumerate(threads.map(work, range(2))):
            for tokens in outputs:
                torch.testing.assert_close(tokens, expected[index])


def test_what_is_refused():
    encoder = make(learned=False)
    with pytest.raises(hx.ArgumentError, match=r"^images: got shape \[1, 1, 32, 32\], this encoder takes \[B, 1, 64"):
        encoder(torch.randn(1, 1, 32, 32))
    encoder.dynamic_img_size = True
    for shape in ((1, 1, 40, 32), (1, 1, 0, 32), (1, 3, 32, 32), (1, 32, 32)):
        with pytest.raises(hx.ArgumentError, match=r"this encoder takes \[B, 1, H, W\] with multiples of 16 for H and"):
            encoder(torch.randn(shape))
    with pytest.raises(hx.ArgumentError, match=r"^plan: is for a 4 x 6 grid .* images have a 2 x 2 grid"):
        encoder(torch.randn(1, 1, 32, 32), hx.plan_all(torch.ones(1, 4, 6, dtype=torch.bool)))
    with pytest.raises(hx.ArgumentError, match=r"^valid: "):
        encoder.normalise(torch.rand(1, 1, 32, 32), valid=torch.ones(1, 4, 6, dtype=torch.bool))


@pytest.mark.parametrize("frozen", [True, False])
def test_another_size_leaves_positions_frozen_or_not(frozen):
    encoder = make(learned=True).requires_grad_(not frozen)
    encoder.set_input_size(96)
    assert encoder.pos_embed.requires_grad is not frozen
