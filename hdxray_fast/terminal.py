"""Text that a terminal, a log or an error shows, whatever the names in it hold."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby

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


def counted(count: float, unit: str) -> str:
    """``1 step``, ``2 steps``, ``1,000 studies``."""
    return f"{f'{count:,g}' if count < 1000 else f'{count:,.0f}'} {unit if count == 1 else plural(unit)}"


def plural(unit: str) -> str:
    """``steps``, ``studies``, ``classes``."""
    if re.search("[^aeiou]y$", unit):
        return f"{unit[:-1]}ies"
    return f"{unit}{'es' if unit.endswith(('s', 'ch')) and not unit.endswith('epoch') else 's'}"


def are(count: int, unit: str) -> str:
    """``1 file is``, ``2 files are``."""
    return f"{counted(count, unit)} {'is' if count == 1 else 'are'}"


def first_names(names: Sequence[object], most: int = 3) -> str:
    """The first few names: ``a.png, b.png, c.png, ...``."""
    return ", ".join(map(visible, names[:most])) + ", ..." * (len(names) > most)


def width_of_terminal() -> int | None:
    """Characters in a line of the terminal that stdout is; ``None`` of a file or a pipe, where lines have no end."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table, its first column to the left and the others to the right.

    Args:
        rows: equally many cells in each.
        width: of the terminal; left out, that of stdout. Columns that do not fit come below the others, each time
            beside the first column.
    """
    width = width_of_terminal() if width is None else width
    name, *sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for column, size in enumerate(sizes, 1):
        used = name + sum(2 + sizes[other - 1] for other in blocks[-1])
        if blocks[-1] and width is not None and used + 2 + size > width:
            blocks.append([])
        blocks[-1].append(column)
    return [
        "  ".join([f"{row[0]:{name}}", *(f"{row[column]:>{sizes[column - 1]}}" for column in block)]).rstrip()
        for block in blocks
        for row in rows
    ]


def fitted(text: str, width: int | None = None) -> str:
    """Text for the terminal: its Markdown tables as :func:`aligned` where they are too wide, other lines wrapped.

    Args:
        text: of lines.
        width: of the terminal; left out, that of stdout, and nothing changes where that is none.
    """
    width = width_of_terminal() if width is None else width
    if width is None:
        return text
    lines: list[str] = []
    for is_table, some in groupby(text.split("\n"), lambda line: line.startswith("|")):
        block = list(some)
        if is_table and max(map(len, block)) > width:
            rows = [re.split(r" *\| *", line.strip("| ")) for line in block if not re.fullmatch(r"[|: -]+", line)]
            if len(set(map(len, rows))) == 1:
                lines += aligned(rows, width)
                continue
        lines += [part for line in block for part in _wrapped(line, width)]
    return "\n".join(lines)


def _wrapped(line: str, width: int) -> Iterable[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
