"""Encoders from published weights, with a strict account of what became of every tensor.

Read are: what this package saved (an encoder, or an auto-encoder's encoder); plain ViTs under the names that
facebookresearch/mae, timm and DINOv2 share; HD X-ray's stem64; transformers' ViT, ViTMAE, Dinov2 and
Dinov2WithRegisters. Prefixes such as ``module.``, ``student.`` or ``backbone.`` do not matter. No file's code is run.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..models.encoder import Encoder
from ..models.encoder_config import DEFAULTS, EncoderConfig, LeftOut, check_options, preset
from .adapt import fit_channels, fit_positions, split_positions
from .hub_files import IMPORT_FILE, PREPROCESSOR_FILE, write_card
from .layouts import Renamed, contradictions, infer, rename
from .model_folders import CONFIG_FILE, ENCODER_FORMAT, MAE_FORMAT, save_model
from .report import LoadReport, shortened
from .shipped import PRETRAINED, pretrained_card, read_pretrained
from .source_files import HUBS, TENSOR_FILES, Source, folder_with_weights, read_json, read_source

__all__ = ["LoadReport", "convert", "load_encoder"]

_STEM64_PIXELS = (0.5, 0.5)  # mean and deviation in HD X-ray's published training code


def load_encoder(
    weights: str | os.PathLike,
    name: str | None = None,
    img_size: int | tuple[int, int] | None = LeftOut(DEFAULTS["img_size"]),
    in_chans: int | None = LeftOut(DEFAULTS["in_chans"]),
    strict: bool = True,
    **overrides: Any,
) -> Encoder:
    """Build an encoder and load ``weights`` into it, or raise and load nothing; see :func:`hdxray_fast.create_encoder`.

    Args:
        weights, name, img_size, in_chans, strict, overrides: as for :func:`hdxray_fast.create_encoder`.

    Returns:
        The encoder in float32 on the CPU and in training mode, with its ``load_report``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is unknown, does not fit the weights, or is needed and missing.
        CheckpointError: the weights cannot be read, are unsafe, of another architecture, or lack or have too much.
        MissingDependencyError: an optional package is needed to read them.
    """
    if not isinstance(strict, bool):
        raise ArgumentTypeError(f"strict: got {strict!r}, accepted are True and False")
    check_options(overrides)
    chosen = {**(preset(name, overrides) if name is not None else {}), **overrides}
    source = read_pretrained(name) if weights == PRETRAINED else read_source(weights)
    found = rename(source)
    settings, assumed = infer(source, found)
    if "depth" in overrides or weights == PRETRAINED:
        _leave_out_blocks(chosen.get("depth", settings["depth"]), found)
    _check_tensors(source, found, settings["embed_dim"])
    report = LoadReport(
        source=source.label,
        layout=found.layout,
        left_out=found.left_out,
        unexpected=found.unexpected,
        converted=found.converted,
        assumed=[line for option, line in assumed.items() if option not in chosen],
    )
    report.missing += contradictions(source, settings)
    for option, value in (("img_size", img_size), ("in_chans", in_chans)):
        if isinstance(value, LeftOut):
            value = None if source.own else int(value)
        if value is not None:
            chosen[option] = value
    config = _fit(source, settings, chosen, found.tensors, report)
    encoder = Encoder(config)
    _fill(encoder, found.tensors, report, strict)
    encoder.load_report = report
    return encoder


def convert(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    strict: bool = True,
    **overrides: Any,
) -> LoadReport:
    """Write weights from elsewhere as ``model.safetensors`` and ``config.json`` of this package.

    Args:
        source: weights, as for :func:`hdxray_fast.create_encoder`.
        folder: created if missing; an encoder that this package wrote there before is replaced. A ``README.md`` that
            somebody wrote or changed stays.
        img_size, in_chans: left out, those of the weights.
        strict, overrides: as for :func:`hdxray_fast.create_encoder`.

    Raises:
        ArgumentError: ``folder`` holds ``source``, somebody else's files of these names, or more than an encoder: an
            auto-encoder, a classifier, a part of a report model.
        CheckpointError: as for :func:`load_encoder`, or the folder cannot be written.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentTypeError(f"folder: got {type(folder).__name__}, accepted is a path")
    _check_free(Path(folder), source)
    encoder = load_encoder(source, None, img_size, in_chans, strict, **overrides)
    save_model(encoder, folder)
    if source == PRETRAINED:  # whoever has the weights has the card that says whose radiographs they know
        height, width = encoder.img_size
        here = f"The first {encoder.config.depth} blocks, for images of {height} x {width} pixels."
        card = pretrained_card().read_text(encoding="utf-8")
        try:
            write_card(Path(folder), f"{card}\n## In this folder\n\n{here}\n")
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error})") from error
    return encoder.load_report


