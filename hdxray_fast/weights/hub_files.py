"""What a model folder says to Hugging Face: keys of its config.json, how images are prepared, the model card."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import written_whole
from ..regular_files import read_text
from .credits import CARD_FILE, credits_of

if TYPE_CHECKING:
    from ..models.encoder_config import EncoderConfig

MODEL_TYPE = "hdxray_vit"
CLASSIFIER_CLASS = "HDXrayForImageClassification"
HUB_KEYS = {"model_type": MODEL_TYPE, "architectures": ["HDXrayModel"]}
PREPROCESSOR_FILE = "preprocessor_config.json"
TEMPLATE_SIGN = "This model card has been automatically generated"  # transformers' own, empty card
_OUR_SIGN = "\n<!-- Written by hdxray_fast, and written anew with the weights unless it is changed: {} -->\n"

# Where transformers has not heard of this package, "auto_map" makes it ask whether it may run this file, which says
# what is missing, instead of asking for another version of transformers. After ``import hdxray_fast`` it is not read.
# preprocessor_config.json has none: pipelines would guess a video processor from it, and ask after the import too.
IMPORT_FILE = "import_hdxray_fast.py"
IMPORT_CODE = '''"""What transformers runs, if allowed to, where nobody imported the package of these weights.

Put ``import hdxray_fast`` (``pip install hdxray-fast``) before the first ``from_pretrained``: then nothing is asked,
and this file is not read.
"""

from hdxray_fast.interop.hf import HDXrayBackbone, HDXrayForImageClassification, HDXrayModel
from hdxray_fast.interop.hf_config import HDXrayConfig

__all__ = ["HDXrayBackbone", "HDXrayConfig", "HDXrayForImageClassification", "HDXrayModel"]
'''
_CLASSES = {
    "AutoConfig": "HDXrayConfig",
    "AutoModel": "HDXrayModel",
    "AutoBackbone": "HDXrayBackbone",
    "AutoModelForImageClassification": CLASSIFIER_CLASS,
}
AUTO_MAP = {auto: f"{IMPORT_FILE.removesuffix('.py')}.{name}" for auto, name in _CLASSES.items()}


def label_keys(classes: Sequence[str], multiclass: bool) -> dict[str, Any]:
    """Keys of a classifier's ``config.json``: what its logits mean, in transformers' words."""
    return {
        "architectures": [CLASSIFIER_CLASS],
        "id2label": dict(enumerate(classes)),
        "label2id": {name: index for index, name in enumerate(classes)},
        "problem_type": f"{'single' if multiclass else 'multi'}_label_classification",
    }


def write_import_file(directory: Path) -> None:
    """Write the file that ``auto_map`` names."""
    with written_whole(Path(directory) / IMPORT_FILE) as temporary:
        temporary.write_text(IMPORT_CODE, encoding="utf-8")


def preprocessor_settings(config: EncoderConfig) -> dict[str, Any]:
    """Contents of ``preprocessor_config.json``: the arguments of :class:`.HDXrayImageProcessor`."""
    height, width = config.img_size
    normalisation = config.normalisation
    found = {} if config.contour == "network" else {"contour": config.contour}
    return {
        "image_processor_type": "HDXrayImageProcessor",
        "size": {"height": height, "width": width},
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "normalisation": normalisation if isinstance(normalisation, str) else list(normalisation),
        "do_normalize": True,
        "return_grids": config.keep != "all",
        **found,
    }


def write_model_card(directory: Path, config: EncoderConfig, classes: Sequence[str] = ()) -> None:
    """Write ``README.md`` unless there is one that somebody wrote; ``classes`` are those of a classifier."""
    write_card(directory, model_card(config, classes))


def write_card(directory: Path, card: str) -> None:
    """Write ``README.md`` unless there is one that somebody wrote, or changed after it was written here."""
    path = Path(directory) / CARD_FILE
    if path.exists() and not _is_ours(read_text(path, None, errors="replace")):
        return
    with written_whole(path) as temporary:
        temporary.write_text(card + _sign_of(card), encoding="utf-8")


def _is_ours(text: str) -> bool:
    """Whether nobody's words are in a card: it is as it was written here, or transformers' empty one."""
    card, sign, _ = text.rpartition(_OUR_SIGN.partition("{}")[0])
    return TEMPLATE_SIGN in text or (bool(sign) and text == card + _sign_of(card))


def _sign_of(card: str) -> str:
    """What a card ends with, in Markdown unseen, by which it is known as long as nobody has changed it."""
    return _OUR_SIGN.format(sha256(card.encode()).hexdigest()[:16])


def model_card(config: EncoderConfig, classes: Sequence[str] = ()) -> str:
    """A model card in Hugging Face's format, with placeholders where only the authors of the weights know."""
    height, width = config.img_size
    channels = "one channel" if config.in_chans == 1 else f"{config.in_chans} equal channels"
    if config.normalisation == "per_image":
        pixels = "each image is brought to mean 0 and standard deviation 1 over its patches that are not padding"
    else:
        mean, std = config.normalisation
        pixels = f"pixels on [0, 1] are normalised with mean {mean:g} and standard deviation {std:g}"
    looks_at = {
        "all": "all patches",
        "valid": "the patches that are not padding",
        "contour": f"the patches inside the chest contour and {config.margin} around it",
    }[config.keep]
    task = "image-classification" if classes else "image-feature-extraction"
    kind = "classifier" if classes else "encoder"
    return f"""---
license: other
license_name: to-be-stated-by-the-authors-of-the-weights
library_name: transformers
pipeline_tag: {task}
tags:
- hdxray_fast
- chest-x-ray
- radiology
- vision-transformer
---

# A chest X-ray {kind}

A vision transformer for chest radiographs of {height} x {width} pixels: {config.depth} blocks of width
{config.embed_dim} with {config.num_heads} heads, patches of {config.patch_size} pixels, {channels}.
It looks at {looks_at}.

## Use

{_usage(config, classes)}

## Preprocessing

The processor reads DICOM, PNG, JPEG, TIFF, BMP, WebP and NumPy files, PIL images and arrays. It applies the file's own
grey scale transformations, turns the image so that dense tissue is bright, and letterboxes it onto a black square;
{pixels}.

## Training

To be stated: the images it was trained on, how, and under which terms they may be used.

{credits_of(config.began_from)}## Intended use and limits

Research on chest radiographs: features for classification, segmentation, retrieval. It is not a medical device and
must not be used for diagnosis or treatment. It was not tested on other body parts, other modalities, or photographs of
radiographs. How it performs for groups of patients that are rare in its training data is to be measured before use.

## Licence

To be stated by the authors of the weights. The code of hdxray_fast is under Apache-2.0.
"""


def _usage(config: EncoderConfig, classes: Sequence[str]) -> str:
    auto = "AutoModelForImageClassification" if classes else "AutoModel"
    if classes:
        outputs = f"outputs.logits  # [1, {len(classes)}]: {', '.join(classes)}"
        without = "`hdxray_fast.load_classifier(folder)` and `hdxray_fast.predict` do without transformers."
    else:
        outputs = (
            f"outputs.last_hidden_state  # [1, tokens, {config.embed_dim}]\n"
            f"outputs.pooler_output      # [1, {config.embed_dim}]"
        )
        without = "`hdxray_fast.create_encoder(weights=folder)` builds the same network without transformers."
    return f"""```python
import hdxray_fast  # pip install 'hdxray-fast[hf,dicom]'
from transformers import AutoImageProcessor, {auto}

folder = "..."  # this repository, or the folder that holds this file
processor, model = AutoImageProcessor.from_pretrained(folder), {auto}.from_pretrained(folder)
outputs = model(**processor(["chest.dcm"], return_tensors="pt"))
{outputs}
```

{without}"""
