"""Whatever lies in the output folder of a command, and is not its own, is there afterwards, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from every_command import Commands, draw

from hdxray_fast.cli.main import main
from hdxray_fast.data.seen import DRAWN_FILE
from hdxray_fast.files import OWNER_FILE
from hdxray_fast.locks import HOLDER

for package in ("accelerate", "jsonargparse", "pyarrow", "tqdm"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("two_blocks")
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
    words, out = arguments(commands, "pretrain"), commands.out("pretrain")
    assert main(words) == 0, capsys.readouterr().err
    for path in out.iterdir():
        if path.name not in ("config.json", "cache", "unreadable.csv"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(words) == 0, capsys.readouterr().err


def lay(out: Path, files: dict[str, str]) -> None:
    """Somebody's files, by name."""
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)


def lie_as_laid(out: Path, files: dict[str, str]) -> bool:
    """Whether these are as they were, and nothing is beside them."""
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return found == {*files} and all((out / name).read_text() == files[name] for name in files)


LIKE_A_RUN = {
    "somebody's log": {"log.jsonl": FOREIGN},
    "a log of steps": {"log.jsonl": '{"step": 1, "loss": 0.5}\n'},
    "an empty log": {"log.jsonl": ""},
    "settings": {"config.json": json.dumps({"out": "runs", "save_every": 5, "seed": 0})},
    "all": {
        "config.json": json.dumps({"out": "runs", "save_every": 5, "seed": 0}),
        "log.jsonl": '{"step": 1, "loss": 0.5}\n',
        "checkpoints/step_00000001/model.safetensors": FOREIGN,
    },
}


@pytest.mark.parametrize("like", LIKE_A_RUN)
@pytest.mark.parametrize("command", [p for p in COMMANDS if p.values[0] in RESUMED])
def test_files_that_look_like_a_runs_are_no_proof(command, like, tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, command), commands.out(command)
    beside = ("unreadable.csv", "model/weights.bin", "seen.key", ".x.99999999.0123456789abcdef.tmp")
    files = {**LIKE_A_RUN[like], **dict.fromkeys(beside, FOREIGN)}
    lay(out, files)
    for resume in ("never", "auto"):
        assert main([*words, "--resume", resume]) == 2
        assert "would be written over, and nothing says that" in capsys.readouterr().err
        assert lie_as_laid(out, files)


@pytest.mark.slow
def test_a_key_that_is_none_is_refused_before_settings_are_written(tmp_path, capsys):
    pytest.importorskip("sklearn")
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, "finetune"), commands.out("finetune")
    assert main(words) == 0, capsys.readouterr().err
    (out / DRAWN_FILE).unlink()  # which is read with the key, before
    (out / "seen.key").write_text(FOREIGN)
    before = (out / "config.json").read_bytes()
    assert main([*words, "--resume", "auto", "--save-every", "7"]) == 2
    assert "seen.key: is no key" in capsys.readouterr().err
    assert (out / "config.json").read_bytes() == before


@pytest.mark.parametrize("foreign", ["features.parquet", "model/weights.bin"])
def test_a_table_of_features_shows_whose_it_is_and_no_more(foreign, tmp_path, capsys):
    pytest.importorskip("sklearn")
    import pyarrow
    from pyarrow import parquet

    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, "probe"), commands.out("probe")
    assert main(words) == 0, capsys.readouterr().err
    for path in out.iterdir():
        if path.name != "features.parquet":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if foreign == "features.parquet":
        parquet.write_table(pyarrow.table({"path": ["a"], "feature": [[0.0]]}), out / foreign)
    else:
        lay(out, {foreign: FOREIGN})
    before = (out / foreign).read_bytes()
    assert main(words) == 2
    assert f"{foreign.partition('/')[0]} would be written over" in capsys.readouterr().err
    assert (out / foreign).read_bytes() == before
    if foreign != "features.parquet":
        shutil.rmtree(out / "model")
        assert main(words) == 0, capsys.readouterr().err  # killed after its features, by a release that left no mark


