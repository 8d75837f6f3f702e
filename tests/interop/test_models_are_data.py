"""A model folder is data: Python files in it are never run, pickles and modules that it names are refused."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from report_model_makers import ENGLISH, small_encoder, small_language_model

import hdxray_fast as hx
from hdxray_fast.classify.heads import embed_names
from hdxray_fast.files import checksum
from hdxray_fast.reports.language_model import load_language_model
from hdxray_fast.reports.model import create_report_model
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.reports.saving import load_report_model, save_report_model
from hdxray_fast.reports.text_tokenizers import load_tokenizer, train_tokenizer

for package in ("transformers", "tokenizers", "safetensors"):
    pytest.importorskip(package)

WRITES = "from pathlib import Path\nPath({!r}).write_text('ran')\n"
GENERATE = WRITES + "def generate(model, **kwargs):\n    return None\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer(ENGLISH * 3, "word", min_frequency=1)
    config = ReportModelConfig(width=16, layers=1, heads=2, ffn=16, max_length=12, visual_tokens=4)
    model = create_report_model(small_encoder(), tokenizer, config)
    return save_report_model(model, tmp_path_factory.mktemp("saved") / "model")


def copied(saved: Path, folder: Path) -> Path:
    for path in saved.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(saved)).write_bytes(path.read_bytes())
    return folder


def list_all(folder: Path) -> None:
    """Have the model's own list name every file, as somebody who gives away a harmful folder would."""
    settings = json.loads((folder / "report.json").read_text())
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "report.json"]
    settings["parts"] = {p.relative_to(folder).as_posix(): checksum(p) for p in files}
    (folder / "report.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    "name", ["decoder/custom_generate/generate.py", "tokenizer/own.py", "encoder/model.py", "model.py"]
)
def test_code_in_a_report_model_is_refused_unrun(saved, tmp_path, name, listed):
    folder, ran = copied(saved, tmp_path / "model"), tmp_path / "ran"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(GENERATE.format(str(ran)))
    if listed:
        list_all(folder)
    with pytest.raises(hx.CheckpointError, match="none of the files"):
        load_report_model(folder)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["decoder/pytorch_model.bin", "decoder/more.json", "tokenizer/more/vocab.json"])
def test_what_its_list_does_not_name_is_refused(saved, tmp_path, name):
    folder = copied(saved, tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(hx.CheckpointError, match="none of the files"):
        load_report_model(folder)


def test_a_list_that_leads_outside_is_refused(saved, tmp_path):
    folder = copied(saved, tmp_path / "model")
    settings = json.loads((folder / "report.json").read_text())
    settings["parts"]["../other.json"] = "0" * 64
    (folder / "report.json").write_text(json.dumps(settings))
    with pytest.raises(hx.CheckpointError, match="outside of it"):
        load_report_model(folder)


def test_what_a_hub_puts_beside_a_model_may_stay(saved, tmp_path):
    folder = copied(saved, tmp_path / "model")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "README.md").write_text("# A model\n")
    assert load_report_model(folder, "cpu").config.max_length == 12


def test_a_tokenizer_with_a_class_of_its_own_asks_nothing_and_runs_nothing(tmp_path, monkeypatch):
    """transformers 5 asks, and takes 'y' from whatever stands behind the standard input."""
    folder, ran = small_language_model(tmp_path / "lm"), tmp_path / "ran"
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    path.write_text(json.dumps(settings | {"tokenizer_class": "Own"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(hx.CheckpointError):
        load_tokenizer(folder)
    (folder / "own.py").write_text(WRITES.format(str(ran)))
    with pytest.raises(hx.CheckpointError, match="is code"):
        load_tokenizer(folder)
    assert not ran.exists()


def test_a_language_model_with_code_or_an_adapter_is_refused(tmp_path):
    folder, ran = small_language_model(tmp_path / "lm"), tmp_path / "ran"
    assert load_language_model(str(folder)) is not None
    (folder / "adapter_config.json").write_text(json.dumps({"megatron_core": "own"}))
    with pytest.raises(hx.CheckpointError, match="adapter"):
        load_language_model(str(folder))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(GENERATE.format(str(ran)))
    with pytest.raises(hx.CheckpointError, match="is code"):
        load_language_model(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    "setting",
    [{"_attn_implementation_internal": "somebody/kernels"}, {"text_config": {"trust_remote_code": True}}],
)
def test_settings_that_lead_to_code_are_refused(saved, tmp_path, setting):
    """transformers before 5.3 fetched and ran what such a setting names, whatever it had been told."""
    folder = small_language_model(tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(hx.CheckpointError, match="leads to code"):
        load_language_model(str(folder))
    folder = copied(saved, tmp_path / "model")
    config = json.loads((folder / "decoder" / "config.json").read_text())
    (folder / "decoder" / "config.json").write_text(json.dumps(config | setting))
    list_all(folder)
    with pytest.raises(hx.CheckpointError, match="leads to code"):
        load_report_model(folder)


def test_pickled_weights_of_a_language_model_are_refused(tmp_path):
    folder = small_language_model(tmp_path / "lm")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(hx.CheckpointError, match="cannot be loaded"):
        load_language_model(str(folder))


@pytest.fixture
def sentence_library(monkeypatch) -> list[dict]:
    """Stands in for sentence-transformers and keeps what it is told."""
    calls: list[dict] = []

    class SentenceTransformer:
        def __init__(self, path, **options):
            calls.append({"path": path, **options})

        def encode(self, words, **_):
            return np.ones((len(words), 3), np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return calls


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.py", "raise SystemExit"),
        ("modules.json", json.dumps([{"type": "subprocess.Popen", "path": ""}])),
        ("modules.json", "{"),
        ("2_Dense/pytorch_model.bin", ""),
    ],
)
def test_a_sentence_model_with_code_is_not_handed_on(tmp_path, sentence_library, name, content):
    if "/" in name:
        (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": ""}]))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(hx.CheckpointError):
        embed_names(["mass"], str(tmp_path))
    assert not sentence_library


def test_a_sentence_model_of_data_is_told_to_run_nothing(tmp_path, sentence_library):
    assert embed_names(["mass"], str(tmp_path)).shape == (1, 3)
    assert sentence_library[0]["trust_remote_code"] is False
    assert sentence_library[0]["model_kwargs"] == {"use_safetensors": True}
