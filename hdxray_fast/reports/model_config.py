"""Settings of a report model, which its training takes under the same names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from ..errors import ArgumentError, ConfigError

PROMPTS = {
    "en": ("Chest radiograph: ", "\nWrite the radiology report on it.\nReport: "),
    "zh": ("胸片：", "\n请写出这张胸片的影像报告。\n报告："),
}


def grid_side(tokens: int) -> int:
    """Cells along a side of the pooled grid."""
    side = math.isqrt(tokens)
    if side < 1 or side * side != tokens:
        near = max(1, round(math.sqrt(max(1, tokens)))) ** 2
        raise ArgumentError(f"visual_tokens: got {tokens}, pool='grid' takes square numbers, such as {near}")
    return side


@dataclass(frozen=True, kw_only=True)
class ReportModelSettings:
    """What is chosen of a report model, beside its encoder and tokenizer.

    Args:
        decoder: ``transformer`` (encoder-decoder with cross-attention, R2Gen's size), ``relational`` (the same with
            R2Gen's memory), or ``language-model``.
        keep: patches that are looked at: ``all``, ``valid`` (no padding) or ``contour`` (the chest and a margin).
        pool: how patches become visual tokens: ``grid`` (means over a square grid) or ``attention`` (learned queries).
        visual_tokens: that the patches of one view become; a square number for ``grid``, at most as many as patches.
        max_views: radiographs of a study that are read; further ones are left out and counted.
        max_length: most tokens of a report, the end token included; longer ones are cut and counted.
        layers: of each half of the transformer (R2Gen: 3).
        width: of the transformer.
        heads: of the transformer's attention.
        ffn: hidden width of its feed-forward layers.
        dropout: in the transformer, share of the numbers that are left out while training.
        memory_slots: of the relational memory.
        language_model: name or path of a causal language model.
        lora_rank: of LoRA on the language model; 0 keeps it frozen.
        lora_alpha: LoRA's matrices are scaled by ``lora_alpha / lora_rank``.
        language: ``en`` or ``zh``.
    """

    decoder: Literal["transformer", "relational", "language-model"] = "transformer"
    keep: Literal["all", "valid", "contour"] = "valid"
    pool: Literal["grid", "attention"] = "grid"
    visual_tokens: int = 196
    max_views: int = 2
    max_length: int = 100
    layers: int = 3
    width: int = 512
    heads: int = 8
    ffn: int = 512
    dropout: float = 0.1
    memory_slots: int = 3
    language_model: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class ReportModelConfig(ReportModelSettings):
    """What a report model is, beside its encoder and tokenizer; JSON-able.

    Args:
        prompt: what stands before and after the visual tokens; of the language's by default.
        cleaning: the function that reports went through before they were taught.

    Raises:
        ConfigError: a setting is out of range, or contradicts another.
    """

    prompt: tuple[str, str] | None = None
    cleaning: str = "english"

    def __post_init__(self) -> None:
        choices = get_type_hints(ReportModelSettings)
        for name in ("decoder", "keep", "pool", "language"):
            accepted = get_args(choices[name]) or tuple(PROMPTS)
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, accepted are {', '.join(map(repr, accepted))}")
        for name in ("visual_tokens", "max_views", "layers", "width", "heads", "ffn", "memory_slots"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted is a whole number of at least 1")
        if self.pool == "grid":
            grid_side(self.visual_tokens)
        if self.max_length < 2:
            raise ConfigError(f"max_length: got {self.max_length}, accepted is a whole number of at least 2")
        if self.width % self.heads:
            raise ConfigError(f"heads: got {self.heads}, accepted is a divisor of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: got {self.dropout}, accepted is a share below 1")
        if (self.decoder == "language-model") != (self.language_model is not None):
            raise ConfigError(
                "language_model: a name or path is needed for decoder='language-model', and for no other decoder"
            )
        if self.lora_rank < 0 or (self.lora_rank and self.language_model is None):
            raise ConfigError(f"lora_rank: got {self.lora_rank}, accepted is 0, and more for a language model")
        if self.prompt is not None:
            object.__setattr__(self, "prompt", tuple(self.prompt))
