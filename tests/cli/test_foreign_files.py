"""Whatever lies in the output folder of a command, and is not its own, is there afterwards, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from every_command import Commands

from hdxray_fast.cli.main import main
from hdxray_fast.files import OWNER_FILE
from hdxray_fast.locks import HOLDER

for package in ("accelerate", "jsonargparse", "pyarrow", "tqdm"):
    pytest.importorskip(package)

FOREIGN = "somebody's\n"
NEEDS = {"probe": ["sklearn"], "finetune": ["sklearn"], "evaluate": ["sklearn"], "report train": ["transformers"]}
SLOW = ("evaluate", "finetune", "report train")
COMMANDS = [
    pytest.param(command, marks=pytest.mark.slow if command in SLOW else ())
    for command in ("contour", "prepare", "evaluate", "probe", "finetune", "pretrain", "report train")
]
RESUMED = ("finetune", "pretrain", "report train")


def arguments(commands: Commands, command: str) -> list[str]:
    for package in NEEDS.get(command, []):
        pytest.importorskip(package)
    return [*commands.words(command), "--workers", "0"]


def written(out: Path) -> list[str]:
    """What a command has put into its folder, without locks: nothing is lost with these."""
    names = (path.name for path in out.iterdir())
    return sorted(name for name in names if name not in (OWNER_FILE, HOLDER) and not name.endswith(".lock"))


@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_are_taken_are_refused(command, tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, command), commands.out(command)
    assert main(words) == 0, capsys.readouterr().err
    names = written(out)
    assert len(names) > 1
    for name in names:
        if command == "contour" and name != "unreadable.csv":
            continue  # named after the radiographs: left alone one by one, as another test shows
        for folder in (False, True):
            shutil.rmtree(out)
            out.mkdir()
            file = out / name / "notes.txt" if folder else out / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(FOREIGN)
            assert main(words) == 2, f"{command} took {name}"
            said = capsys.readouterr().err
            assert name in said, said
            assert file.read_text() == FOREIGN
            assert [path.name for path in out.rglob("*") if path.is_file() and path.name in (*names, file.name)] == [
                file.name
            ]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_own_folder_is_taken_again(command, tmp_path, capsys):
    """With its mark, or made by a release that left none."""
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, command), commands.out(command)
    again = [*words, "--resume", "auto"] if command in RESUMED else words
    assert main(words) == 0, capsys.readouterr().err
    assert (out / OWNER_FILE).read_text().split() == [command.replace(" ", "-")]
    (out / "notes.txt").write_text(FOREIGN)
    assert main(again) == 0, capsys.readouterr().err
    if command not in ("evaluate", "contour"):  # which have always had one, or nothing else to be known by
        (out / OWNER_FILE).unlink()
        assert main(again) == 0, capsys.readouterr().err
        assert (out / OWNER_FILE).exists()
    assert (out / "notes.txt").read_text() == FOREIGN


def test_a_run_that_was_killed_before_its_first_step_goes_on(tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(4)])
    words, out = commands.words("pretrain"), commands.out("pretrain")
    assert main(words) == 0, capsys.readouterr().err
    for path in out.iterdir():
        if path.name not in ("config.json", "cache", "quarantine.csv"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(words) == 0, capsys.readouterr().err


def test_somebody_elses_log_is_not_cut(tmp_path, capsys):
    commands = Commands(tmp_path, ["0.png"])
    out = commands.out("pretrain")
    out.mkdir()
    (out / "log.jsonl").write_text(FOREIGN)
    assert main([*commands.words("pretrain"), "--resume", "auto"]) == 2
    assert "log.jsonl is of no run" in capsys.readouterr().err
    assert (out / "log.jsonl").read_text() == FOREIGN


def test_large_folders_may_lie_elsewhere(tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(4)])
    out = commands.out("pretrain")
    out.mkdir()
    for name in ("cache", "checkpoints"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (out / name).symlink_to(tmp_path / "disk" / name)
    assert main(commands.words("pretrain")) == 0, capsys.readouterr().err
    assert any((tmp_path / "disk" / "checkpoints").iterdir()) and any((tmp_path / "disk" / "cache").iterdir())


def test_a_table_of_several_runs_takes_no_other(tmp_path, capsys):
    pytest.importorskip("sklearn")
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = [*commands.words("finetune"), "--seeds", "0", "1"], commands.out("finetune")
    out.mkdir()
    (out / "results.json").write_text(FOREIGN)
    assert main(words) == 2
    assert "results.json would be written over" in capsys.readouterr().err
    assert (out / "results.json").read_text() == FOREIGN


@pytest.mark.parametrize("name", ["out.unreadable.csv", "out.parquet"])
def test_a_table_of_features_takes_no_other(name, tmp_path, capsys):
    commands = Commands(tmp_path, ["0.png"])
    words = commands.words("embed")
    file = commands.out("embed").parent / name
    for text in (FOREIGN, "path,error,reason\nwrong\n", "a,b\n"):
        file.write_text(text)
        assert main(words) == 2
        assert name in capsys.readouterr().err
        assert file.read_text() == text
    file.unlink()
    (commands.images / "bad.png").write_text("no picture")
    for _ in range(2):  # its own list is read and written anew
        assert main(words) == 0, capsys.readouterr().err
        assert "bad.png" in (tmp_path / "out.unreadable.csv").read_text()


def test_a_probe_does_not_write_over_a_fine_tuning(tmp_path, capsys):
    pytest.importorskip("sklearn")
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    assert main(commands.words("finetune")) == 0, capsys.readouterr().err
    out = commands.out("finetune")
    (out / OWNER_FILE).unlink()  # of a release before
    before = (out / "metrics.json").read_bytes()
    assert "tune" in json.loads(before)["config"]
    assert main(commands.words("probe")) == 2
    assert "would be written over, and probe did not make it" in capsys.readouterr().err
    assert (out / "metrics.json").read_bytes() == before
