"""Batches of a prepared data set, read ahead by threads into memory that is used again and again.

Reading a raw image is one copy from the page cache to its place in the batch, so processes would cost more than they
bring: their batches travel through fresh shared memory, whose first touch takes longer than the copy. Threads do not
hold the interpreter while they read or decode, and a few buffers in turn are touched for the first time only once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ...errors import ArgumentError
from .reading import Prepared, PreparedSet, PreparedSubset
from .worker import PATCH

Batch = dict[str, Tensor]


def empty_batch(count: int, size: int, bits: int = 8, pin: bool = False) -> Batch:
    """Memory for ``count`` images: ``pixels [B, 1, S, S] uint8 | uint16``, ``inside`` and ``valid`` ``[B, G, G] bool``
    (``G = S / 16``), ``scale`` and ``shift`` ``[B] float32``, ``index [B] int64``; pinned for a GPU if asked."""
    grid = size // PATCH
    shapes = {
        "pixels": ((count, 1, size, size), torch.uint16 if bits == 16 else torch.uint8),
        "inside": ((count, grid, grid), torch.bool),
        "valid": ((count, grid, grid), torch.bool),
        "scale": ((count,), torch.float32),
        "shift": ((count,), torch.float32),
        "index": ((count,), torch.int64),
    }
    return {name: torch.empty(shape, dtype=dtype, pin_memory=pin) for name, (shape, dtype) in shapes.items()}


def fill(batch: Batch, place: int, sample: Prepared, row: int) -> None:
    """Copy a sample into a batch."""
    np.copyto(batch["pixels"][place, 0].numpy(), sample.pixels)
    _fill_rest(batch, place, sample, row)


def _fill_rest(batch: Batch, place: int, sample: Prepared, row: int) -> None:
    """All but the pixels."""
    size = batch["pixels"].shape[-1]
    batch["inside"][place] = torch.from_numpy(sample.inside)
    batch["valid"][place] = torch.from_numpy(valid_grid(sample.valid_box, size))
    batch["scale"][place], batch["shift"][place], batch["index"][place] = sample.scale, sample.shift, row


def valid_grid(box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Patches that hold any of the radiograph: ``[S/16, S/16] bool``; as :meth:`hdxray_fast.Canvas.valid_grid`."""
    top, left, height, width = box
    grid = np.zeros((size // PATCH,) * 2, bool)
    grid[top // PATCH : -(-(top + height) // PATCH), left // PATCH : -(-(left + width) // PATCH)] = True
    return grid


def collate(samples: Sequence[Prepared]) -> Batch:
    """For PyTorch's own ``DataLoader(PreparedSet(...), collate_fn=collate)``; ``index`` counts within the batch."""
    size, dtype = samples[0].pixels.shape[0], samples[0].pixels.dtype
    batch = empty_batch(len(samples), size, 8 * dtype.itemsize)
    for place, sample in enumerate(samples):
        fill(batch, place, sample, place)
    return batch


class PreparedLoader:
    """Batches in the order of a sampler: dicts of tensors.

    ``pixels [B, 1, S, S] uint8`` (uint16 of a set of 16 bits), ``inside`` and ``valid`` ``[B, S / 16, S / 16] bool``
    (patches of the chest, and those that are no padding), ``scale`` and ``shift`` ``[B] float32``, ``index [B] int64``.

    A batch is overwritten once the next one is asked for: clone what is to be kept, and with a GPU finish the copy
    (``non_blocking=False``, or an event) before going on.

    Args:
        data: the prepared data set; anything with its ``__getitem__``, ``size`` and ``recipe``.
        batches: lists of rows, all used in order, such as a ``torch.utils.data.BatchSampler``; iterated anew by each
            ``iter(loader)``.
        ahead: batches read before they are asked for; each takes memory.
        threads: that read the images of a batch; 1 is enough for ``raw``.
        pin: page-locked memory, for copies to a GPU.

    Raises:
        ShardError: while iterating, for a damaged image.
    """

    def __init__(
        self,
        data: PreparedSet,
        batches: Iterable[Sequence[int]],
        *,
        ahead: int = 2,
        threads: int = 1,
        pin: bool = False,
    ) -> None:
        if ahead < 1 or threads < 1:
            raise ArgumentError(f"ahead and threads: got {ahead} and {threads}, accepted are numbers from 1 on")
        self.data, self.batches, self.ahead, self.threads, self.pin = data, batches, ahead, threads, pin
        self._free: queue.SimpleQueue[Batch] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        stop = threading.Event()
        waiting: queue.Queue[Future | None] = queue.Queue(self.ahead)
        readers = ThreadPoolExecutor(self.threads, "hdxray-read")
        feeder = threading.Thread(target=self._feed, args=(waiting, readers, stop), daemon=True)
        feeder.start()
        try:
            while (future := waiting.get()) is not None:
                buffer, count = future.result()
                yield buffer if count == len(buffer["index"]) else {name: t[:count] for name, t in buffer.items()}
                self._free.put(buffer)
        finally:
            stop.set()
            while feeder.is_alive():  # it may wait for room
                try:
                    waiting.get(timeout=0.05)
                except queue.Empty:
                    continue
            readers.shutdown()
            self._free = queue.SimpleQueue()

    def _feed(self, waiting: queue.Queue, readers: ThreadPoolExecutor, stop: threading.Event) -> None:
        """One batch after another: a buffer, its images by the readers, then the consumer's queue."""
        try:
            for rows in self.batches:
                if stop.is_set():
                    return
                done: Future = Future()
                try:
                    done.set_result(self._read(list(rows), readers))
                except BaseException as error:  # handed to the consumer
                    done.set_exception(error)
                waiting.put(done)
                if done.exception() is not None:
                    return
        except BaseException as error:  # of the sampler
            failed: Future = Future()
            failed.set_exception(error)
            waiting.put(failed)
        finally:
            waiting.put(None)

    def _read(self, rows: list[int], readers: ThreadPoolExecutor) -> tuple[Batch, int]:
        buffer = self._buffer(len(rows))
        jobs = [readers.submit(self._read_one, buffer, place, row) for place, row in enumerate(rows)]
        for job in jobs:
            job.result()
        return buffer, len(rows)

    def _read_one(self, buffer: Batch, place: int, row: int) -> None:
        if isinstance(self.data, (PreparedSet, PreparedSubset)):
            sample = self.data.read(row, buffer["pixels"][place, 0].numpy())
            _fill_rest(buffer, place, sample, row)
        else:
            fill(buffer, place, self.data[row], row)

    def _buffer(self, count: int) -> Batch:
        """A buffer that nobody reads from: one that came back, or a new one."""
        while not self._free.empty():
            buffer = self._free.get()
            if len(buffer["index"]) >= count:
                return buffer
        return empty_batch(count, self.data.size, self.data.recipe["bits"], self.pin)
