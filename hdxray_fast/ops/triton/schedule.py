"""Where each program of a ragged launch works: a table made on the device, so that nobody waits for the lengths.

Rows of B sequences cut into tiles of BLOCK rows give at most ``rows // BLOCK + B`` tiles whatever the lengths are, so
launches have ``cdiv(rows, BLOCK) + B`` programs and depend on the shapes alone. The programs that are left over get the
rows behind the last sequence, with an empty other side: their results are those of queries without keys (zeros).
"""

import triton
import triton.language as tl

from .tiles import FIELDS

CHUNK = 128  # sequences (and tiles) looked at at once

_FIELDS = tl.constexpr(FIELDS)


@triton.jit
def _bounds(cu_seqlens, sequence, inside, rows):
    """Start and length of sequences, inside [0, rows] whatever cu_seqlens holds."""
    start = tl.load(cu_seqlens + sequence, mask=inside, other=0)
    end = tl.load(cu_seqlens + sequence + 1, mask=inside, other=0)
    start = tl.minimum(tl.maximum(start, 0), rows)
    return start, tl.minimum(tl.maximum(end, start), rows) - start


@triton.jit(do_not_specialize=["batch", "rows_own", "rows_other", "tiles"])
def schedule_kernel(
    cu_own,  # [batch + 1] int32, of the side that is cut into tiles
    cu_other,  # [batch + 1] int32, of the side that each tile loops over
    schedule,  # [tiles, FIELDS] int32: start, length, offset of the tile, start and length of the other side
    batch,
    rows_own,
    rows_other,
    tiles,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program per sequence, and one more for the rows behind the last.

    Sequences whose other side is longest come first: their tiles take longest, and a launch ends evenly if the tiles
    that start last are short. Each program counts the tiles that go before its own: B * B comparisons in all, on as
    many programs as there are sequences.
    """
    sequence = tl.program_id(0)
    last = sequence == batch
    start, length = _bounds(cu_own, sequence, sequence < batch, rows_own)
    other_start, other_length = _bounds(cu_other, sequence, sequence < batch, rows_other)
    if last:
        start = tl.minimum(tl.maximum(tl.load(cu_own + batch), 0), rows_own)
        length = rows_own - start
        other_length = -1  # after all others

    lanes = tl.arange(0, CHUNK)
    before = tl.full((), 0, tl.int64)  # 64 bits: overlapping sequences of a broken cu_seqlens count many times
    for first in range(0, batch, CHUNK):
        others = first + lanes
        _, own_lengths = _bounds(cu_own, others, others < batch, rows_own)
        _, other_lengths = _bounds(cu_other, others, others < batch, rows_other)
        earlier = (other_lengths > other_length) | ((other_lengths == other_length) & (others < sequence))
        before += tl.sum(tl.where(earlier & (others < batch), tl.cdiv(own_lengths, BLOCK), 0).to(tl.int64))

    mine = tl.cdiv(length, BLOCK)
    if last:
        mine = tiles  # all that are left over, also those that have no row
        other_length = 0
    for first in range(0, mine, CHUNK):
        tile = first + lanes
        place = before + tile
        here = (tile < mine) & (place >= 0) & (place < tiles)
        entry = schedule + place * _FIELDS
        tl.store(entry, tl.zeros_like(tile) + start, mask=here)
        tl.store(entry + 1, tl.zeros_like(tile) + length, mask=here)
        tl.store(entry + 2, tile * BLOCK, mask=here)
        tl.store(entry + 3, tl.zeros_like(tile) + other_start, mask=here)
        tl.store(entry + 4, tl.zeros_like(tile) + other_length, mask=here)
