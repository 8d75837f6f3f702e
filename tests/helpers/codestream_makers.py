"""Pictures to codestreams of every family that DICOM knows; lossless JPEG and JPEG-LS have their encoders here."""

from __future__ import annotations

import io
import struct

import numpy as np


class _Bits:
    """Bits to bytes, the highest first, with the stuffing that JPEG (a byte) and JPEG-LS (a bit) put after 0xFF."""

    def __init__(self, stuffed_bits: int):
        self.stuffed_bits, self.out, self.held, self.count = stuffed_bits, bytearray(), 0, 0

    def put(self, value: int, count: int) -> None:
        for place in range(count - 1, -1, -1):
            self.held, self.count = self.held << 1 | (value >> place & 1), self.count + 1
            if self.count == 8:
                self.out.append(self.held)
                full, self.held, self.count = self.held == 0xFF, 0, 0
                if full and self.stuffed_bits == 8:
                    self.out.append(0)
                elif full:
                    self.count = self.stuffed_bits

    def close(self, fill: int) -> bytes:
        while self.count:
            self.put(fill, 1)
        return bytes(self.out)


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg_lossless(pixels: np.ndarray, bits: int) -> bytes:
    """Process 14, selection value 1 (ITU-T T.81 annex H), of [H, W] unsigned values; every category has 5 bits."""
    rows, columns = pixels.shape
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    stream = _Bits(stuffed_bits=8)
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel().tolist():
        category = abs(difference).bit_length()
        stream.put(category, 5)
        if category < 16:  # 32768 alone has category 16, and no more bits
            stream.put(difference if difference >= 0 else difference + (1 << category) - 1, category)
    return (
        b"\xff\xd8"
        + _segment(0xC3, struct.pack(">BHHBBBB", bits, rows, columns, 1, 1, 0x11, 0))
        + _segment(0xC4, bytes([0]) + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17)))
        + _segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
        + stream.close(1)
        + b"\xff\xd9"
    )


_RUN_BITS = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15]
_RESET = 64


