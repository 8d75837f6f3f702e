"""Clinical scores through packages of their own: RadGraph F1 and CheXbert F1, for English.

Both run language models that the packages fetch from Hugging Face on first use. What is missing is said in words, never
as a number.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..extras import install
from .metrics import ENGLISH_ONLY

CLINICAL = ("radgraph", "chexbert")
RADGRAPH_MODELS = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
_HUB = "StanfordAIMI/RRG_scorers"
_INSTALL = install("clinical")


def check_clinical(names: Sequence[str]) -> tuple[str, ...]:
    """``names``, or a ConfigError if one is none of ``CLINICAL``."""
    if wrong := [name for name in names if name not in CLINICAL]:
        raise ConfigError(f"clinical: got {wrong[0]!r}, accepted are {', '.join(map(repr, CLINICAL))}")
    return tuple(names)


def clinical_scores(
    generated: Sequence[str],
    references: Sequence[str],
    names: Sequence[str] = CLINICAL,
    *,
    language: str = "en",
    radgraph_model: str = "radgraph-xl",
    device: str | None = None,
) -> dict[str, dict | str]:
    """Clinical scores of raw texts.

    Args:
        generated: one text per study.
        references: raw reports.
        names: of ``CLINICAL``.
        language: only ``"en"`` has such scores.
        radgraph_model: of ``RADGRAPH_MODELS``; numbers of different ones do not compare.
        device: ``"cpu"`` or ``"cuda"``; the packages' own choice by default.

    Returns:
        By name: a dictionary of numbers and of the model they are by, or words that say what is missing.
    """
    check_clinical(names)
    if radgraph_model not in RADGRAPH_MODELS:
        raise ConfigError(f"radgraph_model: got {radgraph_model!r}, accepted are {', '.join(RADGRAPH_MODELS)}")
    if language != "en":
        return dict.fromkeys(names, ENGLISH_ONLY)
    hypotheses, truths = list(generated), list(references)
    made: dict[str, dict | str] = {}
    if "radgraph" in names:
        made["radgraph"] = _radgraph(hypotheses, truths, radgraph_model, device)
    if "chexbert" in names:
        made["chexbert"] = _chexbert(hypotheses, truths, device)
    return made


def _radgraph(generated: list[str], references: list[str], model: str, device: str | None) -> dict | str:
    try:
        from radgraph import F1RadGraph
    except ImportError as error:
        return _no_package("radgraph", error)
    cuda = None if device is None else -1 if device == "cpu" else 0
    try:
        scorer = F1RadGraph(reward_level="all", model_type=model, cuda=cuda)
    except Exception as error:  # the package raises bare Exceptions where its model cannot be fetched
        return _no_model("radgraph", f"{model}.tar.gz", error)
    entities, partial, complete = scorer(hyps=generated, refs=references)[0]
    return {"model": model, "entities": float(entities), "partial": float(partial), "complete": float(complete)}


def _chexbert(generated: list[str], references: list[str], device: str | None) -> dict | str:
    try:
        from f1chexbert import F1CheXbert
    except ImportError as error:
        return _no_package("f1chexbert", error)
    try:
        scorer = F1CheXbert(device=device)
    except Exception as error:  # likewise
        return _no_model("f1chexbert", "chexbert.pth", error)
    _, _, all_labels, five_labels = scorer(hyps=generated, refs=references)
    return {
        "model": "chexbert.pth",
        **{
            f"{average}_f1_{count}": float(report[f"{average} avg"]["f1-score"])
            for count, report in ((14, all_labels), (5, five_labels))
            for average in ("micro", "macro")
        },
    }


def _no_package(package: str, error: ImportError) -> str:
    if error.name == package:
        return f"needs {package}: {_INSTALL}"
    return f"needs {package}, which is there and cannot be imported ({_brief(error)})"


def _no_model(package: str, file: str, error: Exception) -> str:
    return (
        f"needs its model: {package} fetches {file} of {_HUB} and its base language model from Hugging Face on first "
        f"use ({_brief(error)})"
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
