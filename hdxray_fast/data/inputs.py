"""What a command reads: the radiographs that folders, files, manifests and prepared data sets name, under their names.

An image of a prepared data set has the name of the file that it was prepared from, so that tables made of either join.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from .listing import list_images
from .prepared.finding import find_some, require_for_model
from .prepared.image import PreparedImage
from .prepared.reading import PreparedSet, PreparedSubset, is_prepared
from .quarantine import Quarantined

Image = str | np.ndarray | PreparedImage | Quarantined


class Input(NamedTuple):
    """A radiograph that is to be read.

    Attributes:
        image: a path, pixels ``[H, W]`` or an image of a prepared data set; or why there is none to read.
        name: what rows and errors call it; of files, and of what was prepared from them, their path.
    """

    image: Image
    name: str


def list_inputs(
    paths: Iterable[str | os.PathLike], argument: str = "paths", image_column: str | None = None
) -> list[Input]:
    """The radiographs of folders, files, manifests and prepared data sets, in their order, each name once.

    Args:
        paths: folders, files and manifests as for :func:`.listing.list_images`, or folders of prepared data sets.
        argument: what the caller calls them, for errors.
        image_column: of manifests, as there.

    Raises:
        ConfigError: a path does not exist or names no image; or two data sets have different images of one name.
    """
    found: dict[str, Input] = {}
    for path in paths:
        if is_prepared(path):
            for item in _all_of(PreparedSet(path, verify=True)):
                before = found.setdefault(item.name, item).image
                if isinstance(before, PreparedImage) and before.stamp != item.image.stamp:
                    raise ConfigError(
                        f"{argument}: {before.images.folder} and {path} have different images of one name; give one of "
                        "them alone"
                    )
        else:
            for file in map(str, list_images(path, argument=argument, image_column=image_column)):
                found.setdefault(file, Input(file, file))
    return list(found.values())


def inputs_of(
    names: Sequence[str], prepared: str | os.PathLike | None, source: str, listed: Sequence[str] = ()
) -> list[Input]:
    """Files as a manifest lists them, read of a prepared data set where one is given; what that lacks is unreadable.

    Args:
        names: paths of files.
        prepared: folder of the data set; left out, the files are read.
        source: that names the files, for errors.
        listed: all paths of the manifest, where ``names`` are some of them.

    Raises:
        ConfigError: the data set holds none of them, or cannot be opened.
    """
    if prepared is None:
        return [Input(name, name) for name in names]
    found, bad = find_some(names, PreparedSet(prepared, verify=True), source, listed)
    images: dict[str, Image] = {**prepared_images(found), **{one.path: one for one in bad}}
    return [Input(images[name], name) for name in names]


def prepared_images(images: PreparedSubset) -> dict[str, PreparedImage]:
    """By the name of each, what is to be read in the place of a file."""
    rows = images.rows.tolist()
    return {name: PreparedImage(images.images, row) for name, row in zip(images.sources(), rows, strict=True)}


def prepared_among(inputs: Iterable[Input]) -> dict[str, PreparedImage]:
    """Those of prepared data sets, by name."""
    return {one.name: one.image for one in inputs if isinstance(one.image, PreparedImage)}


def require_prepared_for(images: Iterable[PreparedImage], img_size: int, contour: str, resizes: bool = False) -> None:
    """As :func:`.require_for_model`, for the data sets that images are of."""
    for one in {id(image.images): image.images for image in images}.values():
        require_for_model(one, img_size, contour, resizes)


def _all_of(images: PreparedSet) -> Iterable[Input]:
    return (Input(PreparedImage(images, row), name) for row, name in enumerate(images.sources()))
