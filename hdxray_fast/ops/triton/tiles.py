"""What the attention kernels share: reading tiles, finding the tile of a program, 2**x on the arithmetic units.

A head dimension D is cut into PARTS parts, the first D0 and the others D1 wide, because Triton's blocks are powers of
two: 80 = 64 + 16 and 96 = 64 + 32 instead of padding to 128, which would cost 60 % and 33 % more products. True float32
products take narrow parts for another reason: Triton keeps whole rows of their operands in registers. Functions on
`parts` take and give tuples, one entry a part.
"""

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
FIELDS = 8  # int32 fields of one tile in the schedule, a 32-byte sector of memory; five are used

_LOG2E = tl.constexpr(LOG2E)
_FIELDS = tl.constexpr(FIELDS)


@triton.jit
def find_tile(
    schedule,  # [tiles, FIELDS] int32, written by schedule_kernel; not read if own_length > 0
    own_length,  # > 0: every sequence has this many rows on the side that is cut into tiles, and
    other_length,  # this many on the side that is looped over; 0: see the schedule
    BLOCK: tl.constexpr,
):
    """First row and length of the program's sequence on its own side, its tile's offset there, and the other side's."""
    tile = tl.program_id(0)
    # both ways without a branch: Triton 3.6 does not specialise the warps of a kernel that has an else
    equal = own_length > 0
    per_sequence = tl.cdiv(tl.maximum(own_length, 1), BLOCK)
    sequence = tile // per_sequence
    entry = schedule + tile.to(tl.int64) * _FIELDS
    own_start = tl.where(equal, sequence * own_length, tl.load(entry, mask=own_length == 0, other=0))
    own_rows = tl.where(equal, own_length, tl.load(entry + 1, mask=own_length == 0, other=0))
    first = tl.where(equal, (tile - sequence * per_sequence) * BLOCK, tl.load(entry + 2, mask=own_length == 0, other=0))
    other_start = tl.where(equal, sequence * other_length, tl.load(entry + 3, mask=own_length == 0, other=0))
    other_rows = tl.where(equal, other_length, tl.load(entry + 4, mask=own_length == 0, other=0))
    return own_start, own_rows, first, other_start, other_rows


@triton.jit
def sequence_rows(tensor, start, stride_row, head, stride_head):
    """Pointer to the first row of a sequence's head; int64, since a packed batch can pass 2**31 elements."""
    return tensor + start.to(tl.int64) * stride_row + head * stride_head


