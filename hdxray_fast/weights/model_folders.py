"""Models on disk: safetensors and a JSON config, written atomically; weights in MAE's layout both ways."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import ArgumentTypeError, CheckpointError, HDXrayError
from ..files import save_tensors, written_whole
from ..models.encoder import Encoder
from ..models.encoder_config import EncoderConfig
from ..models.grey_levels import level_of_caller
from ..models.mae import MaskedAutoencoder, create_mae, encoder_within
from ..regular_files import check_regular, load_tensors, read_json, reason_of, what_else
from .data_only import tell_of_code
from .hub_files import (
    AUTO_MAP,
    HUB_KEYS,
    PREPROCESSOR_FILE,
    preprocessor_settings,
    write_import_file,
    write_model_card,
)
from .model_state import shapes_of, state_to_save, unwrapped
from .stored_sizes import Stored, are_there, check_room, index_of, shards_of, stored_in

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MAE_FORMAT, ENCODER_FORMAT = "hdxray_fast.mae", "hdxray_fast.encoder"
FORMAT_VERSION = 1


def save_model(model: MaskedAutoencoder | Encoder, directory: str | Path) -> Path:
    """Write ``model.safetensors`` and ``config.json``; a crash at any moment leaves each file either old or new.

    The folder is one for transformers' ``AutoModel``, ``AutoBackbone`` and ``AutoImageProcessor`` too, an
    auto-encoder's as its encoder, with a model card (a ``README.md`` that somebody wrote or changed stays). Nothing is
    written before it is known that :func:`load_model` will take it.

    Args:
        model: from :func:`hdxray_fast.create_mae` or :func:`hdxray_fast.create_encoder`, also within ``torch.compile``
            or ``DistributedDataParallel``.
        directory: created if missing.

    Returns:
        The directory.

    Raises:
        ArgumentTypeError: not such a model, or not a path.
        ArgumentError: its tensors are not those of such a model any more (adapters, parametrisations, pruning,
            quantisation, sharding); the message says how that is undone.
        CheckpointError: the directory cannot be written.
    """
    return write_folder(model, directory)


def write_folder(
    model: MaskedAutoencoder | Encoder,
    directory: str | Path,
    labels: Mapping[str, object] | None = None,
    preprocessing: dict[str, object] | None = None,
) -> Path:
    """:func:`save_model`, with what a classifier's folder says besides.

    Args:
        labels: further keys of ``config.json`` (see :func:`.hub_files.label_keys`).
        preprocessing: further keys of ``preprocessor_config.json``.
    """
    model = unwrapped(model)
    files = describe_model(model)
    directory = _as_path(directory)
    files[CONFIG_FILE] |= {"auto_map": AUTO_MAP, **(labels or {})}
    files[PREPROCESSOR_FILE] |= preprocessing or {}
    config = json.loads(json.dumps(files[CONFIG_FILE]))  # as it will be read
    tensors = state_to_save(model, shapes_of(lambda: _build(config["format"], config["model"])))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with written_whole(directory / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
        with written_whole(directory / MODEL_FILE) as temporary:
            save_tensors(tensors, temporary, {"format": "pt"})
        write_import_file(directory)
        write_model_card(directory, _encoder_of(model).config, list(config.get("label2id", ())))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: cannot be written ({error})") from error
    return directory


def _encoder_of(model: MaskedAutoencoder | Encoder) -> Encoder:
    return getattr(model, "encoder", model)


def model_folder(directory: str | Path, file: str) -> Path:
    """The folder that holds ``file``: ``directory``, or where it is that of a run, ``model`` in it."""
    directory = Path(directory)
    inner = directory / "model"
    return inner if (inner / file).is_file() and not (directory / file).is_file() else directory


def folder_of_weights(directory: Path) -> Path:
    """The folder that holds weights: ``directory``, or where it is that of a run or of a report model, the one in it.

    Raises:
        CheckpointError: the run has written checkpoints and no model yet.
    """
    steps = sorted((directory / "checkpoints").glob("step_*"), reverse=True)
    if are_there(directory / MODEL_FILE):
        return directory
    for inner in (*(directory / name for name in ("model", "model/encoder", "encoder")), *steps):
        if (inner / CONFIG_FILE).is_file() and are_there(inner / MODEL_FILE):
            if inner in steps:
                raise CheckpointError(f"{directory}: is a run that has not ended; its newest checkpoint is in {inner}")
            if inner.name == "model" and (told := _of_more_steps(directory, steps)):
                warnings.warn(
                    f"{directory}: {told} since its model was written, which is taken", stacklevel=level_of_caller()
                )
            return inner
    return directory


def _of_more_steps(run: Path, checkpoints: Sequence[Path]) -> str:
    """How far a run has come that was given more steps and has not ended again; empty of any other."""
    numbers = [re.fullmatch(r"step_(\d+)", path.name) for path in checkpoints]
    newest = max((int(number[1]) for number in numbers if number), default=None)
    try:
        steps = read_json(run / CONFIG_FILE)["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    is_under_way = newest is not None and type(steps) is int and newest < steps
    return f"has come to step {newest} of {steps}" if is_under_way else ""


def describe_model(model: MaskedAutoencoder | Encoder) -> dict[str, dict]:
    """The JSON files that make a folder with the tensors of ``model`` one for :func:`load_model`, by name.

    Raises:
        ArgumentTypeError: not such a model.
    """
    if hasattr(model, "merge_and_unload"):
        raise ArgumentTypeError("model: is wrapped by PEFT; save what model.merge_and_unload() gives, or its adapters")
    if isinstance(getattr(model, "config", None), EncoderConfig):
        if any(name.startswith("head.") for name, _ in model.named_parameters()):
            raise ArgumentTypeError(
                "model: has a head, which an encoder's folder does not hold; save its state_dict with torch.save, "
                "make it a classifier (to_classifier), or take the head off first (reset_classifier(0))"
            )
        config = {"format": ENCODER_FORMAT, "format_version": FORMAT_VERSION, "model": asdict(model.saved_config)}
        return {CONFIG_FILE: HUB_KEYS | config, PREPROCESSOR_FILE: preprocessor_settings(model.config)}
    if isinstance(getattr(model, "config", None), dict) and hasattr(model, "encoder"):
        config = {"format": MAE_FORMAT, "format_version": FORMAT_VERSION, "model": model.config}
        return {CONFIG_FILE: HUB_KEYS | config, PREPROCESSOR_FILE: preprocessor_settings(model.encoder.config)}
    raise ArgumentTypeError(
        f"model: got {type(model).__name__}, accepted are what create_mae and create_encoder make; "
        "hdxray_fast.classify.classifier.save_classifier saves a Classifier"
    )


def _as_path(directory: object) -> Path:
    if not isinstance(directory, (str, os.PathLike)):
        raise ArgumentTypeError(f"directory: got {type(directory).__name__}, accepted is a path")
    return Path(directory)


def load_model(directory: str | Path) -> MaskedAutoencoder | Encoder:
    """Build the model that :func:`save_model` wrote, in float32 on the CPU and in training mode.

    Args:
        directory: the folder, or that of the run it lies in.

    Raises:
        CheckpointError: a file is missing, truncated or foreign, or config and tensors do not belong together; the
            message names the file and what differs.
    """
    directory = _as_path(directory)
    if directory.is_file():
        raise CheckpointError(f"{directory}: is a file; give the folder that save_model wrote")
    directory = folder_of_weights(directory)
    kind, settings = _read_config(directory / CONFIG_FILE)
    tell_of_code(directory)
    _require_tensors(directory / MODEL_FILE)
    try:
        check_model_room(directory / CONFIG_FILE, kind, settings, stored_in(directory / MODEL_FILE))
        tensors = read_tensors(directory / MODEL_FILE)
        if kind == ENCODER_FORMAT:
            tensors = encoder_tensors(tensors)
        model = _build(kind, settings)
    except CheckpointError:
        raise
    except (HDXrayError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: describes no model this version can build ({error})"
        ) from error
    _load_strictly(model, tensors, source=str(directory / MODEL_FILE))
    return model


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder, by its own names, where transformers saved it with a head; else all, as they are."""
    if not any(name.startswith("encoder.") for name in tensors):
        return dict(tensors)
    named = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith("head.")}


