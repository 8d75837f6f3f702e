"""Fine-tuned encoders, linear probes and a rival from scratch on the same test patients: a table, differences by pairs.

    python benchmarks/experiments/finetuning.py --labels labels.csv --probe results/probe --rival results/rival \\
        --out results/finetuning [--seconds 540]

Fine-tunes the encoder that pretraining.py pre-trained with contour masks, for each seed its own, and one with random
weights of the same size; reads the probes, and what rival.py trained. Interrupted, it goes on; finished, it reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import slices
from paired import paired_differences
from runs import NO_PRETRAINING, fine_tune, is_finished, labels_as_kept, split_sizes, test_auroc, write_results
from slices import Slice, Unit

from hdxray_fast.locks import RunLock

TUNED, SCRATCH = "fine-tuned, pre-trained with contour masks", "fine-tuned, random weights"
PROBE, UNTRAINED = "linear probe, pre-trained with contour masks", "linear probe, random weights"
RIVAL = "from scratch"
SETTINGS = {"epochs": 6, "batch_size": 16, "keep": "contour"}


def finished(folder: Path, names: Sequence[str]) -> list[Path]:
    """Runs below a folder.

    Raises:
        SystemExit: one is not finished.
    """
    found = [folder / name for name in names]
    for run in found:
        if not is_finished(run):
            raise SystemExit(f"{run}: no finished run; finish it first, or give other --seeds")
    return found


def own_runs(options: argparse.Namespace) -> dict[str, list[Path]]:
    """Folders of the runs that are trained here, by seed."""
    kinds = {TUNED: "tuned", SCRATCH: "scratch"}
    return {name: [options.out / f"{kind}_{seed}" for seed in options.seeds] for name, kind in kinds.items()}


def units(options: argparse.Namespace, begun: dict, settings: dict, piece: Slice) -> list[Unit]:
    """Both fine-tunings of each seed."""
    made, runs = [], own_runs(options)
    for number, seed in enumerate(options.seeds):
        for name, folders in runs.items():
            folder = folders[number]
            source = {"model": begun["model"]}
            if name == TUNED:
                source = {"weights": str(options.probe / "pretrain" / f"contour_{seed}" / "model")}
                if not (is_finished(folder) or Path(source["weights"]).exists()):
                    raise SystemExit(
                        f"{source['weights']}: is not there; it is pre-trained by pretraining.py strategies"
                    )
            work = partial(
                fine_tune, folder, piece.on_step, data=options.labels, images=options.images, seed=seed,
                cache=str(options.out / "cache"), workers=options.workers, **source, **settings,
            )  # fmt: skip
            made.append(Unit(folder.name, partial(is_finished, folder), work))
    return made


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
    """``arguments`` in place of those of the command line; ``clock`` is that of ``--seconds``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    slices.add_options(parser, "results/finetuning")
    parser.add_argument("--probe", type=Path, required=True, help="of pretraining.py strategies")
    parser.add_argument("--rival", type=Path, required=True, help="of rival.py")
    parser.add_argument("--model", default="resnet18", help="the rival's name in timm")
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=str(value))
    options = parser.parse_args(arguments)
    rival = f"{options.model} {RIVAL}"
    runs = {
        **own_runs(options),
        rival: finished(options.rival, [f"{options.model}_{seed}" for seed in options.seeds]),
        PROBE: finished(options.probe / "probes", [f"contour_{seed}" for seed in options.seeds]),
        UNTRAINED: finished(options.probe / "probes", [f"{NO_PRETRAINING}_{seed}" for seed in options.seeds]),
    }
    begun = slices.recorded(options.probe)
    if begun is None:
        raise SystemExit(f"{options.probe}: holds no {slices.RECORD}; name the --out of pretraining.py strategies")
    kept = labels_as_kept(options.labels, options.images)
    if begun["labels"] != kept:
        raise SystemExit(f"{options.probe}: its encoders were pre-trained with other --labels; give the same")
    settings = {"img_size": begun["img_size"], **{name: getattr(options, name) for name in SETTINGS}}
    piece = Slice(options.seconds, clock)
    with RunLock(options.out):
        slices.begin(options.out, {**settings, "pretraining": begun}, "*_*/metrics.json")
        piece.work(units(options, begun, settings, piece))
        asked = [(TUNED, SCRATCH), (PROBE, TUNED), (rival, TUNED), (rival, SCRATCH), (rival, PROBE), (rival, UNTRAINED)]
        aurocs = {name: [test_auroc(run) for run in found] for name, found in runs.items()}
        told = {**settings, "seeds": options.seeds, "images": split_sizes(options.labels, options.images)}
        write_results(options.out, aurocs, "what", told, paired_differences(runs, asked))


if __name__ == "__main__":
    main()
