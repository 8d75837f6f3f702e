"""Every transfer syntax that hospitals use, on pydicom's own files: the same picture whatever the encoding."""

from __future__ import annotations

import numpy as np
import pytest
from codestream_makers import jpeg_2000, jpeg_ls
from xray_makers import dicom, pydicom_file, ramp

import hdxray_fast as hx

pydicom = pytest.importorskip("pydicom")


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("MR_small_implicit.dcm", "Implicit VR Little Endian"),
        ("MR_small.dcm", "Explicit VR Little Endian"),
        ("MR_small_bigendian.dcm", "Explicit VR Big Endian"),
        ("ExplVR_BigEnd.dcm", "Explicit VR Big Endian"),
        ("image_dfl.dcm", "Deflated Explicit VR Little Endian"),
        ("MR_small_RLE.dcm", "RLE Lossless"),
        ("SC_rgb_rle_16bit.dcm", "RLE Lossless"),
        ("SC_rgb_jpeg_dcmtk.dcm", "JPEG Baseline (Process 1)"),
        ("JPGExtended.dcm", "JPEG Extended (Process 2 and 4)"),
        ("SC_rgb_jpeg_gdcm.dcm", "JPEG Lossless, Non-Hierarchical, First-Order Prediction"),
        ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS Lossless Image Compression"),
        ("JPEGLSNearLossless_16.dcm", "JPEG-LS Lossy (Near-Lossless) Image Compression"),
        ("MR_small_jp2klossless.dcm", "JPEG 2000 Image Compression (Lossless Only)"),
        ("JPEG2000.dcm", "JPEG 2000 Image Compression"),
        ("693_J2KI.dcm", "JPEG 2000 Image Compression"),
        ("SC_ybr_full_422_uncompressed.dcm", "Explicit VR Little Endian"),
        ("examples_palette.dcm", "Explicit VR Little Endian"),
        ("examples_jpeg2k.dcm", "JPEG 2000 Image Compression (Lossless Only)"),
    ],
)
def test_transfer_syntax(name, syntax):
    path = pydicom_file(name)
    canvas = hx.read_canvas(path, size=64, any_modality=True)
    assert canvas.provenance["transfer_syntax"].startswith(syntax)
    dataset = pydicom.dcmread(path)
    rival = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        rival = pydicom.pixels.apply_color_lut(rival, dataset)
    if rival.ndim == 3:
        rival = rival @ np.array([0.299, 0.587, 0.114])
    assert canvas.provenance["original_size"] == list(rival.shape)
    # the whole way once more with other tools: pydicom's values, the same linear window, the same fit
    ours = hx.read_canvas(path, size=64, any_modality=True, window="minmax", bits=16).pixels
    values = pydicom.pixels.apply_modality_lut(rival, dataset).astype(np.float64)
    theirs = hx.read_canvas(values, size=64, window="minmax", bits=16).pixels
    assert np.abs(ours.astype(float) - theirs).mean() < 330  # half a percent of the range


def test_htj2k(tmp_path):
    syntaxes = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.203")
    for syntax in syntaxes:
        assert pydicom.pixels.get_decoder(syntax).is_available
    # no HTJ2K writer is at hand: a damaged frame must come out as an error of this package
    path = dicom(tmp_path / "a.dcm", ramp(64, 64, np.uint16, 4095), BitsStored=12)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntaxes[0]
    frame = b"\xff\x4f\xff\x51" + bytes(60) + b"\xff\xd9"
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "ht.dcm")
    with pytest.raises(hx.ImageReadError, match="damaged"):
        hx.read_canvas(tmp_path / "ht.dcm", size=64)


