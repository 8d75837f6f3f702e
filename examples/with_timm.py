"""timm's own scripts with this package's encoders: whatever script is named runs with the models in timm's registry.

    python examples/with_timm.py pytorch-image-models/train.py --data-dir xrays --model hdxray_vit_tiny_patch16_1280 \
        --in-chans 1 --img-size 1280 --num-classes 2 --pretrained --pretrained-path my_encoder/model.safetensors
    python examples/with_timm.py pytorch-image-models/validate.py xrays --model hdxray_vit_tiny_patch16_1280 \
        --in-chans 1 --img-size 1280 --num-classes 2 --checkpoint output/train/.../model_best.pth.tar

timm has no entry point for models of other packages; `import hdxray_fast` is what enters them, and this is all that
happens here. `train.py` and `validate.py` are in timm's repository and in none of its wheels. Several GPUs:
`torchrun --nproc-per-node 4 examples/with_timm.py pytorch-image-models/train.py ...`.
Needs: pip install '.[timm]'
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import hdxray_fast  # noqa: F401  (enters the models into timm's registry)


def main(script: str | Path, *arguments: str) -> dict:
    """Run ``script`` as ``python script arguments`` would; gives the names that it defined."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))  # where Python looks first for what the script imports
    try:
        return runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
