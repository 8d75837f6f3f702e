"""The order of the rooms: modules import downhill only, in no circle, lazy and type-checking imports included."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import hdxray_fast

PACKAGE = Path(hdxray_fast.__file__).parent

PLAN = Path(__file__).parents[1] / "docs" / "design.md"
DOOR = "the door"  # the files beside the rooms


def rows_of(plan: str) -> dict[str, str]:
    """What lives in each room, in the order of the plan's first table: from the bottom of the hill to its top."""
    table = plan.split("\n| room |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {DOOR if room.startswith(DOOR) else room.strip("`/"): f"{room} {lives}" for room, lives, *_ in cells}


def rooms_of(order: list[str], modules: Iterable[str]) -> dict[str, list[str]]:
    """The modules of each room: those of its folder; what lies beside the folders is the door's, ``__main__`` apart."""
    rooms: dict[str, list[str]] = {room: [] for room in order}
    for name in filter(None, modules):
        folder = name.split(".")[0]
        room = "cli" if name == "__main__" else folder if folder in rooms else DOOR
        rooms[room].append(name)
    return rooms


# What a room knows nothing of, besides all that lies above it: rooms, and packages from elsewhere.
UNKNOWN = {
    "images": {"torch"},
    "ops": {"files"},
    "models": {"files"},
    "data": {"models", "weights"},
    "training": {"models", "weights", "images"},
    "features": {"training", "pretrain"},
    "reports": {"classify", "pretrain"},
    "interop": {"training", "pretrain", "reports"},
}

# (importer, imported): why. The package itself, "", stands before all rooms.
EXCEPTIONS = {
    ("", "interop.registration"): "transformers and timm learn of the models when the package is imported",
}


def modules_of(package: Path) -> dict[str, Path]:
    """Modules by their names within the package; ``""`` is the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(package: Path) -> dict[str, set[str]]:
    """What each module imports, anywhere in it: modules by their names within the package, others as ``/name``."""
    modules = modules_of(package)
    return {name: _imports(name, path, package.name, modules) - {name} for name, path in modules.items()}


def _imports(name: str, path: Path, package: str, modules: dict[str, Path]) -> set[str]:
    here = [package, *(name.split(".") if name else [])]
    if path.name != "__init__.py":
        here = here[:-1]
    wanted = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            wanted += [f"{base}.{alias.name}" for alias in node.names]
    found = set()
    for whole in wanted:
        root, _, inner = whole.partition(".")
        if root != package:
            found.add(f"/{root}")
            continue
        while inner and inner not in modules:
            inner = inner.rpartition(".")[0]
        found.add(inner)
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, on however long a way round."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for name in imports.get(waiting.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return seen

    reach = {name: reached(name) for name in imports}
    found = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in imports}
    return sorted(sorted(circle) for circle in found if circle)


def faults(
    imports: dict[str, set[str]],
    rooms: dict[str, list[str]],
    unknown: dict[str, set[str]],
    exceptions: dict[tuple[str, str], str],
) -> list[str]:
    """Each import that goes uphill, or to what the room knows nothing of; each module without a room."""
    order = list(rooms)
    room_of = {module: room for room, modules in rooms.items() for module in modules}
    found = [f"{name} is in no room" for name in imports if name and name not in room_of]
    found += [f"{name} of room {room} does not exist" for name, room in room_of.items() if name not in imports]
    for name, targets in imports.items():
        room = room_of.get(name, order[0])
        for target in sorted(targets):
            if (name, target) in exceptions:
                continue
            if target.startswith("/"):
                if target[1:] in unknown.get(room, ()):
                    found.append(f"{name} ({room}) imports {target[1:]}")
                continue
            other = room_of.get(target, order[0])
            if order.index(other) > order.index(room):
                found.append(f"{name} ({room}) imports {target} ({other}), uphill")
            elif {target, other} & unknown.get(room, set()):
                found.append(f"{name} ({room}) imports {target} ({other})")
    return found


@pytest.fixture(scope="module")
def plan() -> dict[str, str]:
    if not PLAN.is_file():
        pytest.skip("docs/design.md is not here (an installed copy of the tests without the repository)")
    return rows_of(PLAN.read_text(encoding="utf-8"))


def test_no_module_is_in_a_circle():
    assert circles(_without_exceptions()) == []


def test_imports_run_downhill(plan):
    imports = imports_of(PACKAGE)
    assert faults(imports, rooms_of(list(plan), imports), UNKNOWN, EXCEPTIONS) == []


def test_every_exception_is_still_there():
    imports = imports_of(PACKAGE)
    assert [pair for pair in EXCEPTIONS if pair[1] not in imports.get(pair[0], ())] == []


def test_the_plan_names_what_is_there(plan):
    """Every folder is a room, the door has the named files alone, and each file that a room's row names exists."""
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == {*plan} - {DOOR}
    assert set(rooms_of(list(plan), modules_of(PACKAGE))[DOOR]) == set(re.findall(r"`(\w+)\.py`", plan[DOOR]))
    for room, lives in plan.items():
        named = set(re.findall(r"`([a-z_]+)`", lives))
        assert [name for name in named if not list((PACKAGE / room).rglob(f"{name}.py"))] == [], room


# Packages whose import has another name, and those that come with others wherever they are needed.
CALLED = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml"}
BROUGHT = {"huggingface_hub": "transformers and timm", "torchvision": "timm", "triton": "torch"}


def test_every_package_is_named_in_an_extra():
    """What a user's pip installs, and not what happens to come with something else."""
    settings = PLAN.parents[1] / "pyproject.toml"
    if not settings.is_file():
        pytest.skip("pyproject.toml is not here (an installed copy of the tests without the repository)")
    imported = {name[1:] for names in imports_of(PACKAGE).values() for name in names if name.startswith("/")}
    wanted = {CALLED.get(name, name).replace("_", "-") for name in imported - set(sys.stdlib_module_names) - {*BROUGHT}}
    named = set(re.findall(r'"([\w-]+)(?=[\[<>=;"])', settings.read_text(encoding="utf-8")))
    assert wanted - named == set()


def test_rooms_have_empty_doors(plan):
    """So that a reader's worker, which enters one room, does not load the others."""
    for room in {*plan} - {DOOR}:
        body = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr) for node in body), room  # words alone


def _without_exceptions() -> dict[str, set[str]]:
    return {
        name: {target for target in targets if (name, target) not in EXCEPTIONS}
        for name, targets in imports_of(PACKAGE).items()
    }


def test_the_checker_finds_what_is_wrong(tmp_path):
    package = tmp_path / "house"
    (package / "attic").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "cellar.py": "def late():\n    from .attic import roof\n",  # lazily, uphill
        "stairs.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.attic.roof import Tile\n",
        "floor.py": "import torch.nn as nn\nfrom . import cellar\n",
        "attic/__init__.py": "",
        "attic/roof.py": "from .. import stairs\nfrom ..cellar import late\nfrom .beam import wood\n",
        "attic/beam.py": "from ..floor import late\n",
        "shed.py": "",
    }
    for name, text in sources.items():
        (package / name).write_text(text)
    imports = imports_of(package)
    assert imports["floor"] == {"/torch", "cellar"}
    assert imports["attic.roof"] == {"stairs", "cellar", "attic.beam"}
    assert circles(imports) == [["attic.beam", "attic.roof", "cellar", "floor", "stairs"]]
    rooms = {"below": ["cellar", "floor", "stairs"], "above": ["attic", "attic.roof", "attic.beam", "gone"]}
    found = faults(imports, rooms, {"below": {"torch"}, "above": {"floor"}}, {("stairs", "attic.roof"): "a reason"})
    assert sorted(found) == [
        "attic.beam (above) imports floor (below)",
        "cellar (below) imports attic.roof (above), uphill",
        "floor (below) imports torch",
        "gone of room above does not exist",
        "shed is in no room",
    ]
    assert faults(imports, rooms | {"yard": ["shed"]}, {}, {}).count("gone of room above does not exist") == 1


def test_the_checker_finds_nothing_in_a_good_house(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    for name, text in {"__init__.py": "", "cellar.py": "import os\n", "roof.py": "from .cellar import os\n"}.items():
        (package / name).write_text(text)
    imports = imports_of(package)
    assert circles(imports) == []
    assert faults(imports, {"below": ["cellar"], "above": ["roof"]}, {"below": {"torch"}}, {}) == []
