"""Every flag has one row, and so one meaning, in docs/canvas.md."""

from __future__ import annotations

import re
from pathlib import Path

import hdxray_fast

ROOM = Path(hdxray_fast.__file__).parent / "images"
PAGE = Path(__file__).parents[2] / "docs" / "canvas.md"


def test_every_flag_is_explained_once_and_every_explained_flag_is_raised():
    source = "\n".join(path.read_text("utf-8") for path in ROOM.glob("*.py"))
    tables = [part.split("\n\n", 1)[0] for part in PAGE.read_text("utf-8").split("\n| flag | means |")[1:]]
    explained = re.findall(r"^\| `(\w+)` \|", "\n".join(tables), re.MULTILINE)
    assert len(explained) == len(set(explained))
    raised = set()
    for statement in re.findall(r"flags\.append\(([^)]*)\)|flags \+= \[([^]]*)\]", source):
        raised |= set(re.findall(r'(?<!== )"(\w+)"', "".join(statement)))
    assert raised <= set(explained)
    assert all(f'"{flag}"' in source for flag in explained)
