"""What goes wrong around a prepared data set, and how it goes on: disks, folders, shards, lists."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from prepared_helpers import SIZE, contents, make_folder, prepare
from toy_radiographs import draw_radiograph

from hdxray_fast.cli.main import main
from hdxray_fast.data.inputs import list_inputs
from hdxray_fast.data.prepared.index import merge
from hdxray_fast.data.prepared.merged import NOTE
from hdxray_fast.data.prepared.patient_key import beside
from hdxray_fast.data.prepared.reading import PreparedSet, is_prepared
from hdxray_fast.data.prepared.shards import LATER, ShardError, ShardFolder, arrow
from hdxray_fast.errors import ConfigError, TrainingError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A set in a folder with its sources and its key; the places that it names are those below ``work``."""
    root = tmp_path_factory.mktemp("failures")
    (root / "work").mkdir()
    make_folder(root / "work" / "xrays")
    prepare([root / "work" / "xrays"], root / "work" / "set")
    return (root / "work").rename(root / "whole")


@pytest.fixture
def made(whole):
    """That set at its place, whole, as after its merge; nothing else is beside it and its sources."""
    work = whole.with_name("work")
    shutil.copytree(whole, work)
    yield work / "set"
    shutil.rmtree(work)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(("limit", "workers"), [(100, 0), (2 * SIZE * SIZE, 0), (2 * SIZE * SIZE, 1), (30_000, 0)])
