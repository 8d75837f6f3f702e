"""The documents hold together: lines that fit, links that lead somewhere, blocks that close, commands that exist."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "tests").is_dir())
if not (ROOT / "docs").is_dir():
    pytest.skip("needs the project's documents beside the tests", allow_module_level=True)
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "benchmarks/results/**/*.md")
    for page in ROOT.glob(pattern)
)
LENGTH = 120
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*```", re.MULTILINE)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its blocks of code and without code in a line."""
    text = re.sub(r"^\s*```.*?^\s*```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", text)


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_blocks(page: str) -> list[str]:
    """Commands of the page's shell blocks, lines that go on joined, without comments."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL))
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in text.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]


def test_the_documents_are_found():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "docs/benchmarks.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page):
    """Tables and what has no space to break at are as long as they must be."""
    long = [
        (number, line)
        for number, line in enumerate(read(page).splitlines(), 1)
        if len(line) > LENGTH and not line.startswith("|") and " " in line.strip()
    ]
    assert not long


@pytest.mark.parametrize("page", PAGES)
def test_links_between_our_files_lead_somewhere(page):
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):  # another site's
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_closed(page):
    text = read(page)
    assert len(FENCE.findall(text)) % 2 == 0, "a block of code is opened and not closed"
    opened = None
    for name in re.findall(r"^<!-- (.+?) -->$", text, re.MULTILINE):  # what a tool writes stands between two of these
        if opened is None:
            assert not name.startswith("end ") and name != "bench:end", f"{name} closes nothing"
            opened = name
        else:
            assert name in (f"end {opened}", re.sub(r":.*", ":end", opened)), f"{name} stands in the block {opened}"
            opened = None
    assert opened is None, f"{opened} is not closed"


def test_readme_is_a_door_not_a_book():
    assert len(read("README.md").splitlines()) <= 120


@pytest.mark.parametrize("page", ["README.md", *(p for p in PAGES if p.startswith("docs/"))])
def test_commands_and_their_options_exist(page):
    pytest.importorskip("jsonargparse")
    unknown = []
    for line in shell_blocks(page):
        found = re.search(r"(?:^|\s)(?:hdxray-fast|-m hdxray_fast)\s+(.*)", line)
        if not found:
            continue
        words = found.group(1).split()
        command = words[: 1 + (words[0] == "report")]
        options = {re.sub(r"=.*", "", word) for word in words if word.startswith("--")}
        known = help_of(tuple(command))
        unknown += [f"{' '.join(command)} {option}" for option in options if option.replace("-", "_") not in known]
    assert not unknown


@cache
def help_of(command: tuple[str, ...]) -> set[str]:
    """The options a command names in its help, with underscores."""
    from hdxray_fast.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        assert main([*command, "--help"]) == 0
    found = {option.replace("-", "_") for option in re.findall(r"(?<!\S)\[?(--[\w-]+)", said.getvalue())}
    assert "__help" in found, f"there is no command {' '.join(command)}"
    return found


def test_targets_of_make_exist():
    makefile = read("Makefile")
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z]+(?:-[a-z]+)?)", commands_in(page))}
    assert {"demo", "test", "bench"} <= named
    assert not {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)}


def commands_in(page: str) -> str:
    """Shell blocks and code in a line: where "make" is the program and not the verb."""
    return "\n".join([*shell_blocks(page), *re.findall(r"`(make [^`\n]+)`", read(page))])


# What stands for a name in CONTRIBUTING's lists, and files that are there for it.
EXAMPLES = {"<op>": ("gather",), "<task>": ("classify", "reports"), "<layout>": ("iu_xray",), "<noun>": ("gather",)}
FOLDERS = ("hdxray_fast", "csrc", "tests", "benchmarks", "tools", "docs", "examples", "cmake")
WRITTEN = ("benchmarks/results/<device>", "benchmarks/results/experiments")  # by what is run; not all are kept


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`([\w./<>*-]+)`", read(page))
    paths = [name for name in named if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    paths += [f"hdxray_fast/{name}" for name in named if name.startswith(("ops/", "models/"))]
    missing = [path for path in paths if not path.startswith(WRITTEN) and not is_there(path.rstrip("/."))]
    assert not missing


def is_there(path: str) -> bool:
    for stands_for, names in EXAMPLES.items():
        if stands_for in path:
            return any(is_there(path.replace(stands_for, name)) for name in names)
    return any(ROOT.glob(path))


@pytest.mark.parametrize("page", ["README.md", *(p for p in PAGES if p.startswith("docs/"))])
def test_a_page_opens_with_a_picture_or_a_command(page):
    opening = "".join(read(page).split("\n## ")[:2])
    assert re.search(r"^(```|!\[| {4}\S)", opening, re.MULTILINE)


def test_the_site_has_every_page():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {p.removeprefix("docs/") for p in PAGES if not p.startswith("benchmarks/")} == {
        page for page in listed if page != "reference.md" and not page.startswith("benchmarks/")
    }
