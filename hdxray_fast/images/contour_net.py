"""Runs the contour net on the CPU with ``cv2.dnn``: no torch, no onnx package.

The weights lie in ``images/contour_net.npz`` as 8-bit integers with one scale per output channel. They are put into a
small ONNX message here (the format is protobuf; the few kinds of message that are needed are written by hand) and
given to ``cv2.dnn``, so that one file of weights serves every OpenCV from 4.9 on.

Architecture: a U-Net (Ronneberger et al., 2015) of 111 thousand parameters, batch norm folded into the convolutions:
input [B, 1, 160, 160] float32, output [B, 2, 80, 80] probabilities (hull of lungs and mediastinum; lungs) and [B, 48]
bottleneck means, which the confidence looks at. `contour.py` asks it and judges what it says.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

FRAME = 160  # px, side of the net's input
GRID = 80  # cells, side of its output
LEVEL = 0.55  # a hull takes in every bump of a noisy border: a little over one half makes up for it
MAX_BATCH = 2  # an input and its mirror image

# name: (inputs, stride, dilation); "up:x" is x enlarged twice (nearest). The kernel's size is that of the weights.
LAYERS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "enc1a": (("image",), 2, 1),
    "enc1b": (("enc1a",), 1, 1),
    "enc2a": (("enc1b",), 2, 1),
    "enc2b": (("enc2a",), 1, 1),
    "enc3a": (("enc2b",), 2, 1),
    "enc3b": (("enc3a",), 1, 1),
    "enc4a": (("enc3b",), 2, 1),
    "enc4b": (("enc4a",), 1, 1),
    "enc4c": (("enc4b",), 1, 2),
    "dec3": (("up:enc4c", "enc3b"), 1, 1),
    "dec2a": (("up:dec3", "enc2b"), 1, 1),
    "dec2b": (("dec2a",), 1, 1),
    "dec1a": (("up:dec2b", "enc1b"), 1, 1),
    "dec1b": (("dec1a",), 1, 1),
    "head": (("dec1b",), 1, 1),
}
FEATURES = "enc4c"
# The confidence: 1 / (1 + exp(-(weight . [sign, strangeness] + bias))), where sign = (signs - mean) / deviation, held
# within -4..4, and strangeness is its Mahalanobis distance from the good outlines of radiographs.
CONFIDENCE = tuple(f"confidence.{name}" for name in ("weight", "bias", "mean", "deviation", "precision"))
STRANGE = 9.0  # distance from which a picture is none of those the net was made for; good outlines: 5, 90 % under 7
REFUSED = 0.4
SHARP, AGREE = 0.88, 0.85  # a result that is less sharp, or changes more in the mirror, is never accepted


def load_weights(path: Path | None = None) -> dict[str, np.ndarray]:
    """Read images/contour_net.npz, or another file of its kind.

    Returns:
        name -> float32 [cout, cin, k, k], "<name>.bias" -> float32 [cout], and the arrays of ``CONFIDENCE``.
    """
    source = path if path is not None else resources.files("hdxray_fast").joinpath("images/contour_net.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    weights = {}
    for name in LAYERS:
        scale = arrays[f"{name}.scale"].astype(np.float32)
        weights[name] = arrays[name].astype(np.float32) * scale[:, None, None, None]
        weights[f"{name}.bias"] = arrays[f"{name}.bias"].astype(np.float32)
    for key in CONFIDENCE:
        weights[key] = arrays[key].astype(np.float32)
    return weights


def quantise(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that :func:`load_weights` reads: int8 kernels, float32 scales and biases per output channel."""
    arrays = {}
    for name in LAYERS:
        kernel = weights[name]  # [cout, cin, k, k] f32
        scale = np.maximum(np.abs(kernel).max(axis=(1, 2, 3)), 1e-12) / 127
        arrays[name] = np.round(kernel / scale[:, None, None, None]).astype(np.int8)
        arrays[f"{name}.scale"] = scale.astype(np.float32)
        arrays[f"{name}.bias"] = weights[f"{name}.bias"].astype(np.float32)
    for key in CONFIDENCE:
        arrays[key] = weights[key].astype(np.float16 if key.endswith("precision") else np.float32)
    return arrays


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """One protobuf field: a varint, a 32-bit float, or a length-delimited message, text or byte string."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _tensor(name: str, array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array, "<f4")
    dims = b"".join(_field(1, int(d)) for d in array.shape)
    return dims + _field(2, 1) + _field(8, name) + _field(9, array.tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _node(kind: str, inputs: list[str], output: str, **attributes: object) -> bytes:
    message = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, kind)
    for key, value in attributes.items():
        if isinstance(value, str):
            body = _field(4, value) + _field(20, 3)
        elif isinstance(value, int):
            body = _field(3, value) + _field(20, 2)
        else:
            body = b"".join(_field(8, v) for v in value) + _field(20, 7)
        message += _field(5, _field(1, key) + body)
    return message


def build_onnx(weights: dict[str, np.ndarray], batch: int = 1) -> bytes:
    """The net as an ONNX model (opset 11): input "image", outputs "probability" and "features"."""
    nodes, tensors = [], [_tensor("twice", np.array([1, 1, 2, 2]))]
    for name, (inputs, stride, dilation) in LAYERS.items():
        names = []
        for source in inputs:
            if source.startswith("up:"):
                nodes.append(
                    _node("Resize", [source[3:], "", "twice"], f"{name}.up", mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")
                )  # fmt: skip
                source = f"{name}.up"
            names.append(source)
        if len(names) > 1:
            nodes.append(_node("Concat", names, f"{name}.in", axis=1))
            names = [f"{name}.in"]
        kernel = weights[name]
        side = kernel.shape[-1]
        pad = dilation * (side // 2)
        tensors += [_tensor(f"{name}.w", kernel), _tensor(f"{name}.b", weights[f"{name}.bias"])]
        nodes.append(
            _node("Conv", [*names, f"{name}.w", f"{name}.b"], f"{name}.conv", kernel_shape=[side] * 2,
                  strides=[stride] * 2, pads=[pad] * 4, dilations=[dilation] * 2, group=1)
        )  # fmt: skip
        last = name == "head"
        nodes.append(_node("Sigmoid" if last else "Relu", [f"{name}.conv"], "probability" if last else name))
    nodes.append(_node("GlobalAveragePool", [FEATURES], "features"))
    channels = weights[FEATURES].shape[0]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "contour")
    graph += b"".join(_field(5, tensor) for tensor in tensors)
    graph += _field(11, _value("image", (batch, 1, FRAME, FRAME)))
    graph += _field(12, _value("probability", (batch, 2, GRID, GRID)))
    graph += _field(12, _value("features", (batch, channels, 1, 1)))
    return _field(1, 6) + _field(2, "hdxray_fast") + _field(7, graph) + _field(8, _field(1, "") + _field(2, 11))


class ContourRunner:
    """The net, ready to run; one per thread, because ``cv2.dnn`` nets keep their buffers between calls."""

    def __init__(self, weights: dict[str, np.ndarray] | None = None) -> None:
        weights = load_weights() if weights is None else weights
        self._nets = {}
        for batch in range(1, MAX_BATCH + 1):
            message = np.frombuffer(build_onnx(weights, batch), np.uint8)
            self._nets[batch] = cv2.dnn.readNetFromONNX(message)
        self._confidence = [weights[key] for key in CONFIDENCE]

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # frames [B, 160, 160] f32, B = 1 or 2
        """Probabilities [B, 2, 80, 80] float32 (hull, lungs) and bottleneck means [B, 48] float32."""
        net = self._nets[len(frames)]
        net.setInput(np.ascontiguousarray(frames[:, None], np.float32))
        probability, features = net.forward(["probability", "features"])
        return probability, features.reshape(len(frames), -1)

    def confidence(self, signs: np.ndarray, strange: float = STRANGE) -> float:  # signs [D] f32, from describe()
        """0..1: how likely the outline is a good one."""
        weight, bias, mean, deviation, precision = self._confidence
        scaled = (signs - mean) / deviation
        strangeness = strangeness_of(scaled, precision)
        inputs = np.append(np.clip(scaled, -4, 4), min(float(strangeness), 3 * STRANGE))
        chance = float(1 / (1 + np.exp(-float(inputs @ weight + bias))))
        convincing = signs[0] >= SHARP and signs[2] >= AGREE and strangeness <= strange
        return chance if convincing else min(chance, REFUSED)


def strangeness_of(scaled: np.ndarray, precision: np.ndarray) -> np.ndarray:  # [..., D], [D, D] -> [...]
    """Mahalanobis distance of scaled signs from the middle of the good ones."""
    return np.sqrt(np.maximum(((scaled @ precision) * scaled).sum(-1), 0))


_local = threading.local()


def default_runner() -> ContourRunner:
    """This thread's runner with the weights of the package."""
    if not hasattr(_local, "runner"):
        _local.runner = ContourRunner()
    return _local.runner


