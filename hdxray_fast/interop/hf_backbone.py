"""The encoder as a backbone of transformers: a feature map per stage, for detectors and segmenters."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BackboneOutput

from .hf_base import HDXrayPreTrainedModel, add_prefix
from .hf_config import HDXrayConfig


class HDXrayBackbone(HDXrayPreTrainedModel):
    """``AutoBackbone``'s model: the stages that the config's ``out_features`` or ``out_indices`` name, as of DINOv2.

    Stage 0 is the stem (the embedded patches), stage ``i`` the output of block ``i``.

    Attributes:
        stage_names: names of all stages.
        num_features: width of each stage.
    """

    def __init__(self, config: HDXrayConfig) -> None:
        super().__init__(config)
        self.stage_names = config.stage_names
        self.num_features = [config.embed_dim] * len(self.stage_names)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.post_init()

    @property
    def out_features(self) -> list[str]:
        """Names of the stages whose maps are given; can be set."""
        return self.config.out_features

    @out_features.setter
    def out_features(self, names: list[str]) -> None:
        self.config.out_features = names

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages whose maps are given; can be set."""
        return self.config.out_indices

    @out_indices.setter
    def out_indices(self, indices: list[int]) -> None:
        self.config.out_indices = indices

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of each stage."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of each map that is given."""
        return [self.out_feature_channels[name] for name in self.out_features]

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> BackboneOutput | tuple[Tensor, ...]:
        """:meth:`forward`, with those arguments that it has; transformers' detectors call this."""
        accepted = inspect.signature(self.forward).parameters
        return self(*args, **{name: value for name, value in kwargs.items() if name in accepted})

    def forward(
        self,
        pixel_values: Tensor,  # [B, C, H, W] uint8, uint16 or float
        inside: Tensor | None = None,  # [B, gh, gw] bool
        valid: Tensor | None = None,  # [B, gh, gw] bool
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Tensor, ...]:
        """Feature maps ``[B, D, gh, gw]``, normalised unless the config says ``apply_layernorm=False``.

        Args:
            pixel_values, inside, valid, output_hidden_states, output_attentions, return_dict: as for
                :meth:`.HDXrayModel.forward`.

        Returns:
            ``feature_maps``, one for each of ``out_features``, zero for patches that are not kept; ``hidden_states``,
            not normalised, ``depth + 1`` tensors ``[B, num_prefix_tokens + P, D]``, if they are asked for.

        Raises:
            ArgumentError, ArgumentTypeError: an argument is not as described.
        """
        self.check_inputs(pixel_values, output_attentions, None)
        encoder = self.encoder
        _, states, plan, longest = encoder.encode_depths(pixel_values, inside=inside, valid=valid)
        maps = []
        for index in self.out_indices:
            state = encoder.norm(states[index]) if self.config.apply_layernorm else states[index]
            grid = encoder.on_grid(state, plan, longest)[1]  # [B, P, D]
            maps.append(grid.unflatten(1, encoder.grid_size).permute(0, 3, 1, 2).contiguous())
        hidden = None
        if self.wants("output_hidden_states", output_hidden_states):
            hidden = tuple(encoder.tokens_on_grid(state, plan, longest) for state in states)
        outputs = BackboneOutput(feature_maps=tuple(maps), hidden_states=hidden)
        return outputs if self.wants("return_dict", return_dict) else outputs.to_tuple()
