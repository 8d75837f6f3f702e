"""What is removed or written over is what the same command made."""

from __future__ import annotations

import json

import pytest

import hdxray_fast as hx
from hdxray_fast import files
from hdxray_fast.files import OWNER_FILE, begin_anew, claim_names
from hdxray_fast.training.checkpoints import CHECKSUMS_FILE, prune_checkpoints, set_aside_after


@pytest.fixture
def own(tmp_path):
    """A folder with somebody's file."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


def test_a_folder_without_the_mark_is_not_cleared(own, tmp_path):
    with pytest.raises(hx.ConfigError, match=r"nothing says that demo made the folder \(it has no file .made-by\)"):
        begin_anew(own, "demo")
    (own / OWNER_FILE).write_text("another\n")
    with pytest.raises(hx.ConfigError, match="the folder was made by another, not demo"):
        begin_anew(own, "demo")
    link = tmp_path / "link"
    link.symlink_to(own)
    with pytest.raises(hx.ConfigError, match="is no folder that demo made"):
        begin_anew(link, "demo")
    assert (own / "thesis.txt").read_text() == "years of work"


def test_a_folder_with_the_mark_is(tmp_path):
    folder = tmp_path / "new" / "run"
    begin_anew(folder, "demo")
    (folder / "log.jsonl").write_text("{}")
    begin_anew(folder, "demo")
    assert [path.name for path in folder.iterdir()] == [OWNER_FILE]


def test_files_of_the_same_name_are_not_written_over(own):
    names = ("metrics.json", "predictions.csv")
    (own / "predictions.csv").write_text("mine")
    with pytest.raises(hx.ConfigError, match=r"predictions.csv would be written over, and nothing says that"):
        claim_names(own, "evaluate", names)
    (own / "predictions.csv").unlink()
    claim_names(own, "evaluate", names)
    claim_names(own, "compare", ["comparison.csv"])
    for name in (*names, "comparison.csv"):
        (own / name).write_text("theirs")
    claim_names(own, "evaluate", names)
    claim_names(own, "compare", ["comparison.csv"])
    with pytest.raises(hx.ConfigError, match=r"metrics.json would .* made by evaluate and compare, not report-"):
        claim_names(own, "report-evaluate", ["metrics.json"])


def test_a_mark_that_is_none_is_not_written_over(own):
    for text in ("who made this?\n", "Evaluate\n"):
        (own / OWNER_FILE).write_text(text)
        with pytest.raises(hx.ConfigError, match=r"\.made-by is not what this package writes there"):
            claim_names(own, "evaluate", ["metrics.json"])
        assert (own / OWNER_FILE).read_text() == text


@pytest.mark.parametrize("name", ["run/thesis.txt", "images.csv", "metrics.json", "cache/thesis.txt"])
def test_the_demo_leaves_what_is_not_its_own(tmp_path, monkeypatch, name):
    pytest.importorskip("accelerate")
    from hdxray_fast.cli import demo

    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    monkeypatch.setattr(demo, "demo_radiograph", lambda: tmp_path / "radiograph.dcm")
    with pytest.raises(hx.ConfigError, match=r"nothing says that demo made"):
        demo.run_demo(demo.DemoConfig(out=str(tmp_path), steps=1))
    assert file.read_text() == "mine"
    assert not (tmp_path / OWNER_FILE).exists()  # the next demo would take the folder for its own


@pytest.mark.parametrize("marked", [False, True])
def test_a_folder_lies_where_a_file_is_to_be_written(own, marked):
    """It is refused now, even if it is empty, and not after the last image."""
    if marked:
        claim_names(own, "evaluate", ["metrics.json"])
    (own / "metrics.json").mkdir()
    (own / "model").mkdir()
    with pytest.raises(hx.ConfigError, match=r"metrics.json is a folder, where evaluate writes a file"):
        claim_names(own, "evaluate", ["model", "predictions.csv.parts", "metrics.json"])
    (own / "metrics.json").rmdir()
    claim_names(own, "evaluate", ["model", "predictions.csv.parts", "metrics.json"])


def test_a_comparison_writes_over_comparisons_alone(tmp_path):
    from hdxray_fast.data.comparison_folder import write_comparison_folder

    (tmp_path / "comparison.csv").write_text("mine")
    with pytest.raises(hx.ConfigError, match=r"comparison.csv would be written over"):
        write_comparison_folder(tmp_path, {}, ["a"], [], lambda path, report: None, "")
    assert (tmp_path / "comparison.csv").read_text() == "mine"


def test_what_lies_beside_a_report_model_stays(tmp_path):
    from hdxray_fast.reports.saving import _keep_foreign

    old, new = tmp_path / "old", tmp_path / "new"
    for folder, names in ((old, ("decoder", "decoder.old", "notes")), (new, ("decoder",))):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text(folder.name)
    _keep_foreign(old, new)
    kept = {path.name: (path / "file").read_text() for path in new.iterdir()}
    assert kept == {"decoder": "new", "decoder.old": "old", "notes": "old"}


def test_folders_called_as_checkpoints_are_not_removed(own):
    root = own.parent
    for name in ("step_00000001", "damaged_step_00000003"):
        (root / name).mkdir()
        (root / name / "notes.txt").write_text("mine")
    for step in (2, 3):
        (root / f"step_{step:08d}").mkdir()
        (root / f"step_{step:08d}" / CHECKSUMS_FILE).write_text("{}")
    prune_checkpoints(root, keep=1)
    assert sorted(path.name for path in root.glob("step_*")) == ["step_00000001", "step_00000003"]
    with pytest.raises(hx.CheckpointError, match="damaged_step_00000003: is in the way"):
        set_aside_after(root, 2)
    assert (root / "damaged_step_00000003" / "notes.txt").exists()


def test_a_run_writes_over_no_other_settings(tmp_path):
    pytest.importorskip("accelerate")
    from tiny_training import train

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(hx.ConfigError, match=r"config.json would be written over, and nothing says that"):
        train(tmp_path, steps=1)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "vit"}


def test_a_process_that_began_meanwhile_is_no_hindrance(tmp_path, monkeypatch):
    """Its mark comes between the look for one and that at what lies there."""
    look, looks = files._makers, []

    def meanwhile(folder):
        found = look(folder)
        if not looks:
            (folder / OWNER_FILE).write_text("evaluate\n")
        looks.append(found)
        return found

    monkeypatch.setattr(files, "_makers", meanwhile)
    claim_names(tmp_path, "evaluate", ["metrics.json"])
    assert looks == [[], ["evaluate"]] and (tmp_path / OWNER_FILE).read_text() == "evaluate\n"
