"""The door: every public name is found, says what it is, and is not paid for before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hdxray_fast as hx

ROOT = Path(__file__).parent.parent
NEW = {
    "Task": "class",
    "Training": "class",
    "TrainingConfig": "class",
    "ProbeConfig": "class",
    "PreparedSet": "class",
    "PreparedLoader": "class",
    "read_labels": "function",
    "run_probe": "function",
    "load_classifier": "function",
    "predict": "function",
    "compare": "function",
    "compare_reports": "function",
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", [name for name in hx.__all__ if name != "__version__"])
def test_a_public_name_is_found_and_described(name):
    value = getattr(hx, name)
    assert value.__name__ == name and value.__module__.startswith("hdxray_fast.")
    assert name in dir(hx)
    assert len(inspect.getdoc(value)) > 20


@pytest.mark.parametrize(("name", "kind"), NEW.items())
def test_what_training_and_classification_need_is_at_the_door(name, kind):
    assert name in hx.__all__
    value = getattr(hx, name)
    assert inspect.isclass(value) == (kind == "class")
    if kind == "function":
        assert "Args:" in value.__doc__ and "Raises:" in value.__doc__
        for argument in inspect.signature(value).parameters:
            assert argument in value.__doc__, argument


def test_importing_the_package_imports_no_torch():
    assert run("import sys, hdxray_fast; print('torch' in sys.modules)") == "False"
    configurations = "hx.ProbeConfig, hx.TrainingConfig, hx.ReportConfig"
    assert run(f"import sys, hdxray_fast as hx; {configurations}; print('torch' in sys.modules)") == "False"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hx.no_such_name


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not here")
def test_the_documentation_names_what_is_at_the_door_by_its_short_name():
    """A deep import in a document of what stands at the door would lead readers past it."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("from hdxray_fast."):
                names = {name.strip() for name in line.partition(" import ")[2].split(",")}
                assert not names & set(hx.__all__), f"{page.name}: {line}"
