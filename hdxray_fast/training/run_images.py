"""The radiographs of a run, read by its main process while the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.prepared.cache import CachedImages, fill_cache
from ..data.prepared.sources import Source
from ..data.quarantine import Quarantined, write_quarantine
from ..data.reader_pool import worker_count
from ..errors import ConfigError
from ..ranks import from_main
from ..terminal import counted, visible

if TYPE_CHECKING:
    from .loop import Training


def read_images(
    training: Training, sources: Sequence[Source], cache: Path, *, size: int, contour: str
) -> tuple[CachedImages, list[Quarantined]]:
    """Canvas and contour of every file, from the cache or read now; what is unreadable is listed and set aside.

    Lists what cannot be read in ``unreadable.csv`` in the run's folder, also if that is everything.

    Args:
        training: the run; all of its processes must call this.
        sources: files, in the order that samples are numbered by; of the main process, the others' are not looked at.
        cache: folder, which all processes must share.
        size: canvas side, pixels.
        contour: method of :func:`hdxray_fast.find_contour`.

    Returns:
        The readable images in the order of ``sources``, and the others.

    Raises:
        ConfigError: the cache cannot be made, or is not the same for all processes.
        TrainingError: none can be read, the disk is full, or the main process failed.
    """
    unreadable = training.out / "unreadable.csv"

    def fill() -> tuple[CachedImages, list[Quarantined]]:
        bad: list[Quarantined] = []

        def done(item: Quarantined | None) -> None:
            if item is not None:
                bad.append(item)
            bar.update()

        with training.bar(len(sources), "canvas + contour") as bar:
            try:
                images, bad = fill_cache(
                    cache,
                    sources,
                    size=size,
                    contour=contour,
                    workers=worker_count(training.config.workers),
                    timeout=training.config.timeout,
                    max_memory=training.config.max_memory,
                    on_done=done,
                    on_wait=lambda folder: training.print(f"another run is adding to {folder}; waiting for its end"),
                )
            except Exception:
                with suppress(OSError):  # the first error tells more
                    write_quarantine(unreadable, bad)
                raise
        write_quarantine(unreadable, bad)
        return images, bad

    try:
        images, bad = from_main(fill, training.config.process_timeout)
        images.require_all()
    except ConfigError as error:
        if training.is_main:
            raise
        raise ConfigError(f"cache: {cache} must be a folder that all processes share ({error})") from error
    for item in bad:
        training.print(f"unreadable: {visible(item.path)}: {visible(item.reason)}")
    unsure = ""
    if contour != "rectangle":  # which has no confidence; caches of earlier releases flag it
        unsure = f" {sum(images.column('flagged').to_pylist())} with a contour of low confidence,"
    where = f" in {unreadable}" if bad else ""
    training.print(f"{counted(len(images), 'radiograph')} ready,{unsure} {len(bad)} set aside{where}")
    return images, bad
