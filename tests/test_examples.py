"""The examples and the code in the documents do what they say, at small sizes."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from xray_makers import pydicom_file

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the repository beside the tests")


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    tested = re.findall(r'example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(set(tested))


def test_features_for_scikit_learn():
    pytest.importorskip("sklearn")
    score = example("classify_with_sklearn").main(img_size=128, count=18)
    assert 0 <= score <= 1


def test_features_for_scikit_learn_from_a_manifest(radiographs, tmp_path):
    pytest.importorskip("sklearn")
    import hdxray_fast as hx

    hx.save_model(hx.create_encoder("vit_tiny_patch16", img_size=64, depth=1), tmp_path / "model")
    (radiographs / "broken.png").write_bytes(b"no image")
    rows = [f"{path},{number % 2}" for number, path in enumerate(sorted(radiographs.glob("*.png")) * 2)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *rows]))
    score = example("classify_with_sklearn").main(str(tmp_path / "m.csv"), str(tmp_path / "model"))
    assert 0 <= score <= 1


def test_dense_features_for_segmentation():
    assert example("segment_with_dense_features").main(img_size=128, count=4, steps=40) > 0.6


def test_swapping_a_hugging_face_backbone(plain_mae):
    plain_mae.import_timm()  # transformers looks into torchvision too
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    losses = example("swap_huggingface_backbone").main(img_size=64, steps=3)
    assert set(losses) == {"before", "after"} and all(np.isfinite(list(losses.values())))


TRAIN = """
import argparse, helper_of_train, torch
from timm import create_model, utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2

parser = argparse.ArgumentParser()
parser.add_argument("--model"), parser.add_argument("--data-dir"), parser.add_argument("--img-size", type=int)
parser.add_argument("--in-chans", type=int), parser.add_argument("--num-classes", type=int)
parser.add_argument("--model-kwargs", nargs="*", action=utils.ParseKwargs)
args = parser.parse_args()
model = create_model(args.model, in_chans=args.in_chans, num_classes=args.num_classes, img_size=args.img_size,
                     drop_path_rate=0.1, **args.model_kwargs)
data = resolve_data_config(vars(args), model=model)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75)
dataset = create_dataset("", root=args.data_dir, split="train", is_training=True, input_img_mode="L")
loader = create_loader(dataset, data["input_size"], batch_size=4, is_training=True, no_aug=True, num_workers=0,
                       mean=data["mean"], std=data["std"], device=torch.device("cpu"))
losses = []
for epoch in range(12):
    for images, target in loader:
        loss = torch.nn.functional.cross_entropy(model(images), target)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
"""


def test_a_script_of_timm(tmp_path, plain_mae, capsys):
    if plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = random.normal(level, 20, (40, 40)).clip(0, 255).astype(np.uint8)
            image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "helper_of_train.py").touch()  # scripts import what lies beside them
    (tmp_path / "train.py").write_text(TRAIN)
    arguments = f"--model hdxray_vit_tiny_patch16_1280 --data-dir {tmp_path / 'data'} --img-size 32 --in-chans 1"
    before = list(sys.argv), list(sys.path)
    torch.manual_seed(0)
    names = example("with_timm").main(
        tmp_path / "train.py", *arguments.split(), "--num-classes", "2", "--model-kwargs", "depth=2"
    )
    assert len(names["model"].blocks) == 2 and names["data"]["input_size"] == (1, 32, 32)
    assert np.mean(names["losses"][-4:]) < 0.3 < names["losses"][0]
    assert (sys.argv, sys.path) == before


def test_embedding_a_folder_of_dicoms(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    pydicom_file("RG1_UNCI.dcm")
    main = example("embed_dicom_folder").main
    alike = main(out=str(tmp_path / "features.parquet"), img_size=64)
    assert alike.shape == (3, 3)
    assert "again.dcm: most like RG1_UNCI.dcm (1.000)" in capsys.readouterr().out
    assert "CT_small.dcm" in (tmp_path / "features.unreadable.csv").read_text()


NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_the_notebook_is_committed_without_outputs():
    """They are pictures of radiographs, and larger than all else in it."""
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == [NOTEBOOK.name]
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for package in ("ipykernel", "matplotlib", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    pydicom_file("RG1_UNCI.dcm")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) >= 4  # canvas, contour, features, curves
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed.startswith("Canvas(512 x 512") and "Contour(" in printed
    value, low, high, images = re.search(
        r"AUROC (\S+) \(95 % interval (\S+) to (\S+)\) of (\d+) images", printed
    ).groups()
    assert 0 <= float(low) <= float(value) <= float(high) <= 1 and int(images) == 24
    predictions = (tmp_path / "probe" / "predictions.csv").read_text().splitlines()
    assert len(predictions) == 1 + 24 and predictions[0].startswith("image,patient,spots,present")
    assert (tmp_path / "probe" / "report.html").exists()


def code_blocks(document: str, heading: str) -> list[str]:
    """The Python code under a heading of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", section.group(1), re.DOTALL)


@pytest.mark.slow
def test_ten_lines_pasted_into_a_fresh_environment(tmp_path):
    """They run as they are, beside a folder with a radiograph, without the optional packages."""
    import cv2
    from toy_radiographs import draw_radiograph

    code = code_blocks("docs/encoder.md", "Ten lines")[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    optional = ("timm", "transformers", "onnx", "pydicom", "pyarrow", "sklearn", "jsonargparse", "tqdm")
    fresh = f"import sys; sys.modules.update(dict.fromkeys({optional}))\n"
    (tmp_path / "xrays").mkdir()
    cv2.imwrite(str(tmp_path / "xrays" / "0.png"), draw_radiograph(0))
    done = subprocess.run(
        [sys.executable, "-c", fresh + code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_rest_of_the_page(tmp_path, monkeypatch, plain_mae):
    """Every other block of docs/encoder.md runs too, one after the other, at a small size."""
    if plain_mae.import_timm() is None:
        pytest.skip("timm is not installed")
    for package in ("transformers", "onnx", "onnxscript", "pyarrow"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    import cv2
    from toy_radiographs import draw_radiograph

    (tmp_path / "xrays").mkdir()
    for seed in range(2):
        cv2.imwrite(str(tmp_path / "xrays" / f"{seed}.png"), draw_radiograph(seed))
    text = (ROOT / "docs/encoder.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1:]
    assert len(blocks) >= 5
    names: dict = {}
    with torch.no_grad():
        for block in blocks:
            exec(compile(re.sub(r"(?<!_)1280", "128", block), "docs/encoder.md", "exec"), names)
