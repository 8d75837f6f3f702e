"""What a model must do and keep: floating-point operations and bytes of activations. Formulas, no timing, no torch.

An operation is one multiplication or one addition; softmax, norms and GELU are left out, as is usual. A training step
counts as three forward passes (each product is done again for either of its operands), attention by itself as 3.5: its
backward pass has five products where the forward has two, one of them the scores once more.

Activations are what autograd keeps from the forward to the backward pass, with attention that keeps no scores.
"""

from __future__ import annotations

from collections.abc import Sequence


def attention_flops(
    lengths_q: Sequence[int], lengths_k: Sequence[int], heads: int, head_dim: int, training: bool
) -> float:
    """Of softmax(q k^T) v over all sequences: 4 Sq Sk D a head, 3.5 times that with the backward pass."""
    scores = sum(q * k for q, k in zip(lengths_q, lengths_k, strict=True))
    return 4.0 * scores * heads * head_dim * (3.5 if training else 1.0)


def block_flops(tokens: int, dim: int, mlp_ratio: float = 4.0) -> float:
    """Forward pass of a transformer block: (8 + 4 r) n d^2 in the linear layers, 4 n^2 d in self-attention."""
    return (8 + 4 * mlp_ratio) * tokens * dim**2 + 4.0 * tokens**2 * dim


def encoder_flops(tokens: int, dim: int, depth: int, patch_values: int) -> float:
    """Forward pass over one image; ``tokens`` counts the class token."""
    return depth * block_flops(tokens, dim) + 2.0 * (tokens - 1) * patch_values * dim


def self_decoder_flops(visible: int, tokens: int, encoder_dim: int, dim: int, depth: int, patch_values: int) -> float:
    """Forward pass over one image: ``visible`` encoder tokens among ``tokens``, class tokens included."""
    ends = 2.0 * visible * encoder_dim * dim + 2.0 * (tokens - 1) * dim * patch_values
    return depth * block_flops(tokens, dim) + ends


def cross_block_flops(visible: int, queries: int, encoder_dim: int, dim: int) -> float:
    """Forward pass of a block of the cross-attention decoder over one image."""
    linear = (4 + 16) * queries * dim**2 + 4.0 * visible * encoder_dim * dim  # q, proj, MLP; k and v
    return linear + 4.0 * queries * visible * dim


def cross_decoder_flops(
    visible: int, queries: int, encoder_dim: int, dim: int, depth: int, patch_values: int, maps: int
) -> float:
    """Forward pass over one image: ``queries`` predicted patches attend to ``visible`` encoder tokens in each block."""
    blocks = depth * cross_block_flops(visible, queries, encoder_dim, dim)
    mixtures = 2.0 * depth * maps * visible * encoder_dim
    return blocks + mixtures + 2.0 * queries * dim * patch_values


def block_kept(tokens: int, dim: int, half: bool, mlp_ratio: float = 4.0) -> float:
    """Bytes that a transformer block keeps: inputs of both norms in fp32, all else in the type of the products."""
    product = 2 if half else 4
    norms, rest = 2, 2 + 3 + 1 + mlp_ratio  # of both norms the outputs; q, k, v; attention; hidden
    return tokens * dim * (4 * norms + product * rest)


def cross_block_kept(visible: int, queries: int, dim: int, half: bool) -> float:
    """Bytes that a block of the cross-attention decoder keeps: the queries' path, keys and values."""
    product = 2 if half else 4
    return queries * dim * (4 * 2 + product * (2 + 1 + 1 + 4)) + visible * 2 * product * dim  # as block_kept, q alone


# ``again``: blocks are computed again in the backward pass, so that of each its inputs alone are kept. At the peak the
# block that is being computed keeps what it needs, besides.
def encoder_kept(tokens: int, dim: int, depth: int, half: bool, again: bool = False) -> float:
    return depth * (4.0 * tokens * dim if again else block_kept(tokens, dim, half))


def self_decoder_kept(
    visible: int, tokens: int, encoder_dim: int, dim: int, depth: int, half: bool, again: bool = False
) -> float:
    return encoder_kept(tokens, dim, depth, half, again) + visible * encoder_dim * (2 if half else 4)


def cross_decoder_kept(
    visible: int, queries: int, encoder_dim: int, dim: int, depth: int, half: bool, maps: int, again: bool = False
) -> float:
    """Bytes kept: of each block, of its mixture of the maps and the norm of it; the maps once."""
    product = 2 if half else 4
    of_block = 4.0 * queries * dim if again else cross_block_kept(visible, queries, dim, half)
    of_mixture = visible * encoder_dim * (4 + (4 if again else product))  # what the block is given, before its cast
    return depth * (of_block + of_mixture) + product * maps * visible * encoder_dim
