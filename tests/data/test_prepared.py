"""Prepared data sets: what goes in comes out, whatever was interrupted, damaged or planted in between."""

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
import pyarrow.parquet
import pytest
from film_makers import COPIES, draw_film
from prepared_helpers import SIZE, contents, make_folder, prepare, rows_of
from toy_radiographs import draw_radiograph
from xray_makers import dicom

import hdxray_fast as hx
from hdxray_fast import files
from hdxray_fast.data.prepared.duplicates import thumbnails_of
from hdxray_fast.data.prepared.index import merge, read_set_aside
from hdxray_fast.data.prepared.reading import PreparedSet, is_prepared
from hdxray_fast.data.prepared.shards import ShardError
from hdxray_fast.data.prepared.sources import list_sources
from hdxray_fast.data.prepared.tally import describe
from hdxray_fast.errors import ConfigError, TrainingError
from hdxray_fast.images.canvas import read_canvas
from hdxray_fast.images.perceptual_hash import equalised_thumbnail


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "xrays")


@pytest.mark.parametrize(("kind", "bits"), [("raw", 8), ("raw", 16), ("png", 8), ("png", 16), ("jpeg", 8)])
def test_what_goes_in_comes_out(folder, tmp_path, kind, bits):
    method = "network" if (kind, bits) == ("raw", 16) else "rectangle"
    result = prepare([folder], tmp_path / "set", format=kind, bits=bits, contour=method, view="any")
    assert result.counts == {"ok": 7, "unreadable": 2}
    data = PreparedSet(tmp_path / "set", verify=True)
    assert len(data) == 6 and data.size == SIZE
    for row in range(len(data)):
        sample, canvas = data[row], read_canvas(data.source(row), size=SIZE, bits=bits)
        contour = hx.find_contour(canvas, method)
        if kind == "jpeg":
            assert np.abs(sample.pixels.astype(int) - canvas.pixels).mean() < 3
        else:
            np.testing.assert_array_equal(sample.pixels, canvas.pixels)
        assert sample.pixels.dtype == (np.uint16 if bits == 16 else np.uint8)
        assert sample.valid_box == canvas.valid_box
        np.testing.assert_array_equal(sample.inside, contour.inside & canvas.valid_grid())
        np.testing.assert_allclose(sample.polygon, contour.polygon, rtol=1e-6)
        inner = canvas.pixels[np.kron(canvas.valid_grid(), np.ones((16, 16), bool))].astype(float)
        assert abs((inner * sample.scale + sample.shift).mean()) < 1e-4


