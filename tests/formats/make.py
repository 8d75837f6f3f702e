"""Makes the folders beside it: what version 0.1.0 wrote before its modules were sorted into rooms.

    cd tests/formats && python make.py

Only public names and the command line are used, so that the same script describes what later versions must read. The
folders are kept as they are: making them anew with a later version would make the test that reads them worthless.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

import hdxray_fast as hx

SIZE = 64
TOY = {"patch_size": 16, "stem": "patch16", "embed_dim": 16, "depth": 1, "num_heads": 1}  # a checkpoint of 100 KB
REPORTS = ["The heart is normal. The lungs are clear.", "Small left pleural effusion.", "Right opacity."]
LOOP = {"workers": 0, "threads": 1, "tensorboard": False, "contour": "rectangle", "steps": 4, "save_every": 2}
PRETRAIN = {
    "data": "images",
    "model": "vit_toy_patch16",
    "img_size": SIZE,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "batch_size": 2,
    "picture_every": 0,
    "ratio_inside": 0.5,
    "ratio_outside": 0.5,
    "ema": 0.9,
}
FINETUNE = {"data": "labels.csv", "weights": "encoder", "batch_size": 3, "bootstraps": 10, "img_size": SIZE}
REPORT = {
    "data": "studies.csv",
    "weights": "encoder",
    "batch_size": 3,
    "encoder_lr": 0.0,
    "val_share": 0.0,
    "test_share": 0.0,
    "width": 16,
    "heads": 2,
    "ffn": 16,
    "layers": 1,
    "dropout": 0.0,
    "min_frequency": 1,
    "min_patients": 1,
    "digits": True,
    "visual_tokens": 4,
    "max_length": 12,
    "validate_split": "train",
    "validate_every": 2,
    "num_beams": 1,
}


class Stop(Exception):
    """Ends a run as a killed process would: nothing is tidied up."""


def add_toy_preset() -> None:
    """A preset that is small enough to keep checkpoints of."""
    sys.modules[hx.EncoderConfig.__module__].ENCODERS["vit_toy_patch16"] = TOY


def pretrain_config(out: str, **more) -> hx.PretrainConfig:
    return hx.PretrainConfig(**{**LOOP, **PRETRAIN, "out": out, **more})


def finetune_config(out: str, **more) -> hx.FinetuneConfig:
    options = {**LOOP, **FINETUNE, "epochs": 2, "out": out, **more}
    del options["steps"]  # they follow from the epochs
    return hx.FinetuneConfig(**options)


def report_config(out: str, **more) -> hx.ReportConfig:
    return hx.ReportConfig(**{**LOOP, **REPORT, "out": out, **more})


def stopping_after(step: int):
    def stop(line: dict) -> None:
        if line["step"] == step:
            raise Stop

    return stop


def losses(folder: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(folder, "log.jsonl").read_text().splitlines()]


def pixels(size: int = SIZE) -> torch.Tensor:
    """``[1, 1, S, S] uint8``, the same everywhere."""
    row = torch.arange(size, dtype=torch.int64)
    return ((row[:, None] * 7 + row[None] * 13) % 251).to(torch.uint8)[None, None]


def write_inputs() -> None:
    Path("images").mkdir()
    rng = np.random.default_rng(0)
    labels = ["image,patient,split,high"]
    for number in range(9):
        image = rng.integers(60, 100, (SIZE, SIZE)).astype(np.uint8)
        high = number % 2
        top = 4 if high else 40
        image[top : top + 18, 6:30] = rng.integers(180, 250)
        cv2.imwrite(f"images/{number}.png", image)
        labels.append(f"images/{number}.png,p{number},{('train', 'train', 'val', 'train', 'test')[number % 5]},{high}")
    Path("labels.csv").write_text("\n".join(labels) + "\n")
    rows = [f'r{n},images/{n}.png,"{REPORTS[n % 3]}",train' for n in range(6)]
    Path("studies.csv").write_text("\n".join(["id,image,report,split", *rows]) + "\n")


def run_then_cut(run, config, name: str) -> list[float]:
    """The whole run for its losses, and the same cut after its third step."""
    run(config(f"whole_{name}"), progress=False)
    expected = losses(f"whole_{name}")
    try:
        run(config(name), progress=False, on_step=stopping_after(3))
    except Stop:
        return expected
    raise AssertionError("was not cut")


def main() -> None:
    os.chdir(Path(__file__).parent)
    for old in Path(".").iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    Path("key").write_text("a secret for these folders alone, of forty-odd characters\n")
    Path("key").chmod(0o600)
    add_toy_preset()
    torch.set_num_threads(1)
    write_inputs()
    expected: dict = {}

    torch.manual_seed(0)
    encoder = hx.create_encoder("vit_toy_patch16", img_size=SIZE).eval()
    hx.save_model(encoder, "encoder")
    with torch.no_grad():
        expected["encoder"] = encoder(pixels(), hx.plan_all(torch.ones(1, 4, 4, dtype=torch.bool))).values.tolist()

    expected["pretrain"] = run_then_cut(hx.run_pretraining, pretrain_config, "pretrain")
    shutil.move("whole_pretrain/model", "mae")
    mae = hx.load_model("mae").eval()
    plan = hx.plan_masks(np.ones((4, 4), bool), np.ones((4, 4), bool), predict=1.0, seed=3)
    with torch.no_grad():
        expected["mae"] = float(mae(pixels(), plan, scale=1 / 64, shift=-2.0).loss)

    expected["finetune"] = run_then_cut(hx.run_finetuning, finetune_config, "finetune")
    shutil.move("whole_finetune/model", "classifier")
    command = [sys.executable, "-m", "hdxray_fast"]
    predict = ["predict", "images", "--model", "classifier", "--out", "predictions.csv"]
    subprocess.run([*command, *predict], check=True)

    expected["report"] = run_then_cut(hx.run_report_training, report_config, "report")
    shutil.move("whole_report/model", "report_model")
    written = hx.write_reports("images", "report_model")
    expected["texts"] = [row.text for row in written.rows]

    for form in ("raw", "png"):
        options = ["--img-size", str(SIZE), "--format", form, "--contour", "rectangle", "--workers", "0", "--out", form]
        subprocess.run([*command, "prepare", "images", *options, "--patient-key", "key"], check=True)
    expected["probabilities"] = Path("predictions.csv").read_text().splitlines()
    Path("predictions.csv").unlink()
    for spent in [*Path(".").glob("whole_*"), *Path(".").glob("[!w]*/cache")]:  # a cache is made anew at another place
        shutil.rmtree(spent)
    for pattern in ("[rp]*/contacts.png", "[rp]*/summary.png", "[rp]*/.*.lock"):
        for spent in list(Path(".").glob(pattern)):
            spent.unlink()
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
