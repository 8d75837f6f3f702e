"""A cache that others change while a run reads it, that cannot be written, or that names bad files."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from cache_helpers import cached, names, same_images
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.data.listing import list_images
from hdxray_fast.data.prepared import cache as cache_module
from hdxray_fast.data.prepared.cached import CachedSet
from hdxray_fast.errors import ConfigError, ImageReadError, TrainingError

pytest.importorskip("pyarrow")

NAME = "128-rectangle"  # of the cache below its folder


def waits(folder: Path) -> None:
    raise AssertionError(f"{folder}: another run is waited for")


@pytest.fixture
def with_a_bad_one(radiographs) -> list[Path]:
    """Five radiographs and a file that is none."""
    (radiographs / "bad.png").write_text("no picture")
    return list_images(radiographs)


# --- bad files --------------------------------------------------------------------------------------------------------


def test_a_known_bad_file_is_tried_again_without_waiting_for_anybody(with_a_bad_one, tmp_path, reads):
    filelock = pytest.importorskip("filelock")
    first, bad = cached(with_a_bad_one, tmp_path / "cache")
    reads.clear()
    with filelock.FileLock(tmp_path / "cache" / NAME / ".lock"):
        again, still_bad = cached(with_a_bad_one, tmp_path / "cache", on_wait=waits)
    assert reads == ["bad.png"] and still_bad == bad and same_images(again, first)


def test_a_bad_file_that_can_be_read_by_now_is_cached(with_a_bad_one, tmp_path, reads, monkeypatch):
    """The same file: a decoder was installed, or there is more memory."""
    from hdxray_fast.data.prepared import worker

    read = worker.read

    def cannot(source, *more):
        if source.path.endswith("3.png"):
            raise ImageReadError(source.path, "no decoder")
        return read(source, *more)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "read", cannot)
        for _ in range(2):
            assert names(cached(with_a_bad_one, tmp_path / "cache")[1]) == ["3.png", "bad.png"]
    done = []
    images, bad = cached(with_a_bad_one, tmp_path / "cache", on_done=done.append)
    assert names(bad) == ["bad.png"] and len(images) == 5 and len(done) == 6
    reads.clear()
    assert len(cached(with_a_bad_one, tmp_path / "cache")[0]) == 5 and reads == ["bad.png"]


def test_a_cache_that_cannot_be_written_serves_a_run_with_a_new_bad_file(with_a_bad_one, tmp_path, monkeypatch):
    good = with_a_bad_one[:-1]
    first, _ = cached(good, tmp_path / "cache")
    before = sorted((tmp_path / "cache").rglob("*"))
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))

    def access(path, mode):
        return not mode & os.W_OK

    def refuse(*arguments, **options):
        raise refused

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(pytest.importorskip("filelock").FileLock, "acquire", refuse)
    images, bad = cached(with_a_bad_one, tmp_path / "cache")
    assert same_images(images, first) and names(bad) == ["bad.png"]
    assert sorted((tmp_path / "cache").rglob("*")) == before
    cv2.imwrite(str(with_a_bad_one[-1]), draw_radiograph(9))
    with pytest.raises(TrainingError, match=r"128-rectangle: cannot be written \(Read-only file system\)"):
        cached(with_a_bad_one, tmp_path / "cache")


@pytest.mark.parametrize("times", [1, 2])
def test_every_file_is_told_of_once_however_often_it_is_named(with_a_bad_one, tmp_path, times):
    twice = [*with_a_bad_one, with_a_bad_one[0], with_a_bad_one[-1]]
    for _ in range(times):
        done = []
        _, bad = cached(twice, tmp_path / "cache", on_done=done.append)
    assert len(done) == len(twice) and [item for item in done if item] == bad and len(bad) == 2


def test_reasons_are_not_those_of_another_command(tmp_path):
    frames = [draw_radiograph(1), draw_radiograph(2)]
    assert cv2.imwritemulti(str(tmp_path / "pages.tiff"), frames)
    cv2.imwrite(str(tmp_path / "one.png"), frames[0])
    _, (bad,) = cached([tmp_path / "one.png", tmp_path / "pages.tiff"], tmp_path / "cache")
    assert bad.reason == "holds 2 frames; only files of a single frame are read"


# --- changed by others ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_SIZE", 2)


@pytest.fixture
def of_many_heights(tmp_path) -> list[Path]:
    """Five radiographs of as many heights, which an index tells of."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(5):
        cv2.imwrite(str(folder / f"{seed}.png"), draw_radiograph(seed, height=130 + seed))
    return list_images(folder)


