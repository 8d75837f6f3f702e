"""Which nodes share a pre-training that shuffles in blocks, and what theirs take of the page cache."""

from __future__ import annotations

import os
import warnings

from ..data.memory import memory_limit
from ..data.prepared.reading import PreparedSet, PreparedSubset
from ..data.read_ahead import BlocksAhead
from ..errors import ConfigError
from ..files import size_in_words
from .config import PretrainConfig


def node_count(config: PretrainConfig) -> int:
    """Nodes that blocks are dealt out to: 1 where there are none, as many as asked for, or what the launcher tells.

    Raises:
        ConfigError: the processes cannot be shared out evenly among them.
    """
    if config.shuffle != "blocks":
        return 1
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = config.nodes or max(1, world // max(1, here))
    if world % nodes or (config.nodes is None and world % here):
        raise ConfigError(f"nodes: {world} processes cannot be shared out evenly among {nodes}; each needs as many")
    return nodes


def blocks_ahead(
    config: PretrainConfig, images: PreparedSet | PreparedSubset, nodes: int, rank: int, world: int
) -> BlocksAhead:
    """The order for a process, which reads ahead; warns if this machine's memory cannot hold two blocks."""
    node, place = divmod(rank, world // nodes)
    share = place, world // nodes
    block = min(config.shuffle_block, -(-len(images) // nodes))
    needed = 2 * block * int(images.column("length").to_numpy().mean())
    limit = memory_limit()
    if rank % (world // nodes) == 0 and limit is not None and needed > limit:
        warnings.warn(
            f"shuffle_block: two blocks of {block} images take {size_in_words(needed)} of the page cache, and this "
            f"machine has {size_in_words(limit)} of memory: they would be read twice; take smaller blocks, or a set of "
            "--format jpeg",
            stacklevel=2,
        )
    return BlocksAhead(images, config.seed, nodes, config.shuffle_block, node=node, share=share)
