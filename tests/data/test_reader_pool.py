"""The pool of readers: results in order, whatever a file does to its reader; workers that never import torch."""

from __future__ import annotations

import gc
import os
import signal
import sys

import numpy as np
import pytest
from cache_helpers import cached, sources_of
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared.cache import recipe_of
from hdxray_fast.data.quarantine import Quarantined
from hdxray_fast.data.radiographs import Radiograph, read_ahead
from hdxray_fast.data.reader_pool import Failed, Known, call_in_order, worker_count

MODULE = """
import os, sys, time
from hdxray_fast.data.prepared.worker import prepare_source
from hdxray_fast.data.radiographs import read_radiograph

def behave(word):
    if word == "hang": time.sleep(60)
    if word == "exit": os._exit(9)
    if word == "eat": return len(bytearray(8 << 30))
    if word == "late": time.sleep(0.5)
    return word.upper()

def call(function, *arguments):
    return function(*arguments)

def wait_for_others(folder, count):
    while len(os.listdir(folder)) < count: time.sleep(0.01)
    return sorted(os.listdir(folder))

def note(folder, name):
    open(os.path.join(folder, name), "w").close()
    return name

def prepare(source, recipe, key):
    row = prepare_source(source, recipe, key)
    assert "torch" not in sys.modules, "a reader imported torch"
    return row

def radiograph(image, source, *settings):
    if source.endswith("2.png"): os.kill(os.getpid(), 9)
    read = read_radiograph(image, source, *settings)
    assert "torch" not in sys.modules, "a reader imported torch"
    return read

def modules():
    return sorted(name for name in sys.modules if name.partition(".")[0] == "torch")
"""


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Functions that worker processes can import."""
    pytest.importorskip("loky")
    pytest.importorskip("pebble")
    site = tmp_path / "site"
    site.mkdir()
    (site / "some_reading.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(site))
    import some_reading

    yield some_reading
    del sys.modules["some_reading"]


def test_results_come_in_order_and_what_misbehaves_costs_itself_alone(reading):
    words = ["late", "a", "hang", "b", "exit", "c", "eat", "d"]
    jobs = [(word,) for word in words] + [Known("known already"), ("e",)]
    found = list(call_in_order(reading.behave, jobs, workers=2, timeout=5.0, max_memory=1024))
    assert [item for item in found if not isinstance(item, Failed)] == [
        "LATE", "A", "B", "C", "D", "known already", "E"
    ]  # fmt: skip
    hung, died, ate = found[2], found[4], found[6]
    assert hung == Failed("TimeoutError", "takes longer than 5 s")
    assert died.error == "BrokenProcessPool" and "died" in died.reason
    if sys.platform.startswith("linux"):
        assert ate == Failed("MemoryError", "needs more memory than one file may take (1024 MiB)")


def test_jobs_are_asked_for_as_they_are_needed(reading):
    asked = []

    def jobs():
        for number in range(100):
            asked.append(number)
            yield (f"{number}x",)

    results = call_in_order(reading.behave, jobs(), workers=1, ahead=2)
    assert next(results) == "0X" and len(asked) <= 4
    results.close()  # ends the worker
    alone = call_in_order(str.upper, iter([("a",), Known("b"), ("c",)]), workers=0)
    assert list(alone) == ["A", "b", "C"]


def test_a_call_that_takes_long_stops_no_other(reading, tmp_path):
    """The first ends when those behind it have: the workers go on with them, with as many as are allowed."""
    asked, folder = [], tmp_path / "done"
    folder.mkdir()

    def jobs():
        yield reading.wait_for_others, str(folder), 39
        for number in range(100):
            asked.append(f"{number:03d}")
            yield reading.note, str(folder), asked[-1]

    results = call_in_order(reading.call, jobs(), workers=2, timeout=50.0, ahead=20, queued=2)
    assert next(results) == asked == [f"{number:03d}" for number in range(39)]
    assert list(results) == asked and len(asked) == 100


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_reader_ends_at_once_when_it_is_told_to(reading):
    """Python's own handler would wait for the end of a decoder that hangs, and the pool for that."""
    assert list(call_in_order(signal.getsignal, [(signal.SIGTERM,)], workers=1)) == [signal.SIG_DFL]


