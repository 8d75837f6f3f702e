"""PNG, JPEG, TIFF, BMP, WebP and .npy: what they mean in grey, and what is refused."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from xray_makers import CMYK_JPEG, encode, exif, png, png_chunk, ramp, scanlines, thorax, tiff, with_jpeg_exif

import hdxray_fast as hx
from hdxray_fast.images.canvas import Limits

SIZE = 64
SQUARE = ramp(SIZE, SIZE)
WHOLE = {  # every format, lossless where it can be
    "png": encode(".png", SQUARE),
    "jpeg": encode(".jpg", SQUARE, cv2.IMWRITE_JPEG_QUALITY, 98),
    "progressive": encode(".jpg", SQUARE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 98),
    "restarts": encode(".jpg", SQUARE, cv2.IMWRITE_JPEG_RST_INTERVAL, 2, cv2.IMWRITE_JPEG_QUALITY, 98),
    "tiff": tiff(SQUARE),
    "deflated-tiff": tiff(SQUARE, compression=8),
    "lzw-tiff": encode(".tiff", SQUARE),
    "bmp": encode(".bmp", SQUARE),
    "webp": encode(".webp", cv2.merge([SQUARE] * 3), cv2.IMWRITE_WEBP_QUALITY, 101),
    "lossy-webp": encode(".webp", cv2.merge([SQUARE] * 3), cv2.IMWRITE_WEBP_QUALITY, 95),
}


def shown(tmp_path, data: bytes, name: str = "image.bin", **options) -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return hx.read_canvas(tmp_path / name, size=SIZE, **options).pixels


def npy(array: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("name", WHOLE)
def test_format_is_read_by_content(tmp_path, name):
    pixels = shown(tmp_path, WHOLE[name], "wrong_suffix.dcm")
    lossless = name not in ("jpeg", "progressive", "restarts", "lossy-webp")
    assert np.abs(pixels.astype(int) - SQUARE).max() <= (0 if lossless else 4)


@pytest.mark.parametrize("name", [*WHOLE, "npy", "cmyk"])
def test_truncated_is_an_error_at_every_cut(tmp_path, name):
    whole = {**WHOLE, "npy": npy(SQUARE), "cmyk": CMYK_JPEG}[name]
    for cut in sorted(
        {1, 7, 20, 60, *(int(share * len(whole)) for share in (0.25, 0.5, 0.75, 0.9, 0.99)), len(whole) - 2}
    ):
        with pytest.raises(hx.ImageReadError, match=r"truncated|damaged|accepted|no image"):
            shown(tmp_path, whole[:cut])


def test_jpeg_that_was_cut_and_closed_again_shows_in_the_exposed_box(tmp_path):
    whole = encode(".jpg", cv2.resize(thorax(), (640, 640)), cv2.IMWRITE_JPEG_QUALITY, 95)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")  # as some recovery tools do
    about = hx.read_canvas(tmp_path / "cut.jpg", size=640).provenance
    assert "flat_border" in about["flags"]
    top, _, height, _ = about["exposed_box"]
    assert top + height < 500


def test_damaged_checksums_are_errors(tmp_path):
    whole = bytearray(WHOLE["png"])
    whole[20] ^= 1  # in IHDR
    with pytest.raises(hx.ImageReadError, match="checksum"):
        shown(tmp_path, bytes(whole))
    for place in (len(whole) // 2, len(whole) - 20):  # in the compressed pixels, and in their checksums
        whole = bytearray(WHOLE["png"])
        whole[place] ^= 0x55
        with pytest.raises(hx.ImageReadError):
            shown(tmp_path, bytes(whole))
    short = png(SIZE, SIZE, scanlines(SQUARE[:20]))  # every checksum right, two thirds of the rows missing
    with pytest.raises(hx.ImageReadError, match="damaged"):
        shown(tmp_path, short)


def test_16_bit_png_is_never_clipped_to_8_bits(tmp_path):
    full = ramp(SIZE, SIZE, np.uint16)
    assert np.array_equal(shown(tmp_path, encode(".png", full), window="full"), np.floor(full / 65535 * 255 + 0.5))
    assert np.array_equal(shown(tmp_path, encode(".png", full), window="full", bits=16), full)
    twelve = ramp(SIZE, SIZE, np.uint16, 4095)  # 12 bits in 16: must not come out black
    pixels = shown(tmp_path, encode(".png", twelve))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert len(np.unique(pixels)) > 150  # of the 190 values that the ramp has
    low, high = np.percentile(twelve, [0.5, 99.5])
    expected = np.clip((twelve - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 2


def test_a_bright_marker_does_not_darken_the_radiograph(tmp_path):
    image = cv2.resize(thorax().astype(np.uint16) * 16, (640, 640))
    plain = shown(tmp_path, encode(".png", image))
    image[10:40, 10:40] = 65535
    marked = shown(tmp_path, encode(".png", image))
    assert abs(plain[20:].mean() - marked[20:].mean()) < 3


def test_8_bit_pictures_are_shown_as_they_are(tmp_path):
    dim = ramp(SIZE, SIZE, np.uint8, 90)
    assert np.array_equal(shown(tmp_path, encode(".png", dim)), dim)
    assert np.array_equal(shown(tmp_path, encode(".png", dim), bits=16), dim.astype(np.uint16) * 257)


def test_colour_becomes_luma(tmp_path):
    rgb = np.dstack([SQUARE, 255 - SQUARE, SQUARE // 2])
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    for suffix, options in ((".png", ()), (".bmp", ()), (".tiff", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101))):
        data = encode(suffix, rgb[..., ::-1].copy(), *options)
        assert np.abs(shown(tmp_path, data) - luma).max() <= 1, suffix
    data = encode(".jpg", rgb[..., ::-1].copy(), cv2.IMWRITE_JPEG_QUALITY, 98)
    assert np.abs(shown(tmp_path, data) - luma).max() <= 4
    deep = encode(".png", (rgb.astype(np.uint16) * 257)[..., ::-1].copy())
    assert np.abs(shown(tmp_path, deep, bits=16, window="full") - luma * 257).max() <= 2


def test_the_fourth_byte_of_a_bmp_is_no_transparency(tmp_path):
    filled = np.dstack([SQUARE, SQUARE, SQUARE, np.zeros_like(SQUARE)])[::-1]
    header = struct.pack("<2sIII", b"BM", 54 + filled.nbytes, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, SIZE, SIZE, 1, 32, 0, filled.nbytes, 0, 0, 0, 0)
    assert np.array_equal(shown(tmp_path, header + filled.tobytes()), SQUARE)


def test_jpegs_that_opencv_cannot_mean(tmp_path):
    at = WHOLE["jpeg"].index(b"\xff\xc0")
    twelve = WHOLE["jpeg"][: at + 1] + b"\xc1" + WHOLE["jpeg"][at + 2 : at + 4] + b"\x0c" + WHOLE["jpeg"][at + 5 :]
    with pytest.raises(hx.UnsupportedImageError, match="12-bit JPEG"):
        shown(tmp_path, twelve)


def test_palette_png(tmp_path):
    palette = np.dstack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2])[0].astype(np.uint8)
    data = png(SIZE, SIZE, scanlines(SQUARE), colour=3, extra=png_chunk(b"PLTE", palette.tobytes()))
    luma = palette[SQUARE] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(shown(tmp_path, data) - luma).max() <= 1


def test_rgba_is_laid_over_black(tmp_path):
    alpha = np.full_like(SQUARE, 255)
    opaque = encode(".png", cv2.merge([SQUARE, SQUARE, SQUARE, alpha]))
    assert np.array_equal(shown(tmp_path, opaque), SQUARE)
    alpha[:, :20] = 0
    canvas = hx.read_canvas(_write(tmp_path, encode(".png", cv2.merge([SQUARE, SQUARE, SQUARE, alpha]))), size=SIZE)
    assert (canvas.pixels[:, :20] == 0).all()
    assert np.array_equal(canvas.pixels[:, 20:], SQUARE[:, 20:])
    assert "transparency_over_black" in canvas.provenance["flags"]
    grey_alpha = png(SIZE, SIZE, scanlines(np.dstack([SQUARE, alpha])), colour=4)
    assert np.array_equal(shown(tmp_path, grey_alpha), canvas.pixels)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64])
def test_rgba_of_8_bits_in_wider_integers(dtype):
    alpha = np.full_like(SQUARE, 255)
    opaque = hx.read_canvas(np.dstack([SQUARE] * 3 + [alpha]).astype(dtype), size=SIZE, window="minmax")
    assert np.array_equal(opaque.pixels, SQUARE) and "transparency_over_black" not in opaque.provenance["flags"]
    alpha[:, :20] = 0
    canvas = hx.read_canvas(np.dstack([SQUARE] * 3 + [alpha]).astype(dtype), size=SIZE, window="minmax")
    assert (canvas.pixels[:, :20] == 0).all() and np.array_equal(canvas.pixels[:, 20:], SQUARE[:, 20:])
    assert "transparency_over_black" in canvas.provenance["flags"]


def _write(tmp_path, data: bytes):
    (tmp_path / "written.bin").write_bytes(data)
    return tmp_path / "written.bin"


def test_one_bit_png(tmp_path):
    bits = (SQUARE > 127).astype(np.uint8)
    data = png(SIZE, SIZE, b"".join(b"\0" + np.packbits(row).tobytes() for row in bits), bits=1)
    assert np.array_equal(shown(tmp_path, data), bits * 255)


def test_cmyk_jpeg(tmp_path):
    canvas = hx.read_canvas(_write(tmp_path, CMYK_JPEG), size=24, fit="stretch")
    assert canvas.pixels[0, 0] < 20
    assert canvas.pixels[-1, -1] > 220
    adobe = CMYK_JPEG.index(b"\xff\xee")
    plain = CMYK_JPEG[:adobe] + CMYK_JPEG[adobe + 16 :]
    with pytest.raises(hx.UnsupportedImageError, match="Adobe marker"):
        shown(tmp_path, plain)


ORIENTED = {  # EXIF orientation: what the stored rows have to go through to be upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "tiff16"])
def test_orientation_is_applied_once(tmp_path, kind, orientation):
    stored = ramp(48, 64)
    data = {
        "png": lambda: png(64, 48, scanlines(stored), extra=png_chunk(b"eXIf", exif(orientation))),
        "jpeg": lambda: with_jpeg_exif(encode(".jpg", stored, cv2.IMWRITE_JPEG_QUALITY, 98), orientation),
        "tiff": lambda: tiff(stored, orientation=orientation),
        "tiff16": lambda: tiff(stored.astype(np.uint16) * 257, orientation=orientation),
    }[kind]()
    canvas = hx.read_canvas(_write(tmp_path, data), size=64, window="full")
    upright = ORIENTED[orientation](stored)
    top, left, height, width = canvas.valid_box
    assert (height, width) == upright.shape
    shown_part = canvas.pixels[top : top + height, left : left + width].astype(int)
    assert np.abs(shown_part - upright).max() <= (4 if kind == "jpeg" else 0)
    told = canvas.provenance
    assert ("orientation_applied" in told["flags"], told["stored"]["orientation"]) == (orientation > 1, orientation)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [1, 8])
def test_tiff_min_is_white(tmp_path, dtype, compression):
    stored = ramp(SIZE, SIZE, dtype)
    full = np.iinfo(dtype).max
    pixels = shown(tmp_path, tiff(stored, photometric=0, compression=compression), window="full")
    assert np.array_equal(pixels, np.floor((full - stored.astype(float)) / full * 255 + 0.5))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_tiff_of_other_sample_formats(tmp_path, dtype):
    stored = ramp(SIZE, SIZE, np.uint16, 3000).astype(dtype) - dtype(1000)
    pixels = shown(tmp_path, tiff(stored), window="minmax")
    assert np.abs(pixels - (stored + 1000.0) / 3000 * 255).max() <= 1


def test_tiff_pages_need_a_choice(tmp_path):
    data = tiff([SQUARE, 255 - SQUARE, SQUARE.T.copy()])
    with pytest.raises(hx.UnsupportedImageError, match="3 frames"):
        shown(tmp_path, data)
    assert np.array_equal(shown(tmp_path, data, frame=1), 255 - SQUARE)
    assert np.array_equal(shown(tmp_path, data, frame=2), SQUARE.T)


def test_animations_are_refused(tmp_path):
    data = png(SIZE, SIZE, scanlines(SQUARE), extra=png_chunk(b"acTL", struct.pack(">II", 3, 0)))
    with pytest.raises(hx.UnsupportedImageError, match="animated PNG of 3 frames; accepted: still pictures"):
        shown(tmp_path, data)
    with pytest.raises(hx.UnsupportedImageError, match="animated"):
        shown(tmp_path, data, frame=0)


def huge(kind: str, side: int = 30000) -> bytes:
    if kind == "png":
        return png(side, side, scanlines(SQUARE))
    if kind == "jpeg":
        at = WHOLE["jpeg"].index(b"\xff\xc0")
        return WHOLE["jpeg"][: at + 5] + struct.pack(">HH", side, side) + WHOLE["jpeg"][at + 9 :]
    if kind == "tiff":
        return tiff(SQUARE, compression=8, declared=(side, side))
    if kind == "bmp":
        data = bytearray(encode(".bmp", SQUARE))
        struct.pack_into("<ii", data, 18, side, side)
        struct.pack_into("<II", data, 30, 1, len(SQUARE))  # run-length encoded: the size of the data says nothing
        return bytes(data)
    if kind == "webp":
        data = bytearray(WHOLE["lossy-webp"])
        struct.pack_into("<HH", data, data.index(b"VP8 ") + 14, 16383, 16383)
        return bytes(data)
    return npy(SQUARE).replace(b"(64, 64), }", b"(%d, %d), }" % (side, side))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "webp"])
def test_bombs_are_refused_by_their_header(tmp_path, kind):
    with pytest.raises(hx.ImageTooLargeError, match=r"(30000 x 30000|16383 x 16383).*max_pixels"):
        shown(tmp_path, huge(kind))


def test_npy_bomb_and_settable_caps(tmp_path):
    with pytest.raises(hx.ImageReadError, match="truncated"):
        shown(tmp_path, huge("npy", 20000))
    with pytest.raises(hx.ImageTooLargeError, match="max_bytes"):
        shown(tmp_path, huge("npy", 60000))
    with pytest.raises(hx.ImageTooLargeError, match="4096 pixels; accepted: up to 1000"):
        shown(tmp_path, WHOLE["png"], limits=Limits(max_pixels=1000))
    with pytest.raises(hx.ImageTooLargeError, match="bytes; accepted: up to 100"):
        shown(tmp_path, WHOLE["png"], limits=Limits(max_bytes=100))
    with pytest.raises(hx.ImageTooLargeError, match="2 frames"):
        shown(tmp_path, tiff([SQUARE, SQUARE]), frame=0, limits=Limits(max_frames=1))


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i2", ">i4", "u8", "f2", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    stored = np.asarray(SQUARE.astype(dtype), order=order)
    pixels = shown(tmp_path, npy(stored), window="minmax")
    assert np.abs(pixels.astype(int) - SQUARE).max() <= 1


def test_npy_that_holds_objects_is_never_unpickled(tmp_path):
    with pytest.raises(hx.UnsupportedImageError, match="dtype object"):
        shown(tmp_path, npy(np.array([{"a": 1}, None], dtype=object)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (b"(-64, -64)", "a shape that no array has"),
        (b"(-1, -64)", "a shape that no array has"),
        (b"(-1, 64)", "a shape that no array has"),
        (b"(True, 64)", "a shape that no array has"),
        (b"(64, True, 64)", "a shape that no array has"),
        (b"(0, 64)", "a shape that no array has"),
        (b"(64, 64.0)", "header is damaged"),
        (b"(%s, 64)" % (b"9" * 4000), "a shape that no array has"),
        (b"(%s, %s, 64)" % (b"9" * 18, b"9" * 18), "max_bytes"),
        (b"()", "4096 follow: it is damaged, or holds more than one array"),
        (b"(64, 63)", "declares 4032 bytes of values, and 4096 follow"),
        (b"(64, 65)", "truncated"),
        (b"(4096,)", r"has shape \[4096\]"),
    ],
)
def test_npy_of_a_shape_that_no_array_has(tmp_path, shape, words):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s, }\n" % shape
    with pytest.raises(hx.ImageReadError, match=words) as error:
        shown(tmp_path, b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + SQUARE.tobytes())
    assert not isinstance(error.value, hx.errors.UnforeseenReadError)


def test_npy_versions(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (64, 64), }\n"
    long = struct.pack("<I", len(text)) + text + SQUARE.tobytes()
    for version in (2, 3):
        assert np.array_equal(shown(tmp_path, b"\x93NUMPY%c\0" % version + long), SQUARE)
    for version in (b"\4\0", b"\1\1", b"\0\0"):
        with pytest.raises(hx.ImageReadError, match="header is damaged"):
            shown(tmp_path, b"\x93NUMPY" + version + long)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"just some text, honestly\n" * 9, "text"),
        (b"GIF89a" + bytes(64), "GIF"),
        (b"%PDF-1.7\n" + bytes(64), "PDF"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64), "JPEG 2000"),
        (bytes(range(256)) * 4, "no known format"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"II+\0" + bytes(64), "BigTIFF"),
    ],
)
def test_other_files_say_what_is_accepted(tmp_path, data, words):
    with pytest.raises(hx.ImageReadError, match=words) as error:
        shown(tmp_path, data, "xray.png")
    assert "xray.png" in str(error.value)
