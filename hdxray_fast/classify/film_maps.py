"""A picture of each film that a classifier was asked about: where it looked for what it calls present."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.film_views import describe_view
from ..data.picture_folder import PictureFolder
from ..data.prepared.image import PreparedImage
from ..data.radiographs import Radiograph, read_ahead
from ..data.reader_pool import MAX_MEMORY, TIMEOUT, worker_count
from ..files import names_after
from ..images.panels import display_levels, write_image
from ..names import told_apart
from ..progress import note, progress_bar
from ..weights.fingerprint import weights_print
from .attention_maps import describe_off_chest, film_inputs, maps_differ, patch_map
from .classifier import Classifier
from .error_sheet import captioned, full_colour, tinted
from .interval_text import beside_threshold
from .predictions import Predictions

SIDE = 512  # px, of each picture
MOST = 4  # classes of a film that are shown
READING = "where the model looked, which need not be where a finding is"


def claim_maps(
    folder: str | os.PathLike, files: Sequence[str], model: Classifier, classes: Sequence[str], force: bool = False
) -> dict[str, Path]:
    """Where the picture of each file goes, before any work.

    Raises:
        ConfigError: one of them would be written over somebody else's file, the folder holds maps of other files, or of
            another model or other classes, and not ``force``, or it cannot be made.
    """
    places = {file: Path(folder) / f"{name}.map.png" for file, name in zip(files, names_after(files), strict=True)}
    settings = {"model": weights_print(model), "classes": list(classes)}
    pictures = {place.name: file for file, place in places.items()}
    PictureFolder(Path(folder), "predict", settings, pictures, (), force, "maps").claim()
    return places


def write_maps(
    places: dict[str, Path],
    model: Classifier,
    found: Predictions,
    prepared: Mapping[str, PreparedImage],
    *,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> None:
    """Draw the films, which are read again, each beside the maps of the classes that are called present, the most
    probable first; without one, of the most probable. Of a head whose map is the same for every class one is drawn,
    and of classes that the model was not trained on none.

    Args:
        places: of :func:`claim_maps`.
        model: what made the predictions.
        found: the predictions.
        prepared: by name, images of prepared data sets, which are read in place of files.
        workers, timeout, max_memory: as for :func:`hdxray_fast.predict`.
        progress: tell how many are drawn, and how many of the maps lie off the chest.
    """
    model, encoder = model.eval(), model.encoder
    jobs = [(prepared.get(image, image), image) for image in found.images]
    read = read_ahead(
        jobs, encoder.img_size[0], encoder.patch_size, worker_count(workers), model.config.contour, timeout=timeout,
        max_memory=max_memory,
    )  # fmt: skip
    drawn: list[tuple[str, str]] = []
    names = told_apart(found.images)
    with progress_bar(len(jobs), "maps", show=progress) as bar:
        for row, item in enumerate(read):
            if isinstance(item, Radiograph):
                write_image(places[item.source], _picture(model, found, row, item, names[item.source], drawn))
            bar.update()
    if progress and (told := describe_off_chest(drawn)):
        note(told)


def _picture(model: Classifier, found: Predictions, row: int, item: Radiograph, called: str, drawn: list) -> np.ndarray:
    """A film, as it is called, beside its maps; ``drawn`` gets what :func:`.describe_off_chest` wants of each."""
    grey = cv2.resize(display_levels(item.pixels)[item.pixels], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    inputs = film_inputs(model, item)
    panels = [(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), [called, READING, describe_view(item.view)])]
    for column in _shown(model, found, row):
        name, probability = found.classes[column], found.probabilities[row, column]
        decided = beside_threshold(probability, None if found.multiclass else found.thresholds[column])
        values = patch_map(model, model.config.classes.index(name), *inputs).on_film(item)
        drawn.append((item.source, values.off_chest))
        colours = "orange for, blue against" if values.signed else "orange more than an even share, blue less"
        scale = f"{colours}; {full_colour(values)}" if values.strength >= 1 else full_colour(values)
        panels.append((tinted(grey, values), [f"{name} {decided}", values.words, scale, values.off_chest]))
    lines = max(len(words) if words[-1] else len(words) - 1 for _, words in panels)
    panels = [(picture, (words + [""] * lines)[:lines]) for picture, words in panels]
    return np.concatenate([captioned(*panel) for panel in panels], axis=1)


def _shown(model: Classifier, found: Predictions, row: int) -> list[int]:
    """Columns of the classes that get a map."""
    order = np.argsort(-found.probabilities[row], kind="stable")
    known = [int(column) for column in order if found.classes[column] in model.config.classes]
    present = [column for column in known if found.classes[column] in found.present[row]] or known[:1]
    return present[: MOST if maps_differ(model) else 1]
