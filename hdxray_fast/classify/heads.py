"""From an encoder's tokens to one logit per class: linear, attentive pooling, or a query per disease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, CheckpointError, MissingDependencyError
from ..extras import install
from ..models import dense
from ..models.layers import Block, CrossBlock, check_count
from ..models.pool import AttentionPool, mean_pool
from ..ops import autocast
from ..weights.data_only import DATA, check_sentence_model, linked_data
from ..weights.hub_retries import quiet_retries

HEADS = ("linear", "attention", "label-query", "probe")
TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class Logits(nn.Linear):
    """The last layer of a head, in float32 whatever the model computes in: bf16 has 8 bits, and images would tie."""

    def forward(self, features: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., C] float32``."""
        with autocast.off(features.device.type):
            return F.linear(features.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class LinearHead(nn.Module):
    """One linear layer on the pooled feature: the class token, or the mean of the patches.

    Without ``norm`` it is what a linear probe on stored features becomes.
    """

    def __init__(self, dim: int, num_classes: int, pool: str = "mean", num_prefix: int = 1, norm: bool = True) -> None:
        super().__init__()
        if pool not in ("cls", "mean") or (pool == "cls" and not num_prefix):
            raise ArgumentError(f"pool: got {pool!r}, accepted are 'mean', and 'cls' where there is a class token")
        self.pool, self.num_prefix = pool, num_prefix
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.fc = Logits(dim, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=2e-5)
        nn.init.zeros_(self.fc.bias)

    def forward(self, values: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Packed tokens ``[N, D]`` to logits ``[B, C]``."""
        return self.decide(self.pooled(values, cu_seqlens))

    def pooled(self, values: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Packed tokens ``[N, D]`` to a feature per image ``[B, D]``."""
        if self.pool == "cls":
            return values.index_select(0, cu_seqlens[:-1])
        return mean_pool(values, cu_seqlens, self.num_prefix)

    def pooled_dense(self, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D], [B, S] bool
        """:meth:`pooled` of dense tokens, in standard operations."""
        return dense.pooled(x, self.pool, self.num_prefix, kept=kept)

    def decide(self, pooled: Tensor) -> Tensor:
        """Features ``[B, D]`` to logits ``[B, C]``."""
        return self.fc(self.norm(pooled))


class AttentionHead(nn.Module):
    """A learned query attends to all tokens; one linear layer follows."""

    def __init__(self, dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.attn_pool = AttentionPool(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.fc = Logits(dim, num_classes)

    def forward(self, values: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Packed tokens ``[N, D]`` to logits ``[B, C]``."""
        return self.fc(self.norm(self.attn_pool(values, cu_seqlens, max_seqlen)))

    def forward_dense(self, x: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D], [B, S] bool
        """:meth:`forward` of dense tokens, in standard operations."""
        return self.fc(self.norm(dense.attention_pooled(self.attn_pool, x, kept)))


class LabelQueryHead(nn.Module):
    """A query per disease, after the multi-modal head of HD X-ray (https://arxiv.org/abs/2404.17926, section 3.3).

    The queries look at each other and then at the image's tokens; one linear layer, the same for all, reads a logit off
    each. With text embeddings a query is a learned projection of its disease's name, so that names that were never
    trained can be asked about.

    Args:
        dim: width of the image tokens.
        classes: names.
        num_heads: of the attention.
        text: ``[C, T] float32`` embeddings of the names; without them each query is a learned vector.
        depth: blocks.
    """

    def __init__(
        self, dim: int, classes: Sequence[str], num_heads: int, text: Tensor | None = None, depth: int = 1
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        if text is not None and (text.dim() != 2 or text.shape[0] != len(classes)):
            raise ArgumentError(f"text: got shape {list(text.shape)}, accepted is [{len(classes)}, T], a row per class")
        self.register_buffer("text", text)
        if text is None:
            self.queries = nn.Parameter(torch.randn(len(classes), dim) * dim**-0.5)
        else:
            self.project = nn.Linear(text.shape[1], dim)
        self.self_blocks = nn.ModuleList(Block(dim, num_heads, 4.0) for _ in range(depth))
        self.cross_blocks = nn.ModuleList(CrossBlock(dim, dim, num_heads, 4.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.fc = Logits(dim, 1)

    def forward(
        self, values: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Packed tokens ``[N, D]`` to logits ``[B, C]``; ``text [C', T]`` asks about other names, ``[B, C']``."""
        queries = self._queries(text)
        batch, count = cu_seqlens.shape[0] - 1, queries.shape[0]
        x = queries.expand(batch, -1, -1)  # [B, C, D]
        query_seqlens = count * torch.arange(batch + 1, dtype=torch.int32, device=cu_seqlens.device)
        for block, cross in zip(self.self_blocks, self.cross_blocks, strict=True):
            x = block(x)
            x = cross(x.flatten(0, 1), values, query_seqlens, cu_seqlens, count, max_seqlen)
            x = x.unflatten(0, (batch, count))
        return self.fc(self.norm(x)).squeeze(-1)

    def forward_dense(self, y: Tensor, kept: Tensor | None = None) -> Tensor:  # [B, S, D], [B, S] bool
        """:meth:`forward` of dense tokens, in standard operations."""
        x = self._queries(None).expand(y.shape[0], -1, -1)  # [B, C, D]
        for block, cross in zip(self.self_blocks, self.cross_blocks, strict=True):
            x = dense.run_cross_block(cross, dense.run_block(block, x), y, kept)
        return self.fc(self.norm(x)).squeeze(-1)

    def _queries(self, text: Tensor | None) -> Tensor:  # [C, D]
        text = self.text if text is None else text
        if text is None:
            return self.queries
        if self.text is None:
            raise ArgumentError("text: this head learned a vector per class and knows no other names")
        return self.project(text.to(self.project.weight.dtype))

    def answer(self, values: Tensor, cu_seqlens: Tensor, max_seqlen: int | None, text: Tensor) -> Tensor:
        """Logits ``[B, C']`` of names that were never trained, from their embeddings ``text [C', T]``.

        Queries look at each other, so each new name is asked beside the trained ones, as in training, and alone among
        new names: its answer does not depend on what else is asked.
        """
        if self.text is None:
            raise ArgumentError("text: this head learned a vector per class and knows no other names")
        beside = [torch.cat([self.text, one[None].to(self.text)]) for one in text]
        answers = [self.forward(values, cu_seqlens, max_seqlen, text=both)[:, -1:] for both in beside]
        return torch.cat(answers, dim=1)


def build_head(
    kind: str,
    dim: int,
    classes: Sequence[str],
    num_heads: int,
    *,
    pool: str = "mean",
    num_prefix: int = 1,
    text: Tensor | None = None,
) -> nn.Module:
    """The head called ``kind``, one of ``HEADS``."""
    if kind in ("linear", "probe"):
        return LinearHead(dim, len(classes), pool, num_prefix, norm=kind == "linear")
    if kind == "attention":
        return AttentionHead(dim, len(classes), num_heads)
    if kind == "label-query":
        return LabelQueryHead(dim, classes, num_heads, text)
    raise ArgumentError(f"head: got {kind!r}, accepted are {', '.join(map(repr, HEADS))}")


def embed_names(names: Sequence[str], model: str = TEXT_MODEL) -> Tensor:
    """Sentence embeddings of disease names, ``[C, T] float32``; an underscore is read as a space.

    Args:
        names: of diseases.
        model: a name on the Hugging Face hub, or a folder.

    Raises:
        CheckpointError: the model brings code or pickles; nothing of it was run.
        MissingDependencyError: sentence-transformers is not installed, or its model cannot be had.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except Exception as error:  # what its own dependencies stumble over can be any error
        raise MissingDependencyError(
            f"text embeddings of disease names need sentence-transformers, which cannot be imported ({error}): "
            f"{install('text')}"
        ) from error
    try:
        with _sentence_model(model) as folder:
            check_sentence_model(folder)
            encoder = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except CheckpointError:
        raise
    except Exception as error:  # offline, the hub's client raises errors of several libraries
        reason = " ".join(str(error).split())[:300]
        raise MissingDependencyError(f"the text model {model} cannot be loaded ({reason})") from error
    words = [name.replace("_", " ") for name in names]
    return torch.as_tensor(encoder.encode(words, convert_to_numpy=True, show_progress_bar=False)).float()


@contextmanager
def _sentence_model(model: str) -> Iterator[Path]:
    """The folder of a sentence model; of one on the hub, data files alone are fetched, and shown."""
    if Path(model).is_dir():
        yield Path(model)
        return
    from huggingface_hub import snapshot_download  # sentence-transformers needs it

    with quiet_retries(f"the text model {model}"):
        fetched = Path(snapshot_download(model, allow_patterns=[f"*{suffix}" for suffix in DATA]))
    with linked_data(fetched) as folder:
        yield folder
