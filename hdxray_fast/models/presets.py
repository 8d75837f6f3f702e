"""The presets of encoders: a table, which needs no torch to be read."""

from __future__ import annotations

# name: (embed_dim, depth, num_heads), and width and depth of the decoder that goes with it in pre-training
_SIZES = {
    "tiny": ((192, 12, 3), (192, 4)),  # MAE's 8 x 512 would be ten times the work of a tiny encoder
    "small": ((384, 12, 6), (512, 8)),
    "base": ((768, 12, 12), (512, 8)),
    "large": ((1024, 24, 16), (512, 8)),
    "huge": ((1280, 32, 16), (512, 8)),
}
STEMS = {"patch16": 16, "stem64": 64}  # patch size, pixels
ENCODERS = {
    f"vit_{size}_{stem}": {"patch_size": patch, "stem": stem, "embed_dim": dim, "depth": depth, "num_heads": heads}
    for stem, patch in STEMS.items()
    for size, ((dim, depth, heads), _) in _SIZES.items()
}
DECODER_SIZES = {f"vit_{size}_{stem}": decoder for stem in STEMS for size, (_, decoder) in _SIZES.items()}
DEFAULT_DECODER = (512, 8)  # MAE's
