"""Weights as they lie on a disk or on a hub: files in, named tensors and what is known of them out. No code is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import regular_files
from ..errors import ArgumentTypeError, CheckpointError, MissingDependencyError
from ..extras import install
from ..models.layers import LAYER_NORM_EPS
from ..models.presets import ENCODERS
from ..regular_files import what_else
from . import model_folders
from .data_only import tell_of_code
from .hub_files import PREPROCESSOR_FILE
from .hub_retries import quiet_retries
from .stored_sizes import are_there

TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
HUBS = ("hf:", "timm:")  # what names of weights begin with that are no paths
# where training scripts put the model; a teacher goes before its student, as in DINO's own evaluation
STATE_DICTS = (
    *("model", "state_dict", "model_state_dict", "teacher", "student", "model_ema", "net", "network"),
    *("target_encoder", "encoder", "backbone"),
)


@dataclass
class Source:
    """Weights and what came with them.

    Attributes:
        label: what errors and reports call them.
        tensors: by the names they were saved under.
        config: ``config.json``, empty if there is none.
        settings: fields of :class:`hdxray_fast.EncoderConfig` that are known for certain.
        mean, std: of pixels on [0, 1], one per channel; None if nothing tells.
        left_out: names of tensors that were not even read.
        own: an encoder or auto-encoder that this package wrote.
    """

    label: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    left_out: list[str] = field(default_factory=list)
    own: bool = False


def read_source(weights: str | os.PathLike) -> Source:
    """Read ``weights``: a path, ``"hf:org/name"``, ``"hf:org/name@revision"`` or ``"timm:name"``.

    Raises:
        ArgumentTypeError: ``weights`` is none of these.
        CheckpointError: a file is missing, damaged, holds code, or holds no tensors.
        MissingDependencyError: a hub was named whose client is not installed.
    """
    if not isinstance(weights, str | os.PathLike):
        raise ArgumentTypeError(
            f"weights: got {type(weights).__name__}, accepted are a path, 'hf:org/name' (with '@revision' if wanted) "
            "and 'timm:name'"
        )
    if isinstance(weights, str) and weights.startswith("hf:"):
        return _read_directory(_fetch(weights), weights)
    if isinstance(weights, str) and weights.startswith("timm:"):
        return _read_timm(weights)
    path = Path(weights)
    if path.is_dir():
        folder = folder_with_weights(path)
        return _read_directory(folder, str(folder))
    if not path.is_file():
        raise CheckpointError(
            f"{path}: {what_else(path) or 'is missing'}; weights are 'pretrained', a file or a folder, "
            "'hf:org/name' or 'timm:name'"
        )
    if path.name in TENSOR_FILES and (path.parent / model_folders.CONFIG_FILE).is_file():
        return _read_directory(path.parent, str(path))
    return _read_file(path, str(path))


def folder_with_weights(path: Path) -> Path:
    """``path``, or where it is that of a run, the folder of the model in it; see :func:`.folder_of_weights`."""
    return path if any(are_there(path / name) for name in TENSOR_FILES) else model_folders.folder_of_weights(path)


def _read_directory(folder: Path, label: str) -> Source:
    """A model that this package, transformers or timm saved."""
    config = read_json(folder / model_folders.CONFIG_FILE)
    if config.get("format") in (model_folders.MAE_FORMAT, model_folders.ENCODER_FORMAT):
        return _read_own(folder, label)
    tell_of_code(folder)
    for name in TENSOR_FILES:
        if (folder / name).is_file():
            source = _read_file(folder / name, label)
            break
        if (folder / f"{name}.index.json").is_file():
            index = folder / f"{name}.index.json"
            source = Source(label, model_folders.read_shards(index, lambda path: _read_file(path, str(path)).tensors))
            break
    else:
        if odd := [f"{name} {what_else(folder / name)}" for name in TENSOR_FILES if what_else(folder / name)]:
            raise CheckpointError(f"{folder}: its {odd[0]}")
        raise CheckpointError(f"{folder}: holds neither of {' and '.join(TENSOR_FILES)}")
    source.config, source.settings = config, _told_by_timm(config)
    if not source.settings:
        source.mean, source.std = _pixel_statistics(read_json(folder / PREPROCESSOR_FILE), config)
    return source


def _told_by_timm(config: dict) -> dict[str, Any]:
    """Settings that no tensor tells, of an encoder of this package that timm saved; of other models none.

    The mean and deviation beside them are rough values where each image is brought to 0 and 1, which timm has no words
    for.
    """
    name = str(config.get("architecture")).removeprefix("hdxray_").removesuffix("_1280")
    if name not in ENCODERS:
        return {}
    usual = {"norm_eps": LAYER_NORM_EPS, "normalisation": "per_image", "contour": "network", "began_from": None}
    options = config.get("model_args")
    told = {**usual, "num_heads": ENCODERS[name]["num_heads"], **(options if isinstance(options, dict) else {})}
    return {option: told[option] for option in ("num_heads", *usual)}


def _read_own(folder: Path, label: str) -> Source:
    model = model_folders.load_model(folder)
    encoder = getattr(model, "encoder", model)
    left_out = [name for name in model.state_dict() if name.startswith("decoder.")] if encoder is not model else []
    left_out += _head_in(folder)
    settings = asdict(encoder.config)
    source = Source(label, encoder.state_dict(), settings=settings, left_out=left_out, own=True)
    if settings["normalisation"] != "per_image":
        mean, std = settings["normalisation"]
        source.mean, source.std = (mean,), (std,)
    return source


def _head_in(folder: Path) -> list[str]:
    """Names of the tensors of a classifier's head, for the report; none of an encoder."""
    path = folder / "head.safetensors"
    if not path.is_file():
        return ["head"] if (folder / "classifier.json").is_file() else []  # transformers saved it, in one file
    try:
        return [f"head.{name}" for name in model_folders.read_tensors(path)]
    except CheckpointError:  # which an encoder can do without
        return ["head"]


