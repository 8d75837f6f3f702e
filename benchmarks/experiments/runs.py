"""What the experiments share: pre-train once per setting, probe or fine-tune, and show AUROCs of several seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from paired import verdicts
from readings import readings_text
from slices import STOPPED

import hdxray_fast as hx
from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.finetune import run_finetuning
from hdxray_fast.classify.interval_text import interval_text
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.classify.probe import run_probe
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.data.csv_cells import write_table
from hdxray_fast.data.listing import list_images, manifest_rows
from hdxray_fast.data.splits import patient_place
from hdxray_fast.data.table_text import TABLE_FILES
from hdxray_fast.files import written_whole
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.task import run_pretraining

NO_PRETRAINING = "none"
# Of every pre-training, probe and rival, so that none sees before what another is chosen or tested on. A fifth of the
# images validate, for there are few.
SPLIT = {"val_share": 0.2, "test_share": 0.2, "split_seed": 0}
KEPT = {"resume": "auto", "keep_checkpoints": 1, "save_minutes": 2}  # what a machine taken away meanwhile can cost


def training_images(labels: str, images: str | None) -> dict[str, str]:
    """Images that labels are learned from, and the patient of each; the encoder sees none that validates or tests."""
    train = read_labels(labels, images=images, **SPLIT).split("train")
    return {str(Path(path).resolve()): patient for path, patient in zip(train.paths, train.patients, strict=True)}


def images_of(data: str) -> dict[str, str]:
    """Images of a folder or manifest, and the patient of each as the manifest says; blank where it does not."""
    paths = [str(Path(path).resolve()) for path in list_images(data)]
    if Path(data).suffix.lower() not in TABLE_FILES:
        return dict.fromkeys(paths, "")
    known = {str(Path(path).resolve()): patient for path, patient in manifest_rows(data, Path(data).parent).items()}
    return {path: known.get(path, "") for path in paths}


def share_of_patients(images: Mapping[str, str], share: float, seed: int) -> list[str]:
    """Images of a share of the patients, which holds those of each smaller one; without a patient each is its own."""
    own = {path: patient or path for path, patient in images.items()}
    ordered = sorted(set(own.values()), key=lambda patient: (patient_place(patient, seed), patient))
    taken = set(ordered[: max(1, round(share * len(ordered)))])
    return [path for path, patient in own.items() if patient in taken]


def write_manifest(path: Path, images: Sequence[str]) -> str:
    """A manifest of images to pre-train on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, ["image"], [[image] for image in images], names=("image",))
    return str(path)


def refuse_held_out(data: str, given: Iterable[str], labels: str, images: str | None) -> None:
    """End the program if images that validate or test are among the files ``given`` of ``data``."""
    table = read_labels(labels, images=images, **SPLIT)
    given = {Path(path).resolve() for path in given}
    for split in ("val", "test"):
        if held := [path for path in table.split(split).paths if Path(path).resolve() in given]:
            raise SystemExit(
                f"--pretrain-data: {len(held)} images of {data} are in the split {split!r} of {labels} (the first is "
                f"{held[0]}); an encoder that has seen them is not to be chosen or tested on them: leave them out"
            )


def labels_as_kept(labels: str, images: str | None) -> dict:
    """Hashes of the labels and how they are split, JSON-able, to know them again; no patient can be told from them."""
    return read_labels(labels, images=images, **SPLIT).origin


def split_sizes(labels: str, images: str | None) -> dict[str, int]:
    """How many images train, validate and test whatever is made of these labels, and how many patients test."""
    table = read_labels(labels, images=images, **SPLIT)
    sizes = {split: len(table.split(split)) for split in ("train", "val", "test")}
    return {**sizes, "test_patients": len(set(table.split("test").patients))}


def pretrained(folder: Path, on_step: Callable[[dict], None] | None = None, **settings) -> hx.Encoder:
    """The encoder of a pre-training run; a run that was cut off goes on, a finished one is read.

    Raises:
        SystemExit: it was told to stop; with ``STOPPED``.
    """
    pretrain(folder, on_step, **settings)
    if not (folder / "model").exists():
        print(f"stopped; start again to go on with {folder}")
        raise SystemExit(STOPPED)
    return hx.create_encoder(weights=folder / "model")


def pretrain(folder: Path, on_step: Callable[[dict], None] | None = None, **settings) -> None:
    """Pre-train to the end, which leaves ``model`` in the folder, or until told to stop."""
    if (folder / "model").exists():
        return
    settings = {"picture_every": 0, "tensorboard": False, **KEPT, **settings}
    if run_pretraining(PretrainConfig(out=str(folder), **settings), on_step=on_step).finished:
        shutil.rmtree(folder / "checkpoints")


def fine_tune(folder: Path, on_step: Callable[[dict], None] | None = None, **settings) -> None:
    """Fine-tune to the end, which leaves test metrics in the folder, or until told to stop."""
    settings = {"tensorboard": False, **KEPT, **SPLIT, **settings}
    (result,) = run_finetuning(FinetuneConfig(out=str(folder), **settings), on_step=on_step)
    if result.finished:
        shutil.rmtree(folder / "checkpoints")


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
    out: Path,
    aurocs: Mapping[str, Sequence[dict]],
    heading: str,
    settings: dict,
    differences: Sequence[dict] = (),
    readings: dict | None = None,
) -> None:
    """``results.json``, ``table.md`` and ``auroc.png`` under ``out``; prints the table.

    Args:
        aurocs: of each setting, a row of :func:`probe_auroc` for each seed.
        heading: what the settings are.
        settings: JSON-able, of the whole experiment.
        differences: rows of :func:`paired.paired_differences`, those that sentences may rest on.
        readings: of the same encoders with fewer labels, as :func:`readings.compared` gives them.
    """
    table = summary(aurocs, heading)
    if differences:
        table += f"\n\n{verdicts(differences)}"
    results = {"settings": settings, "auroc": dict(aurocs), "differences": list(differences)}
    if readings:
        table += f"\n\n{readings_text(readings, heading)}"
        results["readings"] = readings
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
