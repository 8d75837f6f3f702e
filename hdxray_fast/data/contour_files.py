"""Files to pictures of their contours: ``hdxray-fast contour``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import numpy as np

from ..errors import ArgumentError, HDXrayError
from ..files import names_after, written_whole
from ..images.canvas import Canvas, read_canvas
from ..images.contour import Contour, find_contour
from ..images.contour_methods import METHODS
from ..images.overlay import contact_sheet, contact_tile, describe_contour, draw_overlay
from ..images.panels import write_image
from ..progress import note, progress_bar
from ..terminal import counted, first_names, visible
from .film_views import describe_not_frontal, not_frontal
from .listing import as_paths
from .picture_folder import PictureFolder
from .quarantine import Quarantined, write_quarantine
from .reader_pool import MAX_MEMORY, TIMEOUT, Failed, call_in_order, check_caps
from .result_files import write_for_people

SHEET = 48  # tiles on one contact sheet
TABLE, WORKBOOK, UNREADABLE = "contours.csv", "contours.xlsx", "unreadable.csv"
COLUMNS = (
    "source", "picture", "confidence", "method", "flagged", "view", "flags", "left", "top", "right", "bottom",
    "inside_share", "canvas_size",
)  # fmt: skip


def write_contours(
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    method: str = "network",
    img_size: int = 1280,
    patch_size: int = 16,
    progress: bool = True,
    workers: int = 0,
    timeout: float = TIMEOUT,
    max_memory: int = MAX_MEMORY,
    force: bool = False,
) -> dict:
    """Find the contour of each radiograph and write it down.

    For every readable file ``NAME.contour.png`` (overlay) and ``NAME.contour.json`` are written to `out`, where NAME is
    the file's stem, numbered when several files share it; then ``contacts.png`` (``contacts-2.png`` ... beyond 48),
    which leaves out names of the radiographs themselves, and ``contours.csv``: a row a radiograph with its picture,
    confidence, method, view, flags, and the box around the contour in canvas pixels (blank without a polygon); where
    openpyxl is installed, the same as ``contours.xlsx``.
    Unreadable files are reported on stderr with the reason, listed in ``unreadable.csv``, and skipped.

    Args:
        paths: files, of any format that ``read_canvas`` takes.
        out: folder for the results; made if missing.
        method: as in ``find_contour``.
        img_size: side of the canvas in pixels.
        patch_size: side of a patch in pixels.
        progress: show a progress bar and the list of unreadable files on stderr.
        workers: processes that read files; 0 reads in this process, without caps.
        timeout: seconds that a file may take.
        max_memory: MiB that a file may take.
        force: replace what another call of ``contour`` wrote in `out`, of other files or settings.

    Returns:
        ``written``: source path -> overlay's path; ``flagged``: source paths whose contour is not to be relied on;
        ``not_frontal``: source path -> view of those that show no frontal chest; ``failed``: source path -> reason;
        ``contacts``: paths of the contact sheets; ``table``: that of ``contours.csv``.

    Raises:
        ArgumentError: no paths, an unknown method, sizes that do not fit, or `out` is not a folder.
        ArgumentTypeError: `paths` is not a list of paths.
        ConfigError: a cap that is not above 0, or `out` holds files of these names that ``contour`` did not make, or,
            without ``force``, made in another call.
    """
    sources = _as_paths(paths)
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if img_size < 1 or patch_size < 1 or img_size % patch_size:
        raise ArgumentError(f"img_size must be a positive multiple of patch_size, got {img_size} and {patch_size}")
    check_caps(timeout, max_memory)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArgumentError(f"out must be a folder, {out} is a file") from error
    except OSError as error:
        raise ArgumentError(f"out must be a folder that can be written to, {out} is not ({error.strerror})") from error
    names = names_after(sources)
    sheets = _sheets(folder, sources)
    pictures = {
        f"{name}.contour.{kind}": source
        for name, source in zip(names, sources, strict=True)
        for kind in ("json", "png")
    }
    pictures |= {path.name: "" for path in sheets}
    settings = {"method": method, "img_size": img_size, "patch_size": patch_size}
    PictureFolder(folder, "contour", settings, pictures, (UNREADABLE, TABLE, WORKBOOK), force).claim()
    summary: dict = {"written": {}, "flagged": [], "not_frontal": {}, "failed": {}, "contacts": []}
    summary["table"] = str(folder / TABLE)
    tiles: list[np.ndarray] = []
    rows: list[tuple] = []
    unreadable: list[Quarantined] = []
    jobs = ((source, method, img_size, patch_size) for source in sources)
    caps = {"timeout": timeout, "max_memory": max_memory}
    with (
        closing(call_in_order(read_contour, jobs, workers=workers, ahead=2, **caps)) as results,
        progress_bar(len(sources), "contours", show=progress) as bar,
    ):
        for source, name, found in zip(sources, names, results, strict=True):
            if isinstance(found, Failed):
                found = Quarantined(source, *found)
            if isinstance(found, Quarantined):
                unreadable.append(found)
                summary["failed"][source] = found.reason
                bar.update()
                continue
            canvas, contour = found
            picture = draw_overlay(canvas, contour, Path(source).name)
            record = describe_contour(canvas, contour, source, patch_size)
            with written_whole(folder / f"{name}.contour.json", durable=False) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            write_image(folder / f"{name}.contour.png", picture)
            summary["written"][source] = str(folder / f"{name}.contour.png")
            rows.append(_row(canvas, contour, source, f"{name}.contour.png"))
            summary["not_frontal"] |= not_frontal([(source, contour.view.name)])
            if contour.flagged:
                summary["flagged"].append(source)
            tiles.append(contact_tile(canvas, contour, name))
            if len(tiles) == SHEET:
                summary["contacts"].append(_write_sheet(sheets[len(summary["contacts"])], tiles))
                tiles = []
            bar.update()
    if tiles:
        summary["contacts"].append(_write_sheet(sheets[len(summary["contacts"])], tiles))
    to_open = write_for_people(folder / TABLE, COLUMNS, rows, names=("source", "picture"))
    write_quarantine(folder / UNREADABLE, unreadable)
    if progress:
        _report(summary, folder, to_open)
    return summary


def read_contour(source: str, method: str, size: int, patch_size: int) -> tuple[Canvas, Contour] | Quarantined:
    """A file's canvas and contour, or why there is none; runs in a worker process."""
    try:
        canvas = read_canvas(source, size=size)
        return canvas, find_contour(canvas, method, patch_size)
    except (HDXrayError, OSError) as error:
        return Quarantined(source, type(error).__name__, str(getattr(error, "reason", error)))


