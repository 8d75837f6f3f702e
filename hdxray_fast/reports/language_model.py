"""A causal language model that reads visual tokens in the middle of a prompt; frozen, or tuned by LoRA.

After R2GenGPT (https://arxiv.org/abs/2309.09812): ``prompt_before, visual tokens, prompt_after, report``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, MissingDependencyError
from ..extras import install
from ..regular_files import load_tensors
from ..weights.data_only import check_config, check_files, check_no_code
from ..weights.fingerprint import tensors_print
from ..weights.hub_retries import quiet_retries
from ..weights.stored_sizes import are_there, check_room, check_transformers_config, stored_in
from .seq2seq import until, weights_kept
from .text_models import generate, quietly
from .visual_tokens import StudyTokens
from .writing_options import WritingOptions


class LanguageModelDecoder(nn.Module):
    """A language model behind the visual projection.

    Args:
        model: a transformers causal language model; its own weights are frozen here.
        special: ids of pad, start and end token.
        prompts: token ids before and after the visual tokens.
        max_length: most tokens of a text, the end token included.
        lora_rank: rank of LoRA's matrices on all linear layers; 0 keeps the model frozen.
        lora_alpha: their scale is ``lora_alpha / lora_rank``.
    """

    def __init__(
        self,
        model: Any,
        special: tuple[int, int, int],
        prompts: tuple[list[int], list[int]],
        max_length: int,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        if lora_rank:
            self.model = with_lora(model, lora_rank, lora_alpha)
        self.special, self.max_length, self.lora_rank = special, max_length, lora_rank
        embeddings = model.get_input_embeddings()
        self.width, self.rows = embeddings.weight.shape[1], embeddings.weight.shape[0]
        self.scale = float(embeddings.weight.float().std())
        self.register_buffer("before", torch.tensor(prompts[0], dtype=torch.long), persistent=False)
        self.register_buffer("after", torch.tensor(prompts[1], dtype=torch.long), persistent=False)
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_post_hook(_do_not_miss_frozen)

    def frozen(self) -> set[str]:
        """Names of the language model's own tensors."""
        everything = self.named_parameters(remove_duplicate=False)  # tied weights have two names
        names = {name for name, parameter in everything if not parameter.requires_grad}
        return names | {name for name, _ in self.named_buffers()}

    def frozen_print(self) -> str:
        """Tells language models apart by all of their own weights, which no checkpoint holds."""
        everything = self.model.named_parameters()
        return tensors_print((name, parameter) for name, parameter in everything if not parameter.requires_grad)

    def check_room(self, visual_tokens: int) -> None:
        """Raise a ConfigError if prompts, visual tokens and text do not fit the model's positions."""
        room = getattr(self.model.config, "max_position_embeddings", None)
        need = len(self.before) + len(self.after) + visual_tokens + self.max_length
        if room is not None and need > room:
            raise ConfigError(
                f"visual_tokens, max_length: prompts of {len(self.before) + len(self.after)}, {visual_tokens} visual "
                f"tokens and a text of {self.max_length} are {need} positions, the language model has {room}"
            )

    def train(self, mode: bool = True) -> LanguageModelDecoder:
        """Dropout inside a frozen model would be noise that nothing can learn to avoid: it stays in evaluation mode."""
        super().train(mode)
        if not self.lora_rank:
            self.model.eval()
        return self

    def _embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def _rows(self, visual: StudyTokens, texts: Tensor, left: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt, visual tokens, prompt and text of each study without gaps, padded on the left or on the right.

        Nothing here looks at a value, so there is room for all visual tokens, known or not.

        Returns:
            Embeddings ``[B, L, W]``, which of them are real ``[B, L]`` int64, and where each text begins, ``[B]``.
        """
        dtype = self.model.get_input_embeddings().weight.dtype
        batch, written = len(texts), texts >= 0
        before, after = (self._embed(ids).expand(batch, -1, -1) for ids in (self.before, self.after))
        parts = [before, visual.values.to(dtype), after, self._embed(texts.clamp(min=0))]
        whole = (torch.ones_like(part[..., 0], dtype=torch.bool) for part in (before, after))
        real = torch.cat([next(whole), visual.mask, next(whole), written], dim=1)  # [B, L]
        order = (real if left else ~real).int().argsort(dim=1, stable=True)
        real = real.gather(1, order)
        rows = torch.cat(parts, dim=1).gather(1, order.unsqueeze(-1).expand(-1, -1, self.width))
        ends = real.shape[1] if left else real.sum(1)
        return torch.where(real.unsqueeze(-1), rows, 0), real.long(), ends - written.sum(1)

    def logits(self, visual: StudyTokens, targets: Tensor) -> Tensor:
        """Teacher forcing: the logits ``[B, T, V]`` that should name ``targets [B, T]`` (negative: none)."""
        out, starts = self._run(visual, targets)
        # the row before a word names it: the last of the prompt names the first word
        places = torch.arange(targets.shape[1], device=targets.device)
        at = starts[:, None] - 1 + places
        at = at.clamp(max=out.logits.shape[1] - 1)
        return out.logits.gather(1, at.unsqueeze(-1).expand(-1, -1, out.logits.shape[-1]))

    def _run(self, visual: StudyTokens, targets: Tensor, **options):
        embeds, known, starts = self._rows(visual, targets, left=False)
        return self.model(inputs_embeds=embeds, attention_mask=known, use_cache=False, **options), starts

    @torch.no_grad()
    def generate(self, visual: StudyTokens, options: WritingOptions, unk: int | None = None) -> list[list[int]]:
        """Token ids of each study's text, without the end token; ``unk`` is never among them."""
        pad, bos, eos = self.special
        settings = options.for_transformers(self.max_length, pad, bos, eos, unk)
        none = torch.empty(len(visual.values), 0, dtype=torch.long, device=visual.values.device)
        embeds, known, _ = self._rows(visual, none, left=True)
        longest = int(known.sum(1).max())
        embeds, known = embeds[:, -longest:], known[:, -longest:]
        written = generate(self.model, settings, inputs_embeds=embeds, attention_mask=known)
        return [until(row, eos) for row in written.tolist()]

    @torch.no_grad()
    def attention(self, visual: StudyTokens, targets: Tensor) -> Tensor:
        """Where each of ``targets [B, T]`` was read off the visual tokens: ``[B, T, S]`` float32, rows sum to 1.

        Mean over all heads and layers of the self-attention, of which the visual tokens' part is taken.
        """
        with weights_kept(self.model):
            out, starts = self._run(visual, targets, output_attentions=True)
        weights = torch.stack([layer.float().mean(1) for layer in out.attentions]).mean(0)  # [B, N, N]
        found = weights.new_zeros(*targets.shape, visual.mask.shape[1])
        for i, (mask, start) in enumerate(zip(visual.mask, starts.tolist(), strict=True)):
            seen, words = int(mask.sum()), int((targets[i] >= 0).sum())
            first = len(self.before)
            found[i, :words, mask] = weights[i, start - 1 : start - 1 + words, first : first + seen]
        return found / found.sum(-1, keepdim=True).clamp(min=1e-12)


def _leave_out_frozen(module: LanguageModelDecoder, state_dict: dict, prefix: str, metadata: dict) -> None:
    """Checkpoints hold what is trained: the language model itself is where it came from."""
    for name in module.frozen():
        state_dict.pop(prefix + name, None)


def _do_not_miss_frozen(module: LanguageModelDecoder, keys: Any) -> None:
    frozen = module.frozen()
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.removeprefix("decoder.") not in frozen]