def check_model_room(source: str | Path, kind: str, settings: dict, stored: Stored) -> None:
    """Refuse settings of a model that is far larger than the weights beside them.

    Args:
        source: where they stand, for the error.
        kind: the ``format`` of the folder.
        settings: the ``model``.
        stored: the weights.

    Raises:
        CheckpointError: names what is too large.
        ArgumentError, ArgumentTypeError, TypeError: they are of no model.
    """
    config = EncoderConfig(**settings) if kind == ENCODER_FORMAT else encoder_within(settings)
    widths = [("decoder_embed_dim", settings.get("decoder_embed_dim", 512))] if kind == MAE_FORMAT else []
    widths.append(("embed_dim", config.embed_dim))
    patches = config.grid_size[0] * config.grid_size[1]
    check_room(
        source,
        stored,
        lambda: _build(kind, settings),
        {"depth": config.depth, "decoder_depth": settings.get("decoder_depth", 0)},
        {f"{name} {width} with {patches} positions": patches * width for name, width in widths if type(width) is int},
    )


def _build(kind: str, settings: dict) -> MaskedAutoencoder | Encoder:
    if kind == ENCODER_FORMAT:
        return Encoder(EncoderConfig(**settings))
    return create_mae(**settings)


def load_mae_state_dict(model: MaskedAutoencoder, state_dict: Mapping[str, Tensor], source: str = "state_dict") -> None:
    """Load weights in the layout of facebookresearch/mae (``cls_token``, ``blocks.0.norm1.weight``, ``mask_token``...).

    Args:
        model: with ``decoder="self"``, whose parameters are those of MAE.
        state_dict: every parameter of the model, nothing else.
        source: file name for the error.

    Raises:
        CheckpointError: names, shapes or dtypes differ; the model is left as it was.
    """
    ours = {_from_mae_name(name): tensor for name, tensor in state_dict.items()}
    _load_strictly(model, ours, source)


