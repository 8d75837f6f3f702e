"""A report model as one folder: encoder, decoder, tokenizer, each readable by its own library, and what joins them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..data.seen import SEEN_FILE
from ..devices import find_device
from ..errors import CheckpointError, ConfigError, NotAFileError
from ..files import checksum, flush, save_tensors, share, temporary_name
from ..models.encoder import Encoder
from ..regular_files import check_listed_file, load_tensors, read_json, reason_of, what_else
from ..weights.data_only import check_config, check_files, check_listed
from ..weights.hub_files import IMPORT_FILE
from ..weights.model_folders import MODEL_FILE, load_model, model_folder, save_model
from ..weights.stored_sizes import check_room, check_transformers_config, stored_in
from .model import ReportModel, language_model_decoder, visual_tokens_for
from .model_config import ReportModelConfig
from .own_split import REPORT_FILE, record_of_model
from .text_models import import_text_models, quietly
from .text_tokenizers import check_fits, load_tokenizer
from .validated import Validated
from .visual_tokens import VisualTokens

VISUAL_FILE = "visual.safetensors"
# What a hub puts beside a model; and what is written beside an encoder's weights for transformers to run if allowed to.
# Nothing here does: an encoder is built from its config and safetensors, and no other library is shown its folder.
BESIDE = (".gitattributes", ".gitignore", "LICENSE", f"encoder/{IMPORT_FILE}")
OWN = (REPORT_FILE, VISUAL_FILE, SEEN_FILE, "encoder", "decoder", "tokenizer")
FORMAT, FORMAT_VERSION = "hdxray_fast.report", 1


def save_report_model(model: ReportModel, directory: str | Path) -> Path:
    """Write ``report.json``, ``visual.safetensors`` and the folders ``encoder``, ``decoder`` and ``tokenizer``; and
    ``seen.safetensors``, hashes of whom it was trained on.

    All is written beside ``directory`` and takes its place when it is whole; other files there stay. Of a language
    model the LoRA matrices alone are kept, or nothing if it is frozen: it is loaded from where it came.

    Raises:
        CheckpointError: the folder cannot be written, or holds something else than a report model.
    """
    directory = Path(directory)
    temporary = temporary_name(directory)
    settings = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": asdict(model.config),
        "tokens": len(model.tokenizer),
        "language_model": model.language_model_print,
        "splits": model.seen.origin if model.seen else {},
        "validated": model.validated.record() if model.validated else {},
    }
    try:
        if directory.exists() and not (directory / REPORT_FILE).is_file() and any(directory.iterdir()):
            raise CheckpointError(f"{directory}: holds something else than a report model; choose another folder")
        temporary.mkdir(parents=True)
        save_model(model.encoder, temporary / "encoder")
        visual = {name: tensor.detach().contiguous().cpu() for name, tensor in model.visual.state_dict().items()}
        save_tensors(visual, temporary / VISUAL_FILE)
        if model.config.decoder != "language-model" or model.config.lora_rank:
            with quietly():
                model.decoder.model.save_pretrained(temporary / "decoder")
            for path in (temporary / "decoder").glob("*.safetensors"):
                share(path)
        model.tokenizer.save(temporary / "tokenizer")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        settings["parts"] = {path.relative_to(temporary).as_posix(): checksum(path) for path in files}
        if model.seen is not None:  # no part: it may be removed before a model is given away
            model.seen.save(temporary / SEEN_FILE)
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (temporary / REPORT_FILE).write_text(text, encoding="utf-8")
        for path in temporary.rglob("*"):
            flush(path)
        old = temporary_name(directory)
        if directory.exists():
            directory.replace(old)  # half a folder would be neither a model nor empty
        temporary.replace(directory)
        _keep_foreign(old, directory)
        flush(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{directory}: cannot be written ({error})") from error
    return directory


def _keep_foreign(old: Path, new: Path) -> None:
    """Take along what somebody put beside a model that is replaced; its own parts go."""
    for path in sorted(old.glob("*")):
        if path.name not in OWN and not (new / path.name).exists():
            path.replace(new / path.name)


def load_report_model(directory: str | Path, device: str | torch.device | None = None) -> ReportModel:
    """The model that :func:`save_report_model` wrote, in evaluation mode.

    Args:
        directory: the folder, or that of the training run it lies in.
        device: where it goes; left out, a GPU if there is one.

    Raises:
        CheckpointError: a part is missing, damaged, or does not belong to the others: a tokenizer of another model,
            another language model than it was trained with.
        MissingDependencyError: transformers, or for LoRA peft, is not installed.
    """
    directory = model_folder(directory, REPORT_FILE)
    settings = _read_settings(directory / REPORT_FILE)
    _check_parts(directory, settings.get("parts", {}))
    import_text_models()
    encoder = load_model(directory / "encoder")
    if not isinstance(encoder, Encoder):
        raise CheckpointError(f"{directory / 'encoder'}: holds an auto-encoder, a report model's encoder is needed")
    tokenizer = load_tokenizer(directory / "tokenizer")
    if len(tokenizer) != settings["tokens"]:
        raise CheckpointError(
            f"{directory / 'tokenizer'}: has {len(tokenizer)} tokens, the model was made for {settings['tokens']}; it "
            "is another model's tokenizer"
        )
    try:
        config = ReportModelConfig(**settings["model"])
        decoder = _load_decoder(directory / "decoder", config, tokenizer, settings["language_model"])
        _check_visual_room(directory, encoder, decoder.width, config)
        visual = visual_tokens_for(encoder, decoder, config)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{directory / REPORT_FILE}: describes no model of this package ({error})") from error
    _load_visual(visual, directory / VISUAL_FILE)
    model = ReportModel(encoder, visual, decoder, tokenizer, config)
    model.language_model_print = settings["language_model"]
    model.seen = record_of_model(directory)
    model.validated = Validated.of(settings.get("validated"))
    return model.to(find_device(device)).eval()


def validation_of(directory: str | Path) -> Validated | None:
    """What the validation of the report model in a folder found; ``None`` where the folder does not tell.

    Raises:
        CheckpointError: it holds no report model.
    """
    return Validated.of(_read_settings(Path(directory) / REPORT_FILE).get("validated"))


def _check_parts(directory: Path, parts: dict[str, str]) -> None:
    """Refuse a model that lacks a part or has another model's, before a library looks for it elsewhere."""
    advice = "copy the whole folder that report train wrote"
    check_listed(directory, parts, (REPORT_FILE, SEEN_FILE, *BESIDE))
    if not (directory / "tokenizer").is_dir():
        raise CheckpointError(f"{directory / 'tokenizer'}: is missing; {advice}")
    for name, digest in parts.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path}: {what_else(path) or 'is missing'}; {advice}")
        try:
            check_listed_file(path)
        except NotAFileError as error:
            raise CheckpointError(f"{path}: {error.strerror}; {advice}") from error
        if checksum(path) != digest:
            raise CheckpointError(f"{path}: is damaged, or another model's; {advice}")


