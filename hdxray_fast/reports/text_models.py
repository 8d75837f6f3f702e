"""The door to transformers' text models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, library

from ..errors import MissingDependencyError
from ..extras import install


def import_text_models() -> Any:
    """transformers, once its text models can be imported.

    transformers looks into torchvision even for text. One that was built for another torch cannot load its operators
    and then fails to register shape functions for two of them; with their schemas declared it can be imported.

    Raises:
        MissingDependencyError: transformers is not installed, or cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"report models need {error.name}; install it with: {install('report')}"
        ) from error
    try:
        _ = transformers.PegasusForConditionalGeneration
    except (ImportError, RuntimeError) as error:
        if not _torchvision_is_to_blame():
            raise MissingDependencyError(f"transformers cannot be imported ({error})") from error
        warnings.warn("torchvision was built for another torch; text models do without its operators", stacklevel=3)
        try:
            _ = transformers.PegasusForConditionalGeneration
        except (ImportError, RuntimeError) as again:
            raise MissingDependencyError(
                f"transformers cannot be imported ({again}); install the torchvision that belongs to this torch"
            ) from again
    return transformers


@contextmanager
def quietly() -> Iterator[None]:
    """Within, transformers shows no progress bars of its own for reading and writing weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def generate(model: Any, settings: Any, **inputs: Tensor) -> Tensor:
    """Token ids ``[B, T]`` int64 that ``model.generate`` writes as ``settings`` say, and nothing else.

    transformers fills what a caller leaves out, in some versions even what a caller sets to its default, from the
    generation settings that came with the checkpoint. So ``settings`` stand in their place meanwhile.

    Args:
        model: of transformers, or peft's around one.
        settings: transformers' ``GenerationConfig``.
        **inputs: of the model.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, inner.generation_config = inner.generation_config, settings
    try:
        return model.generate(generation_config=settings, **inputs)
    finally:
        inner.generation_config = before


def _torchvision_is_to_blame() -> bool:
    """Whether torchvision lacks its operators; if so, their schemas are declared."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            return False
        for op in ("nms", "qnms"):
            library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return True
    except ImportError:
        return False
    return False
