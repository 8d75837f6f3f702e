"""The commands ``features`` and ``similar``."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError
from ..progress import note
from ..terminal import counted, visible
from .options import WEIGHTS, add_columns, add_force, add_image_column, add_reading, tell_encoder


def add_commands(commands, parser_class) -> None:
    """Add them to jsonargparse's subcommands."""
    features = parser_class(
        description="Pictures of patch features: components as colours, likeness to a patch, attention.",
        examples=["features images/ --out features"],
    )
    features.add_argument("paths", nargs="+", help="radiographs, folders, CSV manifests, or a prepared data set")
    features.add_argument("--weights", default="pretrained", help=WEIGHTS)
    features.add_argument("--out", required=True, help="folder for the pictures")
    at = "x and y in canvas pixels: the patch that others are compared with; left out, that of the first component"
    features.add_argument("--at", type=int, nargs=2, help=at)
    features.add_argument("--keep", help="valid or contour; left out, the encoder's")
    features.add_argument("--img-size", type=int, help="canvas side, pixels; left out, the encoder's")
    features.add_argument("--most", type=int, default=64, help="radiographs to draw; of more, some at even distances")
    add_force(features)
    add_image_column(features)
    add_reading(features)
    features.add_argument("--device", help="where the encoder runs; left out, a GPU if there is one")
    commands.add_subcommand("features", features, help="what an encoder sees in radiographs, as pictures")

    similar = parser_class(
        description="The radiographs of a table of features most like one.",
        examples=["similar chest.dcm --in features.parquet --weights runs/first --out similar"],
    )
    similar.add_argument("query", help="a radiograph: of the table or any other")
    similar.add_argument("--in", required=True, help="the table that embed wrote, such as features.parquet")
    table = "those that the table was made with, for a query that it does not hold; left out, the package's own"
    similar.add_argument("--images", help="folder that the table's radiographs are in now; left out, as the table says")
    similar.add_argument("--weights", help=table)
    findings = "CSV with image and a column a finding, perhaps one of patients: what holds, and whose, is told of each"
    similar.add_argument("--labels", help=findings)
    add_columns(similar, "--labels")
    similar.add_argument("--out", required=True, help="folder for similar.png and similar.csv")
    similar.add_argument("--most", type=int, default=11, help="neighbours")
    add_force(similar)
    add_reading(similar)
    similar.add_argument("--device", help="where the encoder runs; left out, a GPU if there is one")
    commands.add_subcommand("similar", similar, help="nearest radiographs by features, as a contact sheet")


def run_features_command(paths: list[str], weights: str, out: str, workers: int, **options) -> int:
    from ..data.quarantine import first_unreadable
    from ..data.reader_pool import worker_count
    from ..features.feature_pictures import draw_features
    from ..weights.shipped import PRETRAINED, shipped_size

    tell_encoder(weights)
    own, size = shipped_size(), options["img_size"]
    if weights == PRETRAINED and size and size < own:
        note(f"below {own} pixels, its own size, it tells less apart: tissue blurs, attention keeps to edges")
    done = draw_features(paths, weights, out, workers=worker_count(workers), progress=True, **options)
    if lost := [(bad.path, bad.reason) for bad in done.quarantined]:
        note(first_unreadable(lost, len(lost), visible(Path(out) / "unreadable.csv")))
    if not done.pictures:
        return 2
    for source in done.flagged:
        note(f"flagged, may show no chest: {visible(source)}")
    more = f"; {done.left_out} more were left out (--most)" if done.left_out else ""
    made = counted(len(done.pictures), "picture")
    print(f"{made} in {out}; the colours hold {done.explained.sum():.0%} of the variance{more}")
    return 0


def _read_labels(data: str, images: str | None, columns: dict[str, str | None]) -> dict[str, object]:
    """What ``find_similar`` takes of a table with labels: of each radiograph the classes that hold, and the patient."""
    from ..classify.labels import read_manifest

    try:
        table = read_manifest(data, images=images, **columns)
    except ConfigError as error:
        raise ConfigError(re.sub("^data: ", "labels: ", str(error))) from error
    labels = {
        path: [name for name, value in zip(table.classes, row, strict=True) if value == 1]
        for path, row in zip(table.paths, table.labels, strict=True)
    }
    patients = dict(zip(table.paths, table.patients, strict=True)) if table.patients_known else {}
    return {"labels": labels, "patients": patients, "root": images or Path(data).parent}


def run_similar_command(query: str, workers: int, labels: str | None, **options) -> int:
    from ..data.reader_pool import worker_count
    from ..features.neighbour_sheet import SCALE, about
    from ..features.neighbours import find_similar

    columns = {name: options.pop(name) for name in ("image_column", "patient_column")}
    told = {} if labels is None else _read_labels(labels, options["images"], columns)
    found = find_similar(query, options.pop("in"), workers=worker_count(workers), **told, **options)
    print(SCALE)
    for near in found.neighbours:
        print(", ".join(map(visible, (f"{near.distance:.4f}  {near.path}", *about(near, found.labelled)))))
    if labels is None and all(near.same_patient is None for near in found.neighbours):
        note("whose they are is told with --labels TABLE that has a column of patients")
    elif told.get("patients") and all(near.same_patient is None for near in found.neighbours):
        note("whose the query is the table of labels does not say, so that nobody knows which others are its patient's")
    if found.labelled and all(near.labels is None for near in found.neighbours):
        note("none of them is in the table of labels; --images says where its radiographs are")
    if found.missing:
        note(f"{len(found.missing)} of them are not found or cannot be read; --images says where")
    print(f"of {found.rows} radiographs: {found.picture}")
    return 0


COMMANDS = {"features": run_features_command, "similar": run_similar_command}
