"""The canvas itself: geometry, brightness of arrays, options, provenance, and everything that is not a file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from xray_makers import encode, ramp, thorax

import hdxray_fast as hx
from hdxray_fast.images.tone import apply_table

# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((100, 100), (0, 0, 64, 64)),
        ((100, 50), (0, 16, 64, 32)),
        ((50, 100), (16, 0, 32, 64)),
        ((101, 33), (0, 21, 64, 21)),
        ((7, 500), (31, 0, 1, 64)),
        ((500, 1), (0, 31, 64, 1)),
        ((20, 10), (0, 16, 64, 32)),
        ((3000, 2000), (0, 10, 64, 43)),
    ],
)
def test_letterbox_is_centred_and_padded_with_zero(shape, box):
    canvas = hx.read_canvas(
        np.add.outer(np.arange(shape[0]), 3 * np.arange(shape[1])) % 150 + 100, size=64, window=(125, 250)
    )
    assert canvas.valid_box == box
    top, left, height, width = box
    assert (canvas.pixels[top : top + height, left : left + width] > 50).all()
    outside = canvas.pixels.copy()
    outside[top : top + height, left : left + width] = 0
    assert not outside.any()
    assert canvas.pixels.shape == (64, 64)


@pytest.mark.parametrize("shape", [(300, 200), (90, 300), (20, 30), (300, 20)])
def test_stretch_fills_the_square(shape):
    canvas = hx.read_canvas(ramp(*shape), size=64, fit="stretch")
    assert canvas.valid_box == (0, 0, 64, 64)
    assert canvas.pixels[0, 0] < 10
    assert canvas.pixels[-1, -1] > 245


def test_area_down_is_the_mean_of_what_a_pixel_covers():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (256, 256), dtype=np.uint8)
    means = image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(hx.read_canvas(image, size=64).pixels - means).max() <= 0.5 + 1e-6


def test_cubic_up_never_leaves_the_range_of_the_image():
    image = np.full((16, 16), 60, np.uint8)
    image[:, 8:] = 200
    pixels = hx.read_canvas(image, size=256).pixels
    assert (pixels.min(), pixels.max()) == (60, 200)
    assert np.abs(pixels[:, 100].astype(int) - 60).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_own_size_is_kept_bit_for_bit(bits):
    image = ramp(64, 64, np.uint8 if bits == 8 else np.uint16)
    canvas = hx.read_canvas(image, size=64, bits=bits, window="full")
    assert canvas.pixels.dtype == image.dtype
    assert np.array_equal(canvas.pixels, image)
    assert not np.shares_memory(canvas.pixels, image)


def test_valid_grid():
    canvas = hx.read_canvas(ramp(64, 33), size=64)  # 33 columns from column 15 on
    assert canvas.valid_box == (0, 15, 64, 33)
    assert canvas.valid_grid(16).tolist() == [[True, True, True, False]] * 4
    assert canvas.valid_grid(64).tolist() == [[True]]
    assert hx.read_canvas(ramp(1280, 1205)).valid_grid().shape == (80, 80)
    with pytest.raises(hx.ArgumentError, match=r"patch_size=15.*divisor"):
        canvas.valid_grid(15)
    with pytest.raises(hx.ArgumentTypeError, match="patch_size"):
        canvas.valid_grid(16.0)


def test_the_reused_buffer_does_not_show():
    first = hx.read_canvas(ramp(100, 90, np.uint16), size=64)
    kept = first.pixels.copy()
    hx.read_canvas(65535 - ramp(100, 90, np.uint16), size=64)
    assert np.array_equal(first.pixels, kept)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("out", [np.uint8, np.uint16])
def test_table_look_up(monkeypatch, wide, out):
    import hdxray_fast.images.tone as tone

    if wide and not tone._WIDE_LUT:
        pytest.skip("this OpenCV has no look-up tables for 16-bit pixels")
    monkeypatch.setattr(tone, "_WIDE_LUT", wide)
    pixels = np.random.default_rng(0).integers(0, 65536, (97, 131), dtype=np.uint16)
    table = np.random.default_rng(1).integers(0, np.iinfo(out).max, 65536).astype(out)
    assert np.array_equal(apply_table(table, pixels), table[pixels])


# --- the exposed field ----------------------------------------------------------------------------------------------


def bordered(brightness: int) -> np.ndarray:
    image = np.full((400, 400), brightness, np.uint8)
    image[60:340, 40:380] = cv2.resize(thorax(), (340, 280))
    return image


@pytest.mark.parametrize("brightness", [0, 255, 90])
def test_exposed_box_is_recorded_and_cut_only_when_asked(brightness):
    image = bordered(brightness)
    canvas = hx.read_canvas(image, size=400)
    assert np.array_equal(canvas.pixels, image)
    top, left, height, width = canvas.provenance["exposed_box"]
    assert top <= 60 + 28  # the top of the thorax is air: flat, and black
    assert left <= 40 + 14
    assert top + height >= 340
    assert left + width >= 380 - 14
    assert height * width < 0.8 * image.size
    assert "flat_border" in canvas.provenance["flags"]
    cut = hx.read_canvas(image, size=400, crop="exposed")
    assert cut.provenance["cropped"] is True
    assert "flat_border_cropped" in cut.provenance["flags"]
    lungs = cv2.resize(thorax(), (340, 280))[100:200, 60:280]
    found = cv2.matchTemplate(cut.pixels, cv2.resize(lungs, None, fx=1.2, fy=1.2), cv2.TM_CCOEFF_NORMED).max()
    assert found > 0.8


def test_exposed_box_never_cuts_a_picture_without_borders(test_data):
    masks = sorted((test_data / "contour").glob("*.mask.png"))
    assert masks
    for mask_path in masks:
        canvas = hx.read_canvas(str(mask_path).replace(".mask.png", ".jpg"), size=640)
        top, left, height, width = canvas.provenance["exposed_box"]
        thorax_mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED) > 0
        thorax_mask[top : top + height, left : left + width] = False
        assert not thorax_mask.any(), mask_path.name


def test_polarity_is_judged_on_real_radiographs(test_data):
    files = sorted((test_data / "contour").glob("*.jpg"))
    assert files
    for path in files:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert "polarity_suspect" not in hx.read_canvas(image, size=320).provenance["flags"], path.name
        assert "polarity_suspect" in hx.read_canvas(255 - image, size=320).provenance["flags"], path.name


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int32, np.int64, ">u2", ">i4"]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_integer_arrays(dtype, bits):
    values = ramp(64, 64, np.uint8)
    canvas = hx.read_canvas(
        values.astype(dtype) * np.array(3, dtype) if np.dtype(dtype).itemsize > 1 else values,
        size=64,
        bits=bits,
        window="minmax",
    )
    top = 2**bits - 1
    assert np.abs(canvas.pixels - values / 255 * top).max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_within_0_and_1_are_shown_as_they_are(dtype):
    values = (ramp(64, 64) / 255 * 0.5).astype(dtype)
    canvas = hx.read_canvas(values, size=64)
    assert np.abs(canvas.pixels - values.astype(float) * 255).max() <= 1
    assert canvas.provenance["window"]["kind"] == "full"


def test_other_floats_get_a_percentile_window():
    values = ramp(64, 64).astype(np.float32) * 7 - 300
    canvas = hx.read_canvas(values, size=64)
    low, high = np.percentile(values, [0.5, 99.5])
    assert canvas.provenance["window"]["low"] == pytest.approx(low)
    assert np.abs(canvas.pixels - np.clip((values - low) / (high - low), 0, 1) * 255).max() <= 1
    explicit = hx.read_canvas(values, size=64, window=(500, 1000)).pixels
    assert np.abs(explicit - np.clip(values / 1000, 0, 1) * 255).max() <= 1


def test_shapes_of_arrays():
    grey = ramp(64, 64)
    for array in (
        grey,
        grey[None],
        grey[..., None],
        np.asfortranarray(grey),
        grey[::-1][::-1],
        np.pad(grey, 5)[5:-5, 5:-5],
    ):
        assert np.array_equal(hx.read_canvas(array, size=64).pixels, grey)
    rgb = np.dstack([grey, 255 - grey, grey // 2])
    assert np.abs(hx.read_canvas(rgb, size=64).pixels - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 1
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert np.array_equal(hx.read_canvas(rgba, size=64).pixels, grey)
    frames = np.stack([grey, 255 - grey])
    assert np.array_equal(hx.read_canvas(frames, size=64, frame=1).pixels, 255 - grey)
    with pytest.raises(hx.UnsupportedImageError, match="2 frames"):
        hx.read_canvas(frames, size=64)


def test_read_only_arrays_are_not_modified():
    values = ramp(50, 60, np.uint16)
    values.setflags(write=False)
    before = values.copy()
    hx.read_canvas(values, size=64)
    assert np.array_equal(values, before)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((8, 8), np.nan), "NaN or infinite"),
        (np.array([[1.0, np.inf], [0, 1]]), "NaN or infinite"),
        (np.ones((8, 8), complex), "dtype complex128; accepted: .*integers"),
        (np.ones((8, 8), bool), "dtype bool"),
        (np.array([[None, 1]], dtype=object), "dtype object"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros((2, 2), "M8[s]"), "dtype datetime64"),
        (np.zeros((2, 2), [("a", "u1")]), "accepted"),
        (np.array(5.0), r"shape \[\]"),
        (np.ones(5), r"shape \[5\]"),
        (np.ones((0, 5)), r"shape \[0, 5\]"),
        (np.ones((2, 2, 2, 2)), r"shape \[2, 2, 2, 2\]"),
        (np.ma.masked_equal(np.eye(8), 0), "masked"),
        (np.ones((8, 8)), "same value"),
        (np.zeros((1, 1), np.uint8), "same value"),
        (np.full((8, 8), 65535, np.uint16), "same value"),
    ],
)
def test_arrays_that_are_no_picture(array, words):
    with pytest.raises(hx.ImageReadError, match=words) as error:
        hx.read_canvas(array)
    assert error.value.path == "<array>"


def test_array_over_the_caps():
    with pytest.raises(hx.ImageTooLargeError, match="30000 x 30000"):
        hx.read_canvas(np.broadcast_to(np.uint8(3), (30000, 30000)))


# --- what is no file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, 5, 1.5, [1, 2], b"path.png", {"a": 1}, object(), [[1, 2], [3, 4]]])
def test_neither_path_nor_array(thing):
    with pytest.raises(hx.ArgumentTypeError, match=r"accepted: a path.*numpy.ndarray"):
        hx.read_canvas(thing)


def test_tensor_says_how_to_convert():
    torch = pytest.importorskip("torch")
    with pytest.raises(hx.ArgumentTypeError, match=r"tensor.cpu\(\).numpy\(\)"):
        hx.read_canvas(torch.zeros(4, 4))


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(hx.ImageReadError, match=r"missing.png: does not exist$"):
        hx.read_canvas(tmp_path / "missing.png")
    with pytest.raises(hx.ImageReadError, match="is a directory"):
        hx.read_canvas(str(tmp_path))
    with pytest.raises(hx.ImageReadError, match="not a valid path"):
        hx.read_canvas("nul\0l.png")
    with pytest.raises(hx.ImageReadError):
        hx.read_canvas("x" * 5000)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(hx.ImageReadError, match="pipe"):
            hx.read_canvas(tmp_path / "pipe")


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(".png", ramp()))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the super-user may read anything: let open() refuse instead

        def refuse(*arguments, **keywords):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(hx.ImageReadError, match="permission denied"):
        hx.read_canvas(path)


def test_errors_are_what_callers_expect(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        hx.read_canvas(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="bits=12"):
        hx.read_canvas(ramp(), bits=12)
    with pytest.raises(hx.ImageReadError) as error:
        hx.read_canvas(tmp_path / "missing.png")
    again = pickle.loads(pickle.dumps(error.value))  # worker processes send errors back
    assert (type(again), str(again)) == (hx.ImageReadError, str(error.value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size=0: accepted: 16 to 16384"),
        ({"size": 10**9}, "accepted: 16 to 16384"),
        ({"bits": 32}, "bits=32: accepted: 8, 16"),
        ({"bits": True}, "bits=True"),
        ({"fit": "crop"}, "fit='crop': accepted: 'letterbox', 'stretch'"),
        ({"frame": -1}, "frame=-1"),
        ({"window": "wide"}, "window='wide'"),
        ({"window": (100, 0)}, "width of at least 1"),
        ({"window": (float("nan"), 5)}, "finite"),
        ({"window_index": -1}, "window_index=-1"),
        ({"prefer": "both"}, "prefer='both'"),
        ({"percentiles": (99, 1)}, "low < high"),
        ({"percentiles": (0, 101)}, "low < high"),
        ({"crop": True}, "crop=True"),
        ({"for_processing": "yes"}, "for_processing='yes'"),
        ({"pixel_hash": "md5"}, "pixel_hash='md5'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(hx.ArgumentError) as error:
        hx.read_canvas(ramp(), **options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 64.0},
        {"size": True},
        {"size": "64"},
        {"frame": 1.0},
        {"window": 5},
        {"percentiles": "abc"},
        {"limits": 5},
    ],
)
def test_options_of_the_wrong_type(options):
    with pytest.raises(hx.ArgumentTypeError, match=f"{next(iter(options))}=.*accepted"):
        hx.read_canvas(ramp(), **options)


def test_numpy_integers_are_integers():
    assert hx.read_canvas(ramp(), size=np.int64(64), frame=np.int32(0)).pixels.shape == (64, 64)


# --- provenance -----------------------------------------------------------------------------------------------------


def test_provenance_is_json_and_says_what_was_done(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(".png", ramp(50, 40)))
    for source in (str(path), path, Path(os.path.relpath(path))):
        about = json.loads(json.dumps(hx.read_canvas(source, size=64).provenance))
        assert about["source"] == str(source)
    assert about["format"] == "png"
    assert about["original_size"] == [50, 40]
    assert about["window"]["kind"] == "full"
    assert about["inverted"] is False
    assert about["flags"] == []


def test_pixel_hash_finds_duplicates(tmp_path):
    image = ramp(90, 70)
    first = hx.read_canvas(image, size=64).provenance["pixel_sha256"]
    (tmp_path / "a.png").write_bytes(encode(".png", image))
    (tmp_path / "a.bmp").write_bytes(encode(".bmp", image))
    for path in tmp_path.iterdir():
        assert hx.read_canvas(path, size=128, fit="stretch").provenance["pixel_sha256"] == first
    other = image.copy()
    other[40:56, 10] += 1
    assert hx.read_canvas(other, size=64).provenance["pixel_sha256"] != first
    dot = image.copy()
    dot[41, 10] += 1
    full = [hx.read_canvas(a, size=64, pixel_hash="full").provenance["pixel_sha256"] for a in (image, dot)]
    assert full[0] != full[1]
    assert "pixel_sha256" not in hx.read_canvas(image, size=64, pixel_hash="none").provenance


def test_reading_is_deterministic(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(".png", ramp(700, 500, np.uint16, 4000)))
    canvases = [hx.read_canvas(tmp_path / "a.png", size=128) for _ in range(2)]
    assert np.array_equal(canvases[0].pixels, canvases[1].pixels)
    assert canvases[0].provenance == canvases[1].provenance