def _read_settings(path: Path) -> dict:
    try:
        settings = read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; a report model is the folder that report train wrote") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or cannot be read ({reason_of(error)})") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise CheckpointError(f"{path}: describes no report model of this package")
    if settings.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format_version {settings.get('format_version')!r}, this version reads {FORMAT_VERSION}"
        )
    if not {"model", "tokens", "language_model"} <= set(settings):
        raise CheckpointError(f"{path}: lacks settings")
    parts = settings.get("parts", {})
    if not isinstance(settings["model"], dict) or not isinstance(parts, dict):
        raise CheckpointError(f"{path}: is damaged, its model or its parts are no object")
    return settings


def _load_decoder(folder: Path, config: ReportModelConfig, tokenizer, printed: str) -> nn.Module:
    if config.decoder == "language-model":
        from .language_model import language_model_fingerprint, load_language_model, load_lora

        base = load_language_model(config.language_model)
        if language_model_fingerprint(base) != printed:
            raise CheckpointError(
                f"language_model: {config.language_model} is another one than the report model was trained with"
            )
        decoder, _ = language_model_decoder(base, tokenizer, config, lora=False)
        if config.lora_rank:
            decoder.model = load_lora(base, folder, config.lora_rank, config.lora_alpha)
            decoder.lora_rank = config.lora_rank
        return decoder
    from .seq2seq import Seq2SeqDecoder

    if config.decoder == "relational":
        from .relational import RelationalReportModel as Kind
    else:
        from transformers import PegasusForConditionalGeneration as Kind
    check_files(folder)
    check_config(folder)
    stored = stored_in(folder / MODEL_FILE)
    check_transformers_config(folder, stored)
    try:
        settings = Kind.config_class.from_dict(read_json(folder / "config.json"))
        check_room(folder / "config.json", stored, lambda: Kind(settings), {})
        with quietly():
            model, found = Kind.from_pretrained(
                str(folder),
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # a folder that lacks a file or holds a damaged one raises whatever its reader raises
        raise CheckpointError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            first = sorted(found[what])[0]
            raise CheckpointError(f"{folder}: does not fit its config ({what.replace('_', ' ')}: {first})")
    decoder = Seq2SeqDecoder(model, config.max_length)
    try:
        check_fits(tokenizer, decoder.rows)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return decoder


def _check_visual_room(directory: Path, encoder: Encoder, width: int, config: ReportModelConfig) -> None:
    """Refuse settings of the visual tokens that are far larger than their weights."""
    dim, count = encoder.num_features, config.visual_tokens
    check_room(
        directory / REPORT_FILE,
        stored_in(directory / VISUAL_FILE),
        lambda: VisualTokens(dim, width, count, config.pool, config.max_views, encoder.config.num_heads),
        {},
    )


def _load_visual(visual: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError

    try:
        visual.load_state_dict(load_tensors(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is missing or damaged ({' '.join(str(error).split())[:300]})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit {REPORT_FILE} ({reason[:300]})") from error
