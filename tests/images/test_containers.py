"""Containers that tell a quick reader one thing and a decoder another: refused by name, before a decoder sees them."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from codestream_makers import jpeg_2000, jpeg_lossless, jpeg_ls
from container_makers import (
    GREY,
    SIDE,
    before_scan,
    box,
    coded,
    ihdr,
    jp2,
    jpeg_frame,
    many_scans,
    png_of,
    resized,
    siz,
    text_chunk,
    webp_chunk,
    webp_extended,
)
from xray_makers import dicom, encode, exif, png_chunk, ramp, tiff

import hdxray_fast as hx
from hdxray_fast.images.canvas import Limits
from hdxray_fast.images.jpeg_segments import MAX_SCANS

JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{end}" for end in (50, 70, 80, 90))
LARGE = 7000  # pixels a side: within the caps, but not what the file is said to be


class Decoded(BaseException):
    """A decoder was asked for pixels."""


@pytest.fixture
def no_decoder(monkeypatch):
    """Decoders that end the test."""

    def decode(*args, **options):
        raise Decoded

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr(cv2, "imdecodemulti", decode)
    try:
        from pydicom.pixels.decoders.base import Decoder
    except ImportError:
        return
    monkeypatch.setattr(Decoder, "as_buffer", decode)
    monkeypatch.setattr(Decoder, "as_array", decode)


def read(tmp_path, data: bytes, **options):
    path = tmp_path / "picture.bin"
    path.write_bytes(data)
    return hx.read_canvas(path, size=SIDE, **options)


def refused(tmp_path, data: bytes, words: str, **options) -> None:
    with pytest.raises(hx.ImageReadError, match=words) as caught:
        read(tmp_path, data, **options)
    assert "picture.bin" in str(caught.value)


def refused_in_dicom(tmp_path, stream: bytes, syntax: str, words: str, pixels: np.ndarray = GREY) -> None:
    pytest.importorskip("pydicom")
    with pytest.raises(hx.ImageReadError, match=words) as caught:
        hx.read_canvas(dicom(tmp_path / "picture.dcm", pixels, syntax, stream), size=SIDE)
    assert "picture.dcm" in str(caught.value)


@pytest.fixture(scope="module")
def stream() -> bytes:
    pytest.importorskip("openjpeg")
    return jpeg_2000(GREY, 8, False)


def test_a_jp2_file_is_read_whatever_its_boxes_hold(tmp_path, stream):
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", GREY), size=SIDE)
    decoy = box(b"uuid", bytes(16) + siz(resized(stream, LARGE, LARGE)))
    for wrapped in (jp2(stream), jp2(stream, decoy, box(b"free", bytes(5000))), jp2(stream, after=decoy + bytes(5))):
        path = dicom(tmp_path / "wrapped.dcm", GREY, JPEG_2000, wrapped)
        assert np.array_equal(hx.read_canvas(path, size=SIDE).pixels, plain.pixels)


def test_the_size_is_read_where_the_decoder_reads_it(tmp_path, stream, no_decoder):
    large, differs = resized(stream, LARGE, LARGE), f"its codestream {LARGE} x {LARGE}"
    refused_in_dicom(tmp_path, jp2(large, box(b"free", bytes(4096))), JPEG_2000, differs)
    refused_in_dicom(tmp_path, jp2(large, box(b"uuid", bytes(16) + siz(stream))), JPEG_2000, differs)
    refused_in_dicom(tmp_path, bytes(4096) + large, JPEG_2000, "begin neither as JPEG nor as JPEG 2000")
    hidden = b"\xff\x4f\xff\x30\0\2" + large[2:]  # OpenJPEG goes over markers that it does not know
    refused_in_dicom(tmp_path, hidden, JPEG_2000, "begin neither as JPEG nor as JPEG 2000")


def test_jpeg_2000_says_nothing_twice(tmp_path, stream, no_decoder):
    size = siz(stream)
    refused_in_dicom(
        tmp_path, size + siz(resized(stream, LARGE, LARGE))[2:] + stream[len(size) :], JPEG_2000, "segment"
    )
    at = stream.index(b"\xff\x52")
    style = stream[at : at + 2 + struct.unpack_from(">H", stream, at + 2)[0]]
    refused_in_dicom(tmp_path, stream[:at] + style + stream[at:], JPEG_2000, "says twice how it is coded")
    refused_in_dicom(tmp_path, jp2(stream, after=box(b"jp2c", stream)), JPEG_2000, "two headers or codestreams")
    start = stream.index(b"\xff\x90")
    refused_in_dicom(tmp_path, stream[:-2] + stream[start:], JPEG_2000, "tile-part twice")


def test_what_jpeg_2000_makes_a_decoder_allocate_is_capped(tmp_path, stream, no_decoder):
    pytest.importorskip("pydicom")
    wide = np.zeros((1000, 1000), np.uint8)
    many_tiles = resized(stream, 1000, 1000, tile=(8, 8))
    refused_in_dicom(tmp_path, many_tiles, JPEG_2000, "15625 tiles", wide)
    many_precincts = coded(resized(stream, 1000, 1000), levels=0, precincts=[0x11])
    refused_in_dicom(tmp_path, many_precincts, JPEG_2000, "250000 precincts", wide)
    many_blocks = coded(resized(stream, 5000, 5000), block=(0, 0))
    refused_in_dicom(tmp_path, many_blocks, JPEG_2000, "code-blocks", np.zeros((5000, 5000), np.uint8))
    refused_in_dicom(tmp_path, coded(stream, layers=65535), JPEG_2000, "packets")


def test_jpeg_2000_that_decoders_read_out_of_bounds_or_for_ever(tmp_path, stream, no_decoder):
    halved = stream[:43] + b"\2\2" + stream[45:]  # samples at half the resolution: a quarter of the pixels
    refused_in_dicom(tmp_path, halved, JPEG_2000, "several sizes or depths")
    palette = struct.pack(">HB", 2, 255) + bytes([7]) * 255 + bytes(510)
    refused_in_dicom(tmp_path, jp2(stream, header=box(b"pclr", palette)), JPEG_2000, "palette")
    refused_in_dicom(tmp_path, jp2(stream, box(b"pclr", palette)), JPEG_2000, "palette")
    from hdxray_fast.images.codestream import inspect_codestream
    from hdxray_fast.images.header import DamagedFile

    with pytest.raises(DamagedFile, match="box"):  # pydicom looks for the codestream behind it for ever
        inspect_codestream(jp2(stream, b"\0\0\0\0free"), 1, rle=False)


def test_tiles_and_precincts_of_real_encoders_are_counted_right(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pydicom")
    import io

    pixels = ramp(200, 333)
    options = {"tile_size": (64, 48), "num_resolutions": 4, "precinct_size": (32, 32), "codeblock_size": (16, 16)}
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", pixels), size=320)
    for chosen in ({}, options, {**options, "quality_layers": [20, 10, 1], "tile_offset": (0, 0)}):
        held = io.BytesIO()
        Image.fromarray(pixels).save(held, "JPEG2000", no_jp2=True, irreversible=False, **chosen)
        path = dicom(tmp_path / "tiled.dcm", pixels, JPEG_2000, held.getvalue())
        assert np.array_equal(hx.read_canvas(path, size=320).pixels, plain.pixels)


JPEGS = {"baseline": encode(".jpg", GREY), "progressive": encode(".jpg", GREY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_declares_its_size_once(tmp_path, name, no_decoder):
    whole = JPEGS[name]
    large = jpeg_frame(whole, LARGE, LARGE)
    twice = "declares its size twice"
    for data in (before_scan(whole, large), whole[:2] + large + whole[2:], whole[:-2] + large + whole[-2:]):
        refused(tmp_path, data, twice)
        refused_in_dicom(tmp_path, data, JPEG_BASELINE, twice)
    lines = b"\xff\xdc\0\4" + struct.pack(">H", LARGE)  # "number of lines", which goes before the frame header
    refused(tmp_path, before_scan(whole, lines), "outside its frame header")
    refused(tmp_path, before_scan(whole, b"\xff\xde" + large[2:]), "hierarchical")
    refused(tmp_path, before_scan(whole, whole), "second start-of-image")


def test_lossless_jpeg_and_jpeg_ls_declare_their_size_once(tmp_path, no_decoder):
    pixels = GREY[:16, :16]
    for encoder, syntax in ((jpeg_lossless, JPEG_LOSSLESS), (jpeg_ls, JPEG_LS)):
        whole = encoder(pixels, 8)
        data = before_scan(whole, jpeg_frame(whole, LARGE, LARGE))
        refused_in_dicom(tmp_path, data, syntax, "declares its size twice", pixels)
        scan = whole[whole.index(b"\xff\xda") : -2]
        refused_in_dicom(tmp_path, whole[:-2] + scan + b"\xff\xd9", syntax, "codes a component twice", pixels)
    larger = b"\xff\xf8\0\7\4\2" + struct.pack(">H", LARGE) * 2
    refused_in_dicom(tmp_path, before_scan(jpeg_ls(pixels, 8), larger), JPEG_LS, "outside its frame header", pixels)


def test_scans_are_capped(tmp_path, no_decoder):
    refused(tmp_path, many_scans(700, side=128), f"more than {MAX_SCANS} scans")
    refused_in_dicom(tmp_path, many_scans(700, side=SIDE), JPEG_BASELINE, f"more than {MAX_SCANS} scans")
    few = many_scans(20, side=128)
    large = few.replace(jpeg_frame(few, 128, 128), jpeg_frame(few, 7900, 7900))  # 62 million pixels each time
    refused(tmp_path, large, "more than 17 scans")
    whole = JPEGS["baseline"]
    scan = whole[whole.index(b"\xff\xda") : -2]
    refused(tmp_path, whole[:-2] + scan * 700 + b"\xff\xd9", "codes a component twice")


def test_as_many_scans_as_the_cap_allows_are_read(tmp_path):
    canvas = read(tmp_path, many_scans(MAX_SCANS, side=SIDE))  # the last scans correct the same bit again
    assert np.abs(canvas.pixels.astype(int) - GREY).max() < 40


def test_boxes_in_a_jpeg_are_metadata_alone_or_not_read(tmp_path):
    boxed = before_scan(JPEGS["baseline"], b"\xff\xeb\0\x0cJP\0\1\0\0\0\1\0\0")
    assert np.array_equal(read(tmp_path, boxed).pixels, read(tmp_path, JPEGS["baseline"]).pixels)
    refused_in_dicom(tmp_path, boxed, JPEG_BASELINE, "JPEG XT")


def test_a_png_declares_its_size_once(tmp_path, no_decoder):
    large = ihdr(LARGE, LARGE)
    for data in (png_of(large), png_of(after=large)):
        refused(tmp_path, data, "two IHDR chunks")
    small = png_of()
    refused(tmp_path, small[:8] + large + small[8:], "two IHDR chunks")
    refused(tmp_path, png_of(png_chunk(b"eXIf", exif(3)), png_chunk(b"eXIf", exif(6))), "two eXIf chunks")
    pixels = small[33:-12]
    refused(tmp_path, png_of(after=png_chunk(b"tIME", bytes(7)) + pixels), "two IDAT chunks")
    control = png_chunk(b"fcTL", struct.pack(">5IHHBB", 0, LARGE, LARGE, 0, 0, 1, 1, 0, 0))
    refused(tmp_path, png_of(control), "two different sizes")


def test_text_in_a_png_is_not_inflated(tmp_path, monkeypatch):
    data = png_of(*[text_chunk(number, 7_000_000) for number in range(50)])
    seen, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda buffer, mode: seen.append(len(buffer)) or decode(buffer, mode))
    assert np.array_equal(read(tmp_path, data).pixels, GREY)
    assert seen == [len(png_of())]


def test_pages_of_a_tiff_have_a_size_each(tmp_path):
    data = tiff([GREY, ramp(400, 400)], compression=8)
    limits = Limits(max_pixels=100_000)
    assert np.array_equal(read(tmp_path, data, frame=0, limits=limits).pixels, GREY)
    assert read(tmp_path, data, frame=1).provenance["original_size"] == [400, 400]
    with pytest.raises(hx.ImageTooLargeError, match="400 x 400"):
        read(tmp_path, data, frame=1, limits=limits)


def test_a_tiff_says_each_tag_once(tmp_path, no_decoder):
    whole = bytearray(tiff(GREY))
    at = whole.index(struct.pack("<HHI", 274, 3, 1))  # its orientation becomes a second width
    whole[at : at + 12] = struct.pack("<HHII", 256, 4, 1, LARGE)
    refused(tmp_path, bytes(whole), "tag 256 twice")


def test_strips_of_a_tiff_are_counted_over_all_pages(tmp_path, no_decoder):
    strips, pages = 50_000, 100  # each page lists the same ones
    lists = 8 + pages * 42
    out = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for page in range(pages):
        out += struct.pack("<H", 3) + struct.pack("<HHII", 256, 4, 1, 10)
        out += struct.pack("<HHII", 273, 4, strips, lists) + struct.pack("<HHII", 279, 4, strips, lists)
        out += struct.pack("<I", 0 if page + 1 == pages else len(out) + 4)
    refused(tmp_path, bytes(out) + bytes(4 * strips), "strips or tiles, the most that are read")


def test_strips_that_are_jpegs_are_looked_into(tmp_path):
    done, data = cv2.imencode(".tiff", GREY, [cv2.IMWRITE_TIFF_COMPRESSION, 7])
    if not done:
        pytest.skip("this OpenCV writes no JPEG in TIFF")
    whole = data.tobytes()
    assert np.abs(read(tmp_path, whole).pixels.astype(int) - GREY).max() < 8
    at = whole.index(b"\xff\xda")
    broken = whole[:at] + b"\xff\xc0" + whole[at + 2 :]
    refused(tmp_path, broken, "JPEG")


def test_a_webp_has_one_picture(tmp_path):
    picture = webp_chunk(GREY)
    assert np.abs(read(tmp_path, webp_extended(SIDE, SIDE, picture)).pixels.astype(int) - GREY).max() < 8
    refused(tmp_path, webp_extended(SIDE, SIDE, picture, picture), "two pictures or headers")
    refused(tmp_path, webp_extended(LARGE, LARGE, picture), "two different sizes")
