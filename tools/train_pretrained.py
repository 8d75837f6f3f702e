"""Pre-train the encoder that comes with the package, and put it there.

    python tools/train_pretrained.py --data sets/chestxray14 --out runs/pretrained            # on a GPU: minutes
    python tools/train_pretrained.py --data sets/chestxray14 --out runs/pretrained --steps 20000   # longer, from there
    python tools/train_pretrained.py --out runs/pretrained --ship                             # what came of it

Interrupted, the same command goes on; with more ``--steps`` a run goes on that has ended (schedule ``wsd``). The recipe
depends on the machine: a GPU looks at whole canvases under the usual ratios, which a CPU would take days for; it looks
at windows of them, under lower ones. Only radiographs that may be given on belong into the set (ChestX-ray14 asks to be
named), and none of a patient that the encoder is to be tested on.

``--ship`` writes the encoder's tensors (float16; the positions are computed on loading) and its settings into the
package. The model card beside them is written by hand: recipe, figures, and the commands that gave them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from hdxray_fast.files import save_tensors, written_whole
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining
from hdxray_fast.weights.create import create_encoder
from hdxray_fast.weights.hub_files import CARD_FILE
from hdxray_fast.weights.model_folders import CONFIG_FILE, MODEL_FILE, describe_model
from hdxray_fast.weights.shipped import READ_BEST

NAME = "vit_tiny_patch16"
BLOCKS_READ_BEST = 8  # of 12, by a linear probe cross-validated on training patients; see the model card
HOME = Path(__file__).resolve().parents[1] / "hdxray_fast" / "weights" / "pretrained" / NAME
# seen at scales down to a half: it is for canvases of 1280 pixels and of 640
COMMON = {"model": NAME, "min_scale": 0.5, "schedule": "wsd", "save_minutes": 10, "seed": 0, "resume": "auto"}
ON_GPU = {"batch_size": 64, "steps": 4700, "warmup_steps": 400}  # 300,000 views
# ratios in a window are lower, so that what is kept lies about as close as all patches later do; 233,600 views
ON_CPU = {
    "batch_size": 16, "steps": 14600, "warmup_steps": 200, "window": 448, "ratio_inside": 0.8, "ratio_outside": 0.65,
    "precision": "bf16", "compile": "on",
}  # fmt: skip


def ship(run: Path) -> None:
    """The encoder of a run into the package."""
    encoder = create_encoder(weights=run, began_from=HOME.name)
    tensors = {name: value.half().contiguous() for name, value in encoder.state_dict().items() if name != "pos_embed"}
    if bad := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise SystemExit(f"{run}: {bad[0]} has no finite float16")
    HOME.mkdir(parents=True, exist_ok=True)
    with written_whole(HOME / MODEL_FILE) as temporary:
        save_tensors(tensors, temporary, {"format": "pt"})
    config = {**describe_model(encoder)[CONFIG_FILE], READ_BEST: BLOCKS_READ_BEST}
    (HOME / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    steps = json.loads((run / "config.json").read_text())["steps"]
    print(f"{(HOME / MODEL_FILE).stat().st_size / 1e6:.1f} MB in {HOME}, of {steps:,} steps; now its {CARD_FILE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a prepared set of 1280 x 1280, or a manifest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--steps", type=int, help="of 64 views on a GPU, and of 16 windows on a CPU; left out, 4,700 and 14,600"
    )
    parser.add_argument("--ship", action="store_true", help="put the encoder of the run into the package")
    options = parser.parse_args()
    if not options.ship:
        if not options.data:
            parser.error("--data: name the radiographs")
        recipe = COMMON | (ON_GPU if torch.cuda.is_available() else ON_CPU)
        recipe |= {"steps": options.steps} if options.steps else {}
        run_pretraining(PretrainConfig(data=options.data, out=str(options.out), **recipe))
    else:
        ship(options.out)


if __name__ == "__main__":
    main()
