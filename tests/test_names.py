"""Names that are not UTF-8, or hold control characters: one escape, taken back by whatever reads it."""

from __future__ import annotations

import itertools
import os

import pytest

from hdxray_fast.names import ESCAPES, drawable, escaped, told_apart, unescaped
from hdxray_fast.terminal import visible

PIECES = ("\\", "x", "u", "5c", "c", "ff", "80", "7f", "d8", "00", "\udcff", "\udc80", "\ud800", "é", "\\x5c", "\\xff")
PIECES = (*PIECES, "\x1b", "1b", "\n", "0a", "\x7f", "\x80", "0080", "\\x1b", "\\u0080")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain é.png", "plain é.png"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        (r"caf\xe9.png", r"caf\x5cxe9.png"),  # a file that is called so
        (r"C:\xrays\new.png", r"C:\xrays\new.png"),
        (r"\x5c", r"\x5cx5c"),
        ("\ud800", r"\ud800"),
        ("a\x1b[2J\t\r\n\x7f\x85.png", r"a\x1b[2J\x09\x0d\x0a\x7f\u0085.png"),
        (r"a\x1b\u0085", r"a\x5cx1b\x5cu0085"),
        ("\x00\u200f肺\xa0", "\\x00\u200f肺\xa0"),  # marks of writing are letters' business
    ],
)
def test_the_escape(name, text):
    assert escaped(name) == text and unescaped(text) == name


def test_every_name_comes_back_and_no_two_are_written_alike():
    names = {"".join(some) for length in range(4) for some in itertools.product(PIECES, repeat=length)}
    written = {escaped(name) for name in names}
    assert len(written) == len(names)
    for name in names:
        text = escaped(name)
        assert text.encode().decode() == text and text.isprintable() and unescaped(text) == name


def test_messages_and_captions_of_any_name(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.png")
    assert visible(name) == r"caf\xe9 é.png" and drawable(name) == r"caf\xe9 ?.png"
    with (tmp_path / "log.txt").open("w", encoding="utf-8", errors=ESCAPES) as stream:
        stream.write(f"{name}\n")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "caf\\xe9 é.png\n"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", ESCAPES)


def test_short_names_tell_films_apart():
    paths = ["x/day 1/thorax.png", "x/day 2/thorax.png", "y/day 2/thorax.png", "chest.png", "a/chest.png", "b.png"]
    short = told_apart([*paths, "b.png"])
    assert [short[path] for path in paths] == ["day 1/thorax.png", *paths[1:5], "b.png"]
    assert told_apart(["/x/b.png", "/y/x/b.png"]) == {"/x/b.png": "/x/b.png", "/y/x/b.png": "y/x/b.png"}