# --- parts ------------------------------------------------------------------------------------------------------------
def _check_tensors(source: Source, found: Renamed, dim: int) -> None:
    """Tokens, positions and the first layer are what they seem; what has lower precision becomes float32."""
    halves: dict[torch.dtype, int] = {}
    for name, tensor in found.tensors.items():
        token = name in ("pos_embed", "cls_token", "reg_token")
        if token and (tensor.dim() != 3 or tensor.shape[0] != 1 or tensor.shape[2] != dim):
            raise CheckpointError(f"{source.label}: {name} is {list(tensor.shape)}, accepted is [1, rows, {dim}]")
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "without values" if tensor.is_meta else str(tensor.layout)
            raise CheckpointError(f"{source.label}: {name} is {kind}, accepted are dense tensors")
        if not tensor.is_floating_point():
            if token or name.startswith("patch_embed."):
                raise CheckpointError(f"{source.label}: {name} is {tensor.dtype}, accepted are floating-point tensors")
            continue
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source.label}: {name} holds values that are not finite; its training diverged")
        if tensor.dtype != torch.float32:
            halves[tensor.dtype] = halves.get(tensor.dtype, 0) + 1
        found.tensors[name] = tensor.detach().float()
    found.converted += [f"{count} tensors: {dtype} to torch.float32" for dtype, count in halves.items()]


