"""R2Gen's relational memory and memory-driven conditional layer norm (https://arxiv.org/abs/2010.16056, section 2.2).

The memory is a recurrent state of the words written so far; it shifts the gain and bias of every layer norm in the
decoder. The decoder itself is transformers' Pegasus (pre-norm, sinusoidal positions), whose norms are replaced.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PegasusConfig, PegasusForConditionalGeneration


class RelationalMemory(nn.Module):
    """Slots that attend to themselves and to the newest word, behind an input and a forget gate (equations 5 to 10).

    Args:
        dim: D, width of the words and of a slot.
        slots: M.
        num_heads: of the attention.
    """

    def __init__(self, dim: int, slots: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.slots = dim, slots
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.word_gates = nn.Linear(dim, 2 * dim)
        self.memory_gates = nn.Linear(dim, 2 * dim)

    def start(self, batch: int, like: Tensor) -> Tensor:
        """The memory before the first word, ``[B, M, D]``: slot ``i`` is the ``i``-th unit vector."""
        return torch.eye(self.slots, self.dim, device=like.device, dtype=like.dtype).expand(batch, -1, -1)

    def step(self, word: Tensor, memory: Tensor) -> Tensor:
        """One word ``[B, D]`` into the memory ``[B, M, D]``."""
        word = word.unsqueeze(1)
        seen = torch.cat([memory, word], 1)  # [B, M + 1, D]
        new = memory + self.attn(memory, seen, seen, need_weights=False)[0]
        new = new + self.mlp(new)
        take, keep = (self.word_gates(word) + self.memory_gates(memory.tanh())).sigmoid().chunk(2, -1)
        return take * new.tanh() + keep * memory

    def forward(self, words: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Words one after the other.

        Args:
            words: ``[B, T, D]``.
            memory: ``[B, M, D]``; left out, that before the first word.

        Returns:
            The memory after each word, ``[B, T, M * D]``, and after the last ``[B, M, D]``.
        """
        memory = self.start(words.shape[0], words) if memory is None else memory
        after = []
        for word in words.unbind(1):
            memory = self.step(word, memory)
            after.append(memory.flatten(1))
        return torch.stack(after, 1), memory


class MemoryOfWords:
    """What the norms read while the decoder runs: ``value [B, T, M * D]``."""

    value: Tensor | None = None


class MemoryNorm(nn.LayerNorm):
    """Layer norm whose gain and bias are moved by the memory (equations 11 to 14)."""

    def __init__(self, dim: int, memory_dim: int, source: MemoryOfWords) -> None:
        super().__init__(dim)
        self.source = source
        self.gain, self.shift = (
            nn.Sequential(nn.Linear(memory_dim, dim), nn.ReLU(), nn.Linear(dim, dim)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D]
        memory = self.source.value
        if memory is None:
            raise RuntimeError("a memory-driven norm runs inside RelationalReportModel.forward only")
        plain = F.layer_norm(x, self.normalized_shape, None, None, self.eps)
        return plain * (self.weight + self.gain(memory)) + self.bias + self.shift(memory)


class RelationalConfig(PegasusConfig):
    """Pegasus' settings and the number of memory slots."""

    model_type = "hdxray_relational"
    memory_slots: int = 3


class RelationalReportModel(PegasusForConditionalGeneration):
    """Pegasus whose decoder norms are driven by a relational memory; ``generate`` and everything else is inherited.

    While text is generated only the newest word runs through the decoder. The memory is a function of the words alone,
    so that of the last step is found by its words, whichever way beams were reordered, dropped or doubled since.
    """

    config_class = RelationalConfig

    def __init__(self, config: RelationalConfig) -> None:
        super().__init__(config)
        dim = config.d_model
        self.memory = RelationalMemory(dim, config.memory_slots, config.decoder_attention_heads)
        self.words = MemoryOfWords()
        self._last: tuple[Tensor, Tensor] | None = None  # words [R, T] of the last step, the memory after them
        for layer in self.get_decoder().layers:
            for name in ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"):
                setattr(layer, name, MemoryNorm(dim, config.memory_slots * dim, self.words))
        for module in self.modules():
            if isinstance(module, MemoryNorm):  # starts as a plain layer norm with a small influence of the memory
                for branch in (module.gain, module.shift):
                    nn.init.xavier_uniform_(branch[0].weight)
                    nn.init.zeros_(branch[0].bias)
                    nn.init.normal_(branch[2].weight, std=config.init_std)
                    nn.init.zeros_(branch[2].bias)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args, **kwargs) -> dict:
        """As inherited, and the whole of the words so far, of which the decoder gets the newest only."""
        return {**super().prepare_inputs_for_generation(input_ids, *args, **kwargs), "all_words": input_ids}

    def forward(self, *args, decoder_input_ids: Tensor, all_words: Tensor | None = None, **kwargs):
        """As Pegasus.

        Args:
            *args, **kwargs: as there.
            decoder_input_ids: ``[B, T]``.
            all_words: ``[B, T_all]``, ending with ``decoder_input_ids``, where the words before them are in the cache.
        """
        words = decoder_input_ids if all_words is None else all_words
        self.words.value = self._memory_after(words, decoder_input_ids.shape[1], stepwise=all_words is not None)
        try:
            return super().forward(*args, decoder_input_ids=decoder_input_ids, **kwargs)
        finally:
            if not torch.is_grad_enabled():  # layers that are computed again in the backward pass read it once more
                self.words.value = None

    def _memory_after(self, words: Tensor, new: int, stepwise: bool) -> Tensor:
        """Memory after each of the ``new`` last words, ``[B, new, M * D]``."""
        embed = self.get_input_embeddings()
        scale = self.config.d_model**0.5 if self.config.scale_embedding else 1.0
        if not stepwise:
            return self.memory(embed(words) * scale)[0]
        before = self._look_up(words[:, :-new]) if new < words.shape[1] else None
        late = words if before is None else words[:, -new:]
        after, memory = self.memory(embed(late) * scale, before)
        self._last = words, memory
        return after[:, -new:]

    def _look_up(self, before: Tensor) -> Tensor | None:  # [B, T]
        """Memory after the words of the last step; ``None`` if one of the rows was not there."""
        if self._last is None or self._last[0].shape[1] != before.shape[1] or self._last[0].device != before.device:
            return None
        same = (before[:, None] == self._last[0][None]).all(-1)  # [B, R]
        if not bool(same.any(1).all()):
            return None
        return self._last[1][same.int().argmax(1)]

    def forget(self) -> None:
        """Let go of what the last generation left: the weights may change now."""
        self._last = None
