"""What the documentation's site has beyond docs/: the front pages, and a reference made of the public docstrings.

A hook of MkDocs (``mkdocs.yml`` names it) and an extension of griffe. Pages are written to be read on a code host;
links that leave docs/ are made to fit the site here, so that there is one text for both.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FRONT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/NOTES.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
ROLE = re.compile(r":[a-z]+:`~?([^`<]*?)`")

# A chapter of the reference is a group of rooms, in the order in which a user meets them.
CHAPTERS = {
    "Images": ("images",),
    "Masks, patches, losses, attention": ("ops",),
    "Models": ("models", "weights", "interop"),
    "Features": ("features",),
    "Data": ("data",),
    "Training": ("training", "pretrain"),
    "Classification": ("classify",),
    "Reports": ("reports",),
}


def rooms() -> dict[str, str]:
    """Public name -> module of the package that holds it, as ``hdxray_fast/__init__.py`` says."""
    for statement in ast.parse((ROOT / "hdxray_fast/__init__.py").read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "_ROOMS":
            return ast.literal_eval(statement.value)
    raise SystemExit("docs_site.py: hdxray_fast/__init__.py has no _ROOMS to list the public names by")


def reference() -> str:
    """The page of every public name, by chapters.

    Raises:
        SystemExit: a name is of a room that no chapter has.
    """
    lines = ["# Reference", "", "```python", "import hdxray_fast as hx", "```", ""]
    lines += ["Every public name is an attribute of `hx`, and loads what it needs on first use.", ""]
    left = rooms()
    for chapter, of in CHAPTERS.items():
        lines += [f"## {chapter}", ""]
        for name, module in rooms().items():
            if module.split(".")[0] in of:
                lines += [f"::: hdxray_fast.{module}.{name}", ""]
                del left[name]
    if left:
        raise SystemExit(f"docs_site.py: no chapter of the reference for {', '.join(left)}: add their room to CHAPTERS")
    lines += ["## Errors", "", "::: hdxray_fast.errors", "    options:", "      show_root_heading: false", ""]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front pages and the reference."""
    for name in FRONT:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them: within docs/ and to the front pages; code has no page, its link is its name alone.

    In a checkout the page lies at ``docs/<page>`` or, a front page, at ``<page>``; on the site both are neighbours.
    """
    home = page.file.src_uri
    here = posixpath.dirname(home if home in FRONT else f"docs/{home}")

    def fitted(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        on_site = target.removeprefix("docs/")
        if files.get_file_from_path(on_site) is None:
            if (ROOT / target).exists() and on_site == target:
                return CODE
            return match[0]  # nowhere: the strict build says so
        return posixpath.relpath(on_site, posixpath.dirname(home) or ".") + (match[2] or "")

    return re.sub(r"\[([^\]\[]*)\]\(" + re.escape(CODE) + r"\)", r"\1", LINK.sub(fitted, markdown))


CODE = "code-without-a-page"


class PlainRoles(griffe.Extension):
    """``:func:`~a.b.c``` of a docstring is ```c```: Markdown knows no roles."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Rewrites the docstring of whatever griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda m: f"`{m[1].rsplit('.', 1)[-1]}`", obj.docstring.value)