def test_a_full_disk_is_named_and_the_next_run_goes_on(made, limit, workers):
    """The limit cuts the list of sources, the first shard (which workers write to), or a picture of the summary."""
    root, out, key = made.parent, made.parent / "full", beside(made)
    command = [
        sys.executable, "-B", "-c",  # a cut .pyc would stay
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from hdxray_fast.cli.main import main; sys.exit(main(sys.argv[1:]))",
        "prepare", str(root / "xrays"), "--out", str(out), "--img-size", str(SIZE), "--workers", str(workers),
        "--shard-size", "1" if limit == 30_000 else "4", "--contour", "rectangle", "--patient-key", str(key),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{out}: cannot be written (" in done.stderr and "; what is done is kept, start again" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr and not list(out.rglob("*.tmp"))
    shard_size = 1 if limit == 30_000 else 4
    assert prepare([root / "xrays"], out, patient_key=str(key), shard_size=shard_size).summary
    if shard_size == 4:
        assert contents(out) == contents(made)


def test_places_that_cannot_be_written_are_named(made):
    root = made.parent
    (root / "file").write_text("")
    for out in (root / "file", root / "file" / "below"):
        with pytest.raises(ConfigError, match=r"out: cannot make the folder .*file"):
            prepare([root / "xrays"], out)


@pytest.mark.parametrize("damage", ["facts", "pixels", "no facts", "no pixels"])
def test_a_damaged_shard_is_named_and_made_again(made, damage):
    before, shards = contents(made), made / "shards"
    path = shards / ("00001.parquet" if "facts" in damage else "00001.bin")
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises((ShardError, ConfigError), match=r"00001|1 of 3 shards are missing"):
        merge(made)
    assert prepare([made.parent / "xrays"], made).made == 1
    assert contents(made) == before


@pytest.mark.parametrize("name", ["settings.json", "sources.parquet", "index.parquet", "lookup.arrow"])
def test_damaged_lists_are_named(made, name):
    (made / name).write_bytes(b"PAR1 rubbish")
    again = {"index.parquet": lambda: PreparedSet(made).index, "lookup.arrow": lambda: PreparedSet(made)}
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        again.get(name, lambda: prepare([made.parent / "xrays"], made))()
    if name in again:  # it is made from the shards
        merge(made)
        assert len(PreparedSet(made)) == len(PreparedSet(made).index) == 6


@pytest.mark.parametrize("damage", ["rubbish", "no object", "lost"])
def test_a_set_whose_settings_are_damaged_is_one_all_the_same(made, damage):
    """Not a folder without images, to whatever reads it."""
    (made / "settings.json").unlink()
    if damage != "lost":
        (made / "settings.json").write_text("{" if damage == "rubbish" else "[]")
    with pytest.raises(ConfigError, match=r"settings\.json: is (damaged|missing)"):
        list_inputs([made])
    (made / "lookup.arrow").unlink()  # not merged yet
    assert is_prepared(made) and not is_prepared(made.parent / "xrays")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other file systems refuse such names")
def test_a_set_under_a_name_that_is_not_utf8_is_no_damaged_one(made):
    there = made.rename(made.parent / os.fsdecode(b"set \xe9"))
    with pytest.raises(ConfigError, match=r"set \\xe9: has a name that is not UTF-8"):
        PreparedSet(there)


def test_contour_says_that_a_set_has_its_contours(made, capsys):
    assert main(["contour", str(made), "--out", str(made.parent / "contours")]) == 2
    assert f"{made} is a prepared data set, whose contours were found" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["a column less", "numbers", "no names", "bytes", "a folder", "a pipe"])
def test_a_list_of_sources_that_is_none_is_named(made, damage):
    pa, path = arrow(), made / "sources.parquet"
    table = pa.parquet.read_table(path)
    path.unlink()
    if damage == "a pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("has no pipes")
        os.mkfifo(path)
    elif damage == "a folder":
        path.mkdir()
    else:
        column = {"numbers": [7] * 9, "no names": [None] * 9, "bytes": [b"\xff"] * 9}.get(damage)
        table = table.drop_columns(["path"])
        pa.parquet.write_table(table if column is None else table.append_column("path", [column]), path)
    (made / "shards" / "00001.parquet").unlink()  # its sources are asked for
    for settings in ({}, {"add": True}):
        with pytest.raises(
            ConfigError,
            match=r"sources\.parquet is (damaged \(.+\); choose another folder|a folder, where prepare writes)",
        ):
            prepare([made.parent / "xrays"], made, **settings)


def test_a_shard_that_is_made_again_is_of_one_time(tmp_path, monkeypatch):
    """Killed when its new pixels are there and its new facts are not, though both files are as long as before."""
    folder, out = make_folder(tmp_path / "xrays"), tmp_path / "set"
    prepare([folder], out, shard_size=16)
    shards, replace = ShardFolder(out / "shards"), Path.replace
    damaged = bytearray(shards.pixels(0).read_bytes())
    damaged[7] ^= 1
    shards.pixels(0).write_bytes(damaged)
    cv2.imwrite(str(folder / "again.tiff"), draw_radiograph(77))  # of which these pixels were

    def killed(path, target):
        if target == shards.facts(0):
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare([folder], out, shard_size=16, retry=True)
    monkeypatch.undo()
    prepare([folder], out, shard_size=16)
    images = PreparedSet(out, verify=True)
    assert len([images[row] for row in range(len(images))]) == 7  # no two are alike any more
    prepare([folder], tmp_path / "fresh", shard_size=16)
    assert contents(out) == contents(tmp_path / "fresh")


def test_shards_of_a_release_before_are_copied_by_a_retry(made):
    """They had fewer columns, and the set had no note of its merge."""
    shards, pa = ShardFolder(made / "shards"), arrow()
    for number in range(3):
        table = pa.parquet.read_table(shards.facts(number))
        pa.parquet.write_table(table.drop_columns(list(LATER)), shards.facts(number))
    (made / NOTE).unlink()
    cv2.imwrite(str(made.parent / "xrays" / "cut.png"), draw_radiograph(99))
    before = shards.pixels(1).read_bytes()
    result = prepare([made.parent / "xrays"], made, retry=True)
    assert result.counts == {"ok": 8, "unreadable": 1} and result.made == 2 and result.summary["images"] == 7
    after = shards.pixels(1).read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    images = PreparedSet(made, verify=True)
    known = [thumbnail is not None for thumbnail in images.index.column("thumbnail").to_pylist()]
    assert sum(known) == 1 and len([images[row] for row in range(7)]) == 7


@pytest.mark.parametrize("change", ["a pipe", "a link to nowhere", "nested"])
def test_a_note_of_a_merge_that_is_none_does_not_hold(made, change):
    before = (made / "summary.json").stat().st_ino
    if change == "a link to nowhere":  # among the shards; all others are looked at nonetheless
        (made / "shards" / "notes").symlink_to(made / "gone")
        merge(made)
        before = (made / "summary.json").stat().st_ino
        assert prepare([made.parent / "xrays"], made).summary
        assert (made / "summary.json").stat().st_ino == before
        os.utime(made / "shards" / "00001.bin")
    else:
        (made / NOTE).unlink()
        if change == "nested":
            (made / NOTE).write_text("[" * 100_000)
        elif hasattr(os, "mkfifo"):
            os.mkfifo(made / NOTE)
    assert prepare([made.parent / "xrays"], made).summary
    assert (made / "summary.json").stat().st_ino != before and (made / NOTE).is_file()


def test_merging_what_is_no_data_set(tmp_path):
    with pytest.raises(ConfigError, match=r"settings\.json: is missing"):
        merge(tmp_path)
    with pytest.raises(ConfigError, match=r"settings\.json: is missing"):
        PreparedSet(tmp_path / "gone")


def test_a_key_that_is_too_short_or_gone(made):
    root = made.parent
    (root / "short").write_text("abc")
    (root / "short").chmod(0o600)
    for key in ("short", "gone"):
        with pytest.raises(ConfigError, match=f"patient_key: .*{key}"):
            prepare([root / "xrays"], root / "other", patient_key=str(root / key))


def test_a_set_without_a_good_image_says_so(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no")
    with pytest.raises(TrainingError, match="none of the 1 sources can be used; the first"):
        prepare([tmp_path / "bad"], tmp_path / "set")
    assert (tmp_path / "set" / "quarantine.csv").read_text().count("a.png") == 1


def test_flags_of_the_command_stand_alone(made, capsys):
    from hdxray_fast.cli.main import main

    root = made.parent
    (root / "more").mkdir()
    (root / "more" / "0.png").write_bytes((root / "xrays" / "0.png").read_bytes())
    settings = ["--img-size", str(SIZE), "--shard-size", "4", "--contour", "rectangle", "--workers", "0"]
    begun = ["prepare", str(root / "xrays"), str(root / "more"), "--out", str(made), *settings]
    assert main(begun) == 2 and "--add takes them in" in capsys.readouterr().err
    assert main([*begun, "--add", "--retry"]) == 0
    assert "10 sources" in capsys.readouterr().out
    assert main([*begun[:-2], "--keep-duplicates", "--workers", "0"]) == 2
    assert "--keep-duplicates: False -> True" in capsys.readouterr().err


def test_a_refused_run_writes_nothing(made):
    root = made.parent
    (root / "empty").mkdir()
    xrays, fresh = root / "xrays", root / "fresh"
    (root / "alias").symlink_to(xrays)
    before = sorted(root.rglob("*"))
    for source, out, words in (
        (xrays, xrays, r"^out: .*xrays is a source itself"),
        (xrays, root / "alias", r"^out: .*alias is a source itself"),
        (root / "gone", fresh, r"^sources: .*gone does not exist; accepted are folders"),
        (root / "empty", fresh, r"^sources: no image in .*empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare([source], out)
    with pytest.raises(ConfigError, match=r"^patient_key: .*none"):
        prepare([xrays], fresh, patient_key=str(root / "none"))
    assert sorted(root.rglob("*")) == before
    (made / "settings.json").unlink()  # as if killed between the list of sources and the settings
    assert prepare([xrays], made).found == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": [1]}, "its recipe is no object"),
        ({"recipe": None}, "its recipe is no object"),
        ({"sources": {"a": 1}}, "its sources are no list of names"),
        ({"sources": [1]}, "its sources are no list of names"),
        ({"size": 1e400}, "its recipe has no size"),
        ({"size": "64"}, "its recipe has no size"),
        ({"format": ["raw"]}, "its recipe has no format"),
        ({"bits": None}, "its recipe has no bits"),
        ({"shard_size": 0}, "its recipe has no shard_size"),
        ({"shard_size": True}, "its recipe has no shard_size"),
        ({"keep_duplicates": []}, "its recipe has no keep_duplicates"),
    ],
)
def test_settings_of_other_kinds_are_named_by_all_who_read_them(made, change, words):
    settings = json.loads((made / "settings.json").read_text())
    place = settings if change.keys() <= {"recipe", "sources"} else settings["recipe"]
    place.update(change)
    (made / "settings.json").write_text(json.dumps(settings))
    for read in (lambda: prepare([made.parent / "xrays"], made), lambda: merge(made), lambda: PreparedSet(made)):
        with pytest.raises(ConfigError, match=rf"settings\.json: is damaged \({words}"):
            read()
