"""README's blocks do what they say, each as a reader runs it: Python by itself, commands one after the other."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest
import torch
from every_command import REPORT, SIZE, TRAINED, draw, write_table
from xray_makers import pydicom_file

import hdxray_fast as hx

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the repository beside the tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run_python(block: str) -> dict:
    """The names that a block leaves; it finds none that another one left."""
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_each_python_block_is_tested():
    assert len(blocks("python")) == 2


@pytest.mark.slow
def test_the_first_python_block_runs_at_full_size():
    """On the demo's radiograph; the comments' figures hold."""
    pydicom_file("RG1_UNCI.dcm")
    block = blocks("python")[0]
    assert len(block.splitlines()) <= 12
    names = run_python(block)
    assert names["images"].shape == (1, 1, 1280, 1280) and names["images"].dtype == torch.uint8
    assert names["contour"].inside.shape == (80, 80)
    assert names["table"].features.shape == (1, 192)
    assert all(p.grad is not None for p in names["model"].encoder.parameters() if p.requires_grad)


def test_the_second_python_block_reads_what_the_demo_trained(tmp_path, monkeypatch, timm):
    pytest.importorskip("transformers")
    model = hx.create_mae("vit_tiny_patch16", img_size=64, decoder_embed_dim=32, decoder_depth=1)
    hx.save_model(model, tmp_path / "demo" / "run" / "model")
    monkeypatch.chdir(tmp_path)
    names = run_python(blocks("python")[1])
    ours, theirs = names["encoder"].state_dict(), names["model"].encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in model.encoder.state_dict().items())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_shell_finds_the_program_where_make_puts_it():
    """The first block ends with what makes the bare names of all others work."""
    last = blocks("sh")[0].splitlines()[-1].partition("#")[0].strip()
    makefile = (README.parent / "Makefile").read_text()
    venv = re.search(r"^VENV \?= (.+)$", makefile, re.MULTILINE).group(1)
    assert last == f". {venv}/bin/activate" and "hdxray-fast" in blocks("sh")[1]


# What makes a minute of each command's hours.
SMALL = {
    "prepare": f"--img-size {SIZE} --contour rectangle --view any --workers 1",
    "plan": "",
    "pretrain": f"{' '.join(TRAINED)} --model vit_tiny_patch16 --decoder-depth 1 --decoder-embed-dim 64",
    "probe": "--bootstraps 0",
    "finetune": f"{' '.join(TRAINED[2:])} --epochs 1 --bootstraps 0",
    "predict": "",
    "evaluate": "--bootstraps 0 --allow-training-patients",  # toys are alike
    "embed": f"--img-size {SIZE}",
    "similar": "",
    "features": f"--img-size {SIZE}",
    "report train": f"{' '.join(TRAINED)} --min-frequency 1 "
    + " ".join(f"--{n.replace('_', '-')} {v}" for n, v in REPORT.items()),
    "report generate": "--num-beams 1 --pictures 1",
    "report evaluate": "--bootstraps 0 --meteor false --allow-training-patients",
    "contour": f"--method rectangle --img-size {SIZE}",
    "doctor": "",
}


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """What a reader has: radiographs, an archive, a list, labels and reports."""
    monkeypatch.chdir(tmp_path)
    for folder, count in (("xrays", 12), ("new", 2), ("images", 12), ("listed", 2)):
        draw(tmp_path / folder, [f"{folder}{number}.png" for number in range(count)])
    draw(tmp_path / "new", ["chest.png"])
    with zipfile.ZipFile("more.zip", "w") as archive:
        archive.write("new/new0.png", "zipped.png")
    write_table(Path("list.csv"), [{"image": f"listed/listed{n}.png"} for n in range(2)])
    rows = [{"image": f"xrays/xrays{n}.png", "patient": f"p{n}", "sick": n // 2 % 2} for n in range(12)]
    splits = ("train", "train", "train", "train", "val", "val", "val", "val", "test", "test", "test", "test")
    write_table(Path("labels.csv"), [{**row, "split": split} for row, split in zip(rows, splits, strict=True)])
    studies = [{"id": f"s{n}", "report": "The lungs are clear .", "image_path": [f"images{n}.png"]} for n in range(12)]
    parts = {"train": studies[:8], "val": studies[8:10], "test": studies[10:]}
    Path("annotation.json").write_text(json.dumps(parts))


@pytest.mark.slow
def test_the_four_lines_of_the_start_page(readers_folder):
    """As they stand, on small canvases: the page that the last one opens is there."""
    for package in ("jsonargparse", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    from hdxray_fast.cli.main import main

    page = (README.parent / "docs" / "start.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    *commands, last = [shlex.split(line, comments=True) for line in block.splitlines()]
    Path("xrays").rename("films")
    labels = Path("labels.csv")
    labels.write_text(labels.read_text().replace("xrays/", "films/"))
    more = {"contour": f"--img-size {SIZE}", "probe": f"--img-size {SIZE} --bootstraps 10", "predict": ""}
    assert [words[1] for words in commands] == [*more]
    for words in commands:
        assert main([*words[1:], *more[words[1]].split()]) == 0, words
    assert last[:3] == ["python", "-m", "webbrowser"] and Path(last[3]).is_file()
    assert Path("contours", "contacts.png").is_file() and len(list(Path("maps").glob("*.map.png"))) == 3


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(readers_folder, timm):
    """As they stand, in small: each finds what those before it wrote. torchrun's is tested where processes are."""
    for package in ("jsonargparse", "pyarrow", "sklearn", "tokenizers", "transformers"):
        pytest.importorskip(package)
    from hdxray_fast.cli.main import main

    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("hdxray-fast ")]
    assert len(lines) >= 12
    for line in lines:
        words = shlex.split(line.replace("/data/xrays", "xrays"), comments=True)[1:]
        name = " ".join(words[: 1 + (words[0] == "report")])
        assert main([*words, *SMALL[name].split()]) == 0, line
    for written in ("predictions.csv", "maps", "features.parquet", "similar", "pictures", "contours"):
        assert Path(written).exists()
    assert all(Path("results", name, "metrics.json").exists() for name in ("evaluated", "scores"))
