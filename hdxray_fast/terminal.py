"""Text that a terminal, a log or an error shows, whatever the names in it hold."""

from __future__ import annotations

import unicodedata

# Control characters, what turns the direction of writing or is invisible, halves of pairs, ends of lines
HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: object) -> str:
    """Text in which whatever a terminal obeys and does not show is written out: ``a\\x1b[2J`` for a name that holds an
    escape sequence.

    Names of files, columns and classes come from anywhere; a raw one could clear a screen, fake a line or hide one.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        written_out(character) if unicodedata.category(character) in HIDDEN else character for character in text
    )


def written_out(character: str) -> str:
    """``\\x1b`` of a control character, ``\\xe9`` of a byte that is not UTF-8 in a file's name."""
    code = ord(character)
    return rf"\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def visible_lines(text: object) -> str:
    """Likewise, of text that has lines of its own."""
    return "\n".join(map(visible, str(text).split("\n")))
