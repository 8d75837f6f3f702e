"""Files to cached canvases: the first three rooms, run once per radiograph in worker processes and kept on disk.

This module never imports torch, so that its workers start fast and stay small.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np

from .canvas import read_canvas
from .columns import PATH_COLUMNS, find_column
from .contour import find_contour
from .errors import ConfigError, HDXrayError, MissingDependencyError, TrainingError
from .files import make_folder, written_whole

IMAGE_SUFFIXES = frozenset(
    (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy")
)
CACHE_FORMAT = 2  # part of every cache key: raise it when the cached arrays change meaning


@dataclass(frozen=True)
class PreparedImage:
    """One readable radiograph and where its canvas is cached.

    Attributes:
        path: the file, as the user gave it.
        cache: ``.npz`` with ``pixels [S, S] uint8``, ``valid_box [4] int32``, ``polygon [K, 2] float32``.
        confidence: contour confidence, 0 to 1.
        method: how the contour was found.
        flagged: the contour is not to be trusted without a look.
        inside_share: share of all patches that lie inside the contour.
        pixel_sha256: hash of the stored pixels, to find duplicates; blank if it is not known.
        valid_share: share of all patches that hold some of the radiograph.
    """

    path: str
    cache: str
    confidence: float
    method: str
    flagged: bool
    inside_share: float
    pixel_sha256: str = ""
    valid_share: float = 1.0


@dataclass(frozen=True)
class Quarantined:
    """One file that could not be turned into a canvas, and why."""

    path: str
    error: str
    reason: str


def list_images(data: str | Path, images: str | Path | None = None, exclude: Iterable[str | Path] = ()) -> list[Path]:
    """The radiographs that ``data`` names, in an order that does not depend on the file system.

    Args:
        data: a folder (searched recursively as by :func:`image_files`), one image file, or a CSV manifest with one of
            the columns ``image``, ``path``, ``file``, ``filename``, ``image_path``.
        images: folder that relative paths of a manifest start from; the manifest's own folder by default.
        exclude: folders to leave out of a search: where results go, lest they be taken for radiographs. Folders of
            pre-training runs, of prepared data sets and of contour overlays are left out in any case.

    Returns:
        Paths, sorted for a folder and in the manifest's order otherwise, without repeats.

    Raises:
        ConfigError: ``data`` does not exist, holds no image, or the manifest has no such column.
    """
    root = Path(data)
    if root.is_dir():
        found = image_files(root, exclude)
    elif root.is_file() and root.suffix.lower() == ".csv":
        found = manifest_paths(root, Path(images) if images else root.parent)
    elif root.is_file():
        found = [root]
    else:
        raise ConfigError(f"data: {root} does not exist; give a folder of radiographs, one image, or a CSV manifest")
    if not found:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"data: {root} names no image; accepted are {kinds} and DICOM files without a suffix")
    return list(dict.fromkeys(found))


def image_files(
    root: Path, exclude: Iterable[str | Path] = (), on_skip: Callable[[Path], None] = lambda path: None
) -> list[Path]:
    """The files of a folder and of its subfolders whose names may be those of images, sorted.

    Links to folders are followed, each folder once. Hidden files and what this package wrote are left out.

    Args:
        root: the folder.
        exclude: folders to leave out.
        on_skip: called with each file that is left out for its suffix.

    Raises:
        ConfigError: a folder cannot be searched: what it holds would be missed in silence.
    """
    found = []
    for path in _walk(root, {Path(folder).resolve() for folder in exclude}):
        if path.name.startswith(".") or path.name.endswith((".contour.png", ".contour.json")):
            continue
        if is_image_name(path.name):
            found.append(path)
        else:
            on_skip(path)
    return sorted(found)


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image or none, as DICOM files often do: ``1.2.840.17`` is a name by UID."""
    suffix = PurePath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or not suffix or suffix[1:].isdecimal()


def _refuse(error: OSError) -> None:
    raise ConfigError(
        f"{error.filename}: cannot be searched ({error.strerror}); give access to it, or name the others one by one"
    ) from error


def _walk(root: Path, exclude: set[Path]) -> Iterable[Path]:
    above = {root.resolve(), *root.resolve().parents}
    seen: set[Path] = set()
    pending = [root]  # links wait until the folders proper are through, so that a file keeps the name where it lies
    while pending:
        for folder, subfolders, names in os.walk(pending.pop(0), onerror=_refuse):
            here = Path(folder)
            real = here.resolve()
            runs = ({"log.jsonl", "config.json"}, {"settings.json", "sources.parquet"})  # of pre-training, of prepare
            if real in exclude or real in seen or any(marks <= set(names) for marks in runs):
                subfolders.clear()
                continue
            seen.add(real)
            overlays = any(name.endswith(".contour.json") for name in names)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            links = (here / name for name in subfolders if (here / name).is_symlink())
            pending += (link for link in links if link.resolve() not in above)  # others are loops
            yield from (here / name for name in names if not (overlays and name.startswith("contacts")))