def to_mae_state_dict(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Weights of the model in the layout of facebookresearch/mae; tensors are shared with the model."""
    return {name.partition(".")[2]: tensor for name, tensor in model.state_dict().items()}


def read_mae_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a legacy ``.pth`` of the MAE layout without running code from it.

    Tensors may lie under ``"model"`` (as facebookresearch/mae saves them) or at the top. The ``argparse.Namespace``
    that such files carry is allowed; any other Python object is refused.

    Raises:
        CheckpointError: the file is missing, damaged, contains code or other objects, or holds no tensors.
    """
    content = read_legacy(path)
    tensors = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors, neither at the top nor under 'model'")
    return dict(tensors)


def read_legacy(path: str | Path) -> object:
    """What ``torch.save`` wrote, without running code from it.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors, plain values and an
            ``argparse.Namespace``.
    """
    path = Path(path)
    try:
        check_regular(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it is damaged or holds more than tensors ({_refused(error)})"
        ) from error
    except Exception as error:  # what an unpickler stumbles over in foreign bytes can be any error
        reason = str(error) or ("it ends too early" if isinstance(error, EOFError) else type(error).__name__)
        raise CheckpointError(f"{path}: cannot be read as a PyTorch checkpoint ({reason})") from error


def _refused(error: pickle.UnpicklingError) -> str:
    """The reason in PyTorch's message: what stands between its advice to run the file's code and its links."""
    reason = str(error).split("WeightsUnpickler error:")[-1].split("Check the documentation")[0].strip()
    reason = " ".join(reason.split("\n\n")[-1].split()).split(" Please use")[0]
    return reason.replace("GLOBAL ", "").replace(" by default", "").rstrip(".")[:300]


def _from_mae_name(name: str) -> str:
    room = "decoder" if name == "mask_token" or name.startswith("decoder_") else "encoder"
    return f"{room}.{name}"


def _load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into the model, all or none."""
    expected = model.state_dict()
    differences = [f"missing {name}" for name in expected if name not in tensors]
    differences += [f"unexpected {name}" for name in tensors if name not in expected]
    for name, parameter in expected.items():
        tensor = tensors.get(name, parameter)
        if tensor.shape != parameter.shape:
            differences.append(f"{name} is {list(tensor.shape)}, the model has {list(parameter.shape)}")
        elif not tensor.is_floating_point():
            differences.append(f"{name} is {tensor.dtype}, accepted are floating-point tensors")
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(f"{source}: does not fit the model: {'; '.join(differences[:5])}{more}")
    model.load_state_dict(dict(tensors))


def _read_config(path: Path) -> tuple[str, dict]:
    """What kind of model a checkpoint holds, and its settings."""
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: is missing; a checkpoint is a folder with {MODEL_FILE} and {CONFIG_FILE}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged or no JSON ({error})") from error
    kinds = (MAE_FORMAT, ENCODER_FORMAT)
    if not isinstance(config, dict) or config.get("format") not in kinds or not isinstance(config.get("model"), dict):
        raise CheckpointError(f"{path}: is no config of this package (its 'format' should be one of {kinds})")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format_version {config.get('format_version')!r}, this version reads {FORMAT_VERSION}"
        )
    return config["format"], config["model"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, or the shards that lie in its place, as Hugging Face writes large models.

    Raises:
        CheckpointError: it is missing or damaged; the message names it.
    """
    _require_tensors(path)
    if not path.is_file():
        return read_shards(index_of(path))
    try:
        return load_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({reason_of(error)})") from error


def _require_tensors(path: Path) -> None:
    """That a safetensors file is there, or an index of shards."""
    if not are_there(path):
        raise CheckpointError(
            f"{path}: {what_else(path) or 'is missing'}; a checkpoint is a folder with {MODEL_FILE} and {CONFIG_FILE}"
        )


def read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]] = read_tensors) -> dict[str, Tensor]:
    """What the files that an index of shards names hold of it; ``read`` is given each.

    Raises:
        CheckpointError: the index or a file is damaged, or a tensor or a file is missing; the message names it.
    """
    places, tensors = shards_of(index), {}
    for name in sorted(set(places.values())):
        path = index.with_name(name)
        if not path.is_file():  # an index in its place, which may lead back to this one, is none
            raise CheckpointError(f"{path}: {what_else(path) or 'is missing'}")
        shard = read(path)
        tensors.update({key: tensor for key, tensor in shard.items() if places.get(key) == name})
    if missing := sorted(places.keys() - tensors.keys()):
        raise CheckpointError(f"{index}: {missing[0]} is not in {places[missing[0]]}, where it should be")
    return tensors