@triton.jit
def row_sources(
    rows, length, stride_row, BLOCK: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What load_parts reads from: tensor descriptors based at the sequence's start (rows past its end read as zero,
    also where the next sequence lies there), or pointers."""
    sources = ()
    for i in tl.static_range(PARTS):
        if TMA:
            # a length of 0 cannot be described, and then nothing is read
            source = tl.make_tensor_descriptor(
                rows + (i * D1 + (D0 - D1 if i > 0 else 0)),
                shape=[tl.maximum(length, 1), D0 if i == 0 else D1],
                strides=[stride_row, 1],
                block_shape=[BLOCK, D0 if i == 0 else D1],
            )
        else:
            source = rows + (i * D1 + (D0 - D1 if i > 0 else 0))
        sources = sources + (source,)
    return sources


@triton.jit
def load_rows(
    source, first, length, stride_row, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr
):
    """Rows first : first + BLOCK of a sequence, [BLOCK, WIDTH]; past its end zeros (unless not MASKED: all exist)."""
    if TMA:
        return source.load([first, 0])
    else:
        offsets = tl.arange(0, BLOCK)
        # the offset of the tile in 64 bits once, offsets within it in 32
        tile = source + tl.cast(first, tl.int64) * stride_row
        pointers = tile + (offsets[:, None] * stride_row + tl.arange(0, WIDTH)[None, :])
        if MASKED:
            return tl.load(pointers, mask=(first + offsets < length)[:, None], other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def load_parts(
    sources, first, length, stride_row, BLOCK: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """All parts of rows first : first + BLOCK."""
    parts = ()
    for i in tl.static_range(PARTS):
        part = load_rows(sources[i], first, length, stride_row, BLOCK, D0 if i == 0 else D1, TMA, MASKED)
        parts = parts + (part,)
    return parts


@triton.jit
def zero_parts(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PARTS: tl.constexpr):
    """Accumulators, float32 [ROWS, D]."""
    parts = ()
    for i in tl.static_range(PARTS):
        parts = parts + (tl.zeros([ROWS, D0 if i == 0 else D1], tl.float32),)
    return parts


@triton.jit
def dot_parts(a, b, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b^T over the whole head dimension: [M, D] and [N, D] give [M, N]."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    for i in tl.static_range(1, PARTS):
        product = tl.dot(a[i], tl.trans(b[i]), product, input_precision=PRECISION)
    return product


@triton.jit
def add_product(sums, a, b, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """sums + a @ b: [M, N] and [N, D] give [M, D]."""
    new = ()
    for i in tl.static_range(PARTS):
        new = new + (tl.dot(a, b[i], sums[i], input_precision=PRECISION),)
    return new


@triton.jit
def scale_parts(parts, factor, PARTS: tl.constexpr):
    """parts * factor, a number or a tensor that broadcasts."""
    new = ()
    for i in tl.static_range(PARTS):
        new = new + (parts[i] * factor,)
    return new


@triton.jit
def store_parts(
    rows, parts, first, length, stride_row, BLOCK: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Store [BLOCK, D] at rows first : first + BLOCK of a sequence, none past its end."""
    offsets = tl.arange(0, BLOCK)
    tile = rows + tl.cast(first, tl.int64) * stride_row
    inside = (first + offsets < length)[:, None]
    for i in tl.static_range(PARTS):
        columns = (i * D1 + (D0 - D1 if i > 0 else 0)) + tl.arange(0, D0 if i == 0 else D1)
        pointers = tile + (offsets[:, None] * stride_row + columns[None, :])
        tl.store(pointers, parts[i].to(rows.dtype.element_ty), mask=inside)


@triton.jit
def exp2_fma(x):
    """2**x for x <= 0 on the multiply-add units, relative error 7.5e-5 (bf16 keeps 2e-3, fp16 5e-4).

    Cody-Waite: x = n + f with n the nearest integer; 2**f by a cubic, minimax in relative error on [-0.5, 0.5]; n is
    added to the exponent. Below -126 the result stays at 2**-126, which vanishes in a sum of at least 1.
    """
    x = tl.maximum(x, -126.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = x + 12582912.0  # 1.5 * 2**23: the sum has no bits below 1, and its low mantissa bits hold n
    f = x - (shifted - 12582912.0)
    power = 0.055171323067810335 * f + 0.2426113305726567
    power = power * f + 0.6932610890950683
    power = power * f + 0.9999280471497419
    bits = power.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def exp2_scores(x, POLY: tl.constexpr):
    """2**x of scores [M, N]; with POLY the last quarter of the columns goes to the multiply-add units.

    One H100 multiprocessor does 16 exp2 and issues 128 lanes of anything per clock. At D = 32 a score costs 1/16 clock
    of exp2 and 4 * 32 / 4096 = 1/32 of tensor core, so exp2 is the limit; the polynomial costs about 9 issued lanes.
    With a share x of the columns moved: exp2 (1 - x) / 16, issue (3.5 + (1 - x) + 9 x) / 128; they meet near x = 1/4.
    """
    if POLY:
        M: tl.constexpr = x.shape[0]
        N: tl.constexpr = x.shape[1]
        # the halves of the column index's top bit are different registers of one thread: no data moves
        a, b = x.reshape(M, 2, N // 2).permute(0, 2, 1).split()
        c, d = b.reshape(M, 2, N // 4).permute(0, 2, 1).split()
        b = tl.join(tl.math.exp2(c), exp2_fma(d)).permute(0, 2, 1).reshape(M, N // 2)
        return tl.join(tl.math.exp2(a), b).permute(0, 2, 1).reshape(M, N)
    else:
        return tl.math.exp2(x)


@triton.jit
def load_lse2(lse, first, length, BLOCK: tl.constexpr):
    """Log-sum-exp of rows first : first + BLOCK in base 2; 0 past the end, where p = exp2(0 - 0) stays finite."""
    rows = first + tl.arange(0, BLOCK)
    return tl.load(lse + rows, mask=rows < length, other=0.0) * _LOG2E
