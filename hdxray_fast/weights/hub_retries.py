"""What is said while the hub does not answer: one line, where its client has a line for each request it makes again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..progress import note

CLIENT = "huggingface_hub.utils._http"  # its logger
SAID = ("thrown while requesting", "Retrying in ")  # and not that a rate limit makes it wait for minutes


@contextmanager
def quiet_retries(asked: object) -> Iterator[None]:
    """Within, one note that the hub does not answer stands for the client's lines about requests it makes again.

    Args:
        asked: what is fetched, which the note names.
    """
    logger = logging.getLogger(CLIENT)
    told = False

    def worth_saying(record: logging.LogRecord) -> bool:
        nonlocal told
        if not any(words in record.getMessage() for words in SAID):
            return True
        if not told:
            told = True
            note(f"{asked}: the hub does not answer; it is asked again, for up to a minute")
        return False

    logger.addFilter(worth_saying)
    try:
        yield
    finally:
        logger.removeFilter(worth_saying)
