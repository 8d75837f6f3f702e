"""``predict`` and ``evaluate`` that were ended at any moment go on, and end with the bytes of a run that never was."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from every_command import Commands

import hdxray_fast as hx
from hdxray_fast.classify import evaluation
from hdxray_fast.classify.classifier import load_classifier, save_classifier
from hdxray_fast.cli.main import main
from hdxray_fast.features import filling
from hdxray_fast.features.embedding import Embedder

for package in ("jsonargparse", "pandas", "sklearn", "tqdm", "pyarrow"):
    pytest.importorskip(package)

NAMES = [f"{number:02d}.png" for number in range(14)]
BAD = [NAMES[3], NAMES[8], NAMES[9]]  # some of a batch, and all of one
RESULTS = {"predict": ("out.csv",), "evaluate": ("predictions.csv", "metrics.json", "unreadable.csv")}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "ROWS_PER_PART", 2)
    made = Commands(tmp_path, NAMES)
    for name in BAD:
        (made.images / name).write_bytes(b"no image")
    return made


def words_of(commands: Commands, command: str, out: Path) -> list[str]:
    words = [*commands.words(command), "--workers", "0", "--batch-size", "2"]
    words[words.index("--out") + 1] = str(out if command == "evaluate" else out / "out.csv")
    return words


def bytes_of(command: str, out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS[command]}


@pytest.mark.parametrize("command", RESULTS)
def test_it_goes_on_where_it_was(command, commands, tmp_path, monkeypatch):
    assert main(words_of(commands, command, tmp_path / "whole")) == 0
    whole, work, read = bytes_of(command, tmp_path / "whole"), Embedder._radiographs, []
    assert not list((tmp_path / "whole").glob("*.parts"))

    def ending(self, found):
        read.extend(item.source for item in found[0])
        if len(read) == 7:
            raise KeyboardInterrupt
        return work(self, found)

    monkeypatch.setattr(Embedder, "_radiographs", ending)
    words = words_of(commands, command, tmp_path / "ended")
    assert main(words) == 130
    kept, read[:] = read[:5], [""] * 8
    assert main(words) == 0
    assert read[8:] == [str(commands.images / name) for name in NAMES if name not in BAD][5:]
    assert not set(read) & set(kept)
    assert bytes_of(command, tmp_path / "ended") == whole
    assert not list((tmp_path / "ended").glob("*.parts"))


@pytest.mark.parametrize("command", RESULTS)
def test_what_fails_after_the_last_image_costs_no_image(command, commands, tmp_path, monkeypatch):
    words = words_of(commands, command, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "overlap_of", lambda *seen: 1 / 0 if len(seen) > 2 else None)
        with pytest.raises(ZeroDivisionError):
            main(words)
    monkeypatch.setattr(Embedder, "_radiographs", lambda self, found: pytest.fail("it was read") if found[0] else ())
    assert main(words) == 0


@pytest.mark.parametrize("command", RESULTS)
def test_batches_of_nothing_are_refused_before_anything_is_written(command, commands, tmp_path, capsys):
    assert main([*words_of(commands, command, tmp_path / "none"), "--batch-size", "0"]) == 2
    assert "--batch-size: got 0, accepted is at least 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_file_that_changed_is_read_again_and_another_model_is_refused(commands, tmp_path, monkeypatch):
    words = words_of(commands, "predict", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_tell_known", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    (commands.images / NAMES[0]).write_bytes((commands.images / NAMES[1]).read_bytes())
    other = load_classifier(commands.root / "classifier")
    with torch.no_grad():
        other.head.fc.bias += 1
    save_classifier(other, tmp_path / "other")
    another = [*words]
    another[another.index("--model") + 1] = str(tmp_path / "other")
    with pytest.raises(hx.ConfigError, match=r"rows made with other settings \(weights\); finish that run, remove"):
        evaluation.predict_files([commands.images], tmp_path / "other", tmp_path / "out" / "out.csv")
    assert main(another) == 2
    read, work = [], Embedder._radiographs
    monkeypatch.setattr(Embedder, "_radiographs", lambda self, found: read.extend(found[0]) or work(self, found))
    assert main(words) == 0
    assert [Path(item.source).name for item in read] == NAMES[:1]
    first, second = ((tmp_path / "out" / "out.csv").read_text().splitlines()[row].split(",")[1] for row in (1, 2))
    assert float(first) == pytest.approx(float(second), abs=1e-6)


@pytest.mark.parametrize("command", RESULTS)
def test_parts_are_joined_by_the_last(command, commands, tmp_path, capsys):
    assert main(words_of(commands, command, tmp_path / "whole")) == 0
    words = words_of(commands, command, tmp_path / "parts")
    for which in (2, 3):
        assert main([*words, "--part", f"{which}/3"]) == 0
        assert "the last to end joins them" in capsys.readouterr().out
        assert not (tmp_path / "parts" / RESULTS[command][0]).exists()
    assert main([*words, "--part", "1/3"]) == 0
    assert bytes_of(command, tmp_path / "parts") == bytes_of(command, tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("*.parts"))


# Imports all once; each run is a fork of it, which ends as by kill -9 where it is about to touch its n-th file in `out`
KILLED = """
import json, os, signal, sys
import cv2, filelock, jsonargparse, matplotlib.backends.backend_agg, matplotlib.figure, pandas, pyarrow.parquet
import safetensors.torch, sklearn.metrics, tqdm.auto
import torch._dynamo  # which the first operator would import in each of them
import hdxray_fast.classify.evaluation, hdxray_fast.cli.classify, hdxray_fast.classify.compare
import hdxray_fast.cli.embed, hdxray_fast.features.filling
from hdxray_fast.cli.main import main

hdxray_fast.features.filling.ROWS_PER_PART = 2
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def count(event, args):
    if event in EVENTS and not isinstance(args[0], int) and os.fsdecode(args[0]).startswith(sys.argv[1] + os.sep):
        count.left -= 1
        if not count.left:
            os.kill(os.getpid(), signal.SIGKILL)


for line in sys.stdin:
    count.left, words = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        sys.addaudithook(count)
        os._exit(main(words))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("command", [*RESULTS, "embed"])
def test_killed_at_any_moment(command, commands, tmp_path):
    """Before files that it touches, from the first to the last, and then at a random one of those left."""
    results, chance, moment = {**RESULTS, "embed": ("out.csv",)}[command], random.Random(command), 0
    every = 8 if command == "predict" else 16  # with 1, every moment: minutes
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "ended")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as runs:  # fmt: skip

        def run(out: Path, moment: int) -> int:
            runs.stdin.write(json.dumps([moment, words_of(commands, command, out)]) + "\n")
            runs.stdin.flush()
            return int(runs.stdout.readline())

        def parts() -> set[tuple[str, int]]:
            return {(path.name, path.stat().st_mtime_ns) for path in out.glob("*.parts/*.parquet")}

        assert run(tmp_path / "whole", 0) == 0
        for moment in range(1, 500, every):
            out = tmp_path / "ended" / str(moment)
            if not run(out, moment):
                break
            before = parts()
            if run(out, chance.randint(1, 40)) and not (out / results[0]).exists():  # then parts go
                assert before <= parts(), "a part was made twice"
            assert run(out, 0) == 0
            for name in results:
                assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
            assert not list(out.glob("*.parts"))
        runs.stdin.close()
    assert moment > 30
