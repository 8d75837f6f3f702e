"""Every command that reads radiographs, on a dozen small ones and whatever is put beside them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.classify.classifier import Classifier, ClassifierConfig, save_classifier

SIZE = 64
SPLITS = ("train", "train", "val", "test")
NET = {"img_size": SIZE, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
TRAINED = f"--steps 2 --batch-size 2 --img-size {SIZE} --contour rectangle --tensorboard false --threads 1".split(" ")
REPORT = {"width": 16, "heads": 2, "ffn": 16, "layers": 1, "visual_tokens": 4, "max_length": 12, "num_beams": 1}


def draw(folder: Path, names: Sequence[str]) -> list[str]:
    """Toy radiographs of these names; their paths."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        done, data = cv2.imencode(".png", draw_radiograph(number))
        assert done
        (folder / name).write_bytes(data.tobytes())
    return [str(folder / name) for name in names]


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


class Commands:
    """Words of each command on a folder of radiographs, with tables and models for those that take them.

    Args:
        root: where all is put; ``root / "images"`` holds the radiographs.
        names: of the radiographs, in the order of the tables' rows.
        written: how the tables write them.
    """

    def __init__(self, root: Path, names: Sequence[str], written=str) -> None:
        self.root, self.images, self.names, self.written = root, root / "images", list(names), written
        self.paths = draw(self.images, names)

    def words(self, command: str) -> list[str]:
        """The command line; results go to ``root / "out"``, which ``out`` says more of."""
        images, out = str(self.images), str(self.out(command))
        if command == "prepare":
            return ["prepare", images, "--out", out, "--img-size", str(SIZE), "--contour", "rectangle", "--view", "any"]
        if command == "contour":
            return ["contour", images, "--out", out, "--method", "rectangle", "--img-size", str(SIZE)]
        if command == "embed":
            return ["embed", images, "--weights", str(self.encoder()), "--out", out]
        if command == "predict":
            return ["predict", images, "--model", str(self.classifier()), "--out", out]
        if command == "evaluate":
            words = ["evaluate", "--data", str(self.labels()), "--images", images, "--model", str(self.classifier())]
            return [*words, "--split", "all", "--out", out, "--bootstraps", "0", "--max-bad-share", "0.5"]
        if command == "probe":
            words = ["probe", "--data", str(self.labels()), "--images", images, "--weights", str(self.encoder())]
            return [*words, "--out", out, "--bootstraps", "0", "--max-bad-share", "0.5"]
        if command == "finetune":
            words = ["finetune", "--data", str(self.labels()), "--images", images, "--weights", str(self.encoder())]
            steps = [*TRAINED[2:], "--epochs", "1"]
            return [*words, "--out", out, *steps, "--bootstraps", "0", "--max-bad-share", "0.5"]
        if command == "pretrain":
            net = ["--model", "vit_tiny_patch16", "--decoder-embed-dim", "64", "--decoder-depth", "1"]
            return ["pretrain", "--data", images, "--out", out, *TRAINED, *net]
        studies = ["--data", str(self.studies()), "--images", images]
        if command == "report train":
            net = ["--encoder", "vit_tiny_patch16", "--encoder-lr", "0", "--min-frequency", "1"]
            net += [word for name, value in REPORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
            return ["report", "train", *studies, "--out", out, *TRAINED, *net, "--validate-split", "train"]
        if command == "report generate":
            model = str(self.root / "report" / "model")
            return ["report", "generate", images, "--model", model, "--out", out, "--num-beams", "1", "--pictures", "2"]
        raise ValueError(command)

    def out(self, command: str) -> Path:
        if command == "report train":
            return self.root / "report"
        return self.root / {"embed": "out.parquet", "predict": "out.csv"}.get(command, "out")

    def labels(self) -> Path:
        rows = [
            {"image": self.written(name), "patient": f"p{n}", "sick": str(n // 4 % 2), "split": SPLITS[n % 4]}
            for n, name in enumerate(self.names)
        ]
        return write_table(self.root / "labels.csv", rows)

    def studies(self) -> Path:
        rows = [
            {"id": f"s{n}", "image": self.written(name), "report": f"The lung {n % 2} is clear.", "split": "train"}
            for n, name in enumerate(self.names)
        ]
        return write_table(self.root / "studies.csv", rows)

    def encoder(self) -> Path:
        torch.manual_seed(0)
        return hx.save_model(hx.create_encoder("vit_tiny_patch16", **NET), self.root / "encoder")

    def classifier(self) -> Path:
        torch.manual_seed(0)
        encoder = hx.create_encoder("vit_tiny_patch16", **NET)
        model = Classifier(encoder, ClassifierConfig(["sick"], contour="rectangle"))
        save_classifier(model, self.root / "classifier")
        return self.root / "classifier"