def test_columns_of_the_index_are_those_of_the_images_or_an_error(of_many_heights, tmp_path, small_shards):
    images, _ = cached(of_many_heights[:4], tmp_path / "cache")
    cached(of_many_heights, tmp_path / "cache")  # another run adds a shard
    assert images.column("height").to_pylist() == [130, 131, 132, 133]
    assert images.images.index.column("height").to_pylist() == [130, 131, 132, 133]
    (tmp_path / "cache" / NAME / "shards" / "00000.parquet").unlink()
    cached(of_many_heights, tmp_path / "cache")  # another run buries the first shard, and its images come last
    assert cached(of_many_heights, tmp_path / "cache")[0].column("height").to_pylist() == [130, 131, 132, 133, 134]
    with pytest.raises(ConfigError, match=r"index\.parquet: lacks 2 of 4 images that the cache held"):
        images.column("height")
    assert len(images.column("flagged")) == 4  # kept with the set


@pytest.mark.filterwarnings("ignore:.*is damaged or gone")
def test_a_cache_that_was_removed_and_filled_anew_keeps_its_shards(radiographs, tmp_path, reads):
    paths = list_images(radiographs)
    images, _ = cached(paths, tmp_path / "cache")
    before = [images[place] for place in range(5)]
    shutil.rmtree(tmp_path / "cache")
    cached(paths[::-1], tmp_path / "cache")  # another run's order
    assert same_images(images, before)
    reads.clear()
    assert same_images(cached(paths, tmp_path / "cache")[0], before) and not reads


@pytest.mark.filterwarnings("ignore:.*is damaged or gone")
def test_what_is_lost_is_read_once(radiographs, tmp_path, reads):
    """Not at each visit, by this set, by parts of it, and by none that another process opens."""
    paths = list_images(radiographs)
    images, _ = cached(paths, tmp_path / "cache")
    before = [images[place] for place in range(5)]
    for path in (tmp_path / "cache").rglob("*.bin"):
        path.unlink()
    reads.clear()
    for _ in range(3):
        assert same_images(images, before)
        assert same_images(images.subset([3, 1]), [before[3], before[1]])
    assert sorted(reads) == names(paths)
    assert not images[0].pixels.flags.writeable  # nobody can change what the next visit sees
    assert len(pickle.dumps(images)) < 128 * 128


def test_as_many_lost_images_as_a_shard_holds_are_remembered(radiographs, tmp_path, reads, monkeypatch):
    from hdxray_fast.data.prepared import cached as reading

    monkeypatch.setattr(reading, "REMEMBERED", 2)
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    reads.clear()
    with pytest.warns(UserWarning, match="is damaged or gone"):
        assert len([*images, *images]) == 10
    assert len(reads) == 5 + 3


def test_another_process_reads_the_files_if_the_cache_is_gone(radiographs, tmp_path):
    """A worker that is spawned opens the cache itself."""
    images, _ = cached(list_images(radiographs), tmp_path / "cache")
    before = [images[place] for place in range(5)]
    sent = pickle.dumps(images)
    shutil.rmtree(tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"settings\.json: is missing.*; the images of this run are read from"):
        there = pickle.loads(sent)
    assert (there.size, there.recipe, len(there)) == (128, images.recipe, 5)
    assert same_images(there, before) and there.sources() == images.sources()
    assert same_images(there.subset([2]), [before[2]])
    for ask in (there.hashes, there.shares_by_image, there.require_all, lambda: there.column("flagged")):
        with pytest.raises(ConfigError, match="128-rectangle: lacks 5 of the images of this run; start it again"):
            ask()
    cached(list_images(radiographs), tmp_path / "cache")
    assert len(pickle.loads(sent).hashes()) == 5
    assert len(CachedSet(tmp_path / "cache" / NAME)) == 5


