"""The VOI LUT: which values of a radiograph are shown how bright, by the file's window or table, or by its values.

`read_windows` and `read_tables` take windows and tables from a DICOM header; `choose_voi` picks one of them, or a range
of the values themselves, and applies it. Source: DICOM PS3.3 C.11.2 (VOI LUT and window functions).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError

WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
MIN_CONTRAST = 0.02  # a window that leaves less than this share of the output range to the data is unusable


def _ramp(x: np.ndarray, center: float, width: float) -> np.ndarray:
    """clip((x - center) / width + 0.5, 0, 1), in one temporary: fresh pages cost more here than arithmetic."""
    out = x - center
    out /= width
    out += 0.5
    return np.clip(out, 0.0, 1.0, out=out)


@dataclass
class Window:
    """A VOI window in modality units (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: str = "LINEAR"

    def is_valid(self) -> bool:
        finite = math.isfinite(self.center) and math.isfinite(self.width)
        return finite and (self.width >= 1 if self.function == "LINEAR" else self.width > 0)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Modality values to 0..1, float64."""
        if self.function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.center) / self.width, -700.0, 700.0)))
        if self.function == "LINEAR_EXACT":
            return _ramp(x, self.center, self.width)
        if self.width == 1:  # the standard's limit case: a threshold
            return (x > self.center - 0.5).astype(np.float64)
        return _ramp(x, self.center - 0.5, self.width - 1.0)

    def describe(self) -> dict:
        return {"kind": "window", "center": self.center, "width": self.width, "function": self.function}


@dataclass
class Table:
    """A LUT Sequence item: ``entries[0]`` belongs to ``first``; values outside take the first or the last entry."""

    first: int
    entries: np.ndarray  # [n] float64, raw LUT data
    bits: int  # of an entry, as the descriptor has it

    def lookup(self, x: np.ndarray) -> np.ndarray:
        """Input values to raw LUT output, float64."""
        index = np.clip(np.rint(x) - self.first, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[index]

    @functools.cached_property
    def depth(self) -> int:
        """Bits of the output range: the descriptor's, unless the entries contradict it (PS3.3 C.11.2.1.1).

        They do where one of them needs more bits, and where none reaches a quarter of the range: nothing but black
        would be seen of it. Then it is the bits that the largest of them needs.
        """
        needed = max(1, int(self.entries.max()).bit_length())
        return self.bits if needed <= self.bits < needed + 2 else needed

    def is_valid(self) -> bool:
        return len(self.entries) > 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Modality values to 0..1, float64, by the output range of ``depth`` bits."""
        return np.clip(self.lookup(x) / (2.0**self.depth - 1.0), 0.0, 1.0)

    def describe(self) -> dict:
        return {"kind": "voi_lut", "entries": len(self.entries), "first": self.first, "bits": self.depth}


@dataclass(frozen=True)
class VoiOptions:
    """How brightness is chosen; see ``read_canvas``."""

    window: str | tuple[float, float] = "auto"
    window_index: int = 0
    prefer: str = "lut"
    percentiles: tuple[float, float] = (0.5, 99.5)


def read_windows(dataset, function: str) -> list[Window]:
    """The windows of a DICOM header, as many as have a center and a width.

    Args:
        dataset: pydicom Dataset.
        function: VOI LUT Function; one that the standard does not know counts as LINEAR.
    """
    lists = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        if value is None or value == "":
            return []
        lists.append([float(v) for v in value] if type(value).__name__ == "MultiValue" else [float(value)])
    function = function if function in WINDOW_FUNCTIONS else "LINEAR"
    return [Window(center, width, function) for center, width in zip(*lists, strict=False)]


def read_tables(dataset, name: str, signed: bool) -> list[Table]:
    """The tables of a LUT sequence of a DICOM header; items without descriptor or data are passed over.

    Args:
        dataset: pydicom Dataset, as read: its byte order is that of the data.
        name: ``"VOILUTSequence"`` or ``"ModalityLUTSequence"``.
        signed: whether the values looked up can be negative, which decides how the first one is read.
    """
    big_endian = dataset.original_encoding[1] is False
    items = dataset.get(name) or []
    tables = (read_table(item.get("LUTDescriptor"), item.get("LUTData"), signed, big_endian) for item in items)
    return [table for table in tables if table is not None]


def read_table(descriptor, raw, signed: bool, big_endian: bool) -> Table | None:
    """A table from the values of its descriptor and data elements; None where they are none."""
    if descriptor is None or raw is None or len(descriptor) != 3:
        return None
    count, first, bits = (int(value) for value in descriptor)
    entries = _lut_entries(raw, count & 0xFFFF or 65536, big_endian)  # 0 is 2**16; some write the count as signed
    first = first - 65536 if signed and first > 32767 else first
    return Table(first, entries, bits) if len(entries) else None


def _lut_entries(raw, count: int, big_endian: bool) -> np.ndarray:
    """LUT Data (words in the data set's byte order, or the numbers that pydicom made of them): [n <= count] float64."""
    if isinstance(raw, bytes):
        words = np.frombuffer(raw[: len(raw) // 2 * 2], ">u2" if big_endian else "<u2").astype(np.uint16)
        odd = raw[-1:] if len(raw) % 2 else b""
    else:
        words, odd = (np.atleast_1d(np.asarray(raw, np.int64)) & 0xFFFF).astype(np.uint16), b""
    if 2 * len(words) <= count + 1 and count > 2:  # 8-bit entries packed two to a word, the first in the low byte
        packed = words.astype("<u2").tobytes() + odd
        return np.frombuffer(packed, np.uint8)[:count].astype(np.float64)
    return words[:count].astype(np.float64)


def _percentile_window(
    modality: np.ndarray, counts: np.ndarray, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """The values at two percentiles of the pixels that are image; minimum and maximum where those coincide."""
    used = np.flatnonzero(counts)
    order = used
    if (np.diff(modality[used]) < 0).any():  # a table or a negative slope; otherwise the values are in order already
        order = used[np.argsort(modality[used], kind="stable")]
    cumulative = np.cumsum(counts[order])
    ranks = np.asarray(percentiles) / 100.0 * (cumulative[-1] - 1)
    low, high = modality[order[np.searchsorted(cumulative, ranks, side="right").clip(0, len(order) - 1)]]
    if low == high:
        low, high = modality[order[0]], modality[order[-1]]
    return float(low), float(high)


def _between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return _ramp(x, (low + high) / 2, high - low)


def choose_voi(
    modality: np.ndarray,
    counts: np.ndarray,
    options: VoiOptions,
    tables: list[Table],
    windows: list[Window],
    full: bool,
) -> tuple[np.ndarray, dict, list[str]]:
    """Brightness of every stored value.

    Args:
        modality: [n] float64, the stored values in modality units.
        counts: [n] integers, how often each occurs in the image.
        options: what the caller asked for.
        tables: the file's VOI LUTs.
        windows: the file's windows.
        full: without table and window, show all that the stored bits can hold, rather than a range of percentiles.

    Returns:
        ([n] float64 in 0..1, a JSON-able description of the rule that gave it, flags: ``window_unusable`` where the
        file's own window or table was of no use, ``lut_depth_differs`` where its entries contradict their depth).

    Raises:
        ArgumentError: the file has no window or table of that index.
    """
    used = counts > 0
    if isinstance(options.window, tuple):
        chosen = Window(float(options.window[0]), float(options.window[1]))
        return chosen.apply(modality), {**chosen.describe(), "kind": "explicit"}, []
    low, high = _percentile_window(modality, counts, options.percentiles)
    choices = ()
    if options.window == "auto":
        choices = (tables or windows) if options.prefer == "lut" else (windows or tables)
    if choices:
        if options.window_index >= len(choices):
            raise ArgumentError(
                f"window_index={options.window_index}: this file has {len(choices)} of them; accepted: 0 to "
                f"{len(choices) - 1}"
            )
        chosen = choices[options.window_index]
        if chosen.is_valid():
            brightness = chosen.apply(modality)
            # over the bulk of the data, and over all of it: a window on a narrow but real peak is still a window
            if abs(float(np.ptp(chosen.apply(np.array([low, high]))))) >= MIN_CONTRAST:
                described = {**chosen.describe(), "index": options.window_index, "of": len(choices)}
                differs = isinstance(chosen, Table) and chosen.depth != chosen.bits
                return brightness, described, ["lut_depth_differs"] if differs else []
    elif options.window == "full" or (options.window == "auto" and full):
        low, high = float(modality.min()), float(modality.max())
        return _between(modality, low, high), {"kind": "full", "low": low, "high": high}, []
    elif options.window == "minmax":
        low, high = float(modality[used].min()), float(modality[used].max())
        return _between(modality, low, high), {"kind": "minmax", "low": low, "high": high}, []
    described = {"kind": "percentile", "low": low, "high": high, "percentiles": list(options.percentiles)}
    return _between(modality, low, high), described, ["window_unusable"] if choices else []
