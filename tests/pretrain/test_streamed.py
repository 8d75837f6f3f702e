"""Pre-training on chunks at an address: the losses of a copy; a cache that is too small is refused beforehand."""

from __future__ import annotations

import json

import pytest
from prepared_helpers import prepare
from tiny_training import TINY_PRETRAINING

from hdxray_fast.data.prepared.chunk_store import ChunkStore
from hdxray_fast.data.prepared.stream_writing import write_stream
from hdxray_fast.errors import ConfigError
from hdxray_fast.pretrain.blocks import require_room
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining

for package in ("accelerate", "safetensors", "tqdm", "pyarrow", "fsspec"):
    pytest.importorskip(package)

MIB = 1 << 20


def config(data, out, **changes) -> PretrainConfig:
    small = {**TINY_PRETRAINING, "shuffle": "blocks", "shuffle_block": 2, "steps": 6}
    return PretrainConfig(data=str(data), out=str(out), **{**small, **changes})


def losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_resumed_run_from_a_store_is_that_from_a_copy(radiographs, tmp_path, monkeypatch):
    """Bit for bit; each chunk is fetched once, for the cache has room for all of them."""
    pytest.importorskip("litdata")
    fetched, fetch = [], ChunkStore.fetch

    def noted(self, file, *rest):
        fetched.append(file)
        fetch(self, file, *rest)

    monkeypatch.setattr(ChunkStore, "fetch", noted)
    prepare([radiographs], tmp_path / "set", img_size=TINY_PRETRAINING["img_size"])
    images = write_stream(tmp_path / "set", tmp_path / "chunks", chunk_bytes=1)
    run_pretraining(config(tmp_path / "chunks", tmp_path / "local"), progress=False)
    assert not fetched
    address, out = f"file://{tmp_path / 'chunks'}", tmp_path / "run"

    def stops(line: dict) -> None:
        if line["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(ConfigError, match=r"^img_size: the data set in file://.* was prepared with 128"):
        run_pretraining(config(address, out, img_size=64), progress=False)
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(config(address, out, save_every=3), progress=False, on_step=stops)
    run_pretraining(config(address, out, resume="auto", max_cache=1), progress=False)
    assert losses(out) == losses(tmp_path / "local")
    names = [f"chunk-0-{number}.bin" for number in range(images)]
    assert sorted(fetched) == sorted([*names, "index.parquet", "lookup.arrow"])


@pytest.mark.parametrize(
    ("most", "changes", "nodes", "advice"),
    [
        (1000, {"shuffle": "global"}, 1, None),
        (999, {"shuffle": "global"}, 1, 333),  # two halves are all of it
        (999, {"shuffle": "global"}, 4, 250),
        (1000, {"shuffle_block": 131072}, 1, None),
        (600, {"shuffle_block": 250}, 1, None),
        (600, {"shuffle_block": 500}, 1, 250),
        (100, {"shuffle_block": 49}, 1, None),
        (100, {"shuffle_block": 100}, 1, 50),
    ],
)
def test_a_cache_that_would_be_fetched_into_again_and_again_is_refused(most, changes, nodes, advice):
    """A thousand images of a MiB."""
    told = config("x", "y", max_cache=most, **changes)
    if advice is None:
        require_room(told, 1000, 1000 * MIB, nodes)
        return
    with pytest.raises(ConfigError, match=rf"^max_cache: .* --shuffle blocks --shuffle-block {advice},"):
        require_room(told, 1000, 1000 * MIB, nodes)
    require_room(config("x", "y", max_cache=most, shuffle_block=advice), 1000, 1000 * MIB, nodes)
