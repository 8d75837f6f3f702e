"""The encoder as a transformers model: ``AutoModel.from_pretrained(folder)`` after ``import hdxray_fast``.

Weights and config are the files of :func:`hdxray_fast.save_model`, so each side reads what the other wrote.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..models.encoder import Encoder
from ..weights.hub_files import write_model_card
from .hf_config import HDXrayConfig

__all__ = ["HDXrayConfig", "HDXrayImageProcessor", "HDXrayModel", "register"]  # noqa: F822 (one comes by __getattr__)

_PREFIX = "encoder."  # of this model's parameters, which the files leave out


class HDXrayModel(PreTrainedModel):
    """:class:`hdxray_fast.models.encoder.Encoder` (the attribute ``encoder``) with the interface of transformers.

    It takes what :class:`HDXrayImageProcessor` gives, or integer images ``[B, C, H, W]`` as they are.
    """

    config_class = HDXrayConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers asks for a list)
    _supports_sdpa = True

    def __init__(self, config: HDXrayConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.gradient_checkpointing = False
        self.register_load_state_dict_pre_hook(_add_prefix)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the encoder initialised itself, and weights that lack something are refused."""

    def forward(
        self,
        pixel_values: Tensor | None = None,  # [B, C, H, W] uint8, uint16 or float
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Tokens and a feature of each image.

        Args:
            pixel_values: images; float images are taken as they are, integer ones are normalised as the config says.
            inside: patches of the chest, for ``keep="contour"``.
            valid: patches that are no padding, for ``keep="valid"`` and ``"contour"``.
            output_attentions: not possible: attention weights are never formed.
            output_hidden_states: give the embedded patches and the output of each block too, not normalised.
            interpolate_pos_encoding: not possible in passing; see :meth:`set_input_size`.
            return_dict: ``False`` gives a tuple.

        Returns:
            ``last_hidden_state [B, num_prefix_tokens + P, D]``, normalised, zero for patches that are not kept;
            ``pooler_output [B, D]``, pooled as the config's ``pool`` says, without one from the class token, or in a
            model without it the mean of the kept patches; ``hidden_states``, ``depth + 1`` tensors.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
        """
        self._check(pixel_values, output_attentions, interpolate_pos_encoding)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        last, pooled, hidden = self.encoder.forward_hidden(
            pixel_values, inside=inside, valid=valid, all_depths=output_hidden_states
        )
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )
        return outputs if return_dict else outputs.to_tuple()

    def _check(self, pixel_values: object, output_attentions: object, interpolate_pos_encoding: object) -> None:
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

    @classmethod
    def from_encoder(cls, encoder: Encoder) -> HDXrayModel:
        """A model around ``encoder``, which it shares."""
        if not isinstance(encoder, Encoder):
            raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder")
        config = HDXrayConfig()
        config.take(encoder.config)
        with torch.device("meta"):
            model = cls(config)
        model.encoder = encoder
        return model.train(encoder.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As transformers has it, but weights that lack something, or that are damaged, are refused.

        Raises:
            CheckpointError: the weights do not fit; nothing is returned then.
        """
        told = kwargs.get("ignore_mismatched_sizes", False)
        want_info = kwargs.pop("output_loading_info", False)
        source = pretrained_model_name_or_path
        try:
            model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        except Exception as error:
            if type(error).__name__ == "SafetensorError" or "size mismatch" in str(error) or "mismatched" in str(error):
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"{source}: its weights are damaged or do not fit its config ({reason}); for another image size "
                    "load it as it is and call set_input_size"
                ) from error
            raise
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise CheckpointError(f"{source}: its weights lack {', '.join(missing[:5])}{more}; nothing was loaded")
        if unexpected := sorted(info["unexpected_keys"]):
            more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
            raise CheckpointError(
                f"{source}: its weights hold {', '.join(unexpected[:5])}{more}, which its config.json does not "
                "tell of; nothing was loaded"
            )
        if told and info["mismatched_keys"]:
            _initialise(model, info["mismatched_keys"])
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args, state_dict: dict | None = None, **kwargs):
        """As transformers has it, with a model card and the image processor's settings beside the weights.

        A ``README.md`` that is there stays.
        """
        from .hf_images import HDXrayImageProcessor

        config = self.config.encoder_config()
        if kwargs.get("is_main_process", not args or args[0]) and not Path(save_directory).is_file():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            HDXrayImageProcessor.from_config(config).save_pretrained(save_directory)
            write_model_card(Path(save_directory), config)
        if not getattr(self, "_hf_peft_config_loaded", False):
            tensors = self.state_dict() if state_dict is None else state_dict
            state_dict = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        """What ``push_to_hub`` ends with: the card must not be transformers' empty one."""
        write_model_card(Path(working_dir), self.config.encoder_config())
        return super()._upload_modified_files(working_dir, *args, **kwargs)

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


def _add_prefix(module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Let ``load_state_dict`` read the names of the files as well."""
    for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(prefix + _PREFIX)]:
        state_dict[prefix + _PREFIX + name[len(prefix) :]] = state_dict.pop(name)


def _initialise(model: HDXrayModel, mismatched: list) -> None:
    """Give parameters that could not be loaded the values of a new encoder."""
    fresh = Encoder(model.config.encoder_config()).state_dict()
    parameters = model.encoder.state_dict()
    for key in mismatched:  # names, or (name, shape, shape)
        name = (key if isinstance(key, str) else key[0]).removeprefix(_PREFIX)
        parameters[name].copy_(fresh[name])


def register() -> None:
    """Make the model known to ``AutoModel``."""
    from transformers import AutoModel

    AutoModel.register(HDXrayConfig, HDXrayModel, exist_ok=True)


def __getattr__(name: str):
    if name == "HDXrayImageProcessor":  # the model alone does without Pillow and torchvision
        from .hf_images import HDXrayImageProcessor

        return HDXrayImageProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