def load_language_model(source: str, dtype: str = "auto") -> Any:
    """A causal language model by name or path.

    Raises:
        CheckpointError: it cannot be loaded, brings code of its own, or has no weights as safetensors.
    """
    from transformers import AutoModelForCausalLM

    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).is_dir():
        raise CheckpointError(f"language_model: there is no folder {source}")
    check_config(source)
    check_no_code(source)  # of a folder; what a hub has is not run either, which transformers can be told
    if (Path(source) / "adapter_config.json").is_file():
        raise CheckpointError(f"language_model: {source} is an adapter; merge it with its model and save that")
    try:
        if Path(source).is_dir():
            _check_room(Path(source))
        with quietly(), quiet_retries(f"language_model: {source}"):
            return AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
    except CheckpointError:
        raise
    except Exception as error:  # its reader raises OSError, ValueError, KeyError and errors of its own
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"language_model: {source} cannot be loaded ({reason})") from error


def _check_room(folder: Path) -> None:
    """Refuse a folder whose config asks for far more than its weights hold; without any, transformers says so."""
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = folder / "model.safetensors"
    check_files(folder)
    if not are_there(weights):
        return
    stored = stored_in(weights)
    check_transformers_config(folder, stored)
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    check_room(
        folder / "config.json",
        stored,
        lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=False),
        {},
    )


def language_model_fingerprint(model: Any) -> str:
    """Tells language models apart: parameters' number, and some of the word embeddings."""
    weight = model.get_input_embeddings().weight
    some = weight[:: max(1, weight.shape[0] // 64)].detach().float().cpu().contiguous().numpy().tobytes()
    return f"{sum(p.numel() for p in model.parameters())}-{hashlib.sha256(some).hexdigest()[:16]}"


def with_lora(model: Any, rank: int, alpha: float) -> Any:
    """``model`` with LoRA on all linear layers but the last."""
    peft = _peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.05, target_modules="all-linear", task_type=peft.TaskType.CAUSAL_LM
    )
    return peft.get_peft_model(model, config)


def load_lora(model: Any, folder: Path, rank: int, alpha: float) -> Any:
    """``model`` with the LoRA matrices in ``folder``, which can be trained on.

    It is built as :func:`with_lora` builds it: peft would import what ``adapter_config.json`` names.

    Raises:
        CheckpointError: the matrices are missing, damaged or another model's.
    """
    from safetensors import SafetensorError

    path, peft = folder / "adapter_model.safetensors", _peft()
    try:
        tuned = with_lora(model, rank, alpha)
        result = peft.set_peft_model_state_dict(tuned, load_tensors(path))
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    foreign = [*result.unexpected_keys, *(name for name in result.missing_keys if "lora_" in name)]
    if foreign:
        raise CheckpointError(f"{path}: does not fit the language model ({foreign[0]})")
    return tuned


def _peft():
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(f"LoRA needs peft: {install('lora')}") from error
    return peft
