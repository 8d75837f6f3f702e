"""The cache of training runs: read once, found again, made again where it is damaged, never in another's way."""

from __future__ import annotations

import copy
import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from cache_helpers import cached, names, same_images, sources_of
from toy_radiographs import draw_radiograph
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared import cache as cache_module
from hdxray_fast.data.prepared.cache import fill_cache
from hdxray_fast.data.prepared.cached import cache_key
from hdxray_fast.data.prepared.index import merge
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.data.quarantine import write_quarantine
from hdxray_fast.errors import ConfigError, ImageReadError, TrainingError

pytest.importorskip("pyarrow")

NAME = "128-rectangle"  # of the cache below its folder


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_set_aside_with_reasons_and_the_rest_is_cached(radiographs, tmp_path, workers):
    (radiographs / "empty.png").touch()
    (radiographs / "text.png").write_text("this is not an image")
    paths = list_images(radiographs)
    seen = []
    images, bad = cached(paths, tmp_path / "cache", workers=workers, on_done=seen.append)
    assert images.sources() == [str(radiographs / f"{i}.png") for i in range(5)]
    assert sorted(names(bad)) == ["empty.png", "text.png"]
    assert len(seen) == 7
    for item in bad:
        with pytest.raises(hx.ImageReadError) as caught:
            hx.read_canvas(item.path)
        assert (item.error, item.reason) == (type(caught.value).__name__, caught.value.reason)
    assert sorted(names(item for item in seen if item)) == ["empty.png", "text.png"]
    write_quarantine(tmp_path / "q.csv", bad)
    with open(tmp_path / "q.csv", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [item.path for item in bad]
    for image, path in zip(images, images.sources(), strict=True):
        canvas = hx.read_canvas(path, size=128)
        assert image.pixels.dtype == np.uint8 and np.array_equal(image.pixels, canvas.pixels)
        assert image.valid_box == canvas.valid_box
        np.testing.assert_array_equal(image.polygon, np.float32(hx.find_contour(canvas, method="rectangle").polygon))


def test_second_run_reads_the_cache_and_a_damaged_cache_is_made_again(radiographs, tmp_path, reads):
    paths = list_images(radiographs)
    first, _ = cached(paths, tmp_path / "cache")
    assert sorted(reads) == names(paths)
    before = [first[place] for place in range(5)]
    reads.clear()
    again, _ = cached(paths, tmp_path / "cache")
    assert not reads and same_images(again, before)
    (pixels,) = (tmp_path / "cache" / NAME / "shards").glob("*.bin")
    os.truncate(pixels, 100)
    repaired, _ = cached(paths, tmp_path / "cache")
    assert sorted(reads) == names(paths) and same_images(repaired, before)
    assert pixels.stat().st_size == 0  # its number stays taken
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["shards/00000.parquet", "settings.json", "lookup.arrow", "index.parquet"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 60)])
def test_damaged_lists_are_made_again(radiographs, tmp_path, name, damage):
    paths = list_images(radiographs)
    first, _ = cached(paths, tmp_path / "cache")
    before = copy.deepcopy([first[place] for place in range(5)])  # contours are views of lookup.arrow
    del first
    damage(tmp_path / "cache" / NAME / name)
    assert same_images(cached(paths, tmp_path / "cache")[0], before)
    (radiographs / "5.png").write_bytes((radiographs / "1.png").read_bytes())
    more, _ = cached(list_images(radiographs), tmp_path / "cache")
    assert len(more) == 6
    assert len(PreparedSet(tmp_path / "cache" / NAME).index) == 6  # whatever was damaged is whole again


