"""What the experiments share: pre-train once per setting, probe, and show the AUROCs of several seeds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from paired import verdicts

import hdxray_fast as hx
from hdxray_fast.classify.interval_text import interval_text
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.data.listing import list_images
from hdxray_fast.files import written_whole
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining

NO_PRETRAINING = "none"
# Of every pre-training, probe and rival, so that none sees before what another is chosen or tested on. A fifth of the
# images validate, for there are few.
SPLIT = {"val_share": 0.2, "test_share": 0.2, "split_seed": 0}


def training_images(labels: str, images: str | None, out: Path) -> tuple[Path, int]:
    """A manifest of the images that labels are learned from; the encoder sees none that validates or tests either."""
    table = read_labels(labels, images=images, **SPLIT)
    paths = [str(Path(path).resolve()) for path in table.split("train").paths]
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "pretrain.csv") as temporary, temporary.open("w", newline="") as stream:
        csv.writer(stream).writerows([["image"], *([path] for path in paths)])
    return out / "pretrain.csv", len(paths)


def refuse_held_out(data: str, labels: str, images: str | None) -> None:
    """End the program if images that validate or test are among those of ``data``, by their files."""
    table = read_labels(labels, images=images, **SPLIT)
    given = {Path(path).resolve() for path in list_images(data)}
    for split in ("val", "test"):
        if held := [path for path in table.split(split).paths if Path(path).resolve() in given]:
            raise SystemExit(
                f"--pretrain-data: {len(held)} images of {data} are in the split {split!r} of {labels} (the first is "
                f"{held[0]}); an encoder that has seen them is not to be chosen or tested on them: leave them out"
            )


def split_sizes(labels: str, images: str | None) -> dict[str, int]:
    """How many images train, validate and test whatever is made of these labels, and how many patients test."""
    table = read_labels(labels, images=images, **SPLIT)
    sizes = {split: len(table.split(split)) for split in ("train", "val", "test")}
    return {**sizes, "test_patients": len(set(table.split("test").patients))}


def pretrained(folder: Path, **settings) -> hx.Encoder:
    """The encoder of a pre-training run; a run that was cut off goes on, a finished one is read."""
    model = folder / "model"
    if not model.exists():
        result = run_pretraining(
            PretrainConfig(out=str(folder), resume="auto", picture_every=0, tensorboard=False, **settings)
        )
        if not result.finished:
            raise SystemExit(f"stopped; start again to go on with {folder}")
    return hx.create_encoder(weights=model)


def untrained(model: str, img_size: int, seed: int) -> hx.Encoder:
    """An encoder with random weights."""
    import torch

    torch.manual_seed(seed)
    return hx.create_encoder(model, img_size=img_size)


def probe_auroc(
    folder: Path, encoder: Callable[[], hx.Encoder], labels: str, images: str | None, seed: int, **settings
) -> dict:
    """:func:`test_auroc` of a linear probe; ``encoder`` is called if it was not measured before."""
    if not is_finished(folder):
        config = ProbeConfig(
            labels, str(folder), str(folder), images=images, pool="mean", seed=seed, calibrate="none",  # as the rival
            **SPLIT, **settings,
        )  # fmt: skip
        run_probe(config, encoder())
    return test_auroc(folder)


def is_finished(run: Path) -> bool:
    """Whether the folder of a run holds its test metrics."""
    return (run / "metrics.json").exists()


def test_auroc(run: Path) -> dict:
    """Test AUROC of a finished run, ``{"value", "low", "high"}``."""
    return json.loads((run / "metrics.json").read_text())["mean"]["auroc"]


def summary(aurocs: Mapping[str, Sequence[dict]], heading: str) -> str:
    """A Markdown table: mean and standard deviation over seeds, and each seed's interval over patients."""
    lines = [f"| {heading} | test AUROC, mean ± sd | each seed (95 % over patients) |", "|---|---|---|"]
    for name, seeds in aurocs.items():
        values = np.array([seed["value"] for seed in seeds])
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        each = ", ".join(interval_text(seed) for seed in seeds)
        lines.append(f"| {name} | {values.mean():.3f}{spread} | {each} |")
    return "\n".join(lines)


def write_results(
    out: Path, aurocs: Mapping[str, Sequence[dict]], heading: str, settings: dict, differences: Sequence[dict] = ()
) -> None:
    """``results.json``, ``table.md`` and ``auroc.png`` under ``out``; prints the table.

    Args:
        aurocs: of each setting, a row of :func:`probe_auroc` for each seed.
        heading: what the settings are.
        settings: JSON-able, of the whole experiment.
        differences: rows of :func:`paired.paired_differences`, those that sentences may rest on.
    """
    table = summary(aurocs, heading)
    if differences:
        table += f"\n\n{verdicts(differences)}"
    results = {"settings": settings, "auroc": dict(aurocs), "differences": list(differences)}
    for name, text in (("results.json", json.dumps(results, indent=1)), ("table.md", table)):
        with written_whole(out / name) as temporary:
            temporary.write_text(text + "\n")
    plot_aurocs(out / "auroc.png", aurocs, heading)
    print(f"{table}\n\ntable, plot and numbers are in {out}")


def plot_aurocs(path: Path, aurocs: Mapping[str, Sequence[dict]], heading: str, comment: str = "") -> None:
    """A dot and an interval per seed, side by side for each setting; ``comment`` goes into the PNG's own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.3 * len(aurocs), 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, seeds in enumerate(aurocs.values()):
        values = np.array([[s["value"], s["low"], s["high"]] for s in seeds], float)  # NaN: too few patients
        x = place + 0.16 * (np.arange(len(values)) - (len(values) - 1) / 2)
        error = np.abs(values[:, 1:].T - values[:, 0])
        axes.errorbar(x, values[:, 0], yerr=error, fmt="o", markersize=4, linewidth=0.9, color=f"C{place}")
        axes.hlines(values[:, 0].mean(), place - 0.32, place + 0.32, color=f"C{place}", linewidth=2.2)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xticks=range(len(aurocs)), xticklabels=list(aurocs), xlabel=heading, ylabel="test AUROC")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title("bar: mean of the seeds; dots: seeds, 95 % over patients", fontsize=9)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Comment": comment})
