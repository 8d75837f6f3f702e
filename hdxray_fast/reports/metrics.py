"""Scores of generated reports (BLEU, ROUGE-L, CIDEr-D, METEOR), each under a label that says on what.

The numbers are pycocoevalcap's, which the field's come from. Its Java tokenizer is not used: texts are split here, in
a way that the label states. METEOR is a Java program of that package, and words stand in its place where either is
missing. `intervals.py` counts BLEU again, draw by draw.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError
from ..extras import install
from .cleaning import R2GenReferences
from .ngram_scores import bleu_counts, bleu_of_counts, cider_d, rouge_l
from .words import english_words

NEEDS_JAVA = "needs Java"
NEEDS_SCORES = f"needs pycocoevalcap: {install('report-scores')}"
NEEDS_TWO = "needs two different references"
NEEDS_JIEBA = f"needs jieba: {install('report-chinese')}"
ENGLISH_ONLY = "English only"
SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "meteor")
_CHARACTER = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True)
class Convention:
    """How texts are brought to tokens before they are compared; scores of different conventions are unlike numbers.

    Attributes:
        references: ``"raw"``; ``"r2gen-compatible"`` of R2Gen's own test set, whole and with its words; or
            ``"r2gen-cleaned, other test set"``.
        unit: ``"word"`` or ``"character"``.
        stated: the convention in words.
        split: text to tokens joined by single spaces; references and generated texts alike.
        english: METEOR, whose tables are English, applies.
    """

    references: str
    unit: str
    stated: str
    split: Callable[[str], str]
    english: bool = True


def chinese_characters(text: str) -> str:
    """Characters; runs of Latin letters and digits are one token each; punctuation dropped."""
    return " ".join(_CHARACTER.findall(unicodedata.normalize("NFKC", text).lower()))


def chinese_words(text: str) -> str:
    """Words as jieba cuts them; punctuation dropped."""
    import jieba

    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(word for word in jieba.cut(text) if any(character.isalnum() for character in word))


def conventions(language: str, r2gen: R2GenReferences | None = None) -> list[Convention | str]:
    """All that apply to a language; a string in place of one whose package is missing says so."""
    if language == "en":
        stated = "raw references, whole; lower case, words of the Penn Treebank tokenizer, punctuation dropped"
        made: list[Convention | str] = [Convention("raw", "word", stated, english_words)]
        if r2gen is not None:
            name = "r2gen-compatible" if r2gen.own and r2gen.words is not None else "r2gen-cleaned, other test set"
            rare = f"words seen fewer than {r2gen.threshold} times in training as <unk>"
            if r2gen.words is None:
                rare = "rare words as they are, for want of the training reports"
            whose = "R2Gen's test set and references" if r2gen.own else "not R2Gen's test set, in R2Gen's manner"
            stated = (
                f"{whose}: {r2gen.cleaning} cleaning, sentence ends as tokens, first {r2gen.max_length - 1} "
                f"tokens, {rare}; generated text treated alike"
            )
            made.append(Convention(name, "word", stated, r2gen))
        return made
    stated = "raw references, whole; characters, Latin words and numbers as one token, punctuation dropped"
    made = [Convention("raw", "character", stated, chinese_characters, english=False)]
    try:
        import jieba

        jieba.setLogLevel("ERROR")
    except ImportError:
        return [*made, NEEDS_JIEBA]
    stated = "raw references, whole; words as jieba cuts them, punctuation dropped"
    return [*made, Convention("raw", "word", stated, chinese_words, english=False)]


@dataclass(frozen=True)
class Scores:
    """Scores of one convention.

    Attributes:
        convention: on what.
        totals: each of ``SCORES``: a number, or words that say why there is none.
        each: ``bleu4``, ``rouge_l`` and, where there are such, ``cider_d`` and ``meteor`` of every study, in order.
    """

    convention: Convention
    totals: dict[str, float | str]
    each: dict[str, list[float]]

    def as_dict(self) -> dict:
        """What goes into ``metrics.json``."""
        about = {name: getattr(self.convention, name) for name in ("references", "unit", "stated")}
        return {**about, "studies": len(self.each["rouge_l"]), **self.totals}


def score_reports(
    generated: Sequence[str], references: Sequence[str], convention: Convention, meteor: bool = True
) -> Scores:
    """Scores of one convention.

    Args:
        generated: one text per study; may be empty texts.
        references: raw reports, one per study, none of them without a token.
        convention: from :func:`conventions`.
        meteor: start Java for METEOR, if the convention has it; ``False`` saves its second during training.

    Raises:
        ArgumentError: the lists differ in length, are empty, or a reference has no token.
    """
    if len(generated) != len(references) or not references:
        raise ArgumentError(
            f"generated, references: got {len(generated)} and {len(references)} texts, accepted is one each per study"
        )
    made, truths = ([convention.split(text) for text in texts] for texts in (generated, references))
    empty = [i for i, text in enumerate(truths) if not text]
    if empty:
        raise ArgumentError(f"references: number {empty[0]} has no token ({len(empty)} such); leave such studies out")
    totals, each = corpus_scores(made, truths)
    totals["meteor"] = ENGLISH_ONLY if not convention.english else "left out"
    if convention.english and meteor:
        totals["meteor"], own = meteor_score(*({i: [text] for i, text in enumerate(texts)} for texts in (made, truths)))
        each |= {"meteor": own} if own else {}
    return Scores(convention, totals, each)


def corpus_scores(
    generated: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float | str], dict[str, list[float]]]:
    """BLEU, ROUGE-L and CIDEr-D of texts that are split already: of all, and of each."""
    counts = bleu_counts(generated, references)
    totals: dict[str, float | str] = dict(
        zip(SCORES[:4], bleu_of_counts(counts.sum(0, keepdims=True))[0].tolist(), strict=True)
    )
    each = {"bleu4": bleu_of_counts(counts)[:, 3].tolist(), "rouge_l": rouge_l(generated, references)}
    totals["rouge_l"] = float(np.mean(each["rouge_l"]))
    # weights of n-grams are logarithms of their rarity: with one reference, or all alike, everything weighs nothing
    totals["cider_d"] = NEEDS_TWO
    if len(set(references)) > 1:
        each["cider_d"] = cider_d(generated, references)
        totals["cider_d"] = float(np.mean(each["cider_d"]))
    return totals, each


def meteor_score(hypotheses: dict, truths: dict) -> tuple[float | str, list[float]]:
    """METEOR 1.5 of texts that are split already, ``{key: ["token token ..."]}``: of all and of each; or words that say
    why there is none."""
    if shutil.which("java") is None:
        return NEEDS_JAVA, []
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError:
        return NEEDS_SCORES, []

    # the program's protocol is lines of fields parted by |||: neither may be in a text
    tidy = [
        {key: [" ".join(text.replace("|||", " ").split()) for text in texts] for key, texts in side.items()}
        for side in (truths, hypotheses)
    ]
    program = None
    try:
        program = Meteor()
        total, each = program.compute_score(*tidy)
        return float(total), [float(value) for value in each]
    except (OSError, ValueError) as error:  # a Java that does not start, or answers with something else than numbers
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"failed: java does not run METEOR ({reason})", []
    finally:
        if program is not None:
            with suppress(OSError):  # what is left to be written has no reader
                program.meteor_p.stdin.close()
            if program.lock.locked():
                program.lock.release()  # kept after an error: its deletion would wait for it for ever