def test_a_flipped_byte_is_noticed_read_from_the_file_and_cached_again(radiographs, tmp_path, reads):
    paths = list_images(radiographs)
    first, _ = cached(paths, tmp_path / "cache")
    before = [first[place] for place in range(5)]
    (pixels,) = (tmp_path / "cache" / NAME / "shards").glob("*.bin")
    content = bytearray(pixels.read_bytes())
    content[2 * 128 * 128 + 77] ^= 1
    pixels.write_bytes(content)
    again, _ = cached(paths, tmp_path / "cache")
    reads.clear()
    with pytest.warns(UserWarning, match=r"00000\.bin: is damaged or gone; its images are read from their own files"):
        assert same_images(again, before)
    assert reads == ["2.png"]
    reads.clear()
    assert same_images(cached(paths, tmp_path / "cache")[0], before)
    assert sorted(reads) == names(paths)  # the shard was made again, under a new number
    reads.clear()
    assert same_images(cached(paths, tmp_path / "cache")[0], before) and not reads


@pytest.mark.filterwarnings("ignore:.*is damaged or gone")
def test_what_the_cache_and_the_file_have_lost_is_an_error_that_names_it(radiographs, tmp_path):
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.bin"):
        path.unlink()
    (radiographs / "1.png").unlink()
    assert images[0].pixels.shape == (128, 128)
    with pytest.raises(ImageReadError, match=r"1\.png: "):
        images[1]


@pytest.mark.filterwarnings("ignore:.* is damaged or gone")
def test_a_file_that_changed_does_not_stand_in_for_what_the_cache_has_lost(radiographs, tmp_path):
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    (tmp_path / "cache" / NAME / "shards" / "00000.bin").unlink()
    (radiographs / "1.png").write_bytes((radiographs / "2.png").read_bytes())
    assert images[0].pixels.shape == (128, 128)
    with pytest.raises(ImageReadError, match=r"1\.png: the cache has lost it, and the file has changed since"):
        images[1]


def test_a_changed_file_is_read_again_and_others_are_not(radiographs, tmp_path, reads):
    paths = list_images(radiographs)
    cached(paths, tmp_path / "cache")
    reads.clear()
    (radiographs / "0.png").write_bytes((radiographs / "1.png").read_bytes())
    after, _ = cached(paths, tmp_path / "cache")
    assert reads == ["0.png"]
    assert np.array_equal(after[0].pixels, after[1].pixels)  # copies are kept


def test_new_files_are_added_and_other_sizes_have_a_cache_of_their_own(radiographs, tmp_path, reads):
    cached(list_images(radiographs), tmp_path / "cache")
    reads.clear()
    cv2.imwrite(str(radiographs / "05.png"), draw_radiograph(9))
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    assert reads == ["05.png"]
    assert names(images.sources()) == ["0.png", "05.png", "1.png", "2.png", "3.png", "4.png"]  # in the list's order
    for image, path in zip(images, images.sources(), strict=True):
        assert np.array_equal(image.pixels, hx.read_canvas(path, size=128).pixels)
    for place, (inside, valid) in enumerate(zip(*images.shares_by_image(), strict=True)):
        canvas = hx.read_canvas(images.source(place), size=128)
        assert inside == hx.find_contour(canvas, method="rectangle").inside.mean()
        assert valid == canvas.valid_grid().mean()
    part = images.subset([3, 1])
    assert names(part.sources()) == ["2.png", "05.png"] and part.keys == [images.keys[3], images.keys[1]]
    assert np.array_equal(part[1].pixels, images[1].pixels)
    assert part.hashes() == [images.hashes()[3], images.hashes()[1]]
    for changes in ({"size": 64}, {"contour": "classical"}):
        reads.clear()
        cached(list_images(radiographs), tmp_path / "cache", **changes)
        assert len(reads) == 6
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "128-classical", "128-rectangle", "64-rectangle"
    ]  # fmt: skip


def test_a_bad_file_is_tried_again_and_leaves_nothing_behind(radiographs, tmp_path, reads):
    (radiographs / "bad.png").write_text("no picture")
    paths = [*list_images(radiographs), radiographs / "gone.png"]
    _, bad = cached(paths, tmp_path / "cache")
    assert names(bad) == ["bad.png", "gone.png"]
    before = sorted((tmp_path / "cache").rglob("*"))
    reads.clear()
    assert cached(paths, tmp_path / "cache")[1] == bad
    assert reads == ["bad.png", "gone.png"] and sorted((tmp_path / "cache").rglob("*")) == before


