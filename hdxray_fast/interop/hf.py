"""This package's models for transformers' Auto classes: ``AutoModel.from_pretrained(folder)`` and the like.

After ``import hdxray_fast`` they read the folders of :func:`hdxray_fast.save_model` and of fine-tuned classifiers, and
each side reads what the other wrote.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import ArgumentTypeError
from ..models.encoder import Encoder
from .hf_backbone import HDXrayBackbone
from .hf_base import HDXrayPreTrainedModel, add_prefix
from .hf_classifier import HDXrayForImageClassification
from .hf_config import HDXrayConfig

__all__ = [
    "HDXrayBackbone",
    "HDXrayConfig",
    "HDXrayForImageClassification",
    "HDXrayImageProcessor",  # noqa: F822 (it comes by __getattr__)
    "HDXrayModel",
    "register",
]


class HDXrayModel(HDXrayPreTrainedModel):
    """:class:`hdxray_fast.models.encoder.Encoder` (the attribute ``encoder``) with the interface of transformers.

    It takes what :class:`HDXrayImageProcessor` gives, or integer images ``[B, C, H, W]`` as they are.
    """

    def __init__(self, config: HDXrayConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.post_init()

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
        self.check_inputs(pixel_values, output_attentions, interpolate_pos_encoding)
        output_hidden_states = self.wants("output_hidden_states", output_hidden_states)
        last, pooled, hidden = self.encoder.forward_hidden(
            pixel_values, inside=inside, valid=valid, all_depths=output_hidden_states
        )
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=pooled,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )
        return outputs if self.wants("return_dict", return_dict) else outputs.to_tuple()

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


def register() -> None:
    """Make the models known to transformers' Auto classes."""
    from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification

    AutoModel.register(HDXrayConfig, HDXrayModel, exist_ok=True)
    AutoBackbone.register(HDXrayConfig, HDXrayBackbone, exist_ok=True)
    AutoModelForImageClassification.register(HDXrayConfig, HDXrayForImageClassification, exist_ok=True)


def __getattr__(name: str):
    if name == "HDXrayImageProcessor":  # the model alone does without Pillow and torchvision
        from .hf_images import HDXrayImageProcessor

        return HDXrayImageProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
