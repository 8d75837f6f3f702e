r"""File names as text that every format can hold, and as they were again.

A file's name is bytes. Python reads those that are not UTF-8 as lone surrogates, which no CSV, Parquet, HTML or
terminal takes; and control characters in a name end lines of a table, or are obeyed by the terminal that shows it. Both
are written by one escape, the same everywhere: a byte that is not UTF-8 as ``\xff``, a control character as ``\x1b``,
two hexadecimal digits in small letters (``\u0085`` for those that Unicode has from 80 to 9f); and a backslash that
would then be read as the beginning of such an escape as ``\x5c``. All other names stand as they are. Whatever reads a
name from a table takes the escape back, so that nothing is lost.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .errors import ConfigError
from .terminal import written_out

ESCAPES = "hdxray_fast.names"  # how a file or terminal may be opened (``errors=``): it then takes any text
# What stands for something else where it is read; \ud800 to \udfff: surrogates that are no byte, as JSON may hold them
ESCAPE = re.compile(r"\\(?:x(5c|7f|[0189a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}|00[89][0-9a-f]))")
SURROGATE = re.compile("[\ud800-\udfff]")
_TO_BE_ESCAPED = re.compile(rf"[\0-\x1f\x7f-\x9f\ud800-\udfff]|\\(?={ESCAPE.pattern[2:]})")


def escaped(name: str | os.PathLike) -> str:
    """A name as valid Unicode without control characters, by the escape above; :func:`unescaped` gives it back."""
    return _TO_BE_ESCAPED.sub(lambda found: _escape(found[0]), os.fspath(name))


def unescaped(text: str) -> str:
    """The name that :func:`escaped` wrote."""
    return ESCAPE.sub(_unescape, text) if "\\" in text else text


def told_apart(paths: Iterable[str]) -> dict[str, str]:
    """A short name of each path: its last part, behind as many folders as tell it from all others."""
    short: dict[str, str] = {}
    left, depth = list(dict.fromkeys(paths)), 1
    while left:
        tails = {path: str(Path(*Path(path).parts[-depth:])) for path in left}
        shared = Counter(tails.values())
        short |= {path: tail for path, tail in tails.items() if shared[tail] == 1 or len(Path(path).parts) <= depth}
        left, depth = [path for path in left if path not in short], depth + 1
    return short


def drawable(text: str) -> str:
    """A name in the letters that OpenCV draws: escaped, and what is not ASCII as ``?``."""
    return escaped(text).encode("ascii", "replace").decode()


def require_utf8(path: str | os.PathLike, argument: str) -> None:
    """Raise a ConfigError that names ``argument`` for a folder or file that Parquet's library cannot write to.

    Radiographs may be called anything; what is written lies where the libraries of Parquet and safetensors find it.
    """
    if SURROGATE.search(os.fspath(path)):
        raise ConfigError(
            f"{argument}: {escaped(path)} has a name that is not UTF-8, which the libraries of Parquet and safetensors "
            "cannot write to; choose another"
        )


def _escape(letter: str) -> str:
    code = ord(letter)
    if code < 0x80:
        return rf"\x{code:02x}"
    return rf"\u{code:04x}" if code < 0xA0 else written_out(letter)  # \x85 is the byte


def _unescape(found: re.Match) -> str:
    if found[2]:
        return chr(int(found[2], 16))
    code = int(found[1], 16)
    return chr(code) if code < 0x80 else chr(0xDC00 + code)


def _on_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_escape(c) if SURROGATE.match(c) else "?" for c in unknown), error.end


codecs.register_error(ESCAPES, _on_error)
