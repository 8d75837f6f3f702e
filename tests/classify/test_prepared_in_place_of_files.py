"""Classifiers on a prepared data set: what is written is what the files give, byte by byte, without the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from every_command import Commands
from prepared_helpers import prepare

import hdxray_fast as hx
from hdxray_fast.classify.evaluation import evaluate_files
from hdxray_fast.cli.main import main

for package in ("jsonargparse", "pandas", "sklearn", "matplotlib", "tqdm", "pyarrow"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    root = tmp_path_factory.mktemp("commands")
    found = Commands(root, [f"{number}.png" for number in range(12)])
    prepare([found.images], root / "set", img_size=64, view="any")
    return found


def made(commands: Commands, command: str, out: Path, stored: bool) -> dict[str, bytes]:
    """The files that a command writes, from the folder or with nothing but the set."""
    words = [*commands.words(command), "--workers", "0"]
    place = words.index("--out") + 1
    words[place] = str(out / "out.csv" if command == "predict" else out)
    words += ["--maps", str(out / "maps")] if command == "predict" else []
    if stored and command == "predict":
        words[1] = str(commands.root / "set")
    elif stored:
        words += ["--prepared", str(commands.root / "set")]
    away = shutil.move(commands.images, commands.root / "away") if stored else commands.images
    try:
        assert main(words) == 0
    finally:
        shutil.move(away, commands.images)
    files = ("out.csv", "maps/0.map.png") if command == "predict" else ("predictions.csv", "errors.png", "metrics.json")
    return {name: (out / name).read_bytes() for name in files if (out / name).exists()}


@pytest.mark.parametrize("command", ["predict", "evaluate", "probe"])
def test_results_are_those_of_the_files(commands, command, tmp_path):
    files, stored = (made(commands, command, tmp_path / name, name == "stored") for name in ("files", "stored"))
    told = [json.loads(one.pop("metrics.json", b"{}")) for one in (files, stored)]
    for one in told:  # which names the folder and the set
        one.pop("config", None)
    assert files == stored and files and told[0] == told[1]
    drawn = {"predict": "maps/0.map.png", "evaluate": "errors.png"}.get(command)
    assert drawn is None or drawn in stored  # of the set's pixels


def test_labels_are_not_looked_for_in_a_set(commands, tmp_path):
    out = tmp_path / "out"
    for run in (
        lambda: hx.run_probe(hx.ProbeConfig(data=str(commands.root / "set"), out=str(out), weights="")),
        lambda: evaluate_files(commands.classifier(), commands.root / "set", out),
    ):
        with pytest.raises(hx.ConfigError, match=r"^data: .*set is a prepared data set, which holds no labels; "):
            run()
