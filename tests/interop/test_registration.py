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