class _JpegLs:
    """The lossless coder of ITU-T T.87 for one component of 8 to 16 bits."""

    def __init__(self, bits: int):
        self.bits, self.top, self.range = bits, (1 << bits) - 1, 1 << bits
        self.limit = 2 * (bits + max(8, bits))
        factor = (min(self.top, 4095) + 128) // 256
        self.thresholds = (factor + 2, 4 * factor + 3, 17 * factor + 4)
        self.a, self.n = [max(2, (self.range + 32) // 64)] * 367, [1] * 367
        self.b, self.c, self.negative = [0] * 365, [0] * 365, [0, 0]
        self.run_index, self.stream = 0, _Bits(stuffed_bits=1)

    def encode(self, rows: list[list[int]]) -> bytes:
        width, edge = len(rows[0]), 0  # edge: what stood left of the row above
        above = [0] * width
        for row in rows:
            x, left = 0, above[0]
            corner = edge
            edge = left
            while x < width:
                up, right = above[x], above[min(x + 1, width - 1)]
                gradients = (right - up, up - corner, corner - left)
                if any(gradients):
                    self._regular(row[x], left, up, corner, gradients)
                else:
                    run = x
                    while x < width and row[x] == left:
                        x += 1
                    self._run(x - run, to_the_end=x == width)
                    if x == width:
                        break
                    self._interruption(row[x], left, above[x])
                left, corner = row[x], above[x]
                x += 1
            above = row
        return self.stream.close(0)

    def _quantise(self, gradient: int) -> int:
        size = sum(abs(gradient) >= threshold for threshold in (1, *self.thresholds))
        return size if gradient > 0 else -size

    def _golomb(self, value: int, k: int, limit: int) -> None:
        zeros = limit - self.bits - 1
        if value >> k < zeros:
            self.stream.put(1, (value >> k) + 1)
            self.stream.put(value & ((1 << k) - 1), k)
        else:
            self.stream.put(1, zeros + 1)
            self.stream.put(value - 1, self.bits)

    def _reduced(self, error: int) -> int:
        error %= self.range
        return error - self.range if error >= (self.range + 1) // 2 else error

    def _regular(self, value: int, left: int, up: int, corner: int, gradients: tuple[int, int, int]) -> None:
        first, second, third = (self._quantise(gradient) for gradient in gradients)
        context, sign = 81 * first + 9 * second + third, 1
        if context < 0:
            context, sign = -context, -1
        low, high = min(left, up), max(left, up)
        predicted = low if corner >= high else high if corner <= low else left + up - corner
        predicted = min(max(predicted + sign * self.c[context], 0), self.top)
        error = self._reduced(sign * (value - predicted))
        a, b, n, k = self.a[context], self.b[context], self.n[context], 0
        while n << k < a:
            k += 1
        if k == 0 and 2 * b <= -n:
            mapped = 2 * error + 1 if error >= 0 else -2 * (error + 1)
        else:
            mapped = 2 * error if error >= 0 else -2 * error - 1
        self._golomb(mapped, k, self.limit)
        a, b = a + abs(error), b + error
        if n == _RESET:
            a, b, n = a >> 1, b >> 1 if b >= 0 else -((1 - b) >> 1), n >> 1
        n += 1
        if b <= -n:
            b, self.c[context] = max(b + n, 1 - n), max(self.c[context] - 1, -128)
        elif b > 0:
            b, self.c[context] = min(b - n, 0), min(self.c[context] + 1, 127)
        self.a[context], self.b[context], self.n[context] = a, b, n

    def _run(self, length: int, to_the_end: bool) -> None:
        while length >= 1 << _RUN_BITS[self.run_index]:
            self.stream.put(1, 1)
            length -= 1 << _RUN_BITS[self.run_index]
            self.run_index = min(self.run_index + 1, 31)
        if to_the_end:
            self.stream.put(1, 1 if length else 0)
        else:
            self.stream.put(length, 1 + _RUN_BITS[self.run_index])

    def _interruption(self, value: int, left: int, up: int) -> None:
        same = int(left == up)
        error = self._reduced(-(value - up) if not same and left > up else value - (left if same else up))
        context, k = 365 + same, 0
        n, negative = self.n[context], self.negative[same]
        while n << k < self.a[context] + (n >> 1 if same else 0):
            k += 1
        flip = (k == 0 and error > 0 and 2 * negative < n) or (error < 0 and (2 * negative >= n or k != 0))
        mapped = 2 * abs(error) - same - flip
        self._golomb(mapped, k, self.limit - _RUN_BITS[self.run_index] - 1)
        self.negative[same] += error < 0
        self.a[context] += (mapped + 1 - same) >> 1
        if n == _RESET:
            self.a[context], self.negative[same], n = self.a[context] >> 1, self.negative[same] >> 1, n >> 1
        self.n[context] = n + 1
        self.run_index = max(self.run_index - 1, 0)


def jpeg_ls(pixels: np.ndarray, bits: int) -> bytes:
    """JPEG-LS of [H, W] unsigned values of 8 to 16 bits, with the default parameters."""
    rows, columns = pixels.shape
    return (
        b"\xff\xd8"
        + _segment(0xF7, struct.pack(">BHHBBBB", bits, rows, columns, 1, 1, 0x11, 0))
        + _segment(0xDA, bytes([1, 1, 0, 0, 0, 0]))
        + _JpegLs(bits).encode(pixels.astype(int).tolist())
        + b"\xff\xd9"
    )


def jpeg_2000(pixels: np.ndarray, bits: int, signed: bool) -> bytes:
    """Reversible JPEG 2000 of [H, W] bit patterns (uint8 | uint16), which the stream calls signed or unsigned."""
    from openjpeg.utils import encode_buffer

    rows, columns = pixels.shape
    little = pixels.astype(np.uint8 if bits <= 8 else "<u2")
    return bytes(encode_buffer(little.tobytes(), columns, rows, 1, bits, signed))


def htj2k(pixels: np.ndarray) -> bytes | None:
    """Reversible HTJ2K of [H, W] uint8 | uint16, all their bits; None where no encoder is installed."""
    try:
        from imagecodecs import htj2k_encode
    except ImportError:
        return None
    return bytes(htj2k_encode(pixels, reversible=True))


def rle(pixels: np.ndarray) -> bytes:
    """DICOM's run-length encoding (PS3.5 annex G) of [H, W] uint8 | uint16: literal runs alone, high bytes first."""
    planes = [pixels] if pixels.dtype == np.uint8 else [pixels >> 8, pixels & 255]
    segments = []
    for plane in planes:
        raw = plane.astype(np.uint8).tobytes()
        runs = b"".join(
            bytes([len(part) - 1]) + part for part in (raw[at : at + 128] for at in range(0, len(raw), 128))
        )
        segments.append(runs + b"\0" * (len(runs) % 2))
    offsets = np.cumsum([64] + [len(segment) for segment in segments[:-1]]).tolist()
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(offsets))) + b"".join(segments)


def jpeg_colour(samples: np.ndarray, marker: str, names: bytes) -> bytes:
    """Baseline JPEG of [H, W, 3] uint8 samples, whatever they are, that says of them what it is told to.

    Args:
        marker: ``"jfif"`` and ``"adobe ycbcr"`` for YCbCr, ``"adobe rgb"``, or ``""`` for none.
        names: identifiers of the three components.
    """
    from PIL import Image

    buffer = io.BytesIO()
    rows, columns, _ = samples.shape
    Image.frombytes("YCbCr", (columns, rows), samples.tobytes()).save(buffer, "JPEG", quality=97, subsampling=0)
    whole, offset, out = buffer.getvalue(), 2, bytearray(b"\xff\xd8")
    if marker.startswith("adobe"):
        out += _segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, marker == "adobe ycbcr"))
    while True:
        code, length = struct.unpack_from(">HH", whole, offset)
        segment = bytearray(whole[offset : offset + 2 + length])
        first, step = {0xFFC0: (10, 3), 0xFFDA: (5, 2)}.get(code, (0, 0))
        for place, name in enumerate(names):
            if step:
                segment[first + step * place] = name
        if code != 0xFFE0 or marker == "jfif":
            out += segment
        offset += 2 + length
        if code == 0xFFDA:
            return bytes(out) + whole[offset:]
