"""What is said while the hub gives no answer: one line, where its client has a line for each request it makes again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import note

CLIENT = "huggingface_hub.utils._http"  # its logger
SAID = ("thrown while requesting", "Retrying in ")  # and not that a rate limit makes it wait for minutes
RATE_LIMIT = "HTTP Error 429"  # of which the client says next how long it waits


@contextmanager
def quiet_retries(asked: object) -> Iterator[None]:
    """Within, one note that the hub gives nothing yet stands for the client's lines about requests it makes again.

    Args:
        asked: what is fetched, which the note names.
    """
    logger = logging.getLogger(CLIENT)
    told = False

    def worth_saying(record: logging.LogRecord) -> bool:
        nonlocal told
        said = record.getMessage()
        if not any(words in said for words in SAID):
            return True
        if not told and RATE_LIMIT not in said:
            told = True
            note(f"{asked}: the hub gives nothing yet; it is asked again")
        return False

    logger.addFilter(worth_saying)
    try:
        yield
    finally:
        logger.removeFilter(worth_saying)
