"""The GPU cases and their bars: what the benchmarks run and what docs/benchmarks.md shows, measured or not.

A bar is the least ratio rival / ours that the project promises, on an H100 or H200. The bars are held against the
fastest rival of those named; a case without one is there to be known.
"""

from __future__ import annotations

from dataclasses import dataclass

SDPA = "the fastest SDPA backend"
COPY = "a copy of the bytes it must touch"
EAGER = "eager PyTorch"
COMPILED = "torch.compile"
PLAIN, PLAIN_COMPILED = "plain MAE, timm blocks", "plain MAE, timm blocks, compiled"
PLAIN_MEMORY = 0.35  # of the plain MAE's peak memory
PNG_LOADER = "PNG files through PyTorch's DataLoader"
RUN_OF_STEP = 0.95  # the share of the step's own rate that a run keeps
RUNS = {  # size: {batch: images a second that are promised}
    "base": {32: 500, 16: 450},
    "small": {32: 900},
    "large": {16: None},
}
RUN_CPU = 4 / 500  # CPU seconds an image: 4 cores at 500 images a second


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        bench: the file it is in, ``bench_<bench>.py``.
        title: what the row is called.
        rival: whom the bar is held against, in words.
    """

    bench: str
    title: str
    rival: str
    bar: float | None = None


CASES = {
    "dense 64 forward": Case("gpu_attention", "attention forward, S = 6401, 12 × D = 64, bf16", SDPA, 1.1),
    "dense 64 training": Case("gpu_attention", "attention forward + backward, S = 6401, 12 × D = 64, bf16", SDPA, 1.0),
    "dense 32 forward": Case("gpu_attention", "attention forward, S = 6401, 16 × D = 32, bf16", SDPA, 1.5),
    "dense 32 training": Case("gpu_attention", "attention forward + backward, S = 6401, 16 × D = 32, bf16", SDPA, 1.3),
    "ragged forward": Case(
        "gpu_attention", "attention forward, 64 images of 500–900 tokens, 12 × D = 64, bf16", "padded SDPA"
    ),
    "ragged training": Case(
        "gpu_attention",
        "attention forward + backward, 64 images of 500–900 tokens, 12 × D = 64, bf16",
        "padded SDPA",
        1.5,
    ),
    "ragged training varlen": Case(
        "gpu_attention",
        "attention forward + backward, 64 images of 500–900 tokens, 12 × D = 64, bf16; varlen",
        "torch's varlen attention",
        1.1,
    ),
    "cross forward": Case(
        "gpu_attention", "attention forward, 64 × 1440 queries to 641 keys, 8 × D = 64, bf16", "the fastest rival"
    ),
    "cross training": Case(
        "gpu_attention",
        "attention forward + backward, 64 × 1440 queries to 641 keys, 8 × D = 64, bf16",
        "the fastest rival",
    ),
    "gather copy": Case("gpu_pixels", "gather, 64 × 1280² uint8 → bf16, share of the copy bandwidth", COPY, 0.65),
    "gather eager": Case("gpu_pixels", "gather, 64 × 1280² uint8 → bf16, kept patches", EAGER, 10),
    "gather compiled": Case("gpu_pixels", "gather, 64 × 1280² uint8 → bf16, kept patches; compiled rivals", COMPILED),
    "loss forward": Case("gpu_pixels", "loss, 64 × 1280² uint8, bf16 predictions, forward", f"{EAGER}, {COMPILED}"),
    "loss training": Case(
        "gpu_pixels", "loss, 64 × 1280² uint8, bf16 predictions, forward + backward", f"{EAGER}, {COMPILED}", 1.2
    ),
    "mixture forward": Case(
        "gpu_pixels",
        "8 mixtures of 13 maps of 21,504 × 768 (ViT-B, batch 32), forward",
        "product with the stacked maps",
    ),
    "mixture training": Case(
        "gpu_pixels", "8 mixtures of 13 maps of 21,504 × 768, forward + backward", "product with the stacked maps"
    ),
    "mask plan": Case("gpu_pixels", "mask plan, 64 × 80 × 80, with bounds (no host sync)", "argsort masking"),
    "mask plan synced": Case("gpu_pixels", "mask plan, 64 × 80 × 80, without bounds", "argsort masking"),
    "encoder all": Case("gpu_encoder", "encoder ViT-B/16, all 6400 patches, bf16", "timm's ViT over all patches"),
    "encoder contour": Case(
        "gpu_encoder", "encoder ViT-B/16, patches inside the contour, bf16", "timm's ViT over all patches", 2.5
    ),
    "finetune contour": Case(
        "gpu_encoder",
        "fine-tuning step ViT-B/16, patches inside the contour, bf16",
        "timm's ViT over all patches",
        4,
    ),
    "finetune contour, compiled": Case(
        "gpu_encoder",
        "fine-tuning step ViT-B/16, patches inside the contour, bf16; both compiled",
        "timm's ViT over all patches, compiled",
    ),
    "step base cross": Case("gpu_mae", "MAE step, ViT-B/16, cross decoder, bf16", PLAIN, 5),
    "step base cross, compiled rival": Case(
        "gpu_mae", "MAE step, ViT-B/16, cross decoder, bf16; compiled rival", PLAIN_COMPILED
    ),
    "memory base cross": Case(
        "gpu_mae", "peak memory of an MAE step, ViT-B/16, cross decoder, bf16", PLAIN, 1 / PLAIN_MEMORY
    ),
    # No bar: three quarters of this step are attention at D = 32, which its exponentials alone bound (NOTES.md).
    "step base self": Case("gpu_mae", "MAE step, ViT-B/16, self decoder, bf16", PLAIN),
    "step base self, compiled rival": Case(
        "gpu_mae", "MAE step, ViT-B/16, self decoder, bf16; compiled rival", PLAIN_COMPILED
    ),
    "memory base self": Case("gpu_mae", "peak memory of an MAE step, ViT-B/16, self decoder, bf16", PLAIN),
    "step large cross": Case("gpu_mae", "MAE step, ViT-L/16, cross decoder, bf16", PLAIN, 3.5),
    "step large cross, compiled rival": Case(
        "gpu_mae", "MAE step, ViT-L/16, cross decoder, bf16; compiled rival", PLAIN_COMPILED
    ),
    "memory large cross": Case("gpu_mae", "peak memory of an MAE step, ViT-L/16, cross decoder, bf16", PLAIN),
    "step large self": Case("gpu_mae", "MAE step, ViT-L/16, self decoder, bf16", PLAIN),
    "step large self, compiled rival": Case(
        "gpu_mae", "MAE step, ViT-L/16, self decoder, bf16; compiled rival", PLAIN_COMPILED
    ),
    "memory large self": Case("gpu_mae", "peak memory of an MAE step, ViT-L/16, self decoder, bf16", PLAIN),
    "step base cross compiled": Case("gpu_mae_compiled", "MAE step, ViT-B/16, cross decoder, bf16; compiled", PLAIN, 8),
    "step base cross compiled, compiled rival": Case(
        "gpu_mae_compiled", "MAE step, ViT-B/16, cross decoder, bf16; both compiled", PLAIN_COMPILED, 6
    ),
}


def run_cases(size: str, batch: int, promised: float | None) -> dict[str, Case]:
    """The rows of a watched pre-training run; those of the run of ViT-B at batch 32 tell of CPU and memory as well."""
    key, bench = f"run {size} {batch}", "gpu_pretrain"
    title = f"pre-training run, ViT-{size[0].upper()}/16, batch {batch}, bf16"
    cases = {}
    if promised:
        cases[key] = Case(bench, f"{title}; the promise", f"the promised {promised} images/s", 1)
    cases[f"{key}, of its step"] = Case(bench, f"{title}; of its step's rate", "the step alone", RUN_OF_STEP)
    cases[f"{key}, plain"] = Case(bench, title, f"{PLAIN}; {PNG_LOADER}")
    cases[f"{key}, plain compiled"] = Case(bench, f"{title}; compiled rival", f"{PLAIN_COMPILED}; {PNG_LOADER}")
    if key == "run base 32":
        cases[f"{key}, cpu"] = Case(bench, f"CPU time an image of a {title}", "the promised 4 cores at 500 images/s", 1)
        cases[f"{key}, memory"] = Case(bench, f"peak memory of a {title}", f"{PLAIN}; {PNG_LOADER}")
    return cases


for _size, _batches in RUNS.items():
    for _batch, _promised in _batches.items():
        CASES |= run_cases(_size, _batch, _promised)
