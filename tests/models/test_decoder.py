"""Decoders: what attends to what, against straightforward dense versions written out image by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plan_helpers import ragged_plan, single_plan

from hdxray_fast.models.decoder import CrossDecoder, SelfDecoder, _sequence_rows
from hdxray_fast.models.packing import token_rows

GRID = (4, 6)
KEPT, PREDICTED = [5, 1, 0, 9], [3, 23, 0, 15]


def build(kind: str) -> torch.nn.Module:
    sizes = {"encoder_dim": 24, "grid_size": GRID, "patch_values": 10, "embed_dim": 16, "depth": 2, "num_heads": 2}
    decoder = SelfDecoder(**sizes) if kind == "self" else CrossDecoder(**sizes, num_maps=3)
    for parameter in decoder.parameters():  # away from zero biases and unit norms, so that a swap would show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return decoder


def make_maps(kept: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    counts = [1 + n for n in kept]
    maps = [torch.randn(sum(counts), 24, requires_grad=True) for _ in range(3)]
    return maps, torch.tensor([0, *counts]).cumsum(0).to(torch.int32)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int = 2) -> torch.Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def plain_self(decoder, tokens, keep, predict):
    """One image, as MAE's decoder: all patches in grid order, then pick the predicted rows."""
    embedded = decoder.decoder_embed(tokens)
    used = sorted(keep + predict)
    rows = [embedded[0]] + [embedded[1 + keep.index(i)] if i in keep else decoder.mask_token[0, 0] for i in used]
    x = torch.stack(rows) + decoder.decoder_pos_embed[0, [0] + [1 + i for i in used]]
    for block in decoder.decoder_blocks:
        y = block.norm1(x)
        x = x + block.attn.proj(attend(*block.attn.qkv(y).chunk(3, dim=-1)))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return decoder.decoder_pred(decoder.decoder_norm(x[[1 + used.index(i) for i in predict]]))


def plain_cross(decoder, maps, predict):
    """One image, as CrossMAE's decoder: a stack of maps weighted per block."""
    x = decoder.mask_token[0] + decoder.decoder_pos_embed[0, [1 + i for i in predict]]
    stacked = torch.stack(maps, dim=-1)  # [N, De, maps]
    for weights, norm, block in zip(decoder.wfm, decoder.dec_norms, decoder.decoder_blocks, strict=True):
        y = norm((stacked * weights).sum(-1))
        attention = block.cross_attn
        x = x + attention.proj(attend(attention.q(block.norm1(x)), *attention.kv(y).chunk(2, dim=-1)))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return decoder.decoder_pred(decoder.decoder_norm(x))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_equals_the_plain_version_image_by_image(kind):
    decoder = build(kind)
    plan = ragged_plan(GRID, KEPT, PREDICTED)
    maps, cu_seqlens = make_maps(KEPT)
    out = decoder(maps, cu_seqlens, plan)
    expected = []
    for image in range(len(KEPT)):
        own = [m[cu_seqlens[image] : cu_seqlens[image + 1]] for m in maps]
        alone = single_plan(plan, image)
        keep, predict = alone.keep_ids.tolist(), alone.predict_ids.tolist()
        if predict:
            expected.append(
                plain_self(decoder, own[-1], keep, predict) if kind == "self" else plain_cross(decoder, own, predict)
            )
    expected = torch.cat(expected)
    assert out.shape == (sum(PREDICTED), 10)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)

    upstream = torch.randn_like(out)
    trained = [p for p in decoder.parameters() if p.requires_grad]
    inputs = trained + (maps[-1:] if kind == "self" else maps)
    grads = torch.autograd.grad(out, inputs, upstream)
    for grad, want in zip(grads, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_queries_of_the_cross_decoder_are_independent():
    """Predicting fewer patches does not change the prediction of those that remain."""
    decoder = build("cross")
    maps, cu_seqlens = make_maps([5])
    full = ragged_plan(GRID, [5], [12])
    picked = torch.arange(0, 12, 2)
    half = type(full)(
        keep_ids=full.keep_ids,
        keep_cu_seqlens=full.keep_cu_seqlens,
        predict_ids=full.predict_ids[picked],
        predict_cu_seqlens=torch.tensor([0, 6], dtype=torch.int32),
        grid_size=GRID,
        patch_size=16,
        max_keep=5,
        max_predict=6,
    )
    torch.testing.assert_close(decoder(maps, cu_seqlens, half), decoder(maps, cu_seqlens, full)[picked])


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_nothing_to_predict(kind):
    decoder = build(kind)
    plan = ragged_plan(GRID, [2, 0], [0, 0])
    maps, cu_seqlens = make_maps([2, 0])
    out = decoder(maps, cu_seqlens, plan)
    assert out.shape == (0, 10)
    out.sum().backward()
    assert decoder.decoder_pred.weight.grad.eq(0).all()


def test_default_shares():
    assert SelfDecoder.default_predict == 1.0
    assert CrossDecoder.default_predict == 0.25


@pytest.mark.parametrize(("keep_slack", "predict_slack"), [(0, 0), (3, 0), (0, 4), (5, 2)])
def test_slack_of_a_plan_stays_behind_the_sequences(keep_slack, predict_slack):
    """A plan made on a GPU with upper bounds has rows past the end of its cu_seqlens; they must disturb nothing."""
    exact = ragged_plan((5, 4), [3, 0, 6], [4, 5, 0])
    padded = replace(
        exact,
        keep_ids=torch.cat([exact.keep_ids, torch.zeros(keep_slack, dtype=torch.int32)]),
        predict_ids=torch.cat([exact.predict_ids, torch.zeros(predict_slack, dtype=torch.int32)]),
    )
    n_keep, n_predict, batch = exact.keep_ids.shape[0], exact.predict_ids.shape[0], 3
    wanted_rows, wanted_predict, wanted_positions, wanted_cu = _sequence_rows(exact)
    rows, predict_rows, positions, cu_seqlens = _sequence_rows(padded)
    assert torch.equal(cu_seqlens, wanted_cu)
    assert torch.equal(rows[: n_keep + batch], wanted_rows)
    assert torch.equal(predict_rows[:n_predict], wanted_predict)
    assert torch.equal(positions[: len(wanted_positions)], wanted_positions)
    slack = torch.cat([rows[n_keep + batch :], predict_rows[n_predict:]])
    first, last = len(wanted_positions), len(wanted_positions) + keep_slack + predict_slack
    assert sorted(slack.tolist()) == list(range(first, last))

    patch_rows, cls_rows, with_cls = token_rows(padded.keep_cu_seqlens, n_keep + keep_slack)
    wanted_patch_rows, wanted_cls_rows, _ = token_rows(exact.keep_cu_seqlens, n_keep)
    assert torch.equal(patch_rows[:n_keep], wanted_patch_rows) and torch.equal(cls_rows, wanted_cls_rows)
    assert patch_rows[n_keep:].tolist() == list(range(int(with_cls[-1]), int(with_cls[-1]) + keep_slack))
