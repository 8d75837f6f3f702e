"""English words as pycocoevalcap's tokenizer of the Penn Treebank has them, without its Java."""

from __future__ import annotations

import re

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_²³¹⁰-⁹₀-₉]"
_DECIMAL = r"\d*(?:[.,]\d+)+"  # after a letter too: the Treebank parts "v70.0" as "v70 .0"
_NUMBER = r"\d*(?:[.,:]\d+)+"

# What keeps its full stop, before any word; what does so written with a capital only; and before a number only.
_ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri "
    "ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo "
    "inc cos? corp pty ltd plc rt bancorp dept bhd assn univ intl sys invt elec natl m[tf]g "
    "jr sr bros drs? mr mrs ms messrs profs? gen adm col cpl lt capt maj brig sgt cmdr comdr pfc spc reps? gov atty "
    "supt det rev hon pres mt ft st sens? lieut insp esq pvt ph\\.d est ext tel al etc cf vs v p ave blvd bldg hwy rd "
    "sq"
)
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_BEFORE_NUMBERS = "nos? figs? art ca pp prop"


def _any_of(words: str) -> str:
    return "|".join(words.split())


_WORD = re.compile(
    rf"https?://[^\s<>\"]*[^\s<>\".,;:!?'()\[\]]|[\w.+-]+@{_ALNUM}+(?:[.-]{_ALNUM}+)*|[@\#]{_LETTER}\w*"
    r"|<(?:!--.*?--|[/!?]?[a-z][^<>]*)>|<<|>>"  # tags, such as <unk>
    r"|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b)|'t(?=is\b|was\b)"
    r"|can(?=not\b)|(?<=can)not\b"
    rf"|{_LETTER}+?(?=n't\b)|n't\b"
    r"|'(?:s|re|ve|ll|d|m|em|til|cause)\b|'\d\ds?\b|'n\b'?"
    rf"|[a-z](?:\.[a-z])*\.(?!{_LETTER}|-{_ALNUM})"  # initials
    rf"|(?:{_any_of(_ABBREVIATIONS)})\.(?!\w|-{_ALNUM})"
    rf"|(?-i:{'|'.join(f'{state}|{state.upper()}' for state in _STATES.split())})\.(?!\w)"
    rf"|(?:{_any_of(_BEFORE_NUMBERS)})\.(?=\s*\d)"
    rf"|[odl]'{_LETTER}{_ALNUM}+|[dly]'(?=(?!s\b){_LETTER})|ma'am\b"  # o'clock
    r"|(?-i:[A-Z]+(?:&[A-Z]+)+)|(?-i:[A-Z]{1,2})\$"
    rf"|(?<!-)[-+](?:{_NUMBER}|\d+)"
    r"|\d{1,4} \d{1,4}/\d{1,4}(?![\d/])"  # "1 1/2" is one word, its space a hard one
    rf"|{_DECIMAL}(?![.,:]\d)(?:-{_ALNUM}+)*|{_NUMBER}"
    rf"|\d+(?=\.{_LETTER})"  # "1.Clear" lacks its space
    rf"|\d+/\d+{_LETTER}+|{_ALNUM}+(?:-{_ALNUM}*\d{_ALNUM}*)+(?=/{_LETTER})"
    rf"|{_LETTER}{_ALNUM}*(?:\.{_LETTER}{_ALNUM}*)+(?:\.(?=[,;:]))?"
    rf"|{_ALNUM}+(?:_{_ALNUM}+|\.?-{_ALNUM}+)*(?:[!?]{_LETTER}{_ALNUM}*|\.(?=[,;:])|(?=/)(?:/{_LETTER}{_ALNUM}*"
    rf"|(?<=\d)/\d+(?![.\d])|/(?=\d){_ALNUM}+|-{_ALNUM}+)*)?"
    r"|_+|\*+|[!?]{2,}"
    r"|[:;=][-']?(?:[()](?!\w)|[dp]\b|(?-i:O)\b)"  # faces; what looks like one is taken for one
    r"|[^\w\s.,:;?!'\"`\-–—…‒―]|[²³¹⁰-⁹₀-₉]",  # marks that pycocoevalcap does not drop
    re.IGNORECASE,
)
_MARKS = str.maketrans("‘’“”‐‑½¼¾⅓⅔\u200b", "''\"\"--\ue000\ue001\ue002\ue003\ue004 ", "\ufeff\u00ad")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": " "}
_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "€": "$", "£": "#"}
_NAMES |= {
    "¢": "cents",
    "\ue000": "1/2",
    "\ue001": "1/4",
    "\ue002": "3/4",
    "\ue003": "1/3",
    "\ue004": "2/3",
    " ": "\xa0",
}
_NAMED = re.compile("|".join(map(re.escape, _NAMES)))


def english_words(text: str) -> str:
    """Lower case, words and the marks that count as such, joined by single spaces.

    ``"No x-ray, (done)."`` is ``"no x-ray -lrb- done -rrb-"``. Findings and impressions of 3,425 reports of IU X-ray
    come out as from the Java program; rare spellings do not (``"Rt.x"``, ``"a/1-2"``, HTML entities by number).
    """
    for entity, mark in _ENTITIES.items():
        text = text.replace(entity, mark)
    words = _WORD.findall(text.translate(_MARKS))
    return " ".join(_NAMED.sub(lambda mark: _NAMES[mark[0]], word) for word in words).lower()
