"""Radiographs to pictures of what an encoder sees in them: ``hdxray-fast features``."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from ..data.listing import as_paths, list_images
from ..data.picture_folder import PictureFolder
from ..data.prepared.reading import PreparedSet, is_prepared
from ..data.quarantine import Quarantined, write_quarantine
from ..data.radiograph_dataset import RadiographDataset
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, check_caps
from ..devices import find_device
from ..errors import ArgumentError, ConfigError
from ..files import names_after
from ..images.feature_panels import colours_over, cross_at, heat_over, titled_row
from ..images.panels import display_levels, write_image
from ..models.encoder import Encoder
from ..models.inference import check_word, modes_kept
from ..models.inputs import as_batch, sent_batch
from ..models.layers import check_count
from ..progress import progress_bar
from ..weights.create import encoder_of_size
from ..weights.fingerprint import settings_print
from .embedding_files import fingerprint
from .patch_features import PatchFeatures, PrincipalComponents, patch_features
from .position_features import VIEWS, Film, position_features

READING = "One colour: tissue alike, in every picture of this call. Yellow: most like the patch at the cross."
READING_ATTENTION = " Attention: where values were read from, not why."
MOST = 64  # radiographs of one call, whose features are held together: 10 MB each of ViT-B at 1280 pixels


@dataclass(frozen=True)
class FeaturePictures:
    """What :func:`draw_features` did.

    Attributes:
        pictures: path of each picture, by the radiograph's source.
        flagged: sources whose contour is not to be relied on: they may show no chest.
        quarantined: files that could not be read.
        left_out: radiographs beyond ``most``.
        explained: ``[3] float32``, shares of the variance that the colours stand for; empty without a picture.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    flagged: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    left_out: int = 0
    explained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class _Seen:
    source: str
    flagged: bool
    view: str  # name of a ChestView, or "" (not known)
    film: Film
    box: tuple[slice, slice]  # of the patches that are no padding, in patches
    frame: tuple[slice, slice]  # of the radiograph among the pixels of these patches
    inside: np.ndarray  # [N] bool, which of the features are of the chest
    features: PatchFeatures


