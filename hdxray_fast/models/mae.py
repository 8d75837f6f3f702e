"""The masked auto-encoder: the whole flow from pixels to loss on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..ops.loss import reconstruction_loss
from ..ops.plan import MaskPlan
from ..ops.view import View
from .decoder import CrossDecoder, SelfDecoder
from .encoder import Encoder
from .encoder_config import EncoderConfig, preset
from .layers import check_count

DECODERS = ("cross", "self")


class MAEOutput(NamedTuple):
    """What one pass gives."""

    loss: Tensor  # [] float32, mean over all predicted patches of the batch
    patch_loss: Tensor  # [N_predict] float32, without gradient
    pred: Tensor  # [N_predict, p * p * C], normalised per patch if norm_pix_loss


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and reconstruction loss; see :func:`create_mae`.

    Attributes:
        encoder: the part that is kept after pre-training.
        decoder: the part that is not.
        config: arguments of :func:`create_mae` that build this model again; JSON-able.
        default_predict: share of the masked patches that a plan for this decoder should predict.
    """

    def __init__(
        self,
        name: str,
        decoder: str,
        img_size: int | tuple[int, int],
        in_chans: int,
        norm_pix_loss: bool,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int | None,
        **encoder_overrides: int | float | str,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ArgumentError(f"decoder: got {decoder!r}, accepted are {', '.join(map(repr, DECODERS))}")
        if not isinstance(norm_pix_loss, bool):
            raise ArgumentTypeError(f"norm_pix_loss: got {norm_pix_loss!r}, accepted are True and False")
        check_count("decoder_embed_dim", decoder_embed_dim)
        check_count("decoder_depth", decoder_depth)
        self.encoder = Encoder(encoder_config(name, img_size, in_chans, **encoder_overrides))
        self.norm_pix_loss = norm_pix_loss
        if decoder_num_heads is None:
            # self: 32 channels a head, so that MAE's weights mean the same; cross: 64, with half as many exponentials
            decoder_num_heads = max(1, decoder_embed_dim // (32 if decoder == "self" else 64))
        sizes = {
            "encoder_dim": self.encoder.embed_dim,
            "grid_size": self.encoder.grid_size,
            "patch_values": self.encoder.patch_size**2 * in_chans,
            "embed_dim": decoder_embed_dim,
            "depth": decoder_depth,
            "num_heads": decoder_num_heads,
        }
        if decoder == "self":
            self.decoder: SelfDecoder | CrossDecoder = SelfDecoder(**sizes)
        else:
            self.decoder = CrossDecoder(**sizes, num_maps=len(self.encoder.blocks) + 1)
        self.config = {
            "name": name,
            "decoder": decoder,
            "img_size": list(self.encoder.img_size),
            "in_chans": in_chans,
            "norm_pix_loss": norm_pix_loss,
            "decoder_embed_dim": decoder_embed_dim,
            "decoder_depth": decoder_depth,
            "decoder_num_heads": decoder_num_heads,
            **encoder_overrides,
        }

    @property
    def default_predict(self) -> float:
        return self.decoder.default_predict

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] uint8, uint16 or float
        plan: MaskPlan,
        scale: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
        view: View | None = None,
    ) -> MAEOutput:
        """Encode what ``plan`` keeps, predict what it predicts, compare with the pixels ``pixel * scale + shift``.

        Args:
            images: ``[B, C, H, W]``, any dtype that :func:`hdxray_fast.gather_patches` reads.
            plan: from :func:`hdxray_fast.plan_masks` with ``predict=model.default_predict``, on the images' device.
            scale: a number, or float32 ``[B]``.
            shift: see ``scale``.
            view: see the images through these maps and tables; the plan is then one of the view.

        Raises:
            ArgumentError: images and plan do not fit the model or each other.
        """
        if not isinstance(plan, MaskPlan):
            raise ArgumentTypeError(f"plan: got {type(plan).__name__}, accepted is a MaskPlan (see plan_masks)")
        grid = tuple(side // self.encoder.patch_size for side in self.config["img_size"])
        if tuple(plan.grid_size) != grid:  # an encoder may take other sizes, a decoder has one
            raise ArgumentError(
                f"plan: is for a {plan.grid_size[0]} x {plan.grid_size[1]} grid, and the decoder has places for "
                f"{grid[0]} x {grid[1]}; create the auto-encoder with the img_size of the images"
            )
        maps, cu_seqlens = self.encoder.forward_maps(images, plan, scale, shift, view)
        pred = self.decoder(maps, cu_seqlens, plan)
        loss, patch_loss = reconstruction_loss(
            images, pred, plan, scale=scale, shift=shift, norm_pix_loss=self.norm_pix_loss, view=view
        )
        return MAEOutput(loss, patch_loss, pred)


def encoder_config(
    name: str = "vit_small_patch16",
    img_size: int | tuple[int, int] = 1280,
    in_chans: int = 1,
    **encoder_overrides: int | float | str,
) -> EncoderConfig:
    """Settings of the encoder of a masked auto-encoder, whose arguments these are; nothing is built."""
    if unfit := sorted({"class_token", "reg_tokens", "keep", "margin", "pool", "fc_norm"} & set(encoder_overrides)):
        raise ArgumentError(
            f"{unfit[0]}: is no option of an auto-encoder: the plan says what is kept, and its one prefix token is "
            "the class token"
        )
    settings = {**preset(name, encoder_overrides), **encoder_overrides}
    return EncoderConfig(img_size=img_size, in_chans=in_chans, **settings)


def encoder_within(settings: Mapping[str, Any]) -> EncoderConfig:
    """Settings of the encoder, from all that :func:`create_mae` is given; nothing is built."""
    return encoder_config(**{name: value for name, value in settings.items() if name not in _DECODER_OPTIONS})


_DECODER_OPTIONS = ("decoder", "norm_pix_loss", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def create_mae(
    name: str = "vit_small_patch16",
    decoder: str = "cross",
    img_size: int | tuple[int, int] = 1280,
    in_chans: int = 1,
    norm_pix_loss: bool = True,
    decoder_embed_dim: int = 512,
    decoder_depth: int = 8,
    decoder_num_heads: int | None = None,
    **encoder_overrides: int | float | str,
) -> MaskedAutoencoder:
    """Build a masked auto-encoder.

    Args:
        name: encoder preset, one of :func:`hdxray_fast.list_encoders`.
        decoder: ``"cross"`` (CrossMAE: fast, predicts a share of the masked patches) or ``"self"`` (MAE).
        img_size: edge in pixels, or ``(height, width)``; multiples of the patch size.
        in_chans: 1 or 3.
        norm_pix_loss: compare with pixels normalised to zero mean and unit variance within their patch.
        decoder_embed_dim: width of the decoder, a multiple of 4.
        decoder_depth: number of decoder blocks.
        decoder_num_heads: left out, heads have 32 channels in ``self`` (as MAE) and 64 in ``cross``.
        **encoder_overrides: options of :func:`hdxray_fast.create_encoder`.

    Raises:
        ArgumentError: unknown name or option, or sizes that do not fit together.
    """
    return MaskedAutoencoder(
        name,
        decoder,
        img_size,
        in_chans,
        norm_pix_loss,
        decoder_embed_dim,
        decoder_depth,
        decoder_num_heads,
        **encoder_overrides,
    )
