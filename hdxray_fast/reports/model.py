"""Encoder, visual tokens and a decoder of text as one model: radiographs of a study in, a report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.seen import Seen
from ..errors import ArgumentError, ArgumentTypeError, ConfigError
from ..models.encoder import Encoder, Tokens
from ..models.inputs import all_channels, own_scale, patches_to_keep, view_of
from ..models.selection import every_patch
from ..ops import autocast
from ..ops.plan import MaskPlan
from ..ops.view import View
from .model_config import PROMPTS, ReportModelConfig
from .sentences import first_sentences
from .text_models import import_text_models
from .text_tokenizers import ReportTokenizer, check_fits
from .validated import Validated
from .visual_tokens import StudyTokens, Views, ViewTokens, VisualTokens
from .writing_options import WritingOptions


class ReportModel(nn.Module):
    """See :func:`create_report_model`.

    Attributes:
        encoder: an :class:`hdxray_fast.models.encoder.Encoder`.
        visual: resampler, projection and view embeddings.
        decoder: writes text; its ``model`` is transformers'.
        tokenizer: of the reports.
        config: see :class:`ReportModelConfig`.
        language_model_print: tells the language model it was made with.
        seen: whom and what it was trained on; ``None`` where that is not known.
        validated: what its validation found; likewise.
    """

    def __init__(
        self, encoder: Encoder, visual: VisualTokens, decoder: nn.Module, tokenizer: Any, config: ReportModelConfig
    ) -> None:
        super().__init__()
        self.encoder, self.visual, self.decoder = encoder, visual, decoder
        self.tokenizer, self.config = tokenizer, config
        self.language_model_print = ""
        self.seen: Seen | None = None
        self.validated: Validated | None = None

    # --- images to visual tokens ------------------------------------------------------------------------------------
    def plan(self, images: Tensor, inside: Tensor | None = None, valid: Tensor | None = None) -> MaskPlan:
        """The patches of ``images`` that are looked at; grids as for :meth:`.Encoder.forward`."""
        self.encoder.check_images(images)
        plan = patches_to_keep(self.encoder, images, inside, valid, self.config.keep)
        return self._every_patch(images) if plan is None else plan

    def _every_patch(self, images: Tensor) -> MaskPlan:
        return every_patch(images.shape[0], self.encoder.grid_size, self.encoder.patch_size, images.device)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What :meth:`forward` reads of single images.

        Args:
            batch: as :func:`hdxray_fast.models.inputs.encoder_inputs` takes it, of ``N`` images.

        Returns:
            ``images [N, C, S, S]``, the ``plan`` of their patches, ``scale``, ``shift`` and ``view``.
        """
        images = all_channels(self.encoder, batch["pixels"])
        plan = batch.get("plan")
        if "plan" not in batch:
            plan = self.plan(images, batch["inside"].cpu(), batch["valid"].cpu())  # plans are made on the CPU
        elif plan is None:
            plan = self._every_patch(images)
        scale, shift = own_scale(self.encoder, batch)
        return {"images": images, "plan": plan, "scale": scale, "shift": shift, "view": view_of(batch)}

    def view_tokens(
        self,
        images: Tensor,  # [N, C, H, W]
        plan: MaskPlan,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        view: View | None = None,
    ) -> ViewTokens:
        """Resampled tokens of single images, ``[N, K, D]``; arguments as for :meth:`.Encoder.encode`."""
        tokens = self.encoder.encode(images, plan, scale, shift, view=view)
        return self.visual.resample(tokens, plan, self.encoder.num_prefix_tokens)

    def resample(self, tokens: Tokens, plan: MaskPlan) -> ViewTokens:
        """As :meth:`view_tokens`, from tokens that the encoder gave before."""
        return self.visual.resample(tokens, plan, self.encoder.num_prefix_tokens)

    # --- visual tokens to text --------------------------------------------------------------------------------------
    def forward(
        self,
        targets: Tensor,  # [B, T] int64
        views: Views,
        *,
        images: Tensor | None = None,  # [N, C, H, W]
        plan: MaskPlan | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        view: View | None = None,
        tokens: Tokens | None = None,
        view_tokens: ViewTokens | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy of the words of ``targets``, by teacher forcing.

        Args:
            targets: token ids with the end token, ``-100`` behind it.
            views: which image is of which study.
            images, plan, scale, shift, view: the radiographs, and what they are seen through if anything; or
            tokens, plan: what the (frozen) encoder made of them; or
            view_tokens: what the grid made of that.
            label_smoothing: share of the target's probability that is spread over all words.
        """
        if view_tokens is None:
            view_tokens = (
                self.view_tokens(images, plan, scale, shift, view) if tokens is None else self.resample(tokens, plan)
            )
        logits = self.decoder.logits(self._studies(view_tokens, views), targets)  # [B, T, V]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, label_smoothing=label_smoothing
        )

    def _studies(self, view_tokens: ViewTokens, views: Views) -> StudyTokens:
        values = view_tokens.values.to(self.visual.project.weight.dtype)
        return self.visual(ViewTokens(values, view_tokens.known), views)

    @torch.no_grad()
    def write(
        self, view_tokens: ViewTokens, views: Views, options: WritingOptions | None = None
    ) -> tuple[list[str], list[list[int]]]:
        """A report for each study, as text and as token ids.

        The token of unknown words is never written. Sampling is seeded by ``options.sampling_seed``; the caller's
        random state stays as it is.
        """
        options = options or WritingOptions()
        studies = self._studies(view_tokens, views)
        devices = [studies.values.device] if studies.values.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(options.sampling_seed)
            ids = self.decoder.generate(studies, options, self.tokenizer.unk)
        if options.max_sentences is not None:
            ids = [first_sentences(self.tokenizer, row, options.max_sentences) for row in ids]
        return [self.tokenizer.decode(row) for row in ids], ids

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,  # [N, C, H, W]
        views: Views | None = None,
        options: WritingOptions | None = None,
        *,
        inside: Tensor | None = None,
        valid: Tensor | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
    ) -> list[str]:
        """Reports on radiographs that are tensors already.

        Args:
            images: of the encoder's size.
            views: left out, each image is a study of its own.
            options: of the search.
            inside, valid, scale, shift: as for :meth:`hdxray_fast.models.encoder.Encoder.forward`.
        """
        views = views or Views.of_counts([1] * images.shape[0]).to(images.device)
        plan = self.plan(images, inside, valid)
        return self.write(self.view_tokens(images, plan, scale, shift), views, options)[0]

    @torch.no_grad()
    def attention(
        self, view_tokens: ViewTokens, views: Views, ids: Sequence[Sequence[int]], shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """Where on the images each word was read off.

        Args:
            view_tokens, views: as for :meth:`write`.
            ids: what it wrote.
            shares: of :meth:`VisualTokens.shares`, for each image.

        Returns:
            For each study ``[words, views, P]`` float32: weights over the patches of its images; those of a word sum to
            1 at most.
        """
        targets = pad_targets(list(ids)).to(view_tokens.values.device)
        weights = self.decoder.attention(self._studies(view_tokens, views), targets).cpu()  # [B, T, S]
        weights = weights.unflatten(-1, (-1, self.visual.count))  # [B, T, V, K]
        found = []
        for study, row in enumerate(ids):
            images = [i for i, owner in enumerate(views.study.tolist()) if owner == study]
            with autocast.off("cpu"):
                maps = [weights[study, : len(row), view] @ shares[image] for view, image in enumerate(images)]
            found.append(torch.stack(maps, 1))
        return found


def pad_targets(ids: list[list[int]]) -> Tensor:
    """``[B, T]`` int64, ``-100`` behind the shorter ones."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    if not any(len(row) for row in rows):  # nothing but empty texts
        rows = [torch.full((1,), -100)] * len(rows)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def create_report_model(
    encoder: Encoder, tokenizer: ReportTokenizer | None, config: ReportModelConfig, *, dtype: str = "auto"
) -> ReportModel:
    """A report model whose decoder is untrained, or a language model's.

    Args:
        encoder: its ``keep`` is not looked at; that of ``config`` is.
        tokenizer: of the reports; for a language model its own is taken, and only ``None`` or that is accepted.
        config: all settings.
        dtype: of a language model's weights: ``"auto"`` as they are stored, or for example ``"bfloat16"``.

    Raises:
        ArgumentError, ConfigError: settings that do not fit together; a tokenizer that does not fit.
        CheckpointError: the language model cannot be loaded.
        MissingDependencyError: transformers, or for LoRA peft, is not installed.
    """
    import_text_models()
    if not isinstance(encoder, Encoder):
        raise ArgumentTypeError(f"encoder: got {type(encoder).__name__}, accepted is an Encoder (create_encoder)")
    c = config
    printed = ""
    if c.decoder == "language-model":
        from .language_model import language_model_fingerprint, load_language_model

        base = load_language_model(c.language_model, dtype)
        printed = language_model_fingerprint(base)
        decoder, tokenizer = language_model_decoder(base, tokenizer, c)
    else:
        from .seq2seq import Seq2SeqDecoder

        if tokenizer is None:
            raise ArgumentError("tokenizer: is needed for a decoder that is not a language model (train_tokenizer)")
        decoder = Seq2SeqDecoder.create(
            len(tokenizer),
            (tokenizer.pad, tokenizer.bos, tokenizer.eos),
            tokenizer.unk,
            layers=c.layers,
            width=c.width,
            heads=c.heads,
            ffn=c.ffn,
            dropout=c.dropout,
            visual_tokens=c.visual_tokens * c.max_views,
            max_length=c.max_length,
            memory_slots=c.memory_slots if c.decoder == "relational" else 0,
        )
    model = ReportModel(encoder, visual_tokens_for(encoder, decoder, c), decoder, tokenizer, c)
    model.language_model_print = printed
    return model


def visual_tokens_for(encoder: Encoder, decoder: nn.Module, config: ReportModelConfig) -> VisualTokens:
    """The layer between an encoder and a decoder, untrained."""
    if config.pool == "grid":
        from .visual_tokens import patch_cells

        patch_cells(encoder.grid_size, config.visual_tokens)  # names what does not fit
    return VisualTokens(
        encoder.num_features,
        decoder.width,
        config.visual_tokens,
        config.pool,
        config.max_views,
        encoder.config.num_heads,
        decoder.scale,
    )


def language_model_decoder(base: Any, tokenizer: ReportTokenizer | None, config: ReportModelConfig, lora: bool = True):
    """The decoder around a loaded language model, and its tokenizer; ``lora=False`` leaves LoRA to the caller."""
    from .language_model import LanguageModelDecoder
    from .text_tokenizers import load_tokenizer

    tokenizer = tokenizer or load_tokenizer(config.language_model)
    if tokenizer.kind != "hf":
        raise ConfigError(
            f"tokenizer: a language model reads its own tokens, a {tokenizer.kind} tokenizer of reports does not fit"
        )
    check_fits(tokenizer, base.get_input_embeddings().weight.shape[0])
    before, after = config.prompt or PROMPTS[config.language]
    start = [] if tokenizer.backend.bos_token_id is None else [tokenizer.bos]
    prompts = ([*start, *tokenizer.encode(before)], tokenizer.encode(after))
    special = (tokenizer.pad, tokenizer.bos, tokenizer.eos)
    rank = config.lora_rank if lora else 0
    decoder = LanguageModelDecoder(base, special, prompts, config.max_length, rank, config.lora_alpha)
    decoder.check_room(config.visual_tokens * config.max_views)
    return decoder, tokenizer
