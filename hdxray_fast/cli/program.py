"""The words that call this program again, for messages that name the next command."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "hdxray-fast"


def program() -> str:
    """How the program was called, as it can be typed again in the same folder.

    ``hdxray-fast`` where the shell finds this very one under that name, otherwise its path (``.venv/bin/hdxray-fast``)
    or ``python -m hdxray_fast``; ``hdxray-fast`` as well where other code called the functions behind it.
    """
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == __package__.split(".")[0]:
        return f"{_typed('python', Path(sys.executable))} -m {called.parent.name}"
    if called.name == NAME and called.is_file():
        return _typed(NAME, called)
    return NAME


def _typed(name: str, path: Path) -> str:
    """``name`` if the shell finds ``path`` under it, otherwise the shorter of its relative and absolute paths."""
    path = Path(os.path.abspath(path))  # links stay: the python of a virtual environment is one
    found = shutil.which(name)
    if found and os.path.abspath(found) == str(path):
        return name
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here)) if path.is_relative_to(here) else str(path))
