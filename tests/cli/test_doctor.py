"""The doctor: true on this machine, and still talking when things are missing."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import hdxray_fast as hx
from hdxray_fast import extras
from hdxray_fast.cli import doctor
from hdxray_fast.ops import native

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_report_is_json_and_says_what_is_here():
    report = json.loads(json.dumps(doctor.doctor_report()))
    assert report["package"]["version"] == hx.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["threads"]["torch"] == torch.get_num_threads()
    assert report["core"]["present"] == (native.core is not None)
    chosen = {(b["operation"], b["device"]): b["backend"] for b in report["backends"]}
    expected = native.resolve_backend("auto", torch.device("cpu"))
    assert chosen["gather_patches", "cpu"] == chosen["plan_masks", "cpu"] == expected
    assert chosen["attention", "cpu"] == "sdpa"


def test_the_core_is_built():
    """The tests of the core skip without it, so that the rest can run; this one does not let that pass unseen."""
    assert native.core is not None, native.why_missing


def test_text_names_every_part():
    text = doctor.format_doctor(doctor.doctor_report())
    for title in ("Python", "Versions", "CPU", "Native core", "GPU", "Backends", "Extras", "To do"):
        assert re.search(rf"^{title}$", text, re.MULTILINE), title
    assert f"torch {torch.__version__}" in text
    assert doctor.cpu_model() in text


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch):
    real = importlib.metadata.version

    def without_rle(name: str) -> str:
        if name == "pylibjpeg-rle":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without_rle)
    report = doctor.doctor_report()
    assert report["extras"]["dicom"]["missing"] == ["pylibjpeg-rle>=2"]
    assert report["extras"]["dicom"]["command"].endswith("pip install 'pylibjpeg-rle>=2'")
    text = doctor.format_doctor(report)
    assert "missing pylibjpeg-rle>=2" in text
    assert report["extras"]["dicom"]["command"] in text


def test_hints_name_packages_and_the_pip_of_this_python(monkeypatch, tmp_path):
    """Whatever index, folder or repository this package came from, and whichever pip the shell finds first."""
    monkeypatch.setattr(extras, "installed", lambda name: None if name in ("wandb", "scipy") else "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert extras.install("wandb") == f"{shlex.quote(sys.executable)} -m pip install 'wandb>=0.19'"
    assert extras.install("classify", "wandb").endswith(" install 'scipy>=1.10' 'wandb>=0.19'")
    monkeypatch.setattr(extras, "installed", lambda name: "1")  # all is there, and something cannot be imported
    assert extras.install("embed").endswith(" install 'pyarrow>=23.0.1'")
    (tmp_path / "pip").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert extras.install("embed").startswith("pip install ")


def test_a_missing_core_is_said_with_the_way_to_build_it(monkeypatch):
    monkeypatch.setattr(native, "core", None)
    monkeypatch.setattr(native, "why_missing", "No module named hdxray_fast._core")
    report = doctor.doctor_report()
    assert not report["core"]["present"]
    assert {b["backend"] for b in report["backends"] if b["operation"] != "attention"} == {"reference"}
    assert "MISSING: No module named hdxray_fast._core; build it with `pip install .`" in doctor.format_doctor(report)


def test_why_cuda_cannot_be_used_is_said(monkeypatch):
    """A core with CUDA paths on a machine without a usable GPU: it imports, works on the CPU, and says so."""
    if native.core is None:
        pytest.skip("the core is not built")
    core, unusable = doctor.doctor_report()["core"], native.why_not_native("cuda", 0)
    assert core["cuda_unusable"] == (unusable or None)
    if core["cuda"].startswith("off"):
        assert f"CUDA {core['cuda']}" in unusable
    elif not torch.cuda.is_available():
        assert re.search(r"CUDA (driver|device)", unusable)
    text = doctor.format_doctor(
        {**doctor.doctor_report(), "core": {**core, "cuda": "on: sm_90 ptx", "cuda_unusable": "no GPU"}}
    )
    assert "CUDA on: sm_90 ptx\n  CUDA cannot be used here: no GPU; the CPU paths are used" in text


def test_a_gpu_without_cuda_paths_in_the_core_gets_advice():
    core = {"present": True, "cuda": "off: no CUDA compiler was found", "cuda_unusable": "CPU paths only"}
    (advice,) = doctor._advice({}, core, {}, [{"name": "a GPU"}])
    assert "HDXRAY_CUDA=ON" in advice
    assert "no CUDA compiler was found" in advice
    assert not doctor._advice({}, core, {}, [])


def test_a_broken_package_is_reported_not_raised(monkeypatch):
    monkeypatch.setitem(doctor.MODULES, "opencv", "hdxray_fast_no_such_module")
    report = doctor.doctor_report()
    assert report["versions"]["opencv"].startswith("cannot be imported")
    assert any(line.startswith("repair opencv") for line in report["advice"])


@pytest.mark.skipif(not PYPROJECT.exists(), reason="needs the project's own pyproject.toml beside the tests")
@pytest.mark.parametrize("extra", doctor.EXTRAS)
def test_extras_are_those_of_pyproject(extra):
    line = re.search(rf"^{extra} = \[(.*)\]$", PYPROJECT.read_text(), re.MULTILINE).group(1)
    declared = [r for r in re.findall(r'"([^"]+)"', line) if not r.startswith("hdxray-fast")]
    assert doctor.EXTRAS[extra] == declared
