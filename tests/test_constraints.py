"""The file of versions with hashes fits the floors of the package, and names no registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONSTRAINTS, PROJECT = ROOT / "constraints.txt", ROOT / "pyproject.toml"
EXTRAS = (
    "demo",
    "embed",
    "prepare",
    "classify",
    "excel",
    "hf",
    "timm",
    "export",
    "report",
    "report-scores",
    "text",
    "streaming",
    "dicom",
    "train",
)

pytestmark = pytest.mark.skipif(not CONSTRAINTS.exists(), reason="needs the project's sources beside the tests")


def floors() -> list[Requirement]:
    text = PROJECT.read_text()
    lists = [re.search(rf"^{name} = \[(.*)\]", text, re.M).group(1) for name in ("dependencies", *EXTRAS)]
    found = [Requirement(words) for one in lists for words in re.findall(r'"([^"]+)"', one)]
    return [requirement for requirement in found if requirement.name != "hdxray-fast"]


def test_every_floor_is_met_by_what_is_pinned():
    pinned: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^ ;\\]+)", CONSTRAINTS.read_text(), re.M):
        pinned.setdefault(canonicalize_name(name), []).append(version)
    assert len(floors()) > 20
    for requirement in floors():
        versions = pinned[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), (requirement, versions)


def test_every_package_has_a_hash_and_no_registry_is_named():
    blocks = re.split(r"\n(?=\S)", CONSTRAINTS.read_text().strip())
    assert len(blocks) > 100
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]
    assert "://" not in CONSTRAINTS.read_text() and "index-url" not in CONSTRAINTS.read_text()


@pytest.mark.parametrize(("name", "hole"), [("pyarrow", "23.0.0"), ("pillow", "12.1.1"), ("transformers", "5.2.0")])
def test_versions_with_known_holes_are_below_the_floors(name, hole):
    found = [requirement for requirement in floors() if requirement.name == name]
    assert found and not any(requirement.specifier.contains(hole) for requirement in found)
