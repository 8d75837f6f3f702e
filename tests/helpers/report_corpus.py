"""Twenty short chest reports in Chinese and English, written for the tests, with drawn radiographs that show them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np


@dataclass(frozen=True)
class Case:
    """What is drawn and what is said of it.

    Attributes:
        chinese, english: the report.
        spot: opacity at (x, y) of the frontal view, as shares of its width and height; x < 0.5 is the patient's right.
        effusion: share of the (right, left) lung that is filled from below.
        heart: width of the heart, as a share of that of the chest.
    """

    chinese: str
    english: str
    spot: tuple[float, float] | None = None
    effusion: tuple[float, float] = (0.0, 0.0)
    heart: float = 0.4


CASES = (
    Case("双肺纹理清晰，未见明显实变影。心影大小形态正常。双侧肋膈角锐利。",
         "The lungs are clear. The heart is normal in size. The costophrenic angles are sharp."),
    Case("右下肺野见片状模糊影，边界不清，考虑炎症。心影不大。",
         "There is an ill-defined opacity in the right lower lung, likely pneumonia. The heart is not enlarged.",
         spot=(0.33, 0.64)),
    Case("左下肺野见斑片状高密度影，考虑感染性病变。心影未见增大。",
         "There is a patchy opacity in the left lower lung, likely infection. The heart is not enlarged.",
         spot=(0.67, 0.64)),
    Case("右上肺野见结节影，直径约1.5cm，边缘尚清，建议CT进一步检查。",
         "There is a 1.5 cm nodule in the right upper lung. CT is recommended.", spot=(0.33, 0.36)),
    Case("左上肺见小结节影，密度较高，考虑陈旧性病灶。余肺野清晰。",
         "There is a small dense nodule in the left upper lung, likely old. The lungs are otherwise clear.",
         spot=(0.67, 0.36)),
    Case("右侧肋膈角变钝，提示少量胸腔积液。左肺未见异常。",
         "The right costophrenic angle is blunted, which suggests a small effusion. The left lung is clear.",
         effusion=(0.2, 0.0)),
    Case("左侧胸腔中等量积液，左下肺受压。右肺野清晰。",
         "There is a moderate left pleural effusion. The right lung is clear.", effusion=(0.0, 0.4)),
    Case("双侧胸腔少量积液，双侧肋膈角变钝。",
         "There are small bilateral pleural effusions.", effusion=(0.2, 0.2)),
    Case("心影增大，心胸比约0.6，主动脉迂曲。双肺未见实变。",
         "The heart is enlarged. The aorta is tortuous. There is no consolidation.", heart=0.6),
    Case("心影增大，伴右侧胸腔积液，考虑心功能不全。",
         "The heart is enlarged and there is a right pleural effusion, which suggests heart failure.",
         heart=0.6, effusion=(0.3, 0.0)),
    Case("心影增大，双侧胸腔积液，提示心力衰竭。",
         "The heart is enlarged with bilateral pleural effusions.", heart=0.6, effusion=(0.3, 0.3)),
    Case("右中肺野见团块影，大小约3.0cm×2.5cm，占位待排，请结合临床。",
         "There is a mass in the right middle lung. A tumour is to be ruled out.", spot=(0.33, 0.5)),
    Case("左中肺野见片状影，较前片略有吸收。",
         "The opacity in the left middle lung is smaller than before.", spot=(0.67, 0.5)),
    Case("右肺大量胸腔积液，纵隔向左移位。",
         "There is a large right pleural effusion with a shift of the mediastinum to the left.", effusion=(0.7, 0.0)),
    Case("左侧大量胸腔积液，左肺大部分不张。",
         "There is a large left pleural effusion with atelectasis of most of the left lung.", effusion=(0.0, 0.7)),
    Case("右下肺炎症，伴左侧少量胸腔积液。",
         "There is pneumonia in the right lower lung and a little effusion.", spot=(0.33, 0.6), effusion=(0.0, 0.2)),
    Case("左下肺炎症；心影增大。",
         "There is pneumonia in the left lower lung. The heart is enlarged.", spot=(0.67, 0.6), heart=0.6),
    Case("右上肺陈旧性结核灶，心影增大，主动脉结钙化。",
         "There is an old lesion in the right upper lung. The heart is enlarged.", spot=(0.33, 0.34), heart=0.6),
    Case("胸部正侧位片：心、肺、膈未见明显异常。",
         "Frontal and lateral views of the chest are normal.", heart=0.38),
    Case("肺部情况如上；心影稍大（心胸比0.52），余未见异常！",
         "The heart is mildly enlarged. Nothing else is abnormal.", heart=0.52),
)  # fmt: skip


def draw_views(case: Case, seed: int, height: int = 181, width: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Frontal and lateral view, each [height, width] uint8; the lateral view shows the opacity as well."""
    views = []
    for lateral in (False, True):
        rng = np.random.default_rng([seed, lateral])
        image = np.full((height, width), 30, np.uint8)
        centre = (width // 2, height // 2)
        body = (width * (3 if lateral else 4) // 10, height * 9 // 20)
        cv2.ellipse(image, centre, body, 0, 0, 360, 185, -1)
        lungs = np.zeros_like(image)
        places = [(width // 2, 0.2)] if lateral else [(width // 3, 0.13), (width * 2 // 3, 0.13)]
        for side, (x, share) in enumerate(places):
            lung = np.zeros_like(image)
            axes = (int(width * share), height // 4)
            cv2.ellipse(lung, (x, centre[1]), axes, 0, 0, 360, 255, -1)
            filled = max(case.effusion) if lateral else case.effusion[side]
            lung[int(centre[1] + axes[1] * (1 - 2 * filled)) :] = 0
            lungs |= lung
        image[lungs > 0] = 70
        heart = (int(width * 0.4 * case.heart), height // 8)
        cv2.ellipse(image, (width // 2 + (-6 if lateral else 4), int(height * 0.6)), heart, 0, 0, 360, 190, -1)
        if case.spot is not None:
            x = 0.5 if lateral else case.spot[0]
            cv2.circle(image, (int(x * width), int(case.spot[1] * height)), 9, 225, -1)
        views.append(np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8))
    return views[0], views[1]


def write_two_view_studies(folder: Path, language: str = "zh", cases: tuple[Case, ...] = CASES) -> Path:
    """The cases as R2Gen's annotation.json with two images each: of 20, 16 to train, 2 to validate, 2 to test."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for number, case in enumerate(cases):
        names = [f"case{number:02d}/{view}.png" for view in ("0", "1")]
        (folder / "images" / f"case{number:02d}").mkdir(exist_ok=True)
        for name, pixels in zip(names, draw_views(case, number), strict=True):
            cv2.imwrite(str(folder / "images" / name), pixels)
        split = "val" if number % 10 == 4 else "test" if number % 10 == 9 else "train"
        text = case.chinese if language == "zh" else case.english
        splits[split].append({"id": f"case{number:02d}", "report": text, "image_path": names, "language": language})
    path = folder / "annotation.json"
    path.write_text(json.dumps(splits, ensure_ascii=False, indent=1), encoding="utf-8")
    return path
