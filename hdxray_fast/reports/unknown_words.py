"""What a tokenizer of reports does not know: told, and refused where it is most of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import TrainingError
from .text_tokenizers import MAX_UNKNOWN, ReportTokenizer


def refuse_mostly_unknown(share: float, warning: str | None = None) -> None:
    """Raise a TrainingError if more than half of all tokens are unknown.

    Args:
        share: of their tokens that are unknown.
        warning: of :func:`unknown_warning`, which says what to do.

    Raises:
        TrainingError: more than half of all tokens are unknown: the tokenizer is for another language, or it was
            trained on too few reports for its floors.
    """
    if share > 0.5:
        raise TrainingError(f"tokenizer: {warning or f'{share:.0%} of the tokens of the training reports are unknown'}")


def require_targets(
    texts: Sequence[str], tokenizer: ReportTokenizer, max_length: int, share: float, warning: str | None = None
) -> tuple[list[list[int]], int]:
    """Ids to be taught of every text, and how many were cut at ``max_length``; ``share`` and ``warning`` are refused
    as by :func:`refuse_mostly_unknown`.
    """
    refuse_mostly_unknown(share, warning)
    pairs = [tokenizer.target(text, max_length) for text in texts]
    return [ids for ids, _ in pairs], sum(cut for _, cut in pairs)


def unknown_warning(
    share: float, min_frequency: int | None, min_patients: int | None = None, *, replaceable: bool = True
) -> str | None:
    """What to say of a tokenizer that leaves many training tokens unknown, and what to do about it.

    Args:
        share: of the tokens of the training reports that are unknown.
        min_frequency, min_patients: the tokenizer was trained with; ``None`` for one that was not trained here.
        replaceable: another tokenizer can be taken: the model is no language model, which has its own.

    Returns:
        A sentence, or ``None`` if the share is at most ``MAX_UNKNOWN``.
    """
    if share <= MAX_UNKNOWN:
        return None
    if not replaceable:
        remedy = "choose a language model whose tokenizer knows the language of the reports (--language-model)"
    elif min_frequency is None:
        remedy = "give --tokenizer bpe, which knows every text, or another one"
    elif (min_patients or 1) > 1:
        remedy = (
            "give --tokenizer bpe, which knows every text, or, for a model that is given to nobody, --min-patients 1 "
            f"(it is {min_patients}) and --digits true"
        )
    elif min_frequency > 1:
        remedy = f"give --min-frequency 1 (it is {min_frequency}), or --tokenizer bpe, which knows every text"
    else:
        remedy = "give a larger --vocab-size, or --tokenizer bpe, which knows every text"
    return (
        f"{share:.1%} of the tokens of the training reports are unknown to the tokenizer, so the model can neither "
        f"learn nor write them; {remedy}"
    )


def left_out_note(share: float, vocabulary: Mapping) -> str:
    """What to say of a share of unknown tokens that is no cause for a warning, and of what is left out on purpose.

    Args:
        share: of the tokens of the training reports.
        vocabulary: ``min_patients`` and ``digits`` of the tokenizer; empty for one that was not trained here.

    Returns:
        A sentence; blank if there is nothing to say.
    """
    told = [f"{share:.2%} of the tokens of the training reports are unknown to the tokenizer"] if share else []
    least = vocabulary.get("min_patients") or 1
    out = [f"words of fewer than {least} patients"] if least > 1 else []
    out += ["words with digits"] if vocabulary and not vocabulary["digits"] else []
    if out:
        told.append(f"{' and '.join(out)} are not in the vocabulary, which goes with the model (min_patients, digits)")
    return "; ".join(told)
