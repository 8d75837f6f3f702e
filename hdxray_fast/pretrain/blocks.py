"""Which nodes share a pre-training that shuffles in blocks, and what blocks take of page cache and disk."""

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
    is_fetched = images.fetchers > 1  # from a store, to a disk whose room :func:`require_room` has seen to
    if rank % (world // nodes) == 0 and limit is not None and needed > limit and not is_fetched:
        warnings.warn(
            f"shuffle_block: two blocks of {block} images take {size_in_words(needed)} of the page cache, and this "
            f"machine has {size_in_words(limit)} of memory: they would be read twice; take smaller blocks, or a set of "
            "--format jpeg",
            stacklevel=2,
        )
    return BlocksAhead(images, config.seed, nodes, config.shuffle_block, node=node, share=share)


def require_room(config: PretrainConfig, images: int, size: int, nodes: int) -> None:
    """Refuse a cache in which chunks would make room before they are read: each would be fetched many times an epoch.

    Args:
        config: shuffle, and what the cache may take.
        images, size: how many images there are in the store, and the bytes of their chunks.
        nodes: as :func:`node_count` gives it.

    Raises:
        ConfigError: it holds no two blocks, or not all of what is shuffled as a whole; says what would do.
    """
    most, own = config.max_cache << 20, -(-images // nodes)

    def of_blocks(count: int) -> float:
        """Bytes of two of so many blocks, as :class:`.BlockOrder` cuts them."""
        return min(2 * -(-own // count) / images, 1) * size

    if (size if config.shuffle == "global" else of_blocks(max(1, own // config.shuffle_block))) <= most:
        return
    count = next((count for count in range(1, own + 1) if of_blocks(count) <= most), own)
    what = "all of it" if config.shuffle == "global" else f"two blocks of {min(config.shuffle_block, own)} images"
    raise ConfigError(
        f"max_cache: {size_in_words(most)} do not hold {what} ({size_in_words(size)} are in the store), so that chunks "
        f"would be fetched again and again; give --shuffle blocks --shuffle-block {own // count}, or allow more"
    )