def test_a_cache_takes_no_other_files(tmp_path, capsys):
    commands = Commands(tmp_path, ["0.png", "1.png"])
    words, cache = (
        [*arguments(commands, "pretrain"), "--cache", str(tmp_path / "cache")],
        tmp_path / "cache" / "64-rectangle",
    )
    prepared = json.dumps({"format": "hdxray_fast.prepared", "format_version": 1, "recipe": {}, "sources": []})
    for name, text in {
        "settings.json": prepared, "lookup.arrow": "", "lookup.sha256": FOREIGN, "index.parquet": FOREIGN,
        "unreadable.json": "[]", "shards/00000.bin": FOREIGN, "shards/notes.txt": FOREIGN,
    }.items():  # fmt: skip
        files = {name: text, ".notes.99999999.tmp": FOREIGN}
        lay(cache, files)
        assert main([*words, "--out", str(tmp_path / name.replace("/", "-"))]) == 2
        said = capsys.readouterr().err
        assert f"cache: {cache / name.partition('/')[0]} would be written over" in said, said
        assert lie_as_laid(cache, files)
        shutil.rmtree(cache)
    assert main(words) == 0, capsys.readouterr().err
    (cache / OWNER_FILE).unlink()  # of a release before
    lay(cache, {".notes.99999999.tmp": FOREIGN})
    draw(commands.images, ["2.png"])
    assert main([*words, "--out", str(tmp_path / "again")]) == 0, capsys.readouterr().err
    assert (cache / OWNER_FILE).read_text().split() == ["cache"]
    assert (cache / ".notes.99999999.tmp").read_text() == FOREIGN


@pytest.mark.parametrize("command", RESUMED)
def test_a_foreign_cache_is_refused_before_a_run_has_a_folder(command, tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    cache, files = tmp_path / "cache" / "64-rectangle", {"index.parquet": FOREIGN}
    lay(cache, files)
    assert main([*arguments(commands, command), "--cache", str(cache.parent)]) == 2
    assert "index.parquet would be written over" in capsys.readouterr().err
    assert lie_as_laid(cache, files) and not commands.out(command).exists()


@pytest.mark.parametrize("part", ["1-of-1", "2-of-4"])
def test_scratch_folders_of_others_are_not_cleared(part, tmp_path, capsys):
    commands = Commands(tmp_path, ["0.png"])
    words, out = arguments(commands, "prepare"), commands.out("prepare")
    files = {f".unpacked-{part}/thesis.txt": FOREIGN}
    lay(out, files)
    assert main(words) == 2
    assert f".unpacked-{part} would be written over" in capsys.readouterr().err
    assert lie_as_laid(out, files)
    shutil.rmtree(out)
    assert main(words) == 0, capsys.readouterr().err
    lay(out, {".unpacked-1-of-1/0": "left by a run that was killed"})
    assert main(words) == 0, capsys.readouterr().err
    assert not (out / ".unpacked-1-of-1").exists()


def test_reports_are_not_drawn_over_radiographs(tmp_path, capsys):
    """``--out`` is the folder of the radiographs; refused before a model is looked for."""
    commands = Commands(tmp_path, ["0.png", "0.report.png"])  # as the picture of the first is called
    before = {path.name: path.read_bytes() for path in commands.images.iterdir()}
    words = ["report", "generate", str(commands.images), "--model", str(tmp_path / "none"), "--out"]
    assert main([*words, str(commands.images)]) == 2
    assert "0.report.png would be written over, and nothing says that" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in commands.images.iterdir()} == before
    assert main([*words, str(tmp_path / "new")]) == 2  # nothing in the way: the model is looked for
    assert "written over" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report evaluate", "report generate", "compare"])
