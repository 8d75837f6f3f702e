"""Small studies with small radiographs, small encoders and language models for the tests of report models."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from report_makers import write_csv
from xray_makers import thorax

import hdxray_fast as hx
from hdxray_fast.reports.text_tokenizers import ReportTokenizer, train_tokenizer

SIZE = 96  # a grid of 6 x 6 patches
ENGLISH = [
    "The heart is normal in size. The lungs are clear. No pleural effusion.",
    "Mild cardiomegaly with a small left pleural effusion.",
    "Right lower lobe opacity, likely pneumonia. No pneumothorax.",
    "Hyperinflated lungs. Flattened diaphragm, 3.5 cm apart.",
]
# settings of a training of one step, for what does not depend on how well a model writes
QUICK = {
    "encoder_lr": 0.0, "width": 48, "heads": 4, "ffn": 48, "layers": 1, "min_frequency": 1, "visual_tokens": 9,
    "max_length": 40, "steps": 1, "batch_size": 4, "num_beams": 1, "tensorboard": False, "threads": 1, "workers": 0,
    "contour": "rectangle", "min_patients": 1, "digits": True,
}  # fmt: skip
CHINESE = [
    "两肺纹理清晰，未见实质性病变。心影大小正常。",
    "心影增大，左侧少量胸腔积液。",
    "右下肺见片状高密度影，考虑肺炎。未见气胸。",
    "两肺透亮度增高，膈肌低平，COPD可能。",
]


def radiograph(path: Path, kind: int, seed: int = 0) -> Path:
    """A picture of a chest with a bright square whose place says which of four kinds it is; other seeds are other
    patients, no near duplicates."""
    pixels = thorax(120 + 10 * seed, 110).astype(int)
    rng = np.random.default_rng(seed)
    pixels += rng.integers(0, 6, pixels.shape)
    pixels += cv2.resize(rng.normal(0, 25, (14, 14)), pixels.shape[::-1], interpolation=cv2.INTER_CUBIC).astype(int)
    top, left = 20 + 40 * (kind // 2), 15 + 50 * (kind % 2)
    pixels[top : top + 30, left : left + 30] += 110
    cv2.imwrite(str(path), np.clip(pixels, 0, 255).astype(np.uint8))
    return path


def study_csv(folder: Path, reports: list[str], *, two_views: bool = False, copies: int = 1, **columns: str) -> Path:
    """A CSV of studies that all train; with ``two_views`` every second one has two radiographs."""
    rows = []
    for number in range(len(reports) * copies):
        kind = number % len(reports)
        names = [radiograph(folder / f"{number}_{view}.png", kind, view).name for view in range(1 + number % 2)]
        names = names if two_views else names[:1]
        rows.append(
            {"id": f"s{number}", "image": ";".join(names), "report": reports[kind], "split": "train", **columns}
        )
    return write_csv(folder / "studies.csv", rows)


def small_encoder(seed: int = 0, **options):
    torch.manual_seed(seed)
    settings = {"img_size": SIZE, "depth": 2, "embed_dim": 48, "num_heads": 3, **options}
    return hx.create_encoder("vit_tiny_patch16", **settings).eval()


def save_small_encoder(folder: Path, **options) -> Path:
    return hx.save_model(small_encoder(**options), folder)


def small_language_model(folder: Path, kind: str = "llama") -> Path:
    """A causal language model that was never trained, with its tokenizer, as a folder of transformers."""
    from hdxray_fast.reports.text_models import import_text_models

    transformers = import_text_models()
    texts = [*ENGLISH, *CHINESE, "Chest radiograph: \nWrite the radiology report on it.\nReport: "] * 3
    tokenizer: ReportTokenizer = train_tokenizer(
        texts, "bpe", min_frequency=2, vocab_size=500, min_patients=1, digits=True
    )
    special = {"eos_token_id": tokenizer.eos, "bos_token_id": tokenizer.bos}
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            **special,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, **special
        )
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.backend.save_pretrained(folder)
    return folder
