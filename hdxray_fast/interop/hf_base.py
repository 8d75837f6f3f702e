"""What this package's transformers models share: they hold an encoder, check their inputs, and load all or nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..models.encoder import Encoder
from ..regular_files import read_json, reason_of, what_else
from ..weights.hub_files import write_import_file, write_model_card
from ..weights.model_folders import CONFIG_FILE, MODEL_FILE
from ..weights.stored_sizes import Stored, are_there, check_room, index_of, stored_in
from .hf_config import HDXrayConfig

PREFIX = "encoder."  # of the encoder's parameters in these models
logger = logging.get_logger(f"transformers.{__name__}")  # as loud as transformers is told to be


class HDXrayPreTrainedModel(PreTrainedModel):
    """A transformers model around :class:`hdxray_fast.models.encoder.Encoder`, its attribute ``encoder``."""

    config_class = HDXrayConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers asks for a list)
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^decoder\."]  # noqa: RUF012 (of classifiers, auto-encoders)

    def __init__(self, config: HDXrayConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.gradient_checkpointing = False

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the encoder initialised itself, and weights that lack something are refused."""

    def check_inputs(self, pixel_values: object, output_attentions: object, interpolate_pos_encoding: object) -> None:
        """Refuse what this model cannot do, by its name in transformers."""
        if output_attentions or (output_attentions is None and getattr(self.config, "output_attentions", False)):
            raise ArgumentError(
                "output_attentions: got True, accepted is False: attention weights are never formed here"
            )
        if interpolate_pos_encoding:
            raise ArgumentError(
                "interpolate_pos_encoding: got True, accepted is False; call set_input_size once for another size"
            )
        try:
            self.encoder.check_images(pixel_values)
        except (ArgumentError, ArgumentTypeError) as error:
            raise type(error)(f"pixel_values: {str(error).removeprefix('images: ')}") from None

    def wants(self, option: str, given: bool | None) -> bool:
        """An argument of ``forward`` that the config answers for where it is left out."""
        return bool(getattr(self.config, option) if given is None else given)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As transformers has it, but weights that lack something, or that are damaged, are refused.

        The folder of an auto-encoder gives its encoder.

        Raises:
            CheckpointError: the weights do not fit; nothing is returned then.
        """
        return cls._load(pretrained_model_name_or_path, pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _load(cls, source, path, *args, **kwargs):
        """``from_pretrained(path, ...)`` of transformers, held to what the files of ``source`` should hold."""
        told = kwargs.get("ignore_mismatched_sizes", False)
        want_info = kwargs.pop("output_loading_info", False)
        if path is not None and Path(path).is_dir():
            cls._check_folder(Path(path) / (kwargs.get("subfolder") or ""), kwargs)
        try:
            model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except Exception as error:
            if type(error).__name__ == "SafetensorError" or "size mismatch" in str(error) or "mismatched" in str(error):
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"{source}: its weights are damaged or do not fit its config ({reason}); for another image size "
                    "load it as it is and call set_input_size; for other classes pass ignore_mismatched_sizes=True"
                ) from error
            raise
        fresh = {name for name in info["missing_keys"] if model.may_be_new(name)}
        if missing := sorted(set(info["missing_keys"]) - fresh):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise CheckpointError(f"{source}: its weights lack {', '.join(missing[:5])}{more}; nothing was loaded")
        beside = re.compile("|".join(cls._keys_to_ignore_on_load_unexpected))
        if unexpected := sorted(name for name in info["unexpected_keys"] if not beside.match(name)):
            more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
            raise CheckpointError(
                f"{source}: its weights hold {', '.join(unexpected[:5])}{more}, which its config.json does not "
                "tell of; nothing was loaded"
            )
        if told:  # names, or (name, shape, shape)
            fresh.update(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
        if fresh:
            model.initialise(fresh)
        if model.config.holds_decoder:
            logger.warning(f"{source}: is an auto-encoder; its encoder was loaded, its decoder was left")
            model.config.holds_decoder = False
        return (model, info) if want_info else model

    @classmethod
    def _check_folder(cls, folder: Path, kwargs: dict) -> None:
        """Refuse what is no file where one is opened, and a config that asks for far more than the weights hold."""
        for name in (CONFIG_FILE, MODEL_FILE, index_of(folder / MODEL_FILE).name):
            if reason := what_else(folder / name):
                raise CheckpointError(f"{folder / name}: {reason}")
        config = kwargs.get("config")
        if not are_there(folder / MODEL_FILE):
            return  # older weights, or none: transformers says so
        if not isinstance(config, HDXrayConfig):
            try:
                config = HDXrayConfig.from_dict(read_json(folder / CONFIG_FILE))
            except FileNotFoundError:
                return
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{folder / CONFIG_FILE}: is damaged ({reason_of(error)})") from error
        cls._check_room(folder / CONFIG_FILE, stored_in(folder / MODEL_FILE), config)

    @classmethod
    def _check_room(cls, source: Path, stored: Stored, config: HDXrayConfig) -> None:
        """Refuse a config, which stands in ``source``, that asks for far more than the weights hold."""
        grid = config.encoder_config().grid_size
        check_room(
            source,
            stored,
            lambda: cls(config),
            {"depth": config.depth},
            {"embed_dim and img_size": grid[0] * grid[1] * config.embed_dim},
        )

    def may_be_new(self, name: str) -> bool:
        """Whether a parameter that the weights lack may begin anew."""
        return False

    @torch.no_grad()
    def initialise(self, names: set[str]) -> None:
        """Give the named parameters, which could not be loaded, the values of a new model."""
        fresh, own = type(self)(self.config).state_dict(), self.state_dict()
        for name in names:
            own[name].copy_(fresh[name])

    def save_pretrained(self, save_directory: str | os.PathLike, *args, state_dict: dict | None = None, **kwargs):
        """As transformers has it, with a model card and the image processor's settings beside the weights.

        A ``README.md`` that somebody wrote or changed stays.
        """
        if kwargs.get("is_main_process", not args or args[0]) and not Path(save_directory).is_file():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self._write_beside(Path(save_directory))
        if not getattr(self, "_hf_peft_config_loaded", False):
            state_dict = self._names_to_save(self.state_dict() if state_dict is None else state_dict)
        return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)

    def _write_beside(self, folder: Path, classes: Sequence[str] = ()) -> None:
        from .hf_images import HDXrayImageProcessor

        config = self.config.encoder_config()
        HDXrayImageProcessor.from_config(config).save_pretrained(folder)
        write_import_file(folder)
        write_model_card(folder, config, classes)

    def _names_to_save(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """An encoder's files leave the prefix out, so that this package reads them too."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        """What ``push_to_hub`` ends with: the card must not be transformers' empty one."""
        self._write_beside(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: object = "AutoModel") -> None:
        """Nothing: what is saved names its classes already, and no code of this package is copied into folders."""

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; positions are made anew, or resampled if they are learned."""
        self.encoder.set_input_size(img_size)
        self.config.take(self.encoder.config)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The patch embedding."""
        return self.encoder.patch_embed

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.gradient_checkpointing = enable
        self.encoder.set_grad_checkpointing(enable)


def add_prefix(module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Let ``load_state_dict`` of a model that is an encoder alone read the names of the files as well."""
    for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(prefix + PREFIX)]:
        state_dict[prefix + PREFIX + name[len(prefix) :]] = state_dict.pop(name)
