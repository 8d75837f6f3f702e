"""Ranks of torchrun share the files; the main one joins: the rows of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from every_command import Commands

from hdxray_fast.cli.main import main

for package in ("jsonargparse", "pandas", "sklearn", "tqdm", "pyarrow"):
    pytest.importorskip(package)

NAMES = [f"{number:02d}.png" for number in range(11)]
RUN = [sys.executable, "-c", "import sys;from hdxray_fast.cli.main import main;sys.exit(main(sys.argv[1:]))"]


def ranks(words: list[str], count: int) -> list[str]:
    """What each rank says; they are started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    where |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [*RUN, *words], env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=900) for process in running]
    assert [process.returncode for process in running] == [0] * count, said
    return [out for out, _ in said]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "count"), [("embed", 2), ("predict", 4), ("evaluate", 2), ("report generate", 2)])
def test_ranks_make_the_rows_of_one_process(command, count, tmp_path):
    commands = Commands(tmp_path, NAMES)
    (commands.images / NAMES[4]).write_bytes(b"no image")
    folders = ("evaluate", "report generate")
    if command == "report generate":
        pytest.importorskip("transformers")
        pytest.importorskip("pycocoevalcap")
        assert main([*commands.words("report train"), "--workers", "0"]) == 0

    def made(folder: str, count: int) -> tuple[dict[str, bytes], list[str]]:
        out = tmp_path / folder
        words = [*commands.words(command), "--workers", "0", "--batch-size", "2"]
        words[words.index("--out") + 1] = str(out if command in folders else out / "out.csv")
        said = ranks(words, count)
        assert not list(Path(out).glob("*.parts"))
        names = ["out.csv"] if command not in folders else ["predictions.csv"]
        names += ["metrics.json"] if command == "evaluate" else []
        pictures = sorted(path.name for path in out.glob("[0-9]*.png"))
        return {name: (out / name).read_bytes() for name in (*names, *pictures)}, said

    whole, _ = made("whole", 1)
    shared, said = made("shared", count)
    assert shared == whole
    assert said[0] and not any(said[1:])  # the main process speaks for all
