"""From a report as it was written to the text a model is taught: named functions, one per language and per convention.

Cleaning is for models and for labelled comparisons; the raw report always stays beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import ConfigError

_CJK = r"\u3400-\u9fff\uf900-\ufaff\u3000-\u303f\uff00-\uffef"  # ideographs, their punctuation, full-width forms
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u200e\u200f\ufeff]")
UNKNOWN = "<unk>"


def clean_none(report: str) -> str:
    """White space at both ends goes; nothing else changes."""
    return report.strip()


def clean_english(report: str) -> str:
    """Tidy English.

    White space, ``<br>`` and doubled full stops collapse, list numbers (``1. ``) at the start of a sentence go, and
    sentences that were written together (``effusion.Heart``) are parted.

    Case, hyphens, numbers and de-identified words (``XXXX``, ``___``) stay.
    """
    text = _CONTROL.sub("", report).replace("\u2019", "'").replace("\u2018", "'")
    text = " ".join(re.sub(r"<br ?/?>", " ", text, flags=re.IGNORECASE).split())
    text = re.sub(r"(?<=[a-z]{2})\.(?=[A-Z])", ". ", text)
    text = re.sub(r"(?:(?<=[.?!] )|^)\d{1,2}[.)] ?(?=[A-Za-z_])", "", text)
    text = re.sub(r"(?<!\.)\.\.(?!\.)|\.(?: \.)+", ".", text)
    return re.sub(r" +([.,;:?!])(?= |$)", r"\1", text)


def clean_chinese(report: str) -> str:
    """White space beside Chinese characters or full-width punctuation goes, elsewhere it collapses.

    Full-width punctuation stays as it is; a doubled full stop becomes one.
    """
    text = _CONTROL.sub("", report)
    text = " ".join(text.split())  # str.split knows the ideographic space
    text = re.sub(rf"(?<=[{_CJK}]) | (?=[{_CJK}])", "", text)
    return re.sub(r"。{2,}", "。", text)


# R2Gen's cleaning (https://github.com/cuhksz-nlp/R2Gen, modules/tokenizers.py) replaces these in this order, each once
# from left to right, and so leaves for example four of sixteen full stops. Numbers of lists become sentence ends.
_LISTS = [("1. ", ""), *((f"{dot} {n}. ", ". ") for dot in (".", "") for n in (2, 3, 4, 5))]
_R2GEN_IU = [*[("..", ".")] * 3, *_LISTS]
_R2GEN_MIMIC = [("\n", " "), *[("__", "_")] * 7, *[("  ", " ")] * 6, *[("..", ".")] * 8, *_LISTS]
# Its character class reads ":-[" as a range: ; < = > ? @ and capitals go, hyphens stay.
_R2GEN_DROPPED = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")


def _clean_r2gen(report: str, replacements: Iterable[tuple[str, str]]) -> str:
    for old, new in replacements:
        report = report.replace(old, new)
    sentences = []
    for sentence in report.strip().lower().split(". "):
        for quote in ('"', "/", "\\", "'"):
            sentence = sentence.replace(quote, "")
        sentences.append(_R2GEN_DROPPED.sub("", sentence.strip()))
    return " . ".join(sentences) + " ."


def clean_r2gen_iu_xray(report: str) -> str:
    """As R2Gen cleans IU X-ray: lower case, punctuation within sentences goes, `` . `` between sentences."""
    return _clean_r2gen(report, _R2GEN_IU)


def clean_r2gen_mimic_cxr(report: str) -> str:
    """As R2Gen cleans MIMIC-CXR: as for IU X-ray, with line ends and runs of ``_`` and spaces collapsed."""
    return _clean_r2gen(report, _R2GEN_MIMIC)


def is_blank(report: str) -> bool:
    """No letter and no digit: nothing to teach, and nothing that a score could be of."""
    return not any(character.isalnum() for character in report)


def mostly_chinese(texts: Iterable[str]) -> bool:
    """More than half of the letters are Chinese characters."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return 2 * sum("\u3400" <= character <= "\u9fff" for character in letters) > len(letters)


CLEANERS: dict[str, Callable[[str], str]] = {
    "none": clean_none,
    "english": clean_english,
    "chinese": clean_chinese,
    "r2gen-iu-xray": clean_r2gen_iu_xray,
    "r2gen-mimic-cxr": clean_r2gen_mimic_cxr,
}
DEFAULT_CLEANERS = {"en": "english", "zh": "chinese"}


def cleaner(name: str) -> Callable[[str], str]:
    """The cleaning function called ``name``, one of ``CLEANERS``."""
    if name not in CLEANERS:
        raise ConfigError(f"cleaning: got {name!r}, accepted are {', '.join(map(repr, CLEANERS))}")
    return CLEANERS[name]


@dataclass(frozen=True)
class R2GenReferences:
    """References as R2Gen's own scores have them: cleaned, cut, and with rare words as ``<unk>``.

    Attributes:
        cleaning: ``"r2gen-iu-xray"`` or ``"r2gen-mimic-cxr"``.
        max_length: R2Gen's ``max_seq_length``, 60 for IU X-ray and 100 for MIMIC-CXR; one place is the start token's.
        threshold: words seen less often in the training reports are ``<unk>``; 3 and 10.
        words: the words that are known; ``None`` knows all.
        own: what is scored is the whole of R2Gen's own test set.
    """

    cleaning: str
    max_length: int
    threshold: int
    words: frozenset[str] | None = None
    own: bool = False

    @classmethod
    def fit(cls, training_reports: Iterable[str], data_set: str) -> R2GenReferences:
        """For ``"iu-xray"`` or ``"mimic-cxr"``, with the words of the raw training reports."""
        sizes = {"iu-xray": (60, 3), "mimic-cxr": (100, 10)}
        if data_set not in sizes:
            raise ConfigError(f"r2gen: got {data_set!r}, accepted are {', '.join(map(repr, sizes))}")
        cleaning = f"r2gen-{data_set}"
        max_length, threshold = sizes[data_set]
        counts: dict[str, int] = {}
        for report in training_reports:
            for word in CLEANERS[cleaning](report).split():
                counts[word] = counts.get(word, 0) + 1
        words = frozenset(word for word, count in counts.items() if count >= threshold)
        return cls(cleaning, max_length, threshold, words)

    def __call__(self, report: str) -> str:
        """The report as R2Gen compares it; generated text goes through the same."""
        words = CLEANERS[self.cleaning](report).split()[: self.max_length - 1]
        return " ".join(word if self.words is None or word in self.words else UNKNOWN for word in words)
