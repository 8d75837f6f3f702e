"""Tiny encoders of few blocks, for tests of what goes on around a training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from hdxray_fast.models.presets import ENCODERS


def tiny_of(blocks: int) -> AbstractContextManager:
    """Within, ``vit_tiny_patch16`` has so many blocks, and not 12, in this process."""
    return mock.patch.dict(ENCODERS, vit_tiny_patch16={**ENCODERS["vit_tiny_patch16"], "depth": blocks})
