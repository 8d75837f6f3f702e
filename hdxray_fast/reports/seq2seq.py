"""An encoder-decoder with cross-attention over visual tokens, plain or with R2Gen's relational memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import autocast
from .text_models import generate
from .visual_tokens import StudyTokens
from .writing_options import WritingOptions


class Seq2SeqDecoder(nn.Module):
    """transformers' Pegasus on visual tokens: layers that mix the visual tokens, and layers that write.

    Args:
        model: ``PegasusForConditionalGeneration``, or its subclass with a memory.
        max_length: most tokens of a text, the end token included.
    """

    def __init__(self, model: Any, max_length: int) -> None:
        super().__init__()
        self.model, self.max_length = model, max_length
        self.width = model.config.d_model
        self.scale = 1.0  # what its first layer expects: words are scaled to unit variance

    @classmethod
    def create(
        cls,
        vocab_size: int,
        special: tuple[int, int, int],
        unk: int | None = None,
        *,
        layers: int = 3,
        width: int = 512,
        heads: int = 8,
        ffn: int = 512,
        dropout: float = 0.1,
        visual_tokens: int,
        max_length: int = 60,
        memory_slots: int = 0,
    ) -> Seq2SeqDecoder:
        """Untrained, of R2Gen's size by default.

        Args:
            vocab_size: rows of the embedding table.
            special: ids of pad, start and end token.
            unk: id of the token of unknown words, if there is one.
            layers: of the encoder over visual tokens, and of the decoder.
            width, heads, ffn, dropout: of both.
            visual_tokens: most visual tokens of a study.
            max_length: most tokens of a text, the end token included.
            memory_slots: of the relational memory; 0 for none.
        """
        from transformers import PegasusConfig, PegasusForConditionalGeneration

        pad, bos, eos = special
        settings = {
            "vocab_size": vocab_size,
            "d_model": width,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": ffn,
            "decoder_ffn_dim": ffn,
            "dropout": dropout,
            "attention_dropout": dropout,
            "activation_function": "relu",
            "scale_embedding": True,
            "init_std": width**-0.5,
            "pad_token_id": pad,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "decoder_start_token_id": bos,
            "forced_eos_token_id": None,
            "max_position_embeddings": max(visual_tokens, max_length + 1),
        }
        if not memory_slots:
            model = PegasusForConditionalGeneration(PegasusConfig(**settings))
        else:
            from .relational import RelationalConfig, RelationalReportModel

            model = RelationalReportModel(RelationalConfig(**settings, memory_slots=memory_slots))
        if unk is not None:  # for who loads the saved decoder with transformers alone
            model.generation_config.suppress_tokens = [unk]
        return cls(model, max_length)

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return self.model.get_input_embeddings().num_embeddings

    def logits(self, visual: StudyTokens, targets: Tensor) -> Tensor:
        """Teacher forcing: the logits ``[B, T, V]`` that should name ``targets [B, T]`` (negative: none)."""
        return self._run(visual, targets).logits

    def _run(self, visual: StudyTokens, targets: Tensor, **options):
        c = self.model.config
        start = targets.new_full((targets.shape[0], 1), c.decoder_start_token_id)
        given = torch.cat([start, targets[:, :-1].masked_fill(targets[:, :-1] < 0, c.pad_token_id)], 1)
        masks = {"attention_mask": visual.mask.long()}
        if getattr(c, "_attn_implementation", None) == "sdpa":
            masks = whole_masks(visual.mask, given.shape[1])
        return self.model(inputs_embeds=visual.values, decoder_input_ids=given, use_cache=False, **masks, **options)

    @torch.no_grad()
    def generate(self, visual: StudyTokens, options: WritingOptions, unk: int | None = None) -> list[list[int]]:
        """Token ids of each study's text, without start and end tokens; ``unk`` is never among them."""
        c = self.model.config
        settings = options.for_transformers(self.max_length, c.pad_token_id, c.bos_token_id, c.eos_token_id, unk)
        written = generate(self.model, settings, inputs_embeds=visual.values, attention_mask=visual.mask.long())
        if hasattr(self.model, "forget"):
            self.model.forget()
        return [until(row[1:], c.eos_token_id) for row in written.tolist()]

    @torch.no_grad()
    def attention(self, visual: StudyTokens, targets: Tensor) -> Tensor:
        """Where each of ``targets [B, T]`` was read off the visual tokens: ``[B, T, S]`` float32, rows sum to 1.

        Mean over the heads and layers of the cross-attention; carried through the layers that mix the visual tokens by
        attention rollout (https://arxiv.org/abs/2005.00928).
        """
        with weights_kept(self.model):
            out = self._run(visual, targets, output_attentions=True)
        weights = torch.stack(out.cross_attentions).float().mean((0, 2))  # [L, B, H, T, S] -> [B, T, S]
        with autocast.off(weights.device.type):
            for layer in reversed(out.encoder_attentions):
                mixed = layer.float().mean(1)  # [B, S, S]
                weights = 0.5 * weights + 0.5 * weights @ mixed
        weights = weights * visual.mask.unsqueeze(1)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


def whole_masks(known: Tensor, words: int) -> dict[str, Tensor]:
    """The masks that transformers would make of ``known [B, S]`` bool, without its looking whether one is needed.

    Which would wait for a GPU, three times a step.

    Args:
        known: visual tokens that may be attended to.
        words: T, number of words.

    Returns:
        ``attention_mask [B, 1, 1, S]`` and ``decoder_attention_mask [1, 1, T, T]``, bool, as PyTorch's
        ``scaled_dot_product_attention`` takes them.
    """
    past = torch.ones(words, words, dtype=torch.bool, device=known.device).tril()
    return {"attention_mask": known[:, None, None], "decoder_attention_mask": past[None, None]}


@contextmanager
def weights_kept(model: Any) -> Iterator[None]:
    """Within, the attention of a transformers model gives its weights, which the fast implementations never make."""
    before = getattr(model.config, "_attn_implementation", None) or "sdpa"
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def until(ids: list[int], end: int) -> list[int]:
    """``ids`` before the first ``end``."""
    return ids[: ids.index(end)] if end in ids else ids