def test_lists_of_other_runs_share_the_cache(radiographs, tmp_path, reads, monkeypatch):
    monkeypatch.chdir(radiographs)
    cached(["3.png", "0.png"], tmp_path / "cache")
    images, _ = cached(["1.png", "0.png", str(radiographs / "3.png")], tmp_path / "cache")
    assert reads == ["3.png", "0.png", "1.png"]
    assert images.sources() == ["1.png", "0.png", str(radiographs / "3.png")]  # as this run names them
    assert [np.array_equal(images[i].pixels, hx.read_canvas(p, size=128).pixels) for i, p in
            enumerate(images.sources())] == [True] * 3  # fmt: skip


def test_keys_are_those_of_the_first_caches(tmp_path):
    """Features that a run kept beside its cache are found again by them."""
    path = tmp_path / "a.png"
    path.write_bytes(b"123")
    os.utime(path, ns=(10**18, 10**18))
    import hashlib

    text = json.dumps([2, str(path), [3, 10**18], 128, "network"])
    (source,) = sources_of([path])
    assert cache_key(source, 128, "network") == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_all_unreadable_is_a_clear_error(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("nothing here")
    with pytest.raises(TrainingError, match=r"none of the 1 files.*bad\.png"):
        cached([bad], tmp_path / "cache")


def test_patients_are_not_kept(tmp_path):
    pytest.importorskip("pydicom")
    path = dicom(tmp_path / "x.dcm", draw_radiograph(1).astype(np.uint16), PatientID="SECRET-ID-77")
    images, bad = cached([path], tmp_path / "cache")
    assert not bad
    assert PreparedSet(tmp_path / "cache" / NAME).index.column("patient").to_pylist() == [""]
    assert len(images) == 1


def test_a_reader_that_dies_costs_one_file_and_no_more(radiographs, tmp_path, monkeypatch):
    """The one file whose reader is killed is set aside; those that waited behind it are read all the same."""
    pytest.importorskip("loky")
    pytest.importorskip("pebble")
    site = tmp_path / "site"
    site.mkdir()
    (site / "dies_on_2.py").write_text(
        "import os, sys\n"
        "from hdxray_fast.data.prepared import worker\n"
        "def prepare_source(source, recipe, key):\n"
        "    assert 'torch' not in sys.modules\n"
        "    if source.path.endswith('2.png'): os.kill(os.getpid(), 9)\n"
        "    return worker.prepare_source(source, recipe, key)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(site))
    import dies_on_2

    from hdxray_fast.data.prepared import pool

    monkeypatch.setattr(pool, "prepare_source", dies_on_2.prepare_source)
    images, bad = cached(list_images(radiographs), tmp_path / "cache", workers=2)
    assert names(bad) == ["2.png"]
    assert "died" in bad[0].reason and bad[0].error == "BrokenProcessPool"
    assert len(images) == 4


def test_a_script_without_a_main_guard_works(radiographs, tmp_path):
    pytest.importorskip("loky")
    pytest.importorskip("pebble")
    script = tmp_path / "script.py"
    script.write_text(
        "from hdxray_fast.data.listing import list_images\n"
        "from hdxray_fast.data.prepared.cache import fill_cache\n"
        "from hdxray_fast.data.prepared.sources import Source\n"
        f"files = [Source(str(path)) for path in list_images({str(radiographs)!r})]\n"
        f"done, bad = fill_cache({str(tmp_path / 'cache')!r}, files, size=128, contour='rectangle', workers=2)\n"
        "print('ready', len(done))\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ran.stdout == "ready 5\n", ran.stderr


def test_reading_in_this_process_needs_no_pool(radiographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pebble", None)
    assert len(cached(list_images(radiographs), tmp_path / "cache", workers=0)[0]) == 5
    with pytest.raises(hx.MissingDependencyError, match=r"needs pebble; .*pip install '\w.*or set workers to 0"):
        cached(list_images(radiographs), tmp_path / "other", workers=1)


def test_another_process_finds_its_images_after_the_cache_has_grown(radiographs, tmp_path):
    images, _ = cached(list_images(radiographs)[3:], tmp_path / "cache")
    sent = pickle.dumps(images)
    (tmp_path / "cache" / NAME / "shards" / "00000.bin").unlink()
    more, _ = cached(list_images(radiographs), tmp_path / "cache")
    assert same_images(pickle.loads(sent), [more[3], more[4]])


def test_a_cache_is_no_data_set_to_prepare_or_merge(radiographs, tmp_path):
    from hdxray_fast.data.prepared.config import PrepareConfig
    from hdxray_fast.data.prepared.run import run_prepare

    cached(list_images(radiographs), tmp_path / "cache")
    folder = tmp_path / "cache" / NAME
    with pytest.raises(ConfigError, match="is the cache of a training run"):
        merge(folder)
    with pytest.raises(ConfigError, match="is the cache of a training run"):
        run_prepare(PrepareConfig([str(radiographs)], str(folder), img_size=128, workers=0, view="any"), progress=False)


COMMAND = (
    "import sys; from pathlib import Path; from hdxray_fast.data.prepared import cache\n"
    "from hdxray_fast.data.prepared.sources import Source\n"
    "cache.SHARD_SIZE = 3\n"
    "files = [Source(str(path)) for path in sorted(Path(sys.argv[1]).glob(sys.argv[3]))]\n"
    "found, _ = cache.fill_cache(sys.argv[2], files, size=128, contour='rectangle', workers=int(sys.argv[4]))\n"
    "print(len(found))"
)


def filling(folder: Path, cache: Path, pattern: str = "*.png", workers: int = 0, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, str(folder), str(cache), pattern, str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def many(tmp_path) -> Path:
    """Forty radiographs."""
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(40):
        cv2.imwrite(str(folder / f"{seed:02d}.png"), draw_radiograph(seed))
    return folder


def test_runs_that_share_a_cache_wait_for_each_other(many, tmp_path, reads):
    pytest.importorskip("filelock")
    runs = [filling(many, tmp_path / "cache", pattern) for pattern in ("*.png", "[012]*.png", "[123]*.png")]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [out for out, _ in outputs] == ["40\n", "30\n", "30\n"], outputs
    assert len(PreparedSet(tmp_path / "cache" / NAME)) == 40  # each file was read once
    images, _ = cached(sorted(many.glob("*.png")), tmp_path / "cache")
    assert not reads
    for image, path in zip(images, images.sources(), strict=True):
        assert np.array_equal(image.pixels, hx.read_canvas(path, size=128).pixels)


def test_another_run_is_waited_for_and_said_so(radiographs, tmp_path):
    cached(list_images(radiographs)[:1], tmp_path / "cache")
    hold = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "cache" / NAME / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    waited = []

    def tell(folder):
        waited.append(folder)
        other.stdin.close()  # its end

    assert len(cached(list_images(radiographs)[:1], tmp_path / "cache", on_wait=tell)[0]) == 1
    assert not waited  # nothing to add
    assert len(cached(list_images(radiographs), tmp_path / "cache", on_wait=tell)[0]) == 5
    assert waited == [tmp_path / "cache" / NAME] and other.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_while_reading_leaves_something_to_go_on_with(many, tmp_path, reads, workers):
    """Killed twice at moments nobody chose; what was whole is not read again."""
    cache = tmp_path / "cache"
    for target in (2, 6):
        run = filling(many, cache, workers=workers, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and run.poll() is None:
            if len(list((cache / NAME / "shards").glob("*.parquet"))) >= target:
                break
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    whole = len(list((cache / NAME / "shards").glob("*.parquet")))
    assert whole >= 2
    images, bad = cached(sorted(many.glob("*.png")), cache)
    assert len(images) == 40 and not bad and len(reads) <= 40 - 3 * 2
    assert not list(cache.rglob("*.tmp"))
    for image, path in zip(images, images.sources(), strict=True):
        assert np.array_equal(image.pixels, hx.read_canvas(path, size=128).pixels)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_named_and_the_next_run_goes_on(radiographs, tmp_path):
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        f"{COMMAND}"
    )
    command = [sys.executable, "-B", "-c", script, str(radiographs), str(tmp_path / "cache"), "*.png", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert f"TrainingError: {tmp_path / 'cache' / NAME}: cannot be written (File too large)" in last
    assert "what is done is kept, start again" in last
    assert len(cached(list_images(radiographs), tmp_path / "cache")[0]) == 5
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_cache_that_cannot_be_made_is_named(radiographs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache: cannot make the folder .*file"):
        cached(list_images(radiographs), tmp_path / "file")


def test_members_of_archives_are_cached_like_files(radiographs, tmp_path):
    import zipfile

    from hdxray_fast.data.prepared.sources import list_sources

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(3):
            archive.write(radiographs / f"{number}.png", f"in/{number}.png")
    sources = list_sources([tmp_path / "all.zip"])
    images, _ = fill_cache(tmp_path / "cache", sources, size=128, contour="rectangle")
    files, _ = cached(list_images(radiographs)[:3], tmp_path / "cache")
    assert same_images(images, files) and len(PreparedSet(tmp_path / "cache" / NAME)) == 6
    assert len(set(images.keys + files.keys)) == 6
    for path in (tmp_path / "cache").rglob("*.bin"):
        path.unlink()
    with pytest.warns(UserWarning, match="is damaged or gone"):
        assert same_images(images, files)  # read from the archive and from the files


def test_shards_are_small_enough_to_lose(radiographs, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_SIZE", 2)
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin"))
    assert sizes == [128 * 128, 2 * 128 * 128, 2 * 128 * 128] and len(images) == 5


def test_a_flipped_byte_in_the_list_of_contours_is_noticed(radiographs, tmp_path):
    paths = list_images(radiographs)
    first, _ = cached(paths, tmp_path / "cache")
    before = copy.deepcopy([first[place] for place in range(5)])
    del first
    lookup = tmp_path / "cache" / NAME / "lookup.arrow"
    whole = bytearray(lookup.read_bytes())
    for place in range(0, len(whole), 97):
        whole[place] ^= 0x40
        lookup.write_bytes(whole)
        whole[place] ^= 0x40
        again, _ = cached(paths, tmp_path / "cache")
        assert same_images(again, before), place


@pytest.mark.parametrize("content", ["[]", "null", '{"format": "hdxray_fast.prepared"}', "{"])
def test_settings_of_another_kind_are_written_again(radiographs, tmp_path, content):
    paths = list_images(radiographs)
    cached(paths, tmp_path / "cache")
    (tmp_path / "cache" / NAME / "settings.json").write_text(content)
    again, bad = cached(paths, tmp_path / "cache")
    assert len(again) == 5 and not bad
    assert json.loads((tmp_path / "cache" / NAME / "settings.json").read_text())["recipe"]["size"] == 128


def test_a_refusal_of_the_system_costs_no_shard(radiographs, tmp_path, reads, monkeypatch):
    """Too many open files, say: the image is read from its file, and the cache stays as it is."""
    paths = list_images(radiographs)
    images, _ = cached(paths, tmp_path / "cache")
    before = copy.deepcopy([images[place] for place in range(5)])
    real = Path.open

    def refuse(path, *more, **options):
        if path.suffix == ".bin":
            raise OSError(24, "Too many open files", str(path))
        return real(path, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert same_images([images[0]], before[:1])
    reads.clear()
    again, _ = cached(paths, tmp_path / "cache")
    assert not reads and same_images(again, before)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_of_any_bytes_are_read(radiographs, tmp_path):
    os.rename(radiographs / "0.png", os.fsencode(radiographs) + b"/gr\xf6\xdfe.png")
    (radiographs / "bad.png").write_text("no picture")
    os.rename(radiographs / "bad.png", os.fsencode(radiographs) + b"/b\xf6se.png")
    for _ in range(2):
        images, bad = cached(list_images(radiographs), tmp_path / "cache")
        assert len(images) == 5 and len(bad) == 1
    write_quarantine(tmp_path / "quarantine.csv", bad)
    assert r"b\xf6se.png" in (tmp_path / "quarantine.csv").read_text()