def draw_features(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    weights: str | os.PathLike | Encoder,
    out: str | os.PathLike,
    *,
    at: Sequence[int] | None = None,
    keep: str | None = None,
    img_size: int | None = None,
    most: int = MOST,
    device: str | None = None,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    force: bool = False,
    image_column: str | None = None,
    progress: bool = False,
) -> FeaturePictures:
    """Draw what an encoder makes of radiographs: ``NAME.features.png`` for each, where NAME is the file's stem.

    From left to right, at canvas resolution and without padding: the radiograph; the three leading principal components
    of the patch features as red, green and blue, fitted over the chests of all radiographs given, so that a colour is
    the same in each; the likeness to one patch, which a cross marks; the attention of the class token, if there is one.
    Features are shown less what comes from a patch's place alone (:func:`.position_features`).

    Args:
        paths: files, folders, CSV manifests, or one of these; or the folder of a prepared data set.
        weights: as for :func:`hdxray_fast.create_encoder`, or an encoder.
        out: folder for the pictures and ``unreadable.csv``; made if missing.
        at: ``(x, y)`` in canvas pixels, whose patch the others are compared with; left out, the patch well inside each
            chest in which the first component (red) is strongest.
        keep: ``"valid"`` or ``"contour"``, the patches that the encoder looks at; left out, the encoder's, with
            ``"valid"`` for ``"all"``.
        img_size: canvas side, pixels; left out, the encoder's.
        most: radiographs that are drawn; of more, so many are taken at even distances.
        device: where the encoder runs; left out, a GPU if there is one.
        workers: processes that read files ahead; 0 reads in this process, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        force: replace what another call drew in ``out``, of other files or settings.
        image_column: the column of the manifests' files, where it goes by none of the usual names.
        progress: show progress bars.

    Raises:
        ArgumentError: an argument is not as described, or ``at`` lies outside the canvas, in the padding of a
            radiograph (which is named), or where the encoder does not look.
        ConfigError: a path names no image, a prepared set has another size, or ``out`` holds files of these names that
            ``features`` did not make or, without ``force``, made in another call.
    """
    check_count("most", most)
    check_caps(timeout, max_memory)
    encoder = encoder_of_size(weights, img_size)
    height, width = encoder.img_size
    if height != width:
        raise ArgumentError(f"weights: take {height} x {width} pixels, and canvases are square; give img_size")
    keep = keep or ("valid" if encoder.keep == "all" else encoder.keep)
    check_word("keep", keep, ("valid", "contour"))
    if at is not None:
        try:
            at = [operator.index(value) for value in at]
        except TypeError:
            at = [at]
        if len(at) != 2 or not all(0 <= value < width for value in at):
            raise ArgumentError(f"at: got {' '.join(map(str, at))}, accepted are x and y from 0 to {width - 1}")
    paths = as_paths(paths)
    images = _prepared(paths, encoder)
    if images is None:
        listing = {"exclude": (out,), "argument": "paths", "image_column": image_column}
        names = list(dict.fromkeys(str(file) for path in paths for file in list_images(Path(path), **listing)))
    else:
        names = images.sources()
    chosen = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)).tolist()
    folder, shown = Path(out), [names[row] for row in chosen]
    stems = dict(zip(shown, names_after(shown), strict=True))
    settings = {"weights": fingerprint(encoder), "encoder": settings_print(encoder.config), "keep": keep, "at": at}
    drawn = {f"{stem}.features.png": name for name, stem in stems.items()}
    place = PictureFolder(folder, "features", settings, drawn, ("unreadable.csv",), force)
    place.refuse()
    device = find_device(device)
    caps = {"timeout": timeout, "max_memory": max_memory}
    reading = _of_set(images, chosen, encoder) if images else _of_files(shown, encoder, workers, caps)
    seen, bad = [], []
    with modes_kept(encoder):
        encoder.to(device).eval()
        with progress_bar(len(chosen), "features", show=progress) as bar:
            for item in reading:
                if isinstance(item, Quarantined):
                    bad.append(item)
                else:
                    seen.append(_look(encoder, *item, keep, device, at))
                bar.update()
        if seen:
            films = [item.film for item in seen]
            places = np.unique(np.concatenate([item.features.ids for item in seen]))
            with progress_bar(VIEWS, "places", "view", show=progress) as bar:
                positions = position_features(encoder, films, places, device, bar.update)
            seen = [replace(item, features=item.features.without(positions)) for item in seen]
    place.claim()
    write_quarantine(folder / "unreadable.csv", bad)
    left_out = len(names) - len(chosen)
    if not seen:
        return FeaturePictures(quarantined=bad, left_out=left_out)
    chests = [_chest(item) for item in seen]
    dark = [_darkness(item)[rows] for item, rows in zip(seen, chests, strict=True)]
    found = PrincipalComponents.of([item.features.values[rows] for item, rows in zip(seen, chests, strict=True)], dark)
    pictures = {}
    for item in seen:
        pictures[item.source] = folder / f"{stems[item.source]}.features.png"
        write_image(pictures[item.source], _picture(item, found, at, encoder.patch_size, stems[item.source]))
    flagged = [item.source for item in seen if item.flagged]
    return FeaturePictures(pictures, flagged, bad, left_out, found.explained)


def _prepared(paths: list, encoder: Encoder) -> PreparedSet | None:
    """The prepared data set that ``paths`` names, if it does."""
    if len(paths) != 1 or not is_prepared(paths[0]):
        return None
    images = PreparedSet(paths[0], verify=True)
    if images.size != encoder.img_size[0]:
        raise ConfigError(
            f"img_size: the data set in {images.folder} has canvases of {images.size} pixels, and the encoder takes "
            f"{encoder.img_size[0]}; give img_size={images.size}"
        )
    return images


def _of_files(files: list[str], encoder: Encoder, workers: int, caps: dict) -> Iterator[Quarantined | tuple]:
    jobs = [(file, file) for file in files]
    for item in read_ahead(jobs, encoder.img_size[0], encoder.patch_size, workers, encoder.contour, **caps):
        if isinstance(item, Radiograph):
            yield item.source, item.flagged, item.view, as_batch([item]), item.valid_box
        else:
            yield item


def _of_set(images: PreparedSet, rows: list[int], encoder: Encoder) -> Iterator[tuple]:
    samples = RadiographDataset(images, patch_size=encoder.patch_size, bits=8)
    for row in rows:
        _, flagged, _, view = images.about(row)
        sample = samples[0, row]
        batch = {name: sample[name][None] for name in ("pixels", "inside", "valid", "scale", "shift")}
        yield images.source(row), flagged, view, batch, images.read(row).valid_box


