"""Pre-training that shuffles in blocks: nodes are counted, a resumed run is the run, other nodes are refused."""

from __future__ import annotations

import json

import pytest
from tiny_training import TINY_PRETRAINING

from hdxray_fast.data import order as orders
from hdxray_fast.errors import ConfigError
from hdxray_fast.pretrain import blocks
from hdxray_fast.pretrain.blocks import node_count
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("two_blocks")
SMALL = {**TINY_PRETRAINING, "shuffle": "blocks", "shuffle_block": 2}


def config(data, out, **changes) -> PretrainConfig:
    return PretrainConfig(data=str(data), out=str(out), **{**SMALL, "steps": 8, **changes})


def losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("world", "here", "asked", "found"), [(1, None, None, 1), (16, 8, None, 2), (16, 8, 4, 4), (4, 4, None, 1)]
)
def test_nodes_are_those_of_the_launcher_or_as_asked_for(monkeypatch, world, here, asked, found):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert node_count(config("x", "y", nodes=asked)) == found
    assert node_count(config("x", "y", nodes=asked, shuffle="global")) == 1


@pytest.mark.parametrize(("world", "here", "asked"), [(4, 4, 3), (1, 1, 2), (12, 8, None)])
def test_processes_that_cannot_be_shared_out_are_refused(monkeypatch, world, here, asked):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    with pytest.raises(ConfigError, match=f"nodes: {world} processes cannot be shared out evenly"):
        node_count(config("x", "y", nodes=asked))


def test_a_resumed_run_is_the_run(radiographs, tmp_path, monkeypatch):
    """Bit for bit, in the middle of a block; another shuffle, block or number of nodes is refused."""
    monkeypatch.setattr(orders, "RUN", 1)
    cache = str(tmp_path / "cache")
    run_pretraining(config(radiographs, tmp_path / "whole", cache=cache), progress=False)

    def stops(line: dict) -> None:
        if line["step"] == 5:
            raise KeyboardInterrupt

    options = {"cache": cache, "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(config(radiographs, tmp_path / "run", **options), progress=False, on_step=stops)
    options["resume"] = "auto"
    for changes in ({"shuffle": "global"}, {"shuffle_block": 3}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            run_pretraining(config(radiographs, tmp_path / "run", **options, **changes), progress=False)
    with monkeypatch.context() as other:
        other.setattr("hdxray_fast.pretrain.task.node_count", lambda config: 2)
        with pytest.raises(ConfigError, match=r"nodes: the run in .* shuffles blocks of 1 nodes, and not of 2"):
            run_pretraining(config(radiographs, tmp_path / "run", **options), progress=False)
    run_pretraining(config(radiographs, tmp_path / "run", **options), progress=False)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_blocks_that_memory_cannot_hold_are_told(radiographs, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "memory_limit", lambda: 3 * 128 * 128)
    with pytest.warns(UserWarning, match=r"shuffle_block: two blocks of 2 images take .* smaller blocks"):
        run_pretraining(config(radiographs, tmp_path / "run", steps=1), progress=False)
