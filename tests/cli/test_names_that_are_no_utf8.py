"""Files whose names are not UTF-8, or drive a terminal, are files like all others in every command; names come back."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
from every_command import TRAINED, Commands, draw

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.names import escaped, unescaped

for package in ("jsonargparse", "loky", "pebble", "pyarrow", "tqdm"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other file systems refuse such names")

ODD = [os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"]  # the second is called as the first is written
DRIVING = "a\x1b[2J\n\x9b.png"  # clears a terminal, ends a line, and begins another escape
GOOD = [*ODD, DRIVING, *(f"{number}.png" for number in range(6))]
SLOW = pytest.mark.slow


@pytest.fixture
def commands(tmp_path) -> Commands:
    made = Commands(tmp_path, GOOD, escaped)
    (made.images / os.fsdecode(b"bad \xff.png")).write_bytes(b"no picture")
    return made


def run(commands: Commands, command: str, capfd) -> tuple[str, Path]:
    """What a command says on a terminal that takes UTF-8 alone, and where its results are."""
    capfd.readouterr()
    done = main([*commands.words(command), "--workers", "1"])
    said = capfd.readouterr()
    assert done == 0, said.err
    assert not any(letter in said.out + said.err for letter in "\x1b\x9b\r")  # nor codes of bars, in a log
    assert not [path for path in texts(commands) if set(path.read_text("utf-8")) & set("\x1b\x9b")]
    return said.out + said.err, commands.out(command)


def texts(commands: Commands) -> list[Path]:
    """Tables and pages, which people look at on a terminal or in a browser."""
    return [path for path in commands.root.rglob("*") if path.suffix in (".csv", ".md", ".html") and path.is_file()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def names_in(path: Path, column: str = "image") -> list[str]:
    return [os.path.basename(unescaped(row[column])) for row in rows_of(path)]


def test_prepare(commands, capfd):
    said, out = run(commands, "prepare", capfd)
    assert r"bad \xff.png" in said
    assert sorted(map(os.path.basename, hx.PreparedSet(out).sources())) == sorted(GOOD)
    assert names_in(out / "quarantine.csv", "source") == [os.fsdecode(b"bad \xff.png")]
    capfd.readouterr()
    assert main([*commands.words("prepare"), "--workers", "0", "--retry"]) == 0  # the list of sources is read back
    assert "unreadable" in capfd.readouterr().out


def test_contour(commands, capfd):
    said, out = run(commands, "contour", capfd)
    assert r"bad \xff.png" in said
    told = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")]
    assert sorted(os.path.basename(unescaped(one["source"])) for one in told) == sorted(GOOD)
    assert names_in(out / "unreadable.csv", "path") == [os.fsdecode(b"bad \xff.png")]
    assert (out / os.fsdecode(b"caf\xe9.contour.png")).is_file() and (out / "contacts.png").is_file()


def test_embed(commands, capfd):
    said, out = run(commands, "embed", capfd)
    assert r"bad \xff.png" in said and "9 rows" in said
    from hdxray_fast.features.feature_table import read_features

    assert sorted(map(os.path.basename, read_features(out)["path"])) == sorted(GOOD)
    said, _ = run(commands, "embed", capfd)
    assert "(0 new)" in said  # rows are found again by the names of their files
    assert names_in(out.with_suffix(".unreadable.csv"), "path") == [os.fsdecode(b"bad \xff.png")]


def test_predict(commands, capfd):
    said, out = run(commands, "predict", capfd)
    assert r"bad \xff.png" in said
    assert sorted(names_in(out)) == sorted(GOOD)
    again = commands.root / "again.csv"  # what was written is a manifest
    words = ["predict", str(out), "--model", str(commands.root / "classifier"), "--out", str(again), "--workers", "0"]
    assert main(words) == 0
    assert [row["image"] for row in rows_of(again)] == [row["image"] for row in rows_of(out)]
    sick = [[float(row["sick"]) for row in rows_of(path)] for path in (again, out)]
    assert sick[0] == pytest.approx(sick[1], abs=1e-6)  # other images share a batch, without the bad one


def test_a_path_that_is_typed(commands, capfd):
    odd = str(commands.images / ODD[0])
    words = ["contour", odd, "--out", str(commands.root / "one"), "--method", "rectangle", "--img-size", "64"]
    assert main([*words, "--workers", "0"]) == 0
    assert main(["contour", odd + "x", *words[2:]]) == 2
    assert r"caf\xe9.pngx does not exist" in capfd.readouterr().err


def test_folders_and_members_of_archives(tmp_path, capfd):
    """A name in a list of sources leads back to its file, in a folder and in archives."""
    folder = tmp_path / os.fsdecode(b"films \xe9")
    paths = draw(folder, ODD)
    with tarfile.open(tmp_path / "some.tar", "w") as plain, tarfile.open(folder / "some.tgz", "w:gz") as packed:
        for name, path in zip(ODD, paths, strict=True):
            plain.add(path, f"in/{name}")
            packed.add(path, f"in/{name}")
    words = ["prepare", str(folder), str(tmp_path / "some.tar"), "--out", str(tmp_path / "set"), "--img-size", "64"]
    words += ["--view", "any", "--contour", "rectangle", "--keep-duplicates", "--workers", "1"]
    assert main(words) == 0, capfd.readouterr().err
    names = hx.PreparedSet(tmp_path / "set").sources()
    assert set(names) == {*paths, *(f"{tmp_path}/some.tar::in/{name}" for name in ODD)} | {
        f"{folder}/some.tgz::in/{name}" for name in ODD
    }
    for shard in (tmp_path / "set" / "shards").iterdir():
        shard.unlink()
    assert main(words) == 0, capfd.readouterr().err  # made again, from the list that was written down
    assert hx.PreparedSet(tmp_path / "set").sources() == names


def test_a_run_takes_one_such_folder_or_several(tmp_path, capfd):
    folder = tmp_path / os.fsdecode(b'it\'s "caf\xe9"\x1b \\x')
    draw(folder, ["0.png", "1.png"])
    words = [*TRAINED, "--steps", "1", "--workers", "0", "--picture-every", "0", "--model", "vit_tiny_patch16"]
    for number, data in enumerate(([str(folder)], [str(folder), *draw(tmp_path / "others", ["2.png"])])):
        out = tmp_path / f"run{number}"
        assert main(["pretrain", "--data", *data, "--out", str(out), *words]) == 0, capfd.readouterr().err
        assert json.loads((out / "config.json").read_text())["data"] == (data if number else data[0])


@pytest.mark.parametrize("command", ["prepare", "embed", "pretrain"])
def test_results_lie_where_the_libraries_can_write(command, tmp_path, capfd):
    commands = Commands(tmp_path, ["0.png"])
    words = commands.words(command)
    name = os.fsdecode(b"out \xe9") + (".parquet" if command == "embed" else "")
    words[words.index("--out") + 1] = str(tmp_path / name)
    assert main([*words, "--workers", "0"]) == 2
    assert re.search(r"out \\xe9\S* has a name that is not UTF-8", capfd.readouterr().err)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("evaluate"),
        pytest.param("probe", marks=SLOW),
        pytest.param("finetune", marks=SLOW),
        pytest.param("pretrain", marks=SLOW),
        pytest.param("report train", marks=SLOW),
    ],
)
def test_trainings_and_what_tests_them(command, commands, capfd):
    for package in {"probe": ["sklearn"], "finetune": ["sklearn"], "report train": ["transformers"]}.get(command, []):
        pytest.importorskip(package)
    said, out = run(commands, command, capfd)
    if command == "pretrain":
        assert r"bad \xff.png" in said
        assert main([*commands.words(command), "--resume", "auto", "--workers", "0"]) == 0
    elif command == "report train":
        run(commands, "report generate", capfd)
        ids = names_in(commands.out("report generate") / "predictions.csv", "id")
        assert sorted(ids) == sorted(Path(name).stem for name in GOOD)
    elif command == "evaluate":
        assert sorted(names_in(out / "predictions.csv")) == sorted(GOOD)
        from hdxray_fast.classify.prediction_files import read_answers

        answers = read_answers(out)
        assert answers.images == [str(commands.images / name) for name in GOOD]
        assert hx.compare({"a": out, "b": out / "predictions.csv"}, commands.root / "c", bootstraps=2)
    else:
        assert set(names_in(out / "predictions.csv")) == {name for n, name in enumerate(GOOD) if n % 4 == 3}
