"""Attention forward: one program per (tile of queries, head), keys and values streamed past it, softmax on the way."""

import triton
import triton.language as tl

from .tiles import (
    LN2,
    add_product,
    dot_parts,
    exp2_scores,
    find_tile,
    load_parts,
    row_sources,
    scale_parts,
    sequence_rows,
    store_parts,
    zero_parts,
)

_LN2 = tl.constexpr(LN2)


@triton.jit
def _attend(
    q,  # [M, D] in parts
    k_sources,
    v_sources,
    stride_kn,
    stride_vn,
    first,
    length,
    scale,
    out,  # [M, D] in parts, float32
    top,  # [M] largest scaled score so far
    total,  # [M] sum of 2**(score - top)
    D0: tl.constexpr,
    D1: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    POLY: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys and values, first : first + BLOCK_N, all inside the sequence unless MASKED."""
    k = load_parts(k_sources, first, length, stride_kn, BLOCK_N, D0, D1, PARTS, TMA, MASKED)
    scores = dot_parts(q, k, PARTS, PRECISION)  # [M, N]
    if MASKED:
        scores = tl.where((first + tl.arange(0, BLOCK_N) < length)[None, :], scores, -float("inf"))
    # the scale is positive, so it goes past the maximum, and scale and subtraction are one multiply-add a score
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    p = exp2_scores(scores * scale - new_top[:, None], POLY)
    keep = tl.math.exp2(top - new_top)
    total = total * keep + tl.sum(p, 1)
    v = load_parts(v_sources, first, length, stride_vn, BLOCK_N, D0, D1, PARTS, TMA, MASKED)
    out = add_product(scale_parts(out, keep[:, None], PARTS), p.to(v[0].dtype), v, PARTS, PRECISION)
    return out, new_top, total


@triton.jit(do_not_specialize=["rows_q", "length_q", "length_k"])
def forward_kernel(
    q,  # [rows_q, H, D], rows and heads by strides
    k,
    v,
    out,  # [rows_q, H, D], rows by stride_on, heads next to each other, stride_oh = D
    lse,  # [H, rows_q] float32
    schedule,
    stride_qn,
    stride_qh,
    stride_kn,
    stride_kh,
    stride_vn,
    stride_vh,
    stride_on,
    stride_oh,
    rows_q,
    length_q,  # > 0: sequences of equal lengths, see find_tile
    length_k,
    scale,  # of the scores in base 2, the caller's times log2(e); positive
    D0: tl.constexpr,
    D1: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
    POLY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, heads): the tiles of one head run together and share its keys and values in L2."""
    start, length, first, other_start, other_length = find_tile(schedule, length_q, length_k, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)

    q_rows = sequence_rows(q, start, stride_qn, head, stride_qh)
    q_sources = row_sources(q_rows, length, stride_qn, BLOCK_M, D0, D1, PARTS, WARP_SPECIALIZE)
    q_parts = load_parts(q_sources, first, length, stride_qn, BLOCK_M, D0, D1, PARTS, WARP_SPECIALIZE, True)
    k_rows = sequence_rows(k, other_start, stride_kn, head, stride_kh)
    v_rows = sequence_rows(v, other_start, stride_vn, head, stride_vh)
    k_sources = row_sources(k_rows, other_length, stride_kn, BLOCK_N, D0, D1, PARTS, TMA)
    v_sources = row_sources(v_rows, other_length, stride_vn, BLOCK_N, D0, D1, PARTS, TMA)

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = zero_parts(BLOCK_M, D0, D1, PARTS)
    # one loop with every tile masked where a tile after the loop does harm: the compiler specialises no warps outside
    # of a loop, and for float32 products it would keep the queries in registers for that tile throughout the loop
    ONE_LOOP: tl.constexpr = WARP_SPECIALIZE or D0 == D1
    whole = other_length if ONE_LOOP else other_length // BLOCK_N * BLOCK_N
    for tile in tl.range(0, whole, BLOCK_N, warp_specialize=WARP_SPECIALIZE, disable_licm=D0 == D1):
        sums, top, total = _attend(
            q_parts, k_sources, v_sources, stride_kn, stride_vn, tile, other_length, scale, sums, top, total,
            D0, D1, PARTS, BLOCK_N, TMA, POLY, PRECISION, ONE_LOOP,
        )  # fmt: skip
    if whole < other_length and not ONE_LOOP:
        sums, top, total = _attend(
            q_parts, k_sources, v_sources, stride_kn, stride_vn, whole, other_length, scale, sums, top, total,
            D0, D1, PARTS, BLOCK_N, TMA, POLY, PRECISION, True,
        )  # fmt: skip

    # total is at least 1 as soon as there is a key; NaN stays NaN
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    out_rows = sequence_rows(out, start, stride_on, head, stride_oh)
    store_parts(out_rows, scale_parts(sums, share[:, None], PARTS), first, length, stride_on, BLOCK_M, D0, D1, PARTS)
    log_sum = tl.where(total == 0.0, -float("inf"), top * _LN2 + tl.log(total))
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(lse + head * rows_q + start + rows, log_sum, mask=rows < length)