def _fit(
    source: Source, settings: dict[str, Any], chosen: dict[str, Any], tensors: dict[str, Tensor], report: LoadReport
) -> EncoderConfig:
    """Settings of the encoder, and in ``tensors`` a position table and a first layer that fit it."""
    size, patch = settings.pop("img_size", None), settings["patch_size"]
    told = (size[0] // patch, size[1] // patch) if size else None
    wanted = {**settings, **chosen}
    if wanted["num_heads"] is None:
        raise ArgumentError(
            f"num_heads: cannot be told from {source.label} of width {settings['embed_dim']}; give num_heads"
        )
    grid = EncoderConfig(**wanted).grid_size if "img_size" in wanted else None  # names what is wrong with a setting
    rows, sincos = _read_positions(source, settings, tensors, told, grid)
    if rows and rows[0] < settings["class_token"] and not told:
        report.assumed.append(f"pos_embed: {rows[1][0]} x {rows[1][1]} patches, without a row for the class token")
    if rows and not (told or sincos):
        height, width = rows[1]
        side = math.isqrt(height * width)
        if height != width and side * side == height * width:
            report.assumed.append(
                f"pos_embed: {height} x {width} patches, as img_size has them; {side} x {side} are as many: if the "
                "weights were trained at that, load them at it first"
            )
    old_grid = rows[1] if rows else told
    if grid is None and old_grid is None:
        raise CheckpointError(f"{source.label}: has no position table; give img_size")
    wanted.setdefault("img_size", (old_grid[0] * patch, old_grid[1] * patch) if old_grid else None)
    wanted.setdefault("learned_positions", not sincos)
    if not sincos and not wanted["learned_positions"]:
        raise ArgumentError(f"learned_positions: got False, but the positions of {source.label} are learned")
    pixels = _fit_first_layer(source, settings, wanted["in_chans"], tensors, report)
    if not source.own and "normalisation" not in wanted:
        if pixels:
            wanted["normalisation"] = pixels
        else:
            report.assumed.append("normalisation 'per_image', which the weights do not tell")
    config = EncoderConfig(**wanted)
    if rows:
        resized, converted = fit_positions(tensors, settings["class_token"], *rows, config.grid_size, sincos)
        report.resized += resized
        report.converted += converted
    return config


def _leave_out_blocks(depth: Any, found: Renamed) -> None:
    """Of weights with more blocks the first ``depth`` are wanted; what is no number is refused by its option's name."""
    numbers = {name: int(name.split(".")[1]) for name in found.tensors if name.startswith("blocks.")}
    if isinstance(depth, int):
        for name in sorted((name for name in numbers if numbers[name] >= depth), key=numbers.__getitem__):
            del found.tensors[name]
            found.left_out.append(name)


def _read_positions(
    source: Source,
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    told: tuple[int, int] | None,
    wanted: tuple[int, int] | None,
) -> tuple[tuple[int, tuple[int, int]] | None, bool]:
    """Rows before those of the patches and the grid of the patches, if there is a table; whether it is sine-cosine."""
    class_token = int(settings["class_token"])
    if source.own:
        return (class_token, told), not settings["learned_positions"]
    if "pos_embed" not in tensors:
        return None, False
    # plain; without a row for the class token (timm's no_embed_class); with rows for registers too
    prefixes = dict.fromkeys((class_token, 0, class_token + settings["reg_tokens"]))
    *rows, sincos = split_positions(tensors["pos_embed"], tuple(prefixes), (told, wanted), source.label)
    return tuple(rows), sincos


def _fit_first_layer(
    source: Source, settings: dict[str, Any], in_chans: int, tensors: dict[str, Tensor], report: LoadReport
) -> tuple[float, float] | None:
    """Make it take ``in_chans`` channels; mean and deviation of the pixels it expects, if known."""
    mean, std, layer = source.mean, source.std, "patch_embed.proj"
    if settings["stem"] == "stem64":
        layer = "patch_embed.conv1"
        if mean is None and not source.own:
            mean, std = ((value,) for value in _STEM64_PIXELS)
            report.assumed.append("normalisation (0.5, 0.5), as in HD X-ray's published code")
    pixels, lines = fit_channels(tensors, layer, in_chans, mean, std)
    report.converted += lines
    return pixels


def _fill(encoder: Encoder, tensors: dict[str, Tensor], report: LoadReport, strict: bool) -> None:
    """Copy ``tensors`` into the encoder, all that fit or none."""
    expected = encoder.state_dict()
    for name in expected:
        if name in tensors:
            report.loaded.append(name)
        elif name.startswith("attn_pool."):
            report.new.append(name)
        else:
            report.missing.append(name)
    for name in tensors:
        if name not in expected:
            (report.left_out if name.startswith("attn_pool.") else report.unexpected).append(name)
    wrong = [
        f"{name} is {list(tensors[name].shape)}, the encoder has {list(expected[name].shape)}"
        for name in report.loaded
        if tensors[name].shape != expected[name].shape
    ]
    wrong += [f"{name} is {tensors[name].dtype}" for name in report.loaded if not tensors[name].is_floating_point()]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{report.source}: does not fit the encoder: {'; '.join(wrong[:3])}{more}")
    if strict and not report.complete:
        found = {"missing": report.missing, "unexpected": report.unexpected}
        reasons = "; ".join(f"{kind} {shortened(names)}" for kind, names in found.items() if names)
        raise CheckpointError(f"{report.source}: was not loaded: {reasons} (strict=False loads the rest)")
    encoder.load_state_dict({name: tensors[name] for name in report.loaded}, strict=False)


def _check_free(folder: Path, source: str | os.PathLike) -> None:
    """Raise an error if writing a model there would overwrite the source, or anything but an encoder of this package:
    somebody else's file, or a model that holds more."""
    if not (isinstance(source, str) and (source == PRETRAINED or source.startswith(HUBS))):
        read = folder_with_weights(Path(source)) if Path(source).is_dir() else Path(source)
        if folder.exists() and folder.resolve() in (read.resolve(), read.resolve().parent):
            raise ArgumentError(f"folder: {folder} holds the source itself; give another folder")
    written = (CONFIG_FILE, PREPROCESSOR_FILE, IMPORT_FILE, *TENSOR_FILES)
    found = next((name for name in written if os.path.lexists(folder / name)), None)
    if found is None:
        return
    config = read_json(folder / CONFIG_FILE)
    if config.get("format") == MAE_FORMAT:
        held = "an auto-encoder, whose decoder would be lost"
    elif config.get("format") != ENCODER_FORMAT:
        held = f"{found}, which is of no encoder of this package"
    elif "classifier" in config or (folder / "classifier.json").exists():
        held = "a classifier, whose head would be left without its encoder"
    elif (folder.parent / "report.json").exists():
        held = "the encoder of a report model"
    else:
        return
    raise ArgumentError(f"folder: {folder} holds {held}; give another folder")
