"""Models known to transformers and timm after `import hdxray_fast`, in whichever order, and at no cost without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hdxray_fast as hx
from hdxray_fast.interop import registration

ROOT = Path(__file__).parents[2]
# torchvision may be one for another torch here, see benchmarks/harness/plain_mae.py
MEND = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from harness import plain_mae; "
    "plain_mae.import_timm(); "
)
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the repository beside the tests")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_alone_imports_nothing():
    libraries = ("torch", "transformers", "timm", "numpy", "onnx")
    assert run(f"import sys, hdxray_fast; print([m for m in {libraries} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("first", ["hdxray_fast", pytest.param("transformers", marks=pytest.mark.slow)])
def test_transformers_knows_the_model(first, tmp_path):
    pytest.importorskip("transformers")
    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=32, depth=1), tmp_path)
    second = {"hdxray_fast": "transformers", "transformers": "hdxray_fast"}[first]
    eager = "from transformers import AutoModel, AutoConfig; " if first == "transformers" else ""
    code = (
        f"{MEND}import {first}; {eager}import {second}; import transformers as t; folder = {str(tmp_path)!r}; "
        "print(*(type(a.from_pretrained(folder)).__name__ for a in (t.AutoConfig, t.AutoModel, t.AutoImageProcessor)))"
    )
    assert run(code) == "HDXrayConfig HDXrayModel HDXrayImageProcessor"


def tried(folder, consent: bool, without: bool = False) -> list[str]:
    """What each Auto class gives, or how it fails, in a process that has not imported this package."""
    hide = (
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'hdxray_fast':\n"
        "            raise ModuleNotFoundError('No module named ' + repr(name))\n"
        "sys.meta_path.insert(0, Gone())\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from harness import plain_mae\n"
        f"plain_mae.import_timm(); import transformers\n{hide if without else ''}"
        "for name in ('AutoConfig', 'AutoModel', 'AutoModelForImageClassification'):\n"
        "    try:\n"
        f"        found = getattr(transformers, name).from_pretrained({str(folder)!r}, trust_remote_code={consent})\n"
        "        print(type(found).__module__.split('.')[0], type(found).__name__)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, ' '.join(str(error).split()))\n"
        "print('hdxray_fast' in sys.modules)"
    )
    return run(code).splitlines()


@pytest.mark.slow
def test_without_the_import_transformers_asks_for_it(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier

    folder = tmp_path / "model"
    save_classifier(
        Classifier(hx.create_encoder("vit_tiny_patch16", img_size=32, depth=1), ClassifierConfig(["a"])), folder
    )
    *refused, imported = tried(folder, consent=False)
    assert imported == "False" and all("custom code" in line and str(folder) in line for line in refused), refused
    assert len(refused) == 3 and not (tmp_path / "modules").exists(), "no code without consent"
    *missing, imported = tried(folder, consent=True, without=True)
    assert imported == "False" and all("pip install hdxray_fast" in line for line in missing), missing
    *found, imported = tried(folder, consent=True)
    names = ["HDXrayConfig", "HDXrayModel", "HDXrayForImageClassification"]
    assert imported == "True" and found == [f"hdxray_fast {name}" for name in names]


@pytest.mark.slow
def test_after_the_import_nothing_is_asked_and_no_file_of_the_folder_runs(tmp_path):
    pytest.importorskip("transformers")
    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=32, depth=1), tmp_path)
    (tmp_path / "import_hdxray_fast.py").write_text("raise SystemExit('it ran')\n")
    code = (
        f"{MEND}import hdxray_fast, transformers as t; folder = {str(tmp_path)!r}; "
        "print(*(type(a.from_pretrained(folder)).__name__ for a in (t.AutoConfig, t.AutoModel, t.AutoImageProcessor)))"
    )
    assert run(code) == "HDXrayConfig HDXrayModel HDXrayImageProcessor"


@pytest.mark.parametrize("first", ["hdxray_fast", pytest.param("timm", marks=pytest.mark.slow)])
def test_timm_knows_the_models(first, plain_mae):
    if plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    late = {"hdxray_fast": f"import hdxray_fast; {MEND}import timm; ", "timm": f"{MEND}import timm, hdxray_fast; "}
    code = late[first] + "print(len(timm.list_models('hdxray_vit_*_patch16_1280')), 'torch' in sys.modules)"
    assert run(code) == "5 True"


def test_a_failing_registration_never_breaks_the_library(monkeypatch):
    monkeypatch.setitem(registration.REGISTRIES, "wave", ("hf_nowhere", "register"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.warns(RuntimeWarning, match="not known to wave"):
        import wave
    assert wave.open


def test_there_is_one_finder():
    before = len(sys.meta_path)
    registration.register_or_wait()
    assert len(sys.meta_path) == before