def _row(canvas: Canvas, contour: Contour, source: str, picture: str) -> tuple:
    """Of the table."""
    corners = contour.polygon
    box = [round(float(v), 1) for v in (*corners.min(0), *corners.max(0))] if len(corners) else [""] * 4
    flags = dict.fromkeys((*canvas.provenance.get("flags", ()), *contour.view.flags))
    return (
        source, picture, round(float(contour.confidence), 4), contour.method, int(contour.flagged), contour.view.name,
        " ".join(flags), *box, round(float(contour.inside.mean()), 4), canvas.pixels.shape[0],
    )  # fmt: skip


def _as_paths(paths: Iterable[str | os.PathLike]) -> list[str]:
    if not (sources := as_paths(paths, instead="find_contour takes a canvas")):
        raise ArgumentError("paths is empty: give at least one radiograph")
    return list(dict.fromkeys(map(str, sources)))


def _report(summary: dict, folder: Path, table: Path) -> None:
    for source, reason in summary["failed"].items():
        note(f"unreadable: {visible(source)}: {visible(reason)}")
    flagged = summary["flagged"]
    told = describe_not_frontal(summary["not_frontal"], len(summary["written"]))
    bad = counted(len(summary["failed"]), "file")
    lost = f"{bad} unreadable, listed in {visible(folder / UNREADABLE)}" if summary["failed"] else ""
    sheets = [visible(path) for path in summary["contacts"]]
    seen = f"all of them in {sheets[0]}{f' to {Path(sheets[-1]).name}' if sheets[1:] else ''}; " if sheets else ""
    which = f" ({first_names(flagged)})" if flagged else ""
    count = f"{counted(len(summary['written']), 'contour')} in {visible(folder)}, {len(flagged)} flagged{which}"
    print("\n".join(filter(None, (count, told, lost, f"{seen}a row for each in {visible(table)}"))))


def _sheets(folder: Path, sources: Sequence[str]) -> list[Path]:
    """Contact sheets for so many radiographs; none has the name of a radiograph in the same folder."""
    kept = {os.path.realpath(path) for path in sources}
    paths = (folder / ("contacts.png" if page == 1 else f"contacts-{page}.png") for page in count(1))
    return list(islice((path for path in paths if os.path.realpath(path) not in kept), -(-len(sources) // SHEET)))


def _write_sheet(path: Path, tiles: list[np.ndarray]) -> str:
    write_image(path, contact_sheet(tiles))
    return str(path)
