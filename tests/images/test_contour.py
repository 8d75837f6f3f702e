"""The chest contour: geometry, arguments, refusal, rescue, and (with real radiographs) that outlines are right."""

from __future__ import annotations

import csv
import threading
from collections import namedtuple

import cv2
import numpy as np
import pytest

from hdxray_fast.errors import ArgumentError, ArgumentTypeError, HDXrayError
from hdxray_fast.images import contour_classical, contour_net
from hdxray_fast.images.canvas import Canvas, read_canvas
from hdxray_fast.images.contour import ACCEPT, _view, _zoom_box, find_contour, find_contours, rasterize_polygon
from hdxray_fast.images.contour_methods import METHODS


def canvas_of(pixels: np.ndarray, box: tuple[int, int, int, int] | None = None) -> Canvas:
    size = pixels.shape[0]
    return Canvas(pixels, box or (0, 0, size, size), {})


def phantom_chest(size: int = 640) -> Canvas:
    """A crude frontal chest: bright trunk, two dark lungs, spine, heart."""
    image = np.full((size, size), 25, np.float32)

    def ellipse(x, y, a, b, grey, angle=0):
        centre, axes = (int(x * size), int(y * size)), (int(a * size), int(b * size))
        cv2.ellipse(image, centre, axes, angle, 0, 360, grey, -1)

    ellipse(0.5, 0.62, 0.46, 0.62, 165)
    ellipse(0.32, 0.45, 0.14, 0.28, 60, 6)
    ellipse(0.68, 0.45, 0.14, 0.28, 60, -6)
    cv2.rectangle(image, (int(0.46 * size), 0), (int(0.54 * size), size), 205, -1)
    ellipse(0.56, 0.6, 0.12, 0.12, 200)
    image = cv2.GaussianBlur(image, (0, 0), size / 90)
    return canvas_of(image.astype(np.uint8))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_a_second_look_never_leaves_the_radiograph():
    canvas = Canvas(np.zeros((96, 96), np.uint8), (10, 20, 40, 30))
    for corner in ((-300, -300), (20, 10), (49, 49), (50, 50), (60, 5), (5, 90), (300, 300)):
        polygon = np.array(corner) + np.array([[0, 0], [4, 0], [4, 3], [0, 3]])
        top, left, height, width = _zoom_box(canvas, polygon)
        assert 10 <= top < top + height <= 50 and 20 <= left < left + width <= 50
        assert _view(canvas, (top, left, height, width)).valid.any()


