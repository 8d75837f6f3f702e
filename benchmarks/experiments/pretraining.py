"""What pre-training gives: encoders that differ in one thing, and what is read off their frozen features.

    python benchmarks/experiments/pretraining.py strategies --labels labels.csv --out results/probe
    python benchmarks/experiments/pretraining.py resolutions --labels labels.csv --out results/resolution
    python benchmarks/experiments/pretraining.py shares --labels labels.csv --out results/shares
    ... --full                # ViT-B, for a GPU
    ... --seconds 540         # a slice of it: ends with status 75 until nothing is left to do

One pre-training for each row and seed, on training images alone; then a linear probe on all labels, on few (several
draws of patients, the same for all encoders), and the nearest neighbours. ``none`` is the untrained encoder.

``strategies``: what is masked, for equal numbers of masked patches and steps.
``resolutions``: canvases of several sizes; every size sees each image equally often.
``shares``: shares of the patients, each part of the next larger one, for equal steps.

Interrupted, it goes on, and a finished run is read; the table is written when all runs of it are finished, so that
nobody is led to stop when it looks good. Rows and seeds may grow in a later call.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path

import readings
import slices
from paired import paired_differences
from runs import (
    NO_PRETRAINING,
    SPLIT,
    images_of,
    is_finished,
    labels_as_kept,
    pretrain,
    probe_auroc,
    refuse_held_out,
    share_of_patients,
    split_sizes,
    test_auroc,
    training_images,
    untrained,
    write_manifest,
    write_results,
)
from slices import Slice, Unit

import hdxray_fast as hx
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.locks import RunLock

STRATEGIES = ("contour", "random", "rectangle", "block", NO_PRETRAINING)
REFERENCES = ("random", NO_PRETRAINING)
STEPS = {"model": "vit_tiny_patch16", "img_size": 320, "steps": 300, "batch_size": 16}
FULL_STEPS = {"model": "vit_base_patch16", "img_size": 1280, "steps": 20000, "batch_size": 64}


@dataclass(frozen=True)
class Axis:
    """What encoders differ in.

    Attributes:
        heading: of the table.
        rows: the usual ones.
        small, full: sizes without and with ``--full``.
        probe: settings of the probe.
    """

    heading: str
    rows: tuple[str, ...]
    small: dict
    full: dict
    probe: dict


AXES = {
    "strategies": Axis("masked in pre-training by", STRATEGIES, STEPS, FULL_STEPS, {}),
    "resolutions": Axis(
        "canvas, pixels", ("224", "640", "1280"),
        {"model": "vit_tiny_patch16", "epochs": 2, "batch_size": 8},
        {"model": "vit_base_patch16", "epochs": 400, "batch_size": 64},
        {"keep": "contour", "batch_size": 2},
    ),
    "shares": Axis("patients pre-trained on", (NO_PRETRAINING, "1/8", "1/4", "1/2", "1"), STEPS, FULL_STEPS, {}),
}  # fmt: skip


class Pretraining:
    """The experiment as it is told.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.axis = options, AXES[options.axis]
        usual = self.axis.full if options.full else self.axis.small
        self.size = {name: getattr(options, name) or default for name, default in usual.items()}
        self.rows: Sequence[str] = options.rows
        self.out: Path = options.out
        self.reading = (options.label_shares, options.label_draws)

    @cached_property
    def images(self) -> dict[str, str]:
        """To pre-train on, and the patient of each."""
        options = self.options
        if not options.pretrain_data:
            return training_images(options.labels, options.images)
        found = images_of(options.pretrain_data)
        refuse_held_out(options.pretrain_data, found, options.labels, options.images)
        return found

    @property
    def steps(self) -> int:
        if "steps" in self.size:
            return self.size["steps"]
        return math.ceil(self.size["epochs"] * len(self.images) / self.size["batch_size"])

    def settings(self) -> dict:
        """All that a run's numbers hang on but its row and seed."""
        found = {"axis": self.options.axis, **self.size, "steps": self.steps, "pretrain_images": len(self.images)}
        if self.options.pretrain_data:
            found["pretrain_data"] = self.options.pretrain_data
        shares, draws = self.reading
        return {**found, **self.axis.probe, "label_shares": shares, "label_draws": draws}

    def name(self, row: str, seed: int) -> str:
        return f"{row.replace('/', '_of_')}_{seed}"

    def label(self, row: str) -> str:
        """As the table has it."""
        return f"{row} × {row}" if self.options.axis == "resolutions" else row

    def pretraining(self, row: str, seed: int) -> dict:
        """Settings of a pre-training."""
        name, images = self.name(row, seed), list(self.images)
        found = {
            "model": self.size["model"], "steps": self.steps, "batch_size": self.size["batch_size"], "seed": seed,
            "img_size": self.size.get("img_size"), "cache": str(self.out / "cache"), "workers": self.options.workers,
        }  # fmt: skip
        if self.options.axis == "strategies":
            found["strategy"] = row
        elif self.options.axis == "resolutions":
            found["img_size"] = int(row)
        else:
            images = share_of_patients(self.images, float(Fraction(row)), seed)
        return {**found, "data": write_manifest(self.out / "pretrain" / f"{name}.csv", images)}

    def encoder(self, row: str, seed: int) -> hx.Encoder:
        if row == NO_PRETRAINING:
            return untrained(self.size["model"], self.size["img_size"], seed)
        return hx.create_encoder(weights=self.out / "pretrain" / self.name(row, seed) / "model")

    def units(self, piece: Slice) -> list[Unit]:
        """Pre-training, probe and readings of each run; all rows of a seed before the next seed."""
        return [
            unit
            for seed, row in itertools.product(self.options.seeds, self.rows)
            for unit in self._units_of(row, seed, piece)
        ]

    def _units_of(self, row: str, seed: int, piece: Slice) -> list[Unit]:
        options, name = self.options, self.name(row, seed)
        run, probe, read = (self.out / kind / name for kind in ("pretrain", "probes", "readings"))

        def learn() -> None:
            pretrain(run, piece.on_step, **self.pretraining(row, seed))

        def look() -> None:
            encoder = partial(self.encoder, row, seed)
            probe_auroc(
                probe, encoder, options.labels, options.images, seed, workers=options.workers, **self.axis.probe
            )

        def compare() -> None:
            table = read_labels(options.labels, images=options.images, **SPLIT)
            readings.read_run(probe, read, table, *self.reading)

        probed = partial(is_finished, probe)
        # a probe that is finished needs no encoder any more: what is large may be deleted
        learned = Unit(f"pre-training {name}", lambda: probed() or (run / "model").exists(), learn)
        rest = [
            Unit(f"probe {name}", probed, look),
            Unit(f"few labels {name}", partial(readings.is_read, read), compare),
        ]
        return rest if row == NO_PRETRAINING else [learned, *rest]

    def pairs(self) -> list[tuple[str, str]]:
        """Settings and what they are set against."""
        if self.options.axis != "strategies":
            return [(self.label(later), self.label(earlier)) for earlier, later in itertools.combinations(self.rows, 2)]
        return [
            (row, reference)
            for reference in REFERENCES
            for row in self.rows
            if reference in self.rows and row not in (reference, NO_PRETRAINING)
        ]

    def write(self) -> None:
        """The table of all runs."""
        options = self.options
        names = {self.label(row): [self.name(row, seed) for seed in options.seeds] for row in self.rows}
        runs = {row: [self.out / "probes" / name for name in found] for row, found in names.items()}
        read = {row: [self.out / "readings" / name for name in found] for row, found in names.items()}
        aurocs = {row: [test_auroc(folder) for folder in folders] for row, folders in runs.items()}
        settings = {
            **self.settings(), "rows": self.rows, "seeds": options.seeds,
            "images": split_sizes(options.labels, options.images),
        }  # fmt: skip
        write_results(
            self.out, aurocs, self.axis.heading, settings, paired_differences(runs, self.pairs()),
            readings.compared(read, self.pairs(), *self.reading),
        )  # fmt: skip


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    axes = parser.add_subparsers(dest="axis", required=True)
    for name, axis in AXES.items():
        command = axes.add_parser(name)
        slices.add_options(command, f"results/{name}")
        command.add_argument("--rows", nargs="+", default=list(axis.rows), help=f"default: {' '.join(axis.rows)}")
        command.add_argument("--pretrain-data", help="other radiographs to pre-train on: a folder or a manifest")
        command.add_argument("--full", action="store_true", help="full size, for a GPU")
        for option, value in axis.small.items():
            told = f"{value}, with --full {axis.full[option]}"
            command.add_argument(f"--{option.replace('_', '-')}", type=type(value), help=told)
        command.add_argument(
            "--label-shares", type=float, nargs="+", default=list(readings.SHARES), help="of the training images"
        )  # fmt: skip
        command.add_argument("--label-draws", type=int, default=5, help="of the patients of each share")
    options = parser.parse_args(arguments)
    for row in options.rows:
        if not is_row(options.axis, row):
            parser.error(f"--rows: {row!r} is not accepted for {options.axis}; accepted are {accepted(options.axis)}")
    if options.axis != "strategies":
        options.rows.sort(key=lambda row: 0.0 if row == NO_PRETRAINING else float(Fraction(row)))
    for name in ("rows", "seeds", "label_shares"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            parser.error(f"--{name.replace('_', '-')}: give different ones")
    if not all(0 < share <= 1 for share in options.label_shares) or options.label_draws < 1:
        parser.error("--label-shares are above 0 and up to 1, --label-draws at least 1")
    return options


def is_row(axis: str, row: str) -> bool:
    if axis == "strategies":
        return row in STRATEGIES
    if axis == "resolutions":
        return row.isdecimal() and int(row) > 0
    try:
        return row == NO_PRETRAINING or 0 < Fraction(row) <= 1
    except (ValueError, ZeroDivisionError):
        return False


def accepted(axis: str) -> str:
    if axis == "strategies":
        return ", ".join(STRATEGIES)
    return "sides in pixels" if axis == "resolutions" else f"{NO_PRETRAINING} and shares such as 1/8"


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
    """``arguments`` in place of those of the command line; ``clock`` is that of ``--seconds``."""
    options = parsed(arguments)
    piece, experiment = Slice(options.seconds, clock), Pretraining(options)
    with RunLock(options.out):
        kept = {**experiment.settings(), "labels": labels_as_kept(options.labels, options.images)}
        slices.begin(options.out, kept, "probes/*/metrics.json")
        table = read_labels(options.labels, images=options.images, **SPLIT)
        readings.labelled_rows(table, options.label_shares, 0)  # too small ones are refused now
        piece.work(experiment.units(piece))
        experiment.write()


if __name__ == "__main__":
    main()
