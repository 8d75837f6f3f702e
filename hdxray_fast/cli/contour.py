"""The command ``contour``."""

from __future__ import annotations

from .options import add_force, add_image_column, add_reading


def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    from ..images.contour_methods import METHODS

    contour = parser_class(
        examples=["contour /data/xrays --out contours", "contour chest.dcm --out contours --method classical"],
        description="Find the chest contour of radiographs: overlay, JSON and a contact sheet.",
    )
    contour.add_argument("paths", nargs="+", help="radiographs, folders of them, or CSV manifests")
    contour.add_argument("--out", required=True, help="folder for the pictures and JSON files")
    contour.add_argument("--method", default="network", help=f"one of {', '.join(METHODS)}")
    contour.add_argument("--img-size", type=int, default=1280, help="canvas side, pixels")
    contour.add_argument("--patch-size", type=int, default=16, help="side of a patch, pixels")
    add_image_column(contour)
    add_force(contour)
    add_reading(contour)
    commands.add_subcommand("contour", contour)


def run_contour_command(paths: list[str], out: str, workers: int, image_column: str | None, **options) -> int:
    from ..data.contour_files import write_contours
    from ..data.listing import list_images
    from ..data.prepared.reading import is_prepared
    from ..data.reader_pool import worker_count
    from ..errors import ConfigError

    if prepared := next((path for path in paths if is_prepared(path)), None):
        raise ConfigError(
            f"paths: {prepared} is a prepared data set, whose contours were found when it was made (contacts.png in it "
            "shows some); give radiographs"
        )
    listing = {"exclude": (out,), "argument": "paths", "image_column": image_column}
    files = [file for path in paths for file in list_images(path, **listing)]
    summary = write_contours(files, out, workers=worker_count(workers), **options)
    return 0 if summary["written"] else 2


COMMANDS = {"contour": run_contour_command}