class TestRasterize:
    def test_exactly_half_counts_and_less_does_not(self):
        square = np.array([[8, 0], [32, 0], [32, 32], [8, 32]])  # half of the first column of 16 px patches
        assert rasterize_polygon(square, 64, 16).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
        square[[0, 3], 0] = 9
        assert rasterize_polygon(square, 64, 16)[:, 0].tolist() == [False] * 4

    def test_matches_counting_pixels_at_high_resolution(self):
        rng = np.random.default_rng(3)
        for _ in range(20):
            polygon = cv2.convexHull(rng.uniform(-20, 180, (9, 2)).astype(np.float32))[:, 0]
            got = rasterize_polygon(polygon, 160, 16)
            y, x = (np.mgrid[: 160 * 5, : 160 * 5] + 0.5) / 5
            following = np.roll(polygon, -1, axis=0)
            side = [
                (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(polygon, following, strict=True)
            ]
            inside = np.all(np.array(side) >= 0, axis=0) | np.all(np.array(side) <= 0, axis=0)
            share = inside.reshape(10, 80, 10, 80).mean(axis=(1, 3))
            certain = np.abs(share - 0.5) > 0.02
            np.testing.assert_array_equal(got[certain], share[certain] >= 0.5)

    def test_concave_polygon_either_direction(self):
        arrow = np.array([[0, 0], [64, 0], [32, 32], [64, 64], [0, 64]])
        got = rasterize_polygon(arrow, 64, 16)
        assert got.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
        np.testing.assert_array_equal(got, rasterize_polygon(arrow[::-1], 64, 16))

    @pytest.mark.parametrize("points", [np.zeros((0, 2)), [[1, 1]], [[0, 0], [64, 64]], [[5, 5], [5, 5], [5, 5]]])
    def test_degenerate_polygons_hold_nothing(self, points):
        assert not rasterize_polygon(points, 64, 16).any()

    def test_polygon_around_or_beside_the_canvas(self):
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        assert rasterize_polygon(square * 1e9 - 5e8, 64, 16).all()
        assert not rasterize_polygon(square * 50 + 100, 64, 16).any()
        assert not rasterize_polygon(square * 50 - 100, 64, 16).any()

    @pytest.mark.parametrize("far", [8, 1e4, 1e9])
    def test_edges_keep_their_direction_however_far_they_reach(self, far):
        row, column = np.mgrid[:10, :10]
        expected = 2 * row >= column  # below the edge from (0, 0) to (2, 1), but a patch it cuts in halves
        triangle = np.array([[0, 0], [2, 1], [0, 2]]) * (far * 80)
        for polygon in (triangle, triangle[::-1], np.roll(triangle, 1, axis=0)):
            np.testing.assert_array_equal(rasterize_polygon(polygon, 160, 16), expected)
        bracket = np.array([[-1, -1], [1, -1], [1, 1], [0.9, 1], [0.9, -0.9], [-0.9, -0.9], [-0.9, 1], [-1, 1]])
        assert not rasterize_polygon(bracket * far * 160, 160, 16).any()  # it reaches around the canvas
        lower = bracket * far * 160 + [0, far * 160 * 0.9 + 80]  # its bar ends at half the canvas
        np.testing.assert_array_equal(rasterize_polygon(lower, 160, 16), row < 5)

    @pytest.mark.parametrize(
        ("polygon", "size", "patch_size", "error"),
        [
            ([[1, 2, 3]], 64, 16, ArgumentError),
            ([1, 2], 64, 16, ArgumentError),
            ([[np.nan, 1], [2, 3], [4, 5]], 64, 16, ArgumentError),
            ("abc", 64, 16, ArgumentTypeError),
            ([[0, 0], [1, 1], [1, 0]], 60, 16, ArgumentError),
            ([[0, 0], [1, 1], [1, 0]], 64.0, 16, ArgumentTypeError),
            ([[0, 0], [1, 1], [1, 0]], 64, 0, ArgumentError),
        ],
    )
    def test_wrong_arguments(self, polygon, size, patch_size, error):
        with pytest.raises(error):
            rasterize_polygon(polygon, size, patch_size)


class TestArguments:
    @pytest.mark.parametrize(
        ("canvas", "error", "says"),
        [
            (np.zeros((64, 64), np.uint8), ArgumentTypeError, "read_canvas"),
            (None, ArgumentTypeError, "NoneType"),
            (canvas_of(np.zeros((64, 64), np.float32)), ArgumentTypeError, "float32"),
            (canvas_of(np.full((64, 64), np.nan)), ArgumentTypeError, "uint8 or uint16"),
            (canvas_of(np.zeros((64, 32), np.uint8)), ArgumentError, "square"),
            (canvas_of(np.zeros((64, 64, 3), np.uint8)), ArgumentError, "square"),
            (canvas_of(np.zeros((60, 60), np.uint8)), ArgumentError, "multiple of patch_size"),
            (canvas_of(np.zeros((64, 64), np.uint8), (0, 0, 65, 64)), ArgumentError, "valid_box"),
            (canvas_of(np.zeros((64, 64), np.uint8), (0, 0, 0, 64)), ArgumentError, "valid_box"),
        ],
    )
    def test_not_a_canvas(self, canvas, error, says):
        with pytest.raises(error, match=says) as caught:
            find_contour(canvas)
        assert isinstance(caught.value, HDXrayError)

    def test_a_canvas_of_another_make_needs_pixels_and_a_box_alone(self):
        other = namedtuple("Other", "pixels valid_box")(phantom_chest(160).pixels, (0, 0, 160, 160))
        contour = find_contour(other, method="rectangle")
        assert contour.inside.any() and contour._repr_png_() is None

    def test_unknown_method_names_the_known_ones(self):
        with pytest.raises(ArgumentError, match="network, classical, prior, rectangle"):
            find_contour(canvas_of(np.zeros((64, 64), np.uint8)), method="magic")

    def test_wrong_patch_size_and_batch(self):
        canvas = canvas_of(np.zeros((64, 64), np.uint8))
        with pytest.raises(ArgumentTypeError, match="patch_size"):
            find_contour(canvas, patch_size=16.0)
        with pytest.raises(ArgumentTypeError, match="list of Canvas"):
            find_contours(canvas)
        assert find_contours([]) == []


class TestResults:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("size", "patch_size"), [(1280, 16), (640, 32), (1280, 64), (160, 16), (496, 16)])
    def test_every_method_size_and_patch(self, method, size, patch_size):
        contour = find_contour(phantom_chest(size), method, patch_size)
        assert contour.inside.shape == (size // patch_size,) * 2
        assert contour.inside.dtype == bool
        assert contour.inside.any()
        assert not contour.inside.all()
        assert contour.polygon.dtype == np.float32
        assert contour.polygon.shape[1] == 2
        assert contour.polygon.min() >= 0
        assert contour.polygon.max() <= size
        assert 0 <= contour.confidence <= 1
        assert contour.flagged == (contour.confidence < ACCEPT and method != "rectangle")
        np.testing.assert_array_equal(contour.inside, rasterize_polygon(contour.polygon, size, patch_size))
        hull = cv2.convexHull(contour.polygon)
        assert cv2.contourArea(hull) == pytest.approx(cv2.contourArea(contour.polygon), rel=0.02)

    def test_sixteen_bits_see_the_same(self):
        eight = phantom_chest()
        sixteen = canvas_of(eight.pixels.astype(np.uint16) * 257)
        frames = [_view(canvas, canvas.valid_box).image for canvas in (eight, sixteen)]
        assert np.abs(frames[0] - frames[1]).max() <= 0.5  # 8 bits are averaged to whole grey values
        assert find_contour(sixteen, "classical").inside.any()

    def test_same_picture_gives_the_same_contour(self):
        canvas = phantom_chest()
        first, second = find_contours([canvas, canvas])
        np.testing.assert_array_equal(first.polygon, second.polygon)
        assert first.confidence == second.confidence

    def test_padding_is_not_looked_at(self):
        """The same radiograph, tight and on a larger canvas whose padding holds rubbish."""
        small = phantom_chest(640)
        pixels = np.random.default_rng(0).integers(0, 255, (1280, 1280)).astype(np.uint8)
        pixels[320:960, 160:800] = small.pixels
        for method in ("network", "classical", "prior"):
            tight = find_contour(small, method, rescue=False)
            placed = find_contour(canvas_of(pixels, (320, 160, 640, 640)), method, rescue=False)
            np.testing.assert_allclose(placed.polygon, tight.polygon + np.array([160, 320]), atol=1.0)

    def test_rectangle_is_the_published_box(self):
        inside = find_contour(canvas_of(np.zeros((1280, 1280), np.uint8)), "rectangle", 64).inside
        expected = np.zeros((20, 20), bool)
        expected[6:16, 3:16] = True
        np.testing.assert_array_equal(inside, expected)

    def test_threads_each_have_their_net(self):
        canvas, results = phantom_chest(), []
        threads = [threading.Thread(target=lambda: results.append(find_contour(canvas))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(np.array_equal(r.polygon, results[0].polygon) for r in results)


PICTURES = {
    "black": np.zeros((640, 640), np.uint8),
    "white": np.full((640, 640), 255, np.uint8),
    "one pixel": np.pad(np.array([[255]], np.uint8), ((320, 319), (320, 319))),
    "noise": np.random.default_rng(5).integers(0, 256, (640, 640)).astype(np.uint8),
    "gradient": np.tile(np.linspace(0, 255, 640).astype(np.uint8), (640, 1)),
    "stripes": np.tile((np.arange(640) // 20 % 2 * 255).astype(np.uint8), (640, 1)),
    "disc": cv2.circle(np.zeros((640, 640), np.uint8), (320, 320), 200, 180, -1),
    "sixteen bits, black": np.zeros((640, 640), np.uint16),
}


class TestRefusal:
    @pytest.mark.parametrize("name", PICTURES)
    @pytest.mark.parametrize("method", METHODS)
    def test_no_chest_is_flagged_and_still_gives_a_grid(self, name, method):
        contour = find_contour(canvas_of(PICTURES[name]), method)
        accepted = method == "classical" and name not in ("black", "white", "one pixel")
        assert contour.flagged or accepted or method == "rectangle"
        assert contour.inside.any()

    def test_text_is_flagged(self):
        page = np.full((640, 640), 255, np.uint8)
        for line in range(18):
            cv2.putText(page, "no chest is to be seen on this page", (10, 30 + 34 * line), 0, 1.0, 0, 2)
        assert find_contour(canvas_of(page)).flagged

    def test_a_sliver_of_a_picture(self):
        pixels = np.zeros((640, 640), np.uint8)
        pixels[:, 300:302] = np.arange(640)[:, None] % 251
        assert find_contour(canvas_of(pixels, (0, 300, 640, 2))).flagged

    @pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_palette.dcm", "RG3_UNCR.dcm"])
    def test_other_modalities_are_flagged(self, name):
        pydicom = pytest.importorskip("pydicom", reason="the files come with pydicom")
        from pydicom.data import get_testdata_file

        path = get_testdata_file(name)
        if path is None:
            pytest.skip(f"{name} comes with pydicom-data")
        frame = pydicom.dcmread(path).pixel_array.astype(np.float32)
        frame = frame[0] if frame.ndim == 3 and frame.shape[-1] != 3 else frame
        grey = frame.mean(-1) if frame.ndim == 3 else frame
        grey = ((grey - grey.min()) / np.ptp(grey) * 255).astype(np.uint8)
        assert find_contour(read_canvas(grey, size=640)).flagged


class TestNet:
    def test_weights_are_small_and_complete(self):
        from importlib import resources

        folder = resources.files("hdxray_fast") / "images"
        assert len((folder / "contour_net.npz").read_bytes()) <= 150 * 1024
        weights = contour_net.load_weights()
        assert set(contour_net.LAYERS) <= set(weights)
        assert sum(weights[name].size for name in contour_net.LAYERS) < 120_000

    def test_runner_equals_plain_convolutions(self):
        """The hand-written ONNX message, run by cv2.dnn, against the same layers in PyTorch."""
        torch = pytest.importorskip("torch")
        functional = torch.nn.functional
        weights = contour_net.load_weights()
        frames = np.random.default_rng(1).normal(size=(2, 160, 160)).astype(np.float32)
        values = {"image": torch.from_numpy(frames)[:, None]}
        for name, (inputs, stride, dilation) in contour_net.LAYERS.items():
            up = [
                functional.interpolate(values[i[3:]], scale_factor=2) if i[:3] == "up:" else values[i] for i in inputs
            ]
            kernel = torch.from_numpy(weights[name])
            padding = dilation * (kernel.shape[-1] // 2)
            bias = torch.from_numpy(weights[f"{name}.bias"])
            value = functional.conv2d(torch.cat(up, 1), kernel, bias, stride, padding, dilation)
            values[name] = value.sigmoid() if name == "head" else value.relu()
        runner = contour_net.ContourRunner()
        for count in (1, 2):
            probability, features = runner(frames[:count])
            np.testing.assert_allclose(probability, values["head"][:count].numpy(), atol=1e-4)
            expected = values[contour_net.FEATURES][:count].mean((2, 3)).numpy()
            np.testing.assert_allclose(features, expected, atol=1e-3, rtol=1e-3)

    def test_quantising_again_changes_nothing(self):
        weights = contour_net.load_weights()
        again = contour_net.quantise(weights)
        for name in contour_net.LAYERS:
            restored = again[name].astype(np.float32) * again[f"{name}.scale"][:, None, None, None]
            np.testing.assert_allclose(restored, weights[name], atol=1e-6)

    def test_hull_of_a_known_probability(self):
        y, x = np.mgrid[:80, :80] + 0.5
        probability = np.clip((20 - np.hypot(x - 40, y - 30)) + 0.5, 0, 1).astype(np.float32)
        polygon = contour_net.hull_polygon(probability)
        radius = np.hypot(polygon[:, 0] - 80, polygon[:, 1] - 60)  # frame pixels: two per cell
        assert np.abs(radius - 40).max() < 1.0
        assert contour_net.hull_polygon(np.zeros((80, 80), np.float32)) is None
        probability[75:77, 75:77] = 1  # a speck far away does not pull the hull
        np.testing.assert_array_equal(contour_net.hull_polygon(probability), polygon)


class TestShapeModel:
    def test_outline_round_trip(self):
        angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        polygon = np.stack([90 + 40 * np.cos(angle), 70 + 55 * np.sin(angle)], 1)
        box, radii = contour_classical.outline_points(polygon)
        np.testing.assert_allclose(box, [50, 15, 80, 110], atol=0.2)
        np.testing.assert_allclose(radii, 1, atol=0.01)
        again = contour_classical.outline_polygon(box, radii)
        assert cv2.contourArea(again) == pytest.approx(np.pi * 40 * 55, rel=0.02)


@pytest.fixture(scope="module")
def labelled(test_data):
    """(canvas, true grid) of every fifth radiograph with radiologist masks."""
    with open(test_data / "contour" / "index.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))[::5]
    found = []
    for row in rows:
        canvas = read_canvas(test_data / "contour" / row["image"])
        bits = cv2.imread(str(test_data / "contour" / row["mask"]), cv2.IMREAD_UNCHANGED)
        top, left, height, width = canvas.valid_box
        ys, xs = np.nonzero(bits)
        hull = cv2.convexHull(np.stack([xs, ys], 1).astype(np.int32))[:, 0] + 0.5
        hull = hull * [width / bits.shape[1], height / bits.shape[0]] + [left, top]
        found.append((canvas, rasterize_polygon(hull, 1280)))
    return found


class TestRadiographs:
    """On real radiographs. The shipped models have seen those of test_data/contour: that outlines are good on unseen
    patients is shown by the cross-validation in docs/contour.md; here it is shown that nothing broke."""

    @pytest.mark.parametrize(("method", "bar"), [("network", 0.93), ("classical", 0.87), ("prior", 0.72)])
    def test_outlines(self, labelled, method, bar):
        assert np.mean([overlap(find_contour(c, method).inside, truth) for c, truth in labelled]) >= bar

    @pytest.mark.parametrize(("turns", "inverted"), [(0, True), (1, False), (2, False), (3, False)])
    def test_rescue(self, labelled, turns, inverted):
        scores, methods = [], set()
        for canvas, truth in labelled:
            pixels = 255 - canvas.pixels if inverted else canvas.pixels
            pixels = np.ascontiguousarray(np.rot90(pixels, turns))
            box = canvas.valid_box
            for _ in range(turns):
                box = (1280 - box[1] - box[3], box[0], box[3], box[2])
            if inverted:
                clear = np.zeros_like(pixels)
                area = np.s_[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
                clear[area] = pixels[area]
                pixels = clear
            contour = find_contour(Canvas(pixels, box, {}))
            scores.append(overlap(contour.inside, np.rot90(truth, turns)))
            methods.add(contour.method)
        assert np.mean(scores) >= 0.92
        expected = "network:invert" if inverted else f"network:rot{360 - 90 * turns}"
        assert expected in methods

    def test_sixteen_bits(self, labelled):
        canvas, _ = labelled[0]
        deep = Canvas(canvas.pixels.astype(np.uint16) * 257, canvas.valid_box, {})
        assert overlap(find_contour(deep).inside, find_contour(canvas).inside) > 0.98

    def test_unlabelled_radiographs_are_mostly_accepted(self, test_data):
        paths = sorted((test_data / "hd").glob("*.jpg"))[::4]
        contours = find_contours([read_canvas(path) for path in paths])
        assert np.mean([c.flagged for c in contours]) <= 0.2