def _read_file(path: Path, label: str) -> Source:
    if path.suffix == ".safetensors":
        return Source(label, model_folders.read_tensors(path))
    tensors, others = _state_dict(model_folders.read_legacy(path))
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no state dict of tensors, neither at the top nor under {', '.join(STATE_DICTS)}"
        )
    return Source(label, tensors, left_out=others)


def _state_dict(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint, of several models in it those of the first; and the names of the others."""
    if not isinstance(content, Mapping):
        return {}, []
    models = [(key, *_state_dict(content[key])) for key in STATE_DICTS if isinstance(content.get(key), Mapping)]
    models = [model for model in models if model[1]]
    if models:
        (_, tensors, left_out), *others = models
        return tensors, [*left_out, *(f"{key}.{name}" for key, model, _ in others for name in model)]
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}, []


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file."""
    try:
        content = regular_files.read_json(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return content


def _pixel_statistics(preprocessor: dict, config: dict) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation per channel that pixels on [0, 1] are normalised with, if transformers or timm tell."""
    if preprocessor.get("do_normalize") is False:
        mean, std = [0.0], [1.0]
    elif preprocessor:
        mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    else:
        pretrained = config.get("pretrained_cfg", config)  # timm's
        mean, std = (pretrained.get("mean"), pretrained.get("std")) if isinstance(pretrained, dict) else (None, None)
    if preprocessor and (
        not preprocessor.get("do_rescale", True) or abs(preprocessor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3
    ):
        return None, None  # its pixels are not on [0, 1]
    return _numbers(mean), _numbers(std)


def _numbers(values: object) -> tuple[float, ...] | None:
    values = [values] if isinstance(values, int | float) else values
    if not isinstance(values, list | tuple) or len(values) not in (1, 3):
        return None
    return tuple(float(v) for v in values) if all(isinstance(v, int | float) for v in values) else None


# --- hubs -------------------------------------------------------------------------------------------------------------
def _fetch(weights: str) -> Path:
    """Folder with the files of a Hugging Face repository that hold weights and what is known of them."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError(f"{weights}: needs huggingface_hub: {install('hf')}") from error
    name, _, revision = weights.removeprefix("hf:").partition("@")
    try:
        for tensors in TENSOR_FILES:
            stem, suffix = tensors.split(".")
            patterns = [model_folders.CONFIG_FILE, PREPROCESSOR_FILE, f"{stem}*.{suffix}", f"{tensors}.index.json"]
            with quiet_retries(weights):
                folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if any(folder.glob(f"{stem}*.{suffix}")):
                break
    except Exception as error:  # the client's errors share no base class: network, names, revisions, access
        raise CheckpointError(f"{weights}: cannot be fetched ({' '.join(str(error).split())[:300]})") from error
    return folder


def _read_timm(weights: str) -> Source:
    """A model of timm with its published weights."""
    try:
        import timm
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Block, VisionTransformer
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise MissingDependencyError(f"{weights}: timm cannot be imported ({error}): {install('timm')}") from error
    try:
        with quiet_retries(weights):
            model = timm.create_model(weights.removeprefix("timm:"), pretrained=True, num_classes=0)
    except Exception as error:  # names, network, files: timm's errors share no base class
        raise CheckpointError(f"{weights}: cannot be had ({' '.join(str(error).split())[:300]})") from error
    block = model.blocks[0] if isinstance(model, VisionTransformer) else None
    if type(block) is not Block or type(model.patch_embed) is not PatchEmbed:
        raise CheckpointError(f"{weights}: is another architecture ({type(model).__name__}), not a plain ViT")
    activation = block.mlp.act
    if not isinstance(activation, nn.GELU) or getattr(activation, "approximate", "none") != "none":
        raise CheckpointError(f"{weights}: is another architecture: its activation is {activation}, not the exact GELU")
    settings = {
        "img_size": tuple(model.patch_embed.img_size),
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
    }
    mean, std = _pixel_statistics({}, dict(model.pretrained_cfg))
    return Source(weights, model.state_dict(), settings=settings, mean=mean, std=std)
