"""Where sentences begin and end, in text and in the tokens that it was written with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .text_tokenizers import ReportTokenizer

# A full stop ends a sentence before white space or the end ("3.5 cm" goes on); a Chinese one does anywhere.
_END = re.compile(r"(?:[.!?]+(?=\s|$)|[。！？；]+|\n+)[\"'”’)]*")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """``(begin, end)`` of every sentence with a letter or digit in it; what has none belongs to the one before."""
    spans: list[tuple[int, int]] = []
    begin = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        piece = text[begin:end]
        if any(character.isalnum() for character in piece):
            spans.append((begin + len(piece) - len(piece.lstrip()), end))
        elif spans and piece.strip():
            spans[-1] = (spans[-1][0], end)
        begin = end
    return spans


def sentence_tokens(tokenizer: ReportTokenizer, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Sentences of a written text, and for each the places of its tokens in ``ids``.

    A token belongs to the sentence that the last letter it adds lies in.
    """
    text = tokenizer.decode(ids)
    spans = sentence_spans(text)
    ends = [len(tokenizer.decode(ids[: place + 1])) for place in range(len(ids))]
    places: list[list[int]] = [[] for _ in spans]
    number = 0
    for place, end in enumerate(ends):
        while number + 1 < len(spans) and end > spans[number + 1][0]:
            number += 1
        if spans:
            places[number].append(place)
    return [text[begin:end].strip() for begin, end in spans], places


def first_sentences(tokenizer: ReportTokenizer, ids: Sequence[int], most: int) -> list[int]:
    """The tokens of the first ``most`` sentences of a text; all, where it has no more."""
    places = sentence_tokens(tokenizer, ids)[1]
    end = max((max(own) + 1 for own in places[:most] if own), default=len(ids))
    return list(ids[:end]) if len(places) > most else list(ids)