def test_bad_files_and_duplicates_are_listed_with_reasons(folder, tmp_path):
    summary = prepare([folder], tmp_path / "set").summary
    bad = {Path(row["source"]).name: row for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert set(bad) == {"cut.png", "text.jpg"} and all(row["reason"] for row in bad.values())
    (same,) = (row for row in rows_of(tmp_path / "set" / "duplicates.csv") if row["same_pixels_as"])
    assert {Path(same["source"]).name, Path(same["same_pixels_as"]).name} == {"again.tiff", "3.png"}
    assert (summary["sources"], summary["images"], summary["unreadable"], summary["duplicates"]) == (9, 6, 2, 1)
    for name in ("summary.png", "contacts.png"):
        assert cv2.imread(str(tmp_path / "set" / name)) is not None
    for shard in (tmp_path / "set" / "shards").glob("*.parquet"):  # a null here is not read back by Arrow before 26
        assert not pyarrow.parquet.read_table(shard, columns=["valid_box"]).column(0).null_count, shard
    kept = prepare([folder], tmp_path / "all", keep_duplicates=True)
    assert kept.summary["images"] == 7 and kept.summary["duplicates"] == 1


def test_workers_and_parts_give_the_same_data_set(folder, tmp_path):
    prepare([folder], tmp_path / "whole")
    assert prepare([folder], tmp_path / "parts", part="2/2", workers=2).summary is None
    with pytest.raises(ConfigError, match="2 of 3 shards are missing"):
        merge(tmp_path / "parts")
    with pytest.raises(ConfigError, match="merge"):
        PreparedSet(tmp_path / "parts")
    assert prepare([folder], tmp_path / "parts", part="1/2", workers=2).summary["images"] == 6
    assert contents(tmp_path / "parts").keys() == contents(tmp_path / "whole").keys()
    for name, data in contents(tmp_path / "whole").items():
        assert contents(tmp_path / "parts")[name] == data, name


def test_a_second_run_makes_nothing_and_a_lost_shard_is_made_again(folder, tmp_path):
    assert prepare([folder], tmp_path / "set").made == 3
    before = contents(tmp_path / "set")
    assert (prepare([folder], tmp_path / "set").made, prepare([folder], tmp_path / "set").found) == (0, 3)
    (tmp_path / "set" / "shards" / "00001.bin").write_bytes(b"short")
    assert prepare([folder], tmp_path / "set").made == 1
    assert contents(tmp_path / "set") == before


def test_mended_files_are_taken_in_by_a_retry(folder, tmp_path):
    prepare([folder], tmp_path / "set")
    cv2.imwrite(str(folder / "cut.png"), draw_radiograph(99))
    assert prepare([folder], tmp_path / "set").summary["images"] == 6
    again = prepare([folder], tmp_path / "set", retry=True)
    assert again.summary["images"] == 7 and again.made == 2  # cut.png and text.jpg lie in two shards
    prepare([folder], tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "set")


def test_provenance_is_kept(folder, tmp_path):
    dicom(folder / "a.dcm", draw_radiograph(50), PhotometricInterpretation="MONOCHROME1")
    prepare([folder], tmp_path / "set")
    index = PreparedSet(tmp_path / "set").index
    rows = {Path(row["source"]).name: json.loads(row["provenance"]) for row in index.to_pylist()}
    assert rows["a.dcm"]["inverted"] and rows["a.dcm"]["photometric"] == "MONOCHROME1"
    assert rows["0.png"]["decoder"].startswith("opencv") and rows["0.png"]["original_size"] == [150, 130]


def test_settings_and_sources_of_a_begun_set_hold(folder, tmp_path):
    prepare([folder], tmp_path / "set")
    with pytest.raises(ConfigError, match="size: 96 -> 128"):
        prepare([folder], tmp_path / "set", img_size=128)
    more = tmp_path / "more"
    more.mkdir()
    cv2.imwrite(str(more / "new.png"), draw_radiograph(77))
    with pytest.raises(ConfigError, match=r"begun without .*more"):
        prepare([folder, more], tmp_path / "set")
    added = prepare([folder, more], tmp_path / "set", add=True)
    assert (added.summary["images"], added.made) == (7, 1)


def test_filters_by_header_and_size(tmp_path):
    root = tmp_path / "dicom"
    root.mkdir()
    dicom(root / "pa.dcm", draw_radiograph(0), ViewPosition="PA")
    dicom(root / "lateral.dcm", draw_radiograph(1), ViewPosition="LL")
    dicom(root / "hand.dcm", draw_radiograph(2), BodyPartExamined="HAND")
    dicom(root / "ct.dcm", draw_radiograph(3), Modality="CT")
    cv2.imwrite(str(root / "small.png"), draw_radiograph(4)[::2, ::2])
    prepare([root], tmp_path / "set", min_side=100)
    reasons = {Path(row["source"]).stem: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert reasons == {
        "lateral": "lateral view (header)",
        "hand": "body part is not the chest",
        "ct": "has modality CT",
        "small": "65 x 75 pixels, less than min_side=100",
    }
    assert prepare([root], tmp_path / "any", view="any", body_part="any").summary["images"] == 4
    everything = prepare([root], tmp_path / "all", view="any", body_part="any", modality="any")
    assert everything.summary["images"] == 5 and everything.counts == {"ok": 5}
    assert prepare([root], tmp_path / "side", view="lateral").summary["images"] == 1


def test_patients_of_a_manifest_are_hashed(folder, tmp_path):
    manifest = folder / "list.csv"
    manifest.write_text("Image,PATIENT_ID\n0.png,secret-77\n1.png,secret-77\n2.png,\n")
    prepare([manifest], tmp_path / "set")
    patients = PreparedSet(tmp_path / "set").index.column("patient").to_pylist()
    assert patients[0] == patients[1] and len(patients[0]) == 16 and patients[2] == ""
    assert not any(b"secret-77" in data for data in contents(tmp_path / "set").values())


def test_damage_is_noticed(folder, tmp_path):
    prepare([folder], tmp_path / "set")
    shard = tmp_path / "set" / "shards" / "00000.bin"
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    shard.write_bytes(flipped)
    assert PreparedSet(tmp_path / "set")[0].pixels.shape == (SIZE, SIZE)
    with pytest.raises(ShardError, match="row 0 is damaged"):
        PreparedSet(tmp_path / "set", verify=True)[0]
    shard.write_bytes(whole[:-1])
    last = int(np.sum(PreparedSet(tmp_path / "set").index.column("shard").to_numpy() == 0)) - 1
    with pytest.raises(ShardError, match=f"ends before the image of row {last}"):
        PreparedSet(tmp_path / "set")[last]
    with pytest.raises(ShardError, match=r"has .* bytes, its facts tell of"):
        merge(tmp_path / "set")
    shard.unlink()
    with pytest.raises(ShardError, match=r"00000\.bin: cannot be read"):
        PreparedSet(tmp_path / "set")[0]
    (tmp_path / "set" / "lookup.arrow").write_bytes(b"ARROW1 no")
    with pytest.raises(ConfigError, match=r"lookup\.arrow: is damaged"):
        PreparedSet(tmp_path / "set")


def test_a_set_travels_to_worker_processes_without_its_pixels(folder, tmp_path):
    prepare([folder], tmp_path / "set")
    data = PreparedSet(tmp_path / "set")
    again = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 1000
    np.testing.assert_array_equal(again[-1].pixels, data[5].pixels)
    with pytest.raises(IndexError):
        data[6]
    before = data[0].pixels.copy()
    data[0].pixels[:] = 7  # memory of its own: neither the file nor the next reader sees it
    np.testing.assert_array_equal(data[0].pixels, before)


def test_what_hangs_grows_or_dies_costs_itself_alone(folder, tmp_path, monkeypatch):
    """Workers import a reader that misbehaves by file name."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "misbehaving.py").write_text(
        "import os, time\n"
        "from hdxray_fast.data.prepared import worker\n"
        "def prepare_source(source, recipe, key):\n"
        "    if source.path.endswith('0.png'): time.sleep(60)\n"
        "    if source.path.endswith('1.png'): os._exit(9)\n"
        "    if source.path.endswith('2.png'):\n"
        "        try: held = bytearray(8 << 30)\n"
        "        except MemoryError: return worker.Row(source.name, 'unreadable', 'MemoryError')\n"
        "    return worker.prepare_source(source, recipe, key)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(site))
    import misbehaving

    from hdxray_fast.data.prepared import pool

    monkeypatch.setattr(pool, "prepare_source", misbehaving.prepare_source)
    result = prepare([folder], tmp_path / "set", workers=2, timeout=2.0, max_memory=1024)
    reasons = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "set" / "quarantine.csv")}
    assert result.summary["images"] == 3
    assert reasons["0.png"] == "takes longer than 2 s"
    assert "died" in reasons["1.png"]
    assert "Memory" in reasons["2.png"]


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"img_size": 100}, "img_size"),
        ({"part": "3/2"}, "part"),
        ({"part": "0/2"}, "part"),
        ({"part": "half"}, "part"),
        ({"bits": 16, "format": "jpeg"}, "format"),
        ({"format": "gif"}, "format"),
        ({"view": "top"}, "view"),
        ({"shard_size": 0}, "shard_size"),
        ({"timeout": 0.0}, "timeout: got 0, "),
        ({"quality": 101}, "quality: got 101, "),
        ({"min_confidence": 2.0}, "min_confidence: got 2, "),
        ({"patient_key": "/nowhere/key"}, "patient_key"),
    ],
)
def test_settings_that_make_no_sense_are_named(folder, tmp_path, change, culprit):
    with pytest.raises(ConfigError, match=f"^{culprit}"):
        prepare([folder], tmp_path / "set", **change)


def test_nothing_to_prepare_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        prepare([tmp_path / "gone"], tmp_path / "set")
    root = tmp_path / "bad"
    root.mkdir()
    (root / "a.png").write_text("no")
    with pytest.raises(TrainingError, match="none of the 1 sources"):
        prepare([root], tmp_path / "set2")
    assert not is_prepared(tmp_path / "bad") and is_prepared(tmp_path / "set2")


def test_two_processes_never_prepare_one_part(folder, tmp_path):
    from filelock import FileLock

    prepare([folder], tmp_path / "set")
    with FileLock(tmp_path / "set" / ".part-1-of-1.lock"), pytest.raises(ConfigError, match="another process"):
        prepare([folder], tmp_path / "set")


def test_data_sets_are_not_taken_for_radiographs(folder, tmp_path):
    prepare([folder], folder / "set")
    assert all("set" not in source.path.removeprefix(str(folder)) for source in list_sources([folder]))


@pytest.mark.slow
def test_what_a_killed_run_left_beside_the_summary_is_removed(folder, tmp_path):
    prepare([folder], tmp_path / "set")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / "set" / f".summary.png.{ended.pid}.0123456789abcdef.tmp"
    left.write_bytes(b"half a picture")
    prepare([folder], tmp_path / "set")
    assert not left.exists()


def test_what_is_begun_is_called_after_what_it_becomes(folder, tmp_path, monkeypatch):
    """So that what a killed merge left behind is known, and removed by the next."""
    begun, usual = [], files.temporary_name
    monkeypatch.setattr(files, "temporary_name", lambda path: begun.append(path.name) or usual(path))
    prepare([folder], tmp_path / "set")
    assert {"contacts.png", "summary.png", "index.parquet"} <= set(begun)
    assert not [name for name in begun if name.endswith(".tmp")]


def test_kill_9_at_any_moment_loses_and_doubles_nothing(folder, tmp_path):
    for number in range(10, 40):
        cv2.imwrite(str(folder / f"{number}.png"), draw_radiograph(number))
    prepare([folder], tmp_path / "whole")
    command = [
        sys.executable, "-m", "hdxray_fast", "prepare", str(folder), "--out", str(tmp_path / "set"),
        "--img-size", str(SIZE), "--workers", "1", "--shard-size", "4", "--contour", "rectangle",
        "--patient-key", str(tmp_path / "whole.patient.key"),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(4):
        run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.5, 3.0)))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    found, wanted = contents(tmp_path / "set"), contents(tmp_path / "whole")
    assert found == wanted
    assert not list((tmp_path / "set").rglob("*.tmp"))
    assert json.loads((tmp_path / "set" / "summary.json").read_text())["images"] == 36


def test_body_parts_are_counted_and_words_of_few_stay_hidden(tmp_path):
    root = tmp_path / "dicom"
    root.mkdir()
    parts = ["T?RAX", "WARD ONE", "WARD ONE", "WARD ONE", "MR SMITH", "MR SMITH", "KNEE"]
    for number, part in enumerate(parts):
        patient = {"PatientID": f"{number}"} if part != "MR SMITH" else {"PatientID": "7"}
        dicom(root / f"{number}.dcm", draw_radiograph(number), BodyPartExamined=part, **patient)
    summary = prepare([root], tmp_path / "set", shard_size=64).summary
    assert summary["images"] == 6  # unknown is kept
    assert summary["body_parts"] == {"TORAX": 1, "WARD ONE": 3, "unknown": 2, "KNEE": 1}
    assert not any(b"SMITH" in data for data in contents(tmp_path / "set").values())
    assert (tmp_path / "set" / "left_out.png").exists()
    assert summary["views"] == {"frontal (header)": 7}


def test_shards_of_before_the_views_are_read(folder, tmp_path):
    import pyarrow.parquet as parquet

    whole = prepare([folder], tmp_path / "set").summary
    for path in (tmp_path / "set" / "shards").glob("*.parquet"):
        table = parquet.read_table(path)
        later = ["view_evidence", "view_probability", "body_part", "left_out", "thumbnail", "perceptual_hash"]
        parquet.write_table(table.drop_columns(later), path)
    again = prepare([folder], tmp_path / "set")
    assert again.made == 0 and again.summary["images"] == whole["images"] and again.summary["views"] == {}


def test_near_duplicates_are_listed_counted_and_kept(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for number in range(4):
        cv2.imwrite(str(films / f"{number}.png"), draw_film(number))
    cv2.imwrite(str(films / "z_again.tiff"), draw_film(1))
    cv2.imwrite(str(films / "z_copy.jpg"), COPIES["all at once"](draw_film(2)))
    summary = prepare([films], tmp_path / "set", img_size=256).summary
    assert (summary["images"], summary["duplicates"], summary["near_duplicates"]) == (5, 1, 1)
    assert "near duplicates: 1 images look like an earlier one" in describe(summary)
    equal, near = rows_of(tmp_path / "set" / "duplicates.csv")
    assert [Path(equal[name]).name for name in ("source", "same_pixels_as", "near_duplicate_of")] == [
        "z_again.tiff", "1.png", ""
    ]  # fmt: skip
    assert [Path(near[name]).name for name in ("source", "same_pixels_as", "near_duplicate_of")] == [
        "z_copy.jpg", "", "2.png"
    ]  # fmt: skip
    assert 0.83 <= float(near["likeness"]) <= 1
    set_aside = [Path(name).name for name in read_set_aside(tmp_path / "set")]
    assert set_aside == ["z_again.tiff"]  # the near duplicate is in the index

    images = PreparedSet(tmp_path / "set")
    for row, thumbnail in enumerate(thumbnails_of(images)):
        np.testing.assert_array_equal(thumbnail, equalised_thumbnail(images[row].pixels, images[row].valid_box))
    subset = images.subset([3, 0])
    np.testing.assert_array_equal(thumbnails_of(subset), thumbnails_of(images)[[3, 0]])