MR_ENCODINGS = ["", "_implicit", "_bigendian", "_expb", "_padded", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"]


def test_lossless_encodings_of_one_image_are_equal_bit_for_bit():
    canvases = [hx.read_canvas(pydicom_file(f"MR_small{end}.dcm"), size=64, any_modality=True) for end in MR_ENCODINGS]
    for canvas in canvases[1:]:
        assert np.array_equal(canvas.pixels, canvases[0].pixels)
        assert canvas.provenance["pixel_sha256"] == canvases[0].provenance["pixel_sha256"]


def test_the_four_encodings_of_the_shared_radiograph():
    """UNCR and J2KR hold the original; UNCI and J2KI hold what a lossy JPEG 2000 made of it."""
    canvases = {name: hx.read_canvas(pydicom_file(f"RG1_{name}.dcm")) for name in ("UNCR", "J2KR", "UNCI", "J2KI")}
    for lossless, twin in (("UNCR", "J2KR"), ("UNCI", "J2KI")):
        assert np.array_equal(canvases[lossless].pixels, canvases[twin].pixels)
        assert canvases[lossless].provenance["pixel_sha256"] == canvases[twin].provenance["pixel_sha256"]
    difference = np.abs(canvases["UNCR"].pixels.astype(int) - canvases["J2KI"].pixels)
    assert difference.mean() < 0.5  # grey levels of 255
    assert difference.max() <= 8
    assert canvases["UNCR"].provenance["pixel_sha256"] != canvases["UNCI"].provenance["pixel_sha256"]
    assert canvases["UNCR"].valid_box == (0, 37, 1280, 1205)
    assert canvases["UNCR"].provenance["inverted"] is True


def test_codestream_and_header_that_disagree(tmp_path):
    path = pydicom_file("MR_small_jp2klossless.dcm")
    dataset = pydicom.dcmread(path)
    dataset.Rows = 48
    dataset.save_as(tmp_path / "rows.dcm")
    with pytest.raises(hx.ImageReadError, match="64 x 48 pixels of 1 samples and its codestream 64 x 64"):
        hx.read_canvas(tmp_path / "rows.dcm", any_modality=True)
    plain = hx.read_canvas(path, size=64, any_modality=True, window="percentile")
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 10, 9  # the codestream carries 16
    dataset.save_as(tmp_path / "bits.dcm")
    canvas = hx.read_canvas(tmp_path / "bits.dcm", size=64, any_modality=True, window="percentile")
    assert "codestream_bits_differ" in canvas.provenance["flags"]
    assert np.array_equal(canvas.pixels, plain.pixels)


JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"


@pytest.mark.parametrize("bits", [12, 16])
def test_codestream_wider_than_bits_allocated(tmp_path, bits):
    pixels = ramp(64, 64, np.uint16, 2**bits - 1)
    for syntax, stream in ((JPEG_2000, jpeg_2000(pixels, bits, False)), (JPEG_LS, jpeg_ls(pixels, bits))):
        path = dicom(tmp_path / "a.dcm", pixels.astype(np.uint8), syntax, stream)
        with pytest.raises(hx.ImageReadError, match=f"allocates 8 bits to a sample and its codestream holds {bits}"):
            hx.read_canvas(path, size=64)


def test_codestream_narrower_than_bits_stored(tmp_path):
    values = ramp(64, 64, np.int16, 800) - np.int16(400)
    words = {"BitsStored": 12, "PixelRepresentation": 1}
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", values, **words), size=64, window="full")
    patterns = (values & 1023).astype(np.uint16)
    for syntax, stream in ((JPEG_2000, jpeg_2000(values.view(np.uint16), 10, True)), (JPEG_LS, jpeg_ls(patterns, 10))):
        canvas = hx.read_canvas(dicom(tmp_path / "a.dcm", values, syntax, stream, **words), size=64, window="full")
        assert np.array_equal(canvas.pixels, plain.pixels)
        assert "codestream_bits_differ" in canvas.provenance["flags"]


def test_values_beyond_bits_stored_do_not_wrap(tmp_path):
    """A lossy encoder that was given whole words overshoots the brightest of 12 bits a little."""
    pixels = ramp(64, 64, np.uint16, 4090)
    pixels[20:30, 20:30] = 4095 + np.arange(10)
    canvas = hx.read_canvas(
        dicom(tmp_path / "a.dcm", pixels, JPEG_2000, jpeg_2000(pixels, 16, False), BitsStored=12),
        size=64,
        window=(2048, 4096),
    )
    assert canvas.pixels[20:30, 20:30].min() == 255
    assert "codestream_bits_differ" in canvas.provenance["flags"]


@pytest.mark.parametrize("header_signed", [False, True])
@pytest.mark.parametrize("right", ["header", "codestream"])
def test_sign_of_the_codestream_and_of_the_header(tmp_path, header_signed, right):
    """The one that is right is the one by which the picture is continuous; both are in the wild."""
    stream_signed = not header_signed
    signed = header_signed if right == "header" else stream_signed
    values = ramp(64, 64, np.int32, 4095) - (2048 if signed else 0)
    patterns = (values & 4095).astype(np.uint16)
    sent = np.where(patterns > 2047, patterns | 0xF000, patterns).astype(np.uint16) if stream_signed else patterns
    elements = {"BitsStored": 12, "PixelRepresentation": int(header_signed)}
    path = dicom(tmp_path / "a.dcm", patterns, JPEG_2000, jpeg_2000(sent, 12, stream_signed), **elements)
    canvas = hx.read_canvas(path, size=64, window="full")
    assert np.array_equal(canvas.pixels, np.floor((values - values.min()) / 4095.0 * 255 + 0.5))
    assert canvas.provenance["stored"]["signed"] is signed
    assert "codestream_sign_differs" in canvas.provenance["flags"]


def test_sign_of_a_shared_test_file():
    canvas = hx.read_canvas(pydicom_file("J2K_pixelrep_mismatch.dcm"), size=64, any_modality=True, window="minmax")
    low, high = canvas.provenance["window"]["low"], canvas.provenance["window"]["high"]
    assert (low, high) == (-2000, 1896)  # as the header says: a codestream called unsigned by its writer
    assert "codestream_sign_differs" in canvas.provenance["flags"]


@pytest.mark.parametrize("padding", [14, 15, 64, 4097])
def test_padding_after_the_end_of_jpeg_2000(tmp_path, padding):
    pixels = ramp(64, 64, np.uint16, 4095)
    stream = jpeg_2000(pixels, 12, False)
    plain = hx.read_canvas(dicom(tmp_path / "plain.dcm", pixels, BitsStored=12), size=64)
    path = dicom(tmp_path / "padded.dcm", pixels, JPEG_2000, stream + bytes(padding), BitsStored=12)
    assert np.array_equal(hx.read_canvas(path, size=64).pixels, plain.pixels)
    path = dicom(tmp_path / "cut.dcm", pixels, JPEG_2000, stream[:-100] + bytes(padding), BitsStored=12)
    with pytest.raises(hx.ImageReadError, match="no end marker"):
        hx.read_canvas(path, size=64)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("SC_rgb_dcmtk_+eb+cr.dcm", False),  # components named R, G, B
        ("SC_rgb_jpeg_app14_dcmd.dcm", False),  # Adobe says RGB
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", False),  # JFIF
        ("SC_rgb_jpeg_lossy_gdcm.dcm", False),  # YCbCr by header and numbers, nothing else says so
        ("SC_jpeg_no_color_transform.dcm", False),  # RGB by the header alone
    ],
)
def test_colour_of_shared_test_files(name, differs):
    path = pydicom_file(name)
    canvas = hx.read_canvas(path, size=100, any_modality=True)
    dataset = pydicom.dcmread(path)
    rgb = pydicom.pixels.pixel_array(dataset, index=0)
    assert ("codestream_colour_differs" in canvas.provenance["flags"]) == differs
    assert np.array_equal(canvas.pixels, hx.read_canvas(rgb, size=100).pixels)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_expb.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "image_dfl.dcm",
    ],
)
def test_truncated_dicom_is_an_error(tmp_path, name):
    with open(pydicom_file(name), "rb") as stream:
        whole = stream.read()
    path = tmp_path / "cut.dcm"
    for share in (0.01, 0.1, 0.3, 0.6, 0.9, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(hx.ImageReadError):
            hx.read_canvas(path, size=64, any_modality=True)


def test_files_that_hold_no_radiograph():
    for name in (
        "CT_small.dcm",
        "examples_rgb_color.dcm",
        "MR_small.dcm",
        "rtplan.dcm",
        "reportsi.dcm",
        "liver_1frame.dcm",
    ):
        with pytest.raises(hx.UnsupportedImageError):
            hx.read_canvas(pydicom_file(name))
    with pytest.raises(hx.UnsupportedImageError, match="30 frames"):
        hx.read_canvas(pydicom_file("examples_ybr_color.dcm"), any_modality=True)
    assert hx.read_canvas(pydicom_file("examples_ybr_color.dcm"), any_modality=True, frame=3, size=64).pixels.any()


def test_a_sequence_without_its_items_is_a_damaged_file(tmp_path):
    """pydicom raises an OSError, as of a disk, where a sequence promises an item and the file ends."""
    path = dicom(tmp_path / "cut.dcm", ramp(), ViewCodeSequence=[pydicom.Dataset()])
    whole = path.read_bytes()
    start = whole.index(b"\x54\x00\x20\x02SQ")  # ViewCodeSequence: tag, VR, reserved bytes, length
    path.write_bytes(whole[: start + 8] + b"\xff\xff\xff\xff" + b"\xfe\xff")
    with pytest.raises(hx.ImageReadError, match="a sequence of its header is damaged, or cut off"):
        hx.read_canvas(path)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (b"SQ\0\0\xff\xff", "ends within an element of its header"),
        (b"SQ\0\0", "ends within an element of its header"),
        (
            b"SQ\0\0\xff\xff\xff\xff" + 2000 * b"\xfe\xff\0\xe0\xff\xff\xff\xff\x54\0\x20\2SQ\0\0\xff\xff\xff\xff",
            "without end",
        ),
    ],
)
def test_a_header_that_ends_within_a_length_or_in_sequences_without_end_is_damaged(tmp_path, end, words):
    path = dicom(tmp_path / "cut.dcm", ramp(), ViewCodeSequence=[pydicom.Dataset()])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\x54\x00\x20\x02SQ") + 4] + end)
    with pytest.raises(hx.ImageReadError, match=words):
        hx.read_canvas(path)
