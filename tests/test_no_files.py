"""A pipe, a device, a folder or endless brackets in place of any file of a model, a set or a run: refused by name."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from caps import limits

import hdxray_fast as hx
from hdxray_fast import regular_files
from hdxray_fast.errors import HDXrayError, NotAFileError
from hdxray_fast.files import begin_anew

for package in ("accelerate", "pyarrow", "pebble"):
    pytest.importorskip(package)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices have no names")

FORMATS = Path(__file__).parent / "formats"
BRACKETS = "[" * 50_000 + "]" * 50_000


def put_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a pipe, not a file"


def put_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a device, not a file"


def put_folder(path: Path) -> str:
    path.mkdir()
    return "is a folder, not a file"


def put_brackets(path: Path) -> str:
    path.write_text(BRACKETS)
    return ""


def put_loop(path: Path) -> str:
    path.symlink_to(path.name)
    return "is a loop of links, not a file"


def put_zeros(path: Path) -> str:
    with path.open("wb") as stream:
        stream.truncate(5 << 30)  # takes no room on the disk
    return ""


KINDS = [put_pipe, put_device, put_loop, put_brackets, put_zeros]


def open_set(folder: Path) -> None:
    from hdxray_fast.data.prepared.index import merge, read_set_aside

    images = hx.PreparedSet(folder)
    assert images[0].pixels.shape and images.column("provenance")
    read_set_aside(folder)
    merge(folder)


def go_on(folder: Path) -> None:
    """What a run that goes on reads, before and beside its model."""
    from hdxray_fast.training.checkpoints import checkpoint_folders
    from hdxray_fast.training.restoring import load_checkpoint
    from hdxray_fast.training.run_log import truncate_log

    [checkpoint] = checkpoint_folders(folder / "checkpoints")
    truncate_log(folder / "log.jsonl", 3)
    model = torch.nn.Linear(1, 1)  # another one: all files are read before that is seen
    ema = argparse.Namespace(tensors={}) if "pretrain" in folder.name else None
    load_checkpoint(checkpoint, model, torch.optim.AdamW(model.parameters()), ema)


def load_report(folder: Path) -> None:
    pytest.importorskip("transformers")
    from hdxray_fast.reports.saving import load_report_model

    load_report_model(folder, "cpu")


# folder of tests/formats: what reads it, and files of it that are not read by that
READ = {
    "encoder": (lambda folder: hx.create_encoder(weights=folder), {"preprocessor_config.json"}),
    "mae": (hx.load_model, set()),
    "classifier": (hx.load_classifier, {"preprocessor_config.json"}),
    "report_model": (load_report, set()),
    "raw": (open_set, {"summary.json"}),
    "png": (open_set, {"summary.json"}),
}


def files_of(name: str) -> list[str]:
    root = FORMATS / name
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


CASES = [(name, file) for name in READ for file in files_of(name) if file not in READ[name][1]]


@pytest.fixture
def formats(tmp_path, monkeypatch):
    def copied(name: str) -> Path:
        monkeypatch.chdir(tmp_path)
        folder = Path(shutil.copytree(FORMATS / name, tmp_path / name))
        shutil.copytree(FORMATS / "images", tmp_path / "images", dirs_exist_ok=True)
        return folder

    sys.path.insert(0, str(FORMATS))
    import make

    monkeypatch.setitem(sys.modules[hx.EncoderConfig.__module__].ENCODERS, "vit_toy_patch16", make.TOY)
    sys.path.remove(str(FORMATS))
    return copied


@pytest.mark.parametrize("name", READ)
def test_whole_folders_are_read(formats, name):
    with limits():
        READ[name][0](formats(name))


@pytest.mark.parametrize("put", KINDS)
@pytest.mark.parametrize(("name", "file"), CASES)
def test_every_file_of_a_model_and_of_a_set(formats, name, file, put):
    folder = formats(name)
    if put is put_brackets and file.endswith(".csv"):
        return  # a table of one cell
    (folder / file).unlink()
    words = put(folder / file)
    with limits(), pytest.raises(HDXrayError) as raised:
        READ[name][0](folder)
    assert words in str(raised.value) and Path(file).name in str(raised.value)


@pytest.mark.parametrize("put", KINDS)
@pytest.mark.parametrize("name", ["pretrain", "finetune", "report"])
def test_every_file_of_a_run(formats, name, put):
    folder = formats(name)
    with limits(), pytest.raises(hx.CheckpointError, match="in loading state_dict"):
        go_on(folder)
    for file in files_of(name):
        if not file.startswith("checkpoints") or file.endswith("config.json"):
            continue
        shutil.rmtree(folder)
        folder = Path(shutil.copytree(FORMATS / name, folder))
        (folder / file).unlink()
        words = put(folder / file)
        with limits(), pytest.raises(hx.CheckpointError, match=words or None):
            go_on(folder)


@pytest.mark.parametrize("put", KINDS)
def test_settings_log_and_choice_of_a_run(formats, put):
    from hdxray_fast.classify.selection import BestModel
    from hdxray_fast.training.run_folder import begun_settings
    from hdxray_fast.training.run_log import truncate_log

    folder = formats("finetune")
    (folder / "config.json").unlink()
    put(folder / "config.json")
    with limits():
        assert begun_settings(argparse.Namespace(out=folder, goes_on=True)) is None  # the run's start says why
    (folder / "log.jsonl").unlink()
    words = "" if put is put_zeros else put(folder / "log.jsonl")  # of a log damage is read over, however long it is
    with limits():
        if words and put is not put_loop:  # which a log that is written cannot be
            with pytest.raises(NotAFileError, match=words or None):
                truncate_log(folder / "log.jsonl", 3)
        else:
            assert truncate_log(folder / "log.jsonl", 1) == [1]  # it has no line that is one
    (folder / "best.safetensors").unlink()
    words = put(folder / "best.safetensors")
    with limits(), pytest.raises(hx.CheckpointError, match=words or None):
        BestModel(folder / "best.safetensors")


@pytest.mark.parametrize("put", KINDS)
def test_record_and_key(tmp_path, put):
    from hdxray_fast.data.seen import Seen
    from hdxray_fast.data.seen_key import run_key

    words = put(tmp_path / "seen.safetensors")
    with limits(), pytest.raises(hx.CheckpointError, match=words or None):
        Seen.load(tmp_path / "seen.safetensors")
    words = put(tmp_path / "seen.key")
    with limits(), pytest.raises(hx.ConfigError, match=words or "no key|larger"):
        run_key(tmp_path)


@pytest.mark.parametrize("put", KINDS)
def test_the_mark_of_a_folder_is_no_mark(tmp_path, put):
    put(tmp_path / ".made-by")
    with limits(), pytest.raises(hx.ConfigError, match="nothing says that demo made"):
        begin_anew(tmp_path, "demo")


def read_annotation(path: Path) -> None:
    from hdxray_fast.reports.layouts import read_studies

    read_studies(path, need_images=False)


def read_predictions(path: Path) -> None:
    from hdxray_fast.reports.predictions import read_predictions

    read_predictions(path)


def read_runs(path: Path) -> None:
    from hdxray_fast.classify.prediction_files import read_answers

    read_answers(path)


def read_features(path: Path) -> None:
    from hdxray_fast.features.feature_table import read_features

    read_features(path)


def read_labels(path: Path) -> None:
    from hdxray_fast.classify.labels import read_labels

    read_labels(path)


def list_one(path: Path) -> None:
    from hdxray_fast.data.listing import list_images

    list_images(path)


def prepare(path: Path) -> None:
    from hdxray_fast.data.prepared.sources import list_sources

    list_sources([path])


def read_stream(path: Path) -> None:
    from hdxray_fast.data.prepared.stream_index import check_stream_index

    check_stream_index(path, str(path))


def read_config(path: Path) -> None:
    from hdxray_fast.cli.config_files import check_config

    check_config(path, {"steps"})


def read_pth(path: Path) -> None:
    from hdxray_fast.weights.model_folders import read_legacy

    read_legacy(path)


NAMED = [
    ("annotation.json", read_annotation),
    ("studies.csv", read_annotation),
    ("predictions.json", read_predictions),
    ("predictions.jsonl", read_predictions),
    ("predictions.csv", read_predictions),
    ("predictions.csv", read_runs),
    ("labels.csv", read_labels),
    ("manifest.csv", list_one),
    ("manifest.csv", prepare),
    ("index.json", read_stream),
    ("config.yaml", read_config),
    ("weights.pth", read_pth),
    ("weights.safetensors", lambda path: hx.create_encoder(weights=path)),
    ("features.parquet", read_features),
]


@pytest.mark.parametrize("put", [*KINDS, put_folder])
@pytest.mark.parametrize(("name", "read"), NAMED)
def test_files_that_users_name(tmp_path, name, read, put):
    words = put(tmp_path / name)
    with limits(), pytest.raises(HDXrayError) as raised:
        read(tmp_path / name)
    if put is not put_folder:  # which some of them may be
        assert words in str(raised.value)


@pytest.mark.parametrize("put", [put_pipe, put_device])
def test_reports_as_xml_and_text(tmp_path, put):
    from hdxray_fast.reports.layouts import read_studies

    put(tmp_path / "1.xml")
    with limits(), pytest.raises(hx.ConfigError):
        read_studies(tmp_path, layout="iu-xray", need_images=False)


def test_a_socket_has_a_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("config.json")
        with limits(), pytest.raises(NotAFileError, match=r"config\.json: is a socket, not a file"):
            regular_files.read_json("config.json")


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "real.json").write_text('{"a": [1]}', encoding="utf-8-sig")
    (tmp_path / "link.json").symlink_to("real.json")
    assert regular_files.read_json(tmp_path / "link.json") == {"a": [1]}
    assert regular_files.read_text(tmp_path / "link.json", None, encoding="utf-8-sig") == '{"a": [1]}'


def test_a_file_of_more_bytes_than_its_kind_has(tmp_path):
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no room on the disk
    with limits(), pytest.raises(NotAFileError, match="larger than 65536 KiB"):
        regular_files.read_json(tmp_path / "config.json")
    with limits(), pytest.raises(hx.CheckpointError, match="larger than"):
        hx.load_model(tmp_path)


@pytest.mark.parametrize("inner", [b"[],", b"{},", b"1,"])
def test_json_that_is_small_in_a_file_and_large_in_memory(inner):
    with limits(), pytest.raises(ValueError, match="holds more than 4 Mi lists and objects, or 32 Mi values"):
        regular_files.parse_json(b"[" + inner * (33 << 20) + b"1]")


@pytest.mark.parametrize("text", [BRACKETS, "[" * 50_000, '{"a":' * 50_000, "[" * 101 + "]" * 101])
def test_depth_of_json(text):
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        regular_files.parse_json(text)
    assert regular_files.parse_json("[" * 100 + "]" * 100)
    assert regular_files.parse_json(json.dumps({"text": BRACKETS}))["text"] == BRACKETS


def test_what_a_config_must_not_hold(tmp_path):
    path = tmp_path / "config.yaml"
    for text, reason in [
        ("steps: " + "[" * 50_000, "line 1 is nested more than 20 deep"),
        ("steps: &a [1, 1]\nseed: [*a, *a]\n", "line 2 has an alias"),
        ("steps: 1\n" * 100_000, "more than 10000 words"),
        (f"steps: [{'1,' * 500_000}1]", "more than 10000 words"),
        (f"steps: {'9' * 5000}", "a number or a date that cannot be read"),
        ("steps: !!int abc", "a number or a date that cannot be read"),
    ]:
        path.write_text(text)
        with limits(), pytest.raises(hx.ConfigError, match=reason):
            read_config(path)