# --- file systems without locks ---------------------------------------------------------------------------------------


@pytest.fixture
def no_locks(monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(fd, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_cache_without_locks_is_filled_and_said_so(radiographs, tmp_path, no_locks):
    with pytest.warns(UserWarning, match=r"128-rectangle: its file system has no locks, so nothing keeps another"):
        images, _ = cached(list_images(radiographs), tmp_path / "cache")
    assert len(images) == 5 and np.isfinite(images[0].scale)


def test_a_data_set_without_locks_is_prepared_and_said_so(radiographs, tmp_path, no_locks):
    from prepared_helpers import prepare

    with pytest.warns(UserWarning, match=r"set: its file system has no locks"):
        assert prepare([radiographs], tmp_path / "set").summary["images"] == 5


# --- files whose content changes behind their size and date -----------------------------------------------------------
def rewrite(path: Path, pixels: np.ndarray) -> None:
    """As a copy with its date kept does: other pixels, the same size and date."""
    before = path.stat()
    np.save(path, pixels)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def arrays(tmp_path) -> list[Path]:
    paths = [tmp_path / "files" / f"{number}.npy" for number in range(3)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        np.save(path, draw_radiograph(number))
    return paths


def test_content_that_changed_behind_size_and_date_is_read_again(arrays, tmp_path, reads):
    first, _ = cached(arrays, tmp_path / "cache")
    reads.clear()
    cached(arrays, tmp_path / "cache")
    assert not reads
    rewrite(arrays[1], draw_radiograph(7))
    again, _ = cached(arrays, tmp_path / "cache")
    assert reads == ["1.npy"]
    assert [a == b for a, b in zip(first.checksums(), again.checksums(), strict=True)] == [True, False, True]
    assert np.array_equal(again[1].pixels, hx.read_canvas(arrays[1], size=128).pixels)
    assert again.keys[1] != first.keys[1] and again.keys[::2] == first.keys[::2]
    reads.clear()
    assert same_images(cached(arrays, tmp_path / "cache")[0], again)
    assert not reads
    shutil.rmtree(tmp_path / "cache")
    with pytest.warns(UserWarning, match="is damaged or gone"):
        assert np.array_equal(again[1].pixels, hx.read_canvas(arrays[1], size=128).pixels)  # its key is still its own


def test_another_mode_is_no_other_image(arrays, tmp_path, reads):
    """Only the file's entry changed: it is read once more, and is the same to the bit."""
    first, _ = cached(arrays, tmp_path / "cache")
    arrays[2].chmod(0o600)
    reads.clear()
    again, _ = cached(arrays, tmp_path / "cache")
    assert reads == ["2.npy"]
    assert again.checksums().tolist() == first.checksums().tolist()


def test_a_cache_of_an_earlier_release_is_used_as_it_is(arrays, tmp_path, reads, monkeypatch):
    """It tells of no such times: nothing is read again, and what is added to it has them."""
    with monkeypatch.context() as patch:
        kept = tuple(name for name in cache_module.KEPT if name != "ctime_ns")
        patch.setattr(cache_module, "KEPT", kept)
        write = cache_module.json.dumps
        patch.setattr(
            cache_module.json, "dumps", lambda value, **options: write(
                {k: v for k, v in value.items() if k != "ctime_ns"} if isinstance(value, dict) else value, **options
            ),
        )  # fmt: skip
        cached(arrays[:2], tmp_path / "cache")
    rewrite(arrays[1], draw_radiograph(7))
    reads.clear()
    cached(arrays[:2], tmp_path / "cache")
    assert not reads
    cached(arrays, tmp_path / "cache")
    assert reads == ["2.npy"]
    assert len(CachedSet(tmp_path / "cache" / NAME).written()) == 1
