"""Fine-tuning, linear probes and a rival from scratch on the same test patients: a table, and differences by pairs.

    python benchmarks/experiments/finetuning.py --labels labels.csv --probe results/probe --finetune results/finetune \\
        --scratch results/scratch --rival results/rival --out results/finetuning

Trains nothing: reads the runs that probe.py, `hdxray-fast finetune` (from an encoder pre-trained with contour masks,
and from random weights) and rival.py left in these folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paired import paired_differences
from runs import split_sizes, test_auroc, write_results

from hdxray_fast.classify.prediction_files import PREDICTIONS

TUNED, SCRATCH = "fine-tuned, pre-trained with contour masks", "fine-tuned, random weights"
PROBE, UNTRAINED = "linear probe, pre-trained with contour masks", "linear probe, random weights"
RIVAL = "from scratch"


def runs_under(folder: Path, pattern: str) -> list[Path]:
    """The runs that match, by seed; the folder itself if it is a run.

    Raises:
        SystemExit: there is none that is finished.
    """
    if (folder / PREDICTIONS).exists():
        return [folder]
    if found := sorted(path.parent for path in folder.glob(f"{pattern}/{PREDICTIONS}")):
        return found
    raise SystemExit(f"{folder}: no {pattern}/{PREDICTIONS}; name the folder of a finished run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="CSV manifest that all runs were made with")
    parser.add_argument("--images", help="folder that relative paths in the manifest start from")
    parser.add_argument("--probe", type=Path, required=True, help="of probe.py")
    parser.add_argument("--finetune", type=Path, required=True, help="of hdxray-fast finetune, pre-trained weights")
    parser.add_argument("--scratch", type=Path, required=True, help="of hdxray-fast finetune, random weights")
    parser.add_argument("--rival", type=Path, required=True, help="of rival.py")
    parser.add_argument("--model", default="resnet18", help="the rival's name in timm")
    parser.add_argument("--out", type=Path, default=Path("results/finetuning"))
    options = parser.parse_args()
    rival = f"{options.model} {RIVAL}"
    runs = {
        TUNED: runs_under(options.finetune, "fraction_*/seed_*"),
        SCRATCH: runs_under(options.scratch, "fraction_*/seed_*"),
        rival: runs_under(options.rival, f"{options.model}_*"),
        PROBE: runs_under(options.probe, "probes/contour_*"),
        UNTRAINED: runs_under(options.probe, "probes/none_*"),
    }
    asked = [(TUNED, SCRATCH), (PROBE, TUNED), (rival, TUNED), (rival, SCRATCH), (rival, PROBE), (rival, UNTRAINED)]
    aurocs = {name: [test_auroc(run) for run in found] for name, found in runs.items()}
    settings = {"images": split_sizes(options.labels, options.images)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_results(options.out, aurocs, "what", settings, paired_differences(runs, asked))


if __name__ == "__main__":
    main()
