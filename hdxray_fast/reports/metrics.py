"""Scores of generated reports by pycocoevalcap (BLEU, ROUGE-L, CIDEr-D, METEOR), each under a label that says on what.

pycocoevalcap's classes are what the field's numbers come from. Its Java tokenizer is not used: texts are split here, in
a way that the label states. METEOR is a Java program and is reported as ``"needs Java"`` where there is none.
`intervals.py` counts BLEU again, draw by draw.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ArgumentError, MissingDependencyError
from ..extras import install
from .cleaning import R2GenReferences
from .words import english_words

NEEDS_JAVA = "needs Java"
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
        MissingDependencyError: pycocoevalcap is not installed.
    """
    if len(generated) != len(references) or not references:
        raise ArgumentError(
            f"generated, references: got {len(generated)} and {len(references)} texts, accepted is one each per study"
        )
    hypotheses = {i: [convention.split(text)] for i, text in enumerate(generated)}
    truths = {i: [convention.split(text)] for i, text in enumerate(references)}
    empty = [i for i, (text,) in truths.items() if not text]
    if empty:
        raise ArgumentError(f"references: number {empty[0]} has no token ({len(empty)} such); leave such studies out")
    totals, each = corpus_scores(hypotheses, truths)
    totals["meteor"] = ENGLISH_ONLY if not convention.english else "left out"
    if convention.english and meteor:
        totals["meteor"], own = meteor_score(hypotheses, truths)
        each |= {"meteor": own} if own else {}
    return Scores(convention, totals, each)


def corpus_scores(hypotheses: dict, truths: dict) -> tuple[dict[str, float | str], dict[str, list[float]]]:
    """pycocoevalcap's scores of texts that are split already, ``{key: ["token token ..."]}``: of all, and of each."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise MissingDependencyError(f"scores of reports need pycocoevalcap: {install('report')}") from error
    totals: dict[str, float | str] = {}
    each: dict[str, list[float]] = {}
    bleu, bleu_each = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    totals.update((f"bleu{n + 1}", float(value)) for n, value in enumerate(bleu))
    each["bleu4"] = [float(value) for value in bleu_each[3]]
    rouge, rouge_each = Rouge().compute_score(truths, hypotheses)
    totals["rouge_l"], each["rouge_l"] = float(rouge), [float(value) for value in rouge_each]
    # weights of n-grams are logarithms of their rarity: with one reference, or all alike, everything weighs nothing
    totals["cider_d"] = NEEDS_TWO
    if len({text for (text,) in truths.values()}) > 1:
        cider, cider_each = Cider().compute_score(truths, hypotheses)
        totals["cider_d"], each["cider_d"] = float(cider), [float(value) for value in cider_each]
    return totals, each


def meteor_score(hypotheses: dict, truths: dict) -> tuple[float | str, list[float]]:
    """METEOR 1.5 of texts that are split already, of all and of each; or words that say why there is none."""
    if shutil.which("java") is None:
        return NEEDS_JAVA, []
    from pycocoevalcap.meteor.meteor import Meteor

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