def _look(
    encoder: Encoder,
    source: str,
    flagged: bool,
    view: str,
    batch: dict[str, Tensor],
    valid_box: tuple[int, int, int, int],
    keep: str,
    device,
    at: Sequence[int] | None,
) -> _Seen:
    features = patch_features(encoder, sent_batch(batch, device), keep)
    rows, columns = (np.flatnonzero(batch["valid"][0].numpy().any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    if at is not None and features.row_of(_place(at, encoder.patch_size, features.grid_size)) is None:
        p = encoder.patch_size
        seen = features.on_grid(np.ones(len(features.ids), np.float32)) == 1
        (top, bottom), (left, right) = (np.flatnonzero(seen.any(axis))[[0, -1]] for axis in (1, 0))
        what, shape = ("the chest contour of ", ", not all of which is inside") if keep == "contour" else ("", "")
        raise ArgumentError(
            f"at: {at[0]} {at[1]} lies outside of {what}{source}, which has x from {left * p} to {right * p + p - 1}, "
            f"y from {top * p} to {bottom * p + p - 1}{shape}; choose a place there"
        )
    inside = batch["inside"][0].numpy().ravel()[features.ids]
    frame = tuple(
        slice(first - side.start * encoder.patch_size, first - side.start * encoder.patch_size + length)
        for side, first, length in zip(box, valid_box[:2], valid_box[2:], strict=True)
    )
    film = Film(batch["pixels"][0, 0].numpy(), valid_box, float(batch["scale"]), float(batch["shift"]))
    return _Seen(source, flagged, view, film, box, frame, inside, features)


def _place(at: Sequence[int], patch_size: int, grid_size: tuple[int, int]) -> int:
    """Of the patch that a pixel lies in, row-major."""
    return at[1] // patch_size * grid_size[1] + at[0] // patch_size


def _chest(item: _Seen) -> np.ndarray:
    """Which features are of the chest, over which components are fitted; all, where it is not known: ``[N] bool``."""
    return np.ones(len(item.inside), bool) if item.flagged or not item.inside.any() else item.inside


def _darkness(item: _Seen) -> np.ndarray:
    """How dark the patches that were looked at are on the radiograph's own scale, ``[N] float32``."""
    means = cv2.resize(item.film.pixels, item.features.grid_size[::-1], interpolation=cv2.INTER_AREA)
    return -(means.ravel()[item.features.ids] * np.float32(item.film.scale) + np.float32(item.film.shift))


def _well_inside(item: _Seen) -> np.ndarray:
    """Which of the patches that were looked at are nearer to the middle of the chest than to the edge of its contour,
    within which parts of the abdomen lie; or of the film, where the contour is not to be relied on: ``[N] bool``."""
    inside = item.features.on_grid(_chest(item)) == 1
    depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return depth.ravel()[item.features.ids] >= depth.max() / 2


def _picture(
    item: _Seen, found: PrincipalComponents, at: Sequence[int] | None, patch_size: int, stem: str
) -> np.ndarray:
    features, box = item.features, item.box
    shares = found.shares(features.values)
    if at is None:
        strength = (features.values.astype(np.float32) - found.mean) @ found.axes[0]
        row = int(np.where(_well_inside(item), strength, -np.inf).argmax())
    else:
        row = features.row_of(_place(at, patch_size, features.grid_size))
    if at is None:
        y, x = divmod(int(features.ids[row]), features.grid_size[1])
        at = x * patch_size + patch_size // 2, y * patch_size + patch_size // 2
    point = at[0] - box[1].start * patch_size, at[1] - box[0].start * patch_size
    pixels = item.film.pixels[tuple(slice(side.start * patch_size, side.stop * patch_size) for side in box)]
    grey = display_levels(pixels)[pixels]
    alike = features.on_grid(features.similarity(row))[box]
    panels = {
        "radiograph": cross_at(np.repeat(grey[..., None], 3, axis=2), *point),
        "components 1, 2, 3 of all as red, green, blue": colours_over(grey, features.on_grid(shares)[box]),
        "likeness to the patch at the cross": cross_at(heat_over(grey, alike, 0.0, 1.0), *point),
    }
    if features.attention is not None:
        attention = features.on_grid(features.attention)[box]
        low, high = np.nanpercentile(attention, (50, 99.5))  # a few patches take most of it
        panels["attention of the class token"] = heat_over(grey, attention, low, high)
    panels = {title: panel[item.frame] for title, panel in panels.items()}  # patches reach into the padding
    source = Path(item.source)
    name = source.name if source.stem == stem else "/".join(source.parts[-2:])  # several are called so
    told = f"{name}   cross at {at[0]} {at[1]}"
    if item.flagged:
        what = "a lateral view" if item.view == "lateral" else "this may be no chest"
        told += f"   FLAGGED: no chest contour to rely on, {what}"
    reading = READING if features.attention is None else f"{READING}{READING_ATTENTION}"
    return titled_row(panels, told, item.flagged, reading)