def test_results_of_others_are_seen_before_anything_is_read(command, tmp_path, capsys):
    out, images = tmp_path / "out", tmp_path / "images"
    draw(images, ["0.png"])
    words, name = {
        "report evaluate": (["report", "evaluate", str(tmp_path / "none.csv")], "metrics.json"),
        "report generate": (["report", "generate", str(images), "--model", str(tmp_path / "none")], "predictions.csv"),
        "compare": (["compare", f"a={tmp_path / 'none'}", f"b={tmp_path / 'neither'}"], "comparison.csv"),
    }[command]
    lay(out, {name: FOREIGN, OWNER_FILE: "evaluate\n"})
    assert main([*words, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{name} would be written over" in said, said
    assert f"the folder was made by evaluate, not {command.replace(' ', '-')}" in said, said
    assert lie_as_laid(out, {name: FOREIGN, OWNER_FILE: "evaluate\n"})


def test_large_folders_may_lie_elsewhere(tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(4)])
    out = commands.out("pretrain")
    out.mkdir()
    for name in ("cache", "checkpoints"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (out / name).symlink_to(tmp_path / "disk" / name)
    assert main(arguments(commands, "pretrain")) == 0, capsys.readouterr().err
    assert any((tmp_path / "disk" / "checkpoints").iterdir()) and any((tmp_path / "disk" / "cache").iterdir())


def test_a_table_of_several_runs_takes_no_other(tmp_path, capsys):
    pytest.importorskip("sklearn")
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = [*arguments(commands, "finetune"), "--seeds", "0", "1"], commands.out("finetune")
    out.mkdir()
    (out / "results.json").write_text(FOREIGN)
    assert main(words) == 2
    assert "results.json would be written over, and nothing says that" in capsys.readouterr().err
    assert (out / "results.json").read_text() == FOREIGN


@pytest.mark.parametrize("name", ["out.unreadable.csv", "out.parquet"])
def test_a_table_of_features_takes_no_other(name, tmp_path, capsys):
    commands = Commands(tmp_path, ["0.png"])
    words = arguments(commands, "embed")
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


PARTS = {"embed": "out.parquet.parts", "predict": "out.csv.parts", "probe": "features.parquet.parts"}
PARTS["evaluate"] = "predictions.csv.parts"


@pytest.mark.parametrize("command", PARTS)
@pytest.mark.parametrize("name", ["1-of-1.00000000.parquet", "1-of-1.done", "join.lock", ""])
def test_a_folder_of_parts_takes_no_other(command, name, tmp_path, capsys):
    """Not even a file that is called as they are."""
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    words, out = arguments(commands, command), commands.out(command)
    file = (out if command in ("probe", "evaluate") else out.parent) / PARTS[command] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FOREIGN)
    assert main(words) == 2
    assert PARTS[command] in capsys.readouterr().err
    assert file.read_text() == FOREIGN
    assert [path for path in file.parent.iterdir() if path.name.startswith(("1-of", "join", ".made"))] == [file] * bool(
        name
    )


def test_what_lies_among_parts_stays(tmp_path, capsys):
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    for command in ("embed", "predict"):
        place = commands.out(command).parent / PARTS[command]
        place.mkdir()
        (place / "notes.txt").write_text(FOREIGN)
        assert main(arguments(commands, command)) == 0, capsys.readouterr().err
        assert [path.name for path in place.iterdir()] == ["notes.txt"]
        assert (place / "notes.txt").read_text() == FOREIGN


def test_a_probe_does_not_write_over_a_fine_tuning(tmp_path, capsys):
    pytest.importorskip("sklearn")
    commands = Commands(tmp_path, [f"{number}.png" for number in range(8)])
    assert main(arguments(commands, "finetune")) == 0, capsys.readouterr().err
    out = commands.out("finetune")
    (out / OWNER_FILE).unlink()  # of a release before
    before = (out / "metrics.json").read_bytes()
    assert "tune" in json.loads(before)["config"]
    assert main(arguments(commands, "probe")) == 2
    assert "would be written over, and nothing says that" in capsys.readouterr().err
    assert (out / "metrics.json").read_bytes() == before