@dataclass(frozen=True)
class Reading:
    """What the net saw in one frame."""

    polygon: np.ndarray | None  # [K, 2] float32 (x, y) in frame pixels, the frame spans 0..160; None: nothing found
    confidence: float  # 0..1
    signs: np.ndarray  # [D] float32, what the confidence is made of
    probability: np.ndarray  # [2, 80, 80] float32, mean of the input and its mirror image


def standardise(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the valid pixels ([160, 160] float32); padding becomes 0, the mean."""
    inside = image[valid]
    return np.where(valid, (image - inside.mean()) / (inside.std() + 1e-3), 0).astype(np.float32)


def read_frames(runner: ContourRunner, image: np.ndarray, valid: np.ndarray, strange: float = STRANGE) -> Reading:
    """Run the net on a frame and its mirror image: the mean is the answer, the difference is a sign of doubt."""
    x = standardise(image, valid)  # [160, 160] f32
    both, features = runner(np.stack([x, x[:, ::-1]]))  # [2, 2, 80, 80], [2, 48]
    mirrored = both[1][..., ::-1]
    probability = (both[0] + mirrored) / 2
    signs = describe(x, valid, both[0], mirrored, features)
    polygon = hull_polygon(probability[0])
    confidence = 0.0 if polygon is None else runner.confidence(signs, strange)
    return Reading(polygon, confidence, signs, probability)


def hull_polygon(probability: np.ndarray) -> np.ndarray | None:  # [80, 80] f32
    """Convex hull of {p >= LEVEL}, found at 320 px; [K, 2] float32 in frame pixels, None if there is nothing.

    Parts under a tenth of the largest part's area are specks and are left out.
    """
    fine = cv2.resize(probability, (4 * GRID, 4 * GRID), interpolation=cv2.INTER_LINEAR)
    outlines, _ = cv2.findContours((fine >= LEVEL).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return None
    areas = np.array([cv2.contourArea(outline) for outline in outlines])
    if areas.max() < 64:
        return None
    points = np.concatenate(
        [outline for outline, area in zip(outlines, areas, strict=True) if area >= 0.1 * areas.max()]
    )
    corners = np.concatenate(
        [points + shift for shift in ([0, 0], [0, 1], [1, 0], [1, 1])]
    )  # of the pixels, not centres
    hull = cv2.approxPolyDP(cv2.convexHull(corners), 0.4, True)[:, 0].astype(np.float32)
    return hull * (FRAME / (4 * GRID))


def _sharpness(p: np.ndarray) -> float:
    return float((p * p).sum() / (p.sum() + 1e-3))


def _soft_overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / (np.maximum(a, b).sum() + 1e-3))


def _mean_over(x: np.ndarray, weight: np.ndarray) -> float:
    return float((x * weight).sum() / (weight.sum() + 1e-3))


def describe(
    x: np.ndarray, valid: np.ndarray, straight: np.ndarray, mirrored: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """The signs the confidence is made of, [D] float32.

    Sharpness, agreement with the mirror image, sizes, grey values, shape, and what the bottleneck saw (both passes).
    """
    small = cv2.resize(x, (GRID, GRID), interpolation=cv2.INTER_AREA)
    area = float(valid.mean()) * GRID * GRID
    hull, lungs = (straight + mirrored) / 2  # [80, 80] each
    rows, columns = hull.sum(1), hull.sum(0)
    total = float(rows.sum()) + 1e-3
    at = np.arange(GRID, dtype=np.float32)
    cy, cx = float((rows * at).sum()) / total, float((columns * at).sum()) / total
    sy = np.sqrt(float((rows * (at - cy) ** 2).sum()) / total + 1e-3)
    sx = np.sqrt(float((columns * (at - cx) ** 2).sum()) / total + 1e-3)
    skew_y = float((rows * ((at - cy) / sy) ** 3).sum()) / total
    lung_total = float(lungs.sum()) + 1e-3
    lung_rows, lung_columns = lungs.sum(1), lungs.sum(0)
    skew_x = float((columns * ((at - cx) / sx) ** 3).sum()) / total
    left, right = float(lung_columns[: int(cx + 0.5)].sum()), float(lung_columns[int(cx + 0.5) :].sum())
    between = np.clip(hull - lungs, 0, 1)
    outside = 1 - hull
    around = cv2.blur(small, (5, 5))
    crafted = [
        _sharpness(hull),
        _sharpness(lungs),
        _soft_overlap(straight[0], mirrored[0]),
        _soft_overlap(straight[1], mirrored[1]),
        total / area,
        lung_total / total,
        _mean_over(small, lungs),
        _mean_over(small, between),
        _mean_over(small, outside),
        skew_y,
        float(sy / sx),
        (float((lung_rows * at).sum()) / lung_total - cy) / float(sy),
        min(left, right) / (max(left, right) + 1e-3),
        abs(skew_x),
        float(hull[:2].sum() + hull[-2:].sum() + hull[:, :2].sum() + hull[:, -2:].sum()) / total,
        float(np.abs(small - around).mean()),
        float(np.abs(x[1:] - x[:-1]).mean()),
    ]
    return np.concatenate([np.array(crafted, np.float32), features.mean(0)]).astype(np.float32)
