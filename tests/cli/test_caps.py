"""A file that hangs, or takes all memory, costs itself alone, in every command that reads radiographs."""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path

import pytest
from every_command import Commands, draw

from hdxray_fast.cli.main import main
from hdxray_fast.data import contour_files, radiographs
from hdxray_fast.data.prepared import pool

for package in ("jsonargparse", "loky", "pebble", "pyarrow", "tqdm"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory can be capped on Linux alone")

GOOD = [f"{number}.png" for number in range(8)]
BAD = {"grows.png": "MemoryError", "hangs.png": "TimeoutError"}
SLOW = pytest.mark.slow


@pytest.fixture
def unruly(monkeypatch):
    """Workers import readers that misbehave by a file's name."""
    helpers = Path(__file__).parents[1] / "helpers"
    monkeypatch.setenv("PYTHONPATH", f"{helpers}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    import unruly_files

    monkeypatch.setattr(pool, "prepare_source", unruly_files.prepare_source)
    monkeypatch.setattr(radiographs, "read_radiograph", unruly_files.read_radiograph)
    monkeypatch.setattr(contour_files, "read_contour", unruly_files.read_contour)


def said_of(command: str, commands: Commands, said) -> str:
    """What a command says of files that cannot be read, wherever it says so."""
    out = commands.out(command)
    lists = {"prepare": "quarantine.csv", "contour": "unreadable.csv", "evaluate": "unreadable.csv",
             "probe": "features.unreadable.csv"}  # fmt: skip
    file = out.with_suffix(".unreadable.csv") if command == "embed" else out / lists.get(command, "unreadable.csv")
    if command in ("predict", "report generate"):
        return said.err
    with file.open(newline="") as stream:
        return "\n".join(" ".join(row) for row in csv.reader(stream))


@pytest.mark.parametrize(
    "command",
    [
        "contour",
        "embed",
        "predict",
        pytest.param("prepare", marks=SLOW),
        pytest.param("evaluate", marks=SLOW),
        pytest.param("probe", marks=SLOW),
        pytest.param("finetune", marks=SLOW),
        pytest.param("pretrain", marks=SLOW),
        pytest.param("report train", marks=SLOW),
    ],
)
def test_a_file_that_hangs_or_grows_costs_itself_alone(command, tmp_path, unruly, capsys):
    for package in {"probe": ["sklearn"], "finetune": ["sklearn"], "report train": ["transformers"]}.get(command, []):
        pytest.importorskip(package)
    commands = Commands(tmp_path, [*GOOD, *BAD])
    run(command, commands, capsys)
    if command == "report train":
        run("report generate", commands, capsys)


def run(command: str, commands: Commands, capsys) -> None:
    words = [*commands.words(command), "--workers", "2", "--timeout", "4", "--max-memory", "1024"]
    capsys.readouterr()
    began = time.monotonic()
    assert main(words) == 0, capsys.readouterr().err
    assert time.monotonic() - began < 55, "the hanging file was waited for"
    told = said_of(command, commands, capsys.readouterr())
    assert "takes longer than 4 s" in told
    assert "needs more memory than one file may take (1024 MiB)" in told
    assert all(name in told for name in BAD) and not any(f"{name}:" in told for name in GOOD), told


@pytest.mark.parametrize("reader", ["pretrain", "contour"])
def test_a_single_file_is_capped_too(reader, tmp_path, unruly, capsys):
    commands = Commands(tmp_path, ["hangs.png"])
    began = time.monotonic()
    assert main([*commands.words(reader), "--timeout", "2"]) == 2
    assert time.monotonic() - began < 55
    assert "takes longer than 2 s" in capsys.readouterr().err


def test_the_query_of_similar_is_capped_too(tmp_path, unruly, capsys):
    commands = Commands(tmp_path, GOOD[:2])
    assert main([*commands.words("embed"), "--workers", "1"]) == 0
    words = ["similar", *draw(tmp_path / "queries", ["hangs.png"]), "--in", str(commands.out("embed"))]
    words += ["--weights", str(commands.encoder()), "--out", str(tmp_path / "similar"), "--timeout", "2"]
    began = time.monotonic()
    assert main([*words, "--workers", "2"]) == 2
    assert time.monotonic() - began < 55
    assert "takes longer than 2 s" in capsys.readouterr().err