def manifest_paths(manifest: Path, root: Path, argument: str = "data") -> list[Path]:
    """The files that a CSV manifest names, below ``root`` where relative; errors are about ``argument``."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            column = find_column(reader.fieldnames or (), PATH_COLUMNS)
            if column is None:
                raise ConfigError(
                    f"{argument}: {manifest} has the columns {reader.fieldnames}; one of {list(PATH_COLUMNS)} is "
                    "needed, and commas between columns"
                )
            return [root / row[column] for row in reader if row[column]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{argument}: {manifest} is not a readable CSV file ({error})") from error


def cache_key(path: Path, size: int, contour: str) -> str:
    """Name of the cache file: changes with the file's place, size or date, and with what is computed from it."""
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
    except OSError:  # a missing file: the worker reports it, with its reason
        stamp = []
    text = json.dumps([CACHE_FORMAT, str(path.absolute()), stamp, size, contour])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def prepare_one(path: str, cache: str, size: int, contour: str) -> PreparedImage | Quarantined:
    """Read one file, find its contour and cache both; runs in a worker process.

    The cache file appears under its name only when it is whole. A cached file that is damaged is made again.
    """
    cv2.setNumThreads(1)  # the pool is the parallelism
    summary = _read_summary(cache)
    if summary is None:
        try:
            canvas = read_canvas(path, size=size)
            outline = find_contour(canvas, method=contour)
        except HDXrayError as error:
            reason = getattr(error, "reason", str(error))
            return Quarantined(path, type(error).__name__, reason)
        summary = {
            "confidence": float(outline.confidence),
            "method": outline.method,
            "flagged": bool(outline.flagged),
            "inside_share": float(outline.inside.mean()),
            "pixel_sha256": canvas.provenance.get("pixel_sha256", ""),
            "valid_share": float(canvas.valid_grid().mean()),
        }
        with written_whole(Path(cache), durable=False) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                pixels=canvas.pixels,
                valid_box=np.asarray(canvas.valid_box, np.int32),
                polygon=np.asarray(outline.polygon, np.float32),
                summary=np.frombuffer(json.dumps(summary).encode(), np.uint8),
            )
    return PreparedImage(path=path, cache=cache, **summary)


def _read_summary(cache: str) -> dict | None:
    try:
        with np.load(cache) as arrays:
            return json.loads(arrays["summary"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, RuntimeError):
        return None
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base class with the above
        if type(error).__module__ in {"zipfile", "zlib"}:
            return None
        raise


def prepare_images(
    paths: Sequence[Path],
    cache_dir: str | Path,
    *,
    size: int = 1280,
    contour: str = "network",
    workers: int = 1,
    on_done: Callable[[PreparedImage | Quarantined], None] | None = None,
) -> tuple[list[PreparedImage], list[Quarantined]]:
    """Canvas and contour of every file, computed once and cached.

    Args:
        paths: files to read.
        cache_dir: folder of cache files; made if needed. About ``size ** 2`` bytes per image.
        size: canvas side in pixels.
        contour: method of :func:`hdxray_fast.find_contour`.
        workers: processes; 0 or 1 reads in this process.
        on_done: called with each result as it comes (for a progress bar).

    Returns:
        ``(prepared, quarantined)``, each in the order of ``paths``; a file whose reader process dies is quarantined.

    Raises:
        TrainingError: none of the files can be read.
    """
    folder = Path(cache_dir)
    make_folder(folder, "cache")
    jobs = [(str(path), str(folder / f"{cache_key(path, size, contour)}.npz"), size, contour) for path in paths]
    results = dict(_run(jobs, workers, on_done or (lambda result: None)))
    ordered = [results[job[0]] for job in jobs]
    prepared = [result for result in ordered if isinstance(result, PreparedImage)]
    quarantined = [result for result in ordered if isinstance(result, Quarantined)]
    if not prepared:
        first = quarantined[0]
        raise TrainingError(
            f"none of the {len(jobs)} files can be read as a chest radiograph; the first: {first.path}: {first.reason}"
        )
    return prepared, quarantined


def _run(jobs: Sequence[tuple], workers: int, on_done: Callable) -> Iterable[tuple[str, PreparedImage | Quarantined]]:
    if workers <= 1 or len(jobs) == 1:
        for job in jobs:
            result = prepare_one(*job)
            on_done(result)
            yield job[0], result
        return
    broken = []
    with worker_pool(min(workers, len(jobs))) as pool:
        futures: dict[Future, tuple] = {pool.submit(prepare_one, *job): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                broken.append(job)  # the culprit or one that waited behind it: tried alone below
                continue
            on_done(result)
            yield job[0], result
    for job in broken:
        with worker_pool(1) as pool:
            try:
                result = pool.submit(prepare_one, *job).result()
            except BrokenProcessPool:
                reason = "the process that read this file died (out of memory, or a decoder crash)"
                result = Quarantined(job[0], "BrokenProcessPool", reason)
        on_done(result)
        yield job[0], result


def worker_count(workers: int) -> int:
    """``workers``, or with -1 one for each core that this process may run on."""
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool(workers: int):
    """Fresh processes, by loky.

    A fork would copy the locks of running thread pools, and multiprocessing's spawn would run the caller's script again
    where it lacks an ``if __name__ == "__main__"``; loky does neither.
    """
    try:
        from loky import ProcessPoolExecutor
    except ImportError as error:
        raise MissingDependencyError(
            "reading files in worker processes needs loky; install it with: pip install 'hdxray-fast[train]', or set "
            "workers to 0"
        ) from error
    return ProcessPoolExecutor(workers)


def write_quarantine(path: str | Path, quarantined: Sequence[Quarantined]) -> None:
    """Write ``path,error,reason`` rows; an empty list leaves a file with the header alone."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "error", "reason"])
        writer.writerows([bad.path, bad.error, bad.reason] for bad in quarantined)