def test_readers_never_import_torch(reading, radiographs):
    assert "torch" in sys.modules  # here
    assert list(call_in_order(reading.modules, [()], workers=1)) == [[]]
    recipe = recipe_of(128, "network")
    (row,) = call_in_order(reading.prepare, [(*sources_of([radiographs / "0.png"]), recipe, None)], workers=1)
    assert row.status == "ok"
    arguments = (str(radiographs / "0.png"), "0.png", 128, 16, "network")
    (read,) = call_in_order(reading.radiograph, [arguments], workers=1)
    assert isinstance(read, Radiograph)


def test_embedding_goes_on_without_a_file_that_kills_its_reader(reading, radiographs, tmp_path, monkeypatch):
    """The pool of the cache and of ``prepare`` is that of ``embed``, too."""
    from hdxray_fast.data import radiographs as module

    monkeypatch.setattr(module, "read_radiograph", reading.radiograph)
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=128, depth=1, embed_dim=24, num_heads=3, contour="rectangle"
    )
    result = hx.embed(radiographs, encoder, workers=2)
    assert [os.path.basename(path) for path in result.sources] == ["0.png", "1.png", "3.png", "4.png"]
    (bad,) = result.quarantined
    assert (os.path.basename(bad.path), bad.error) == ("2.png", "BrokenProcessPool") and "died" in bad.reason


def test_arrays_and_files_are_read_ahead_in_order(radiographs):
    pytest.importorskip("pebble")
    (radiographs / "bad.png").write_text("no picture")
    paths = [str(path) for path in list_images(radiographs)]
    jobs = [*((path, path) for path in paths), (draw_radiograph(0), "<array 0>")]
    found = list(read_ahead(jobs, 128, 16, workers=2))
    assert [item.path if isinstance(item, Quarantined) else item.source for item in found] == [*paths, "<array 0>"]
    assert [isinstance(item, Quarantined) for item in found] == [False] * 5 + [True, False]
    assert np.array_equal(found[0].pixels, found[-1].pixels)


def test_workers_and_caches_agree(radiographs, tmp_path):
    """What ``embed`` sees of a file is what training sees."""
    images, _ = cached(list_images(radiographs), tmp_path / "cache", contour="network")
    paths = [(path, path) for path in images.sources()]
    for cached_image, read in zip(images, read_ahead(paths, 128, 16, workers=0), strict=True):
        assert np.array_equal(cached_image.pixels, read.pixels)
        assert np.array_equal(cached_image.inside, read.inside)
        assert cached_image.scale == pytest.approx(read.scale) and cached_image.shift == pytest.approx(read.shift)


def test_how_many_workers():
    assert worker_count(0) == 0 and worker_count(3) == 3 and worker_count(-1) >= 1


def test_locks_are_there_until_the_last_worker_has_ended(monkeypatch):
    """One that is only starting when the last file is done takes them up, and would print a traceback without."""
    synchronize = pytest.importorskip("loky.backend.synchronize")
    manager = pytest.importorskip("pebble.pool.process").WorkerManager
    stop, unlink, make_name = manager.force_stop_workers, synchronize.sem_unlink, synchronize.SemLock._make_name
    made, events = [], []

    def stopping(*arguments):
        events.append("stopped")
        return stop(*arguments)

    def unlinking(name):
        if name in made:  # and of no other pool, whose locks may go at any time
            events.append("unlinked")
        return unlink(name)

    def naming():
        made.append(make_name())
        return made[-1]

    monkeypatch.setattr(manager, "force_stop_workers", stopping)
    monkeypatch.setattr(synchronize, "sem_unlink", unlinking)
    monkeypatch.setattr(synchronize.SemLock, "_make_name", staticmethod(naming))
    assert list(call_in_order(abs, [(-1,)], workers=1)) == [1]
    gc.collect()
    assert events == ["stopped", "unlinked", "unlinked"]
