"""Attention backward in two kernels without atomics, so that two runs agree bit for bit.

With P = softmax(scale Q K^T), dP = dO V^T and delta = rowsum(O * dO):
    dS = P * (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO
(FlashAttention-2, algorithm 2: https://arxiv.org/abs/2307.08691). dQ sums over keys and dK, dV over queries, so one
kernel has a tile of queries and streams keys, and the other the reverse; scores are computed in both: 7 products and 2
exp2 a score, where one pass with atomic additions to dQ does 5 and 1.
"""

import triton
import triton.language as tl

from .tiles import (
    LOG2E,
    add_product,
    dot_parts,
    find_tile,
    load_lse2,
    load_parts,
    row_sources,
    scale_parts,
    sequence_rows,
    store_parts,
    zero_parts,
)

_LOG2E = tl.constexpr(LOG2E)


@triton.jit
def _dq_tile(
    q,  # [M, D] in parts
    grad_out,  # [M, D] in parts
    k_sources,
    v_sources,
    stride_kn,
    stride_vn,
    first,
    length,
    scale,
    lse2,  # [M] log2 of the sum of 2**(scaled score)
    delta,  # [M]
    dq,  # [M, D] in parts, float32
    D0: tl.constexpr,
    D1: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys and values, first : first + BLOCK_N, all inside the sequence unless MASKED."""
    k = load_parts(k_sources, first, length, stride_kn, BLOCK_N, D0, D1, PARTS, TMA, MASKED)
    v = load_parts(v_sources, first, length, stride_vn, BLOCK_N, D0, D1, PARTS, TMA, MASKED)
    scores = dot_parts(q, k, PARTS, PRECISION)  # [M, N]
    dp = dot_parts(grad_out, v, PARTS, PRECISION)
    p = tl.math.exp2(scores * scale - lse2[:, None])
    if MASKED:  # a score of 0 that is none could still be infinitely above the others
        p = tl.where((first + tl.arange(0, BLOCK_N) < length)[None, :], p, 0.0)
    ds = p * (dp - delta[:, None])
    return add_product(dq, ds.to(k[0].dtype), k, PARTS, PRECISION)


@triton.jit(do_not_specialize=["rows_q", "length_q", "length_k"])
def dq_kernel(
    q,  # [rows_q, H, D], rows and heads by strides
    k,
    v,
    out,  # [rows_q, H, D], rows by stride_on, heads next to each other, stride_oh = D; dq likewise
    grad_out,  # [rows_q, H, D], rows and heads by strides
    lse,  # [H, rows_q] float32
    delta,  # [H, rows_q] float32, written for every row of every sequence
    dq,
    schedule,
    stride_qn,
    stride_qh,
    stride_kn,
    stride_kh,
    stride_vn,
    stride_vh,
    stride_on,
    stride_oh,
    stride_gn,
    stride_gh,
    rows_q,
    length_q,
    length_k,
    scale,  # of the scores in base 2, positive
    D0: tl.constexpr,
    D1: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, heads): dQ, and delta for the other kernel.

    delta is computed here, where dO is read anyway, and not in a kernel of its own: that would read O and dO once more
    (at ViT-B and 45,000 tokens 138 MB, 40 us of an H100's memory).
    """
    start, length, first, other_start, other_length = find_tile(schedule, length_q, length_k, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)

    q_rows = sequence_rows(q, start, stride_qn, head, stride_qh)
    g_rows = sequence_rows(grad_out, start, stride_gn, head, stride_gh)
    o_rows = sequence_rows(out, start, stride_on, head, stride_oh)
    q_sources = row_sources(q_rows, length, stride_qn, BLOCK_M, D0, D1, PARTS, False)
    g_sources = row_sources(g_rows, length, stride_gn, BLOCK_M, D0, D1, PARTS, False)
    o_sources = row_sources(o_rows, length, stride_on, BLOCK_M, D0, D1, PARTS, False)
    do_parts = load_parts(g_sources, first, length, stride_gn, BLOCK_M, D0, D1, PARTS, False, True)
    o_parts = load_parts(o_sources, first, length, stride_on, BLOCK_M, D0, D1, PARTS, False, True)
    own_delta = tl.zeros([BLOCK_M], tl.float32)
    for i in tl.static_range(PARTS):
        own_delta += tl.sum(o_parts[i].to(tl.float32) * do_parts[i].to(tl.float32), 1)
    q_parts = load_parts(q_sources, first, length, stride_qn, BLOCK_M, D0, D1, PARTS, False, True)
    k_rows = sequence_rows(k, other_start, stride_kn, head, stride_kh)
    v_rows = sequence_rows(v, other_start, stride_vn, head, stride_vh)
    k_sources = row_sources(k_rows, other_length, stride_kn, BLOCK_N, D0, D1, PARTS, TMA)
    v_sources = row_sources(v_rows, other_length, stride_vn, BLOCK_N, D0, D1, PARTS, TMA)

    own_rows = head * rows_q + start
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(delta + own_rows + rows, own_delta, mask=rows < length)
    lse2 = load_lse2(lse + own_rows, first, length, BLOCK_M)

    sums = zero_parts(BLOCK_M, D0, D1, PARTS)
    ONE_LOOP: tl.constexpr = D0 == D1  # as in the forward kernel
    whole = other_length if ONE_LOOP else other_length // BLOCK_N * BLOCK_N
    for tile in tl.range(0, whole, BLOCK_N, disable_licm=D0 == D1):
        sums = _dq_tile(
            q_parts, do_parts, k_sources, v_sources, stride_kn, stride_vn, tile, other_length, scale, lse2, own_delta,
            sums, D0, D1, PARTS, BLOCK_N, TMA, PRECISION, ONE_LOOP,
        )  # fmt: skip
    if whole < other_length and not ONE_LOOP:
        sums = _dq_tile(
            q_parts, do_parts, k_sources, v_sources, stride_kn, stride_vn, whole, other_length, scale, lse2, own_delta,
            sums, D0, D1, PARTS, BLOCK_N, TMA, PRECISION, True,
        )  # fmt: skip

    dq_rows = sequence_rows(dq, start, stride_on, head, stride_oh)
    natural = scale / _LOG2E
    store_parts(dq_rows, scale_parts(sums, natural, PARTS), first, length, stride_on, BLOCK_M, D0, D1, PARTS)


@triton.jit(do_not_specialize=["rows_q", "length_q", "length_k"])
def dkdv_kernel(
    q,  # [rows_q, H, D], rows and heads by strides
    k,
    v,
    grad_out,
    lse,  # [H, rows_q] float32
    delta,  # [H, rows_q] float32
    dk,  # [rows_k, H, D], rows by stride_on, heads next to each other, stride_oh = D
    dv,
    schedule,
    stride_qn,
    stride_qh,
    stride_kn,
    stride_kh,
    stride_vn,
    stride_vh,
    stride_on,
    stride_oh,
    stride_gn,
    stride_gh,
    rows_q,
    length_q,
    length_k,
    scale,  # of the scores in base 2, positive
    D0: tl.constexpr,
    D1: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of keys, heads). Scores are computed transposed, [N, M], so that P^T and dS^T are left operands.

    No mask on the scores: queries past the end of the sequence read as zeros with a log-sum-exp and delta of 0, so
    p = 1 and dS = 0, and what they add to dK and dV is 0. Keys past the end give rows that are not stored.
    """
    start, length, first, other_start, other_length = find_tile(schedule, length_k, length_q, BLOCK_N)
    head = tl.program_id(1).to(tl.int64)

    k_rows = sequence_rows(k, start, stride_kn, head, stride_kh)
    v_rows = sequence_rows(v, start, stride_vn, head, stride_vh)
    k_sources = row_sources(k_rows, length, stride_kn, BLOCK_N, D0, D1, PARTS, False)
    v_sources = row_sources(v_rows, length, stride_vn, BLOCK_N, D0, D1, PARTS, False)
    k_parts = load_parts(k_sources, first, length, stride_kn, BLOCK_N, D0, D1, PARTS, False, True)
    v_parts = load_parts(v_sources, first, length, stride_vn, BLOCK_N, D0, D1, PARTS, False, True)
    q_rows = sequence_rows(q, other_start, stride_qn, head, stride_qh)
    g_rows = sequence_rows(grad_out, other_start, stride_gn, head, stride_gh)
    q_sources = row_sources(q_rows, other_length, stride_qn, BLOCK_M, D0, D1, PARTS, TMA)
    g_sources = row_sources(g_rows, other_length, stride_gn, BLOCK_M, D0, D1, PARTS, TMA)

    lse_rows = lse + head * rows_q + other_start
    delta_rows = delta + head * rows_q + other_start
    dk_sums = zero_parts(BLOCK_N, D0, D1, PARTS)
    dv_sums = zero_parts(BLOCK_N, D0, D1, PARTS)
    for tile in tl.range(0, other_length, BLOCK_M, disable_licm=D0 == D1):
        q_parts = load_parts(q_sources, tile, other_length, stride_qn, BLOCK_M, D0, D1, PARTS, TMA, True)
        lse2 = load_lse2(lse_rows, tile, other_length, BLOCK_M)
        scores = dot_parts(k_parts, q_parts, PARTS, PRECISION)  # [N, M]
        p = tl.math.exp2(scores * scale - lse2[None, :])
        do_parts = load_parts(g_sources, tile, other_length, stride_gn, BLOCK_M, D0, D1, PARTS, TMA, True)
        dv_sums = add_product(dv_sums, p.to(do_parts[0].dtype), do_parts, PARTS, PRECISION)
        dp = dot_parts(v_parts, do_parts, PARTS, PRECISION)
        rows = tile + tl.arange(0, BLOCK_M)
        own_delta = tl.load(delta_rows + rows, mask=rows < other_length, other=0.0)
        ds = p * (dp - own_delta[None, :])
        dk_sums = add_product(dk_sums, ds.to(q_parts[0].dtype), q_parts, PARTS, PRECISION)

    dk_rows = sequence_rows(dk, start, stride_on, head, stride_oh)
    dv_rows = sequence_rows(dv, start, stride_on, head, stride_oh)
    natural = scale / _LOG2E
    store_parts(dk_rows, scale_parts(dk_sums, natural, PARTS), first, length, stride_on, BLOCK_N, D0, D1, PARTS)
    store_parts(dv_rows, dv_sums, first, length, stride_on, BLOCK_N, D0, D1, PARTS)
