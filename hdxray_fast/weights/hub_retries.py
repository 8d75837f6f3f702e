"""What the hub's client says while it tries again: nothing, where an error of ours follows that says it all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

CLIENT = "huggingface_hub.utils._http"  # its logger
SAID = ("thrown while requesting", "Retrying in ")  # and not that a rate limit makes it wait for minutes


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Within, the client's lines about requests that failed and are made again are left out."""
    logger = logging.getLogger(CLIENT)

    def worth_saying(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in SAID)

    logger.addFilter(worth_saying)
    try:
        yield
    finally:
        logger.removeFilter(worth_saying)
