"""The demo: a real radiograph, from its DICOM file to a reconstruction and to features, in minutes on a laptop."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..data.csv_cells import write_table
from ..data.listing import list_images
from ..errors import MissingDependencyError, TrainingError
from ..extras import install
from ..files import begin_anew, claim_names, refuse_foreign, refuse_to_clear, written_whole
from ..pretrain.config import PretrainConfig
from ..progress import note
from ..terminal import counted, visible
from .program import program

DEMO_FILE = "RG1_UNCI.dcm"  # pydicom-data: 1955 x 1841, 15 bits stored, MONOCHROME1


@dataclass(frozen=True)
class DemoConfig:
    """Train a small model on a real chest radiograph and show what it reconstructs; then what the encoder that comes
    with the package sees in it.

    Args:
        out: folder for ``panel.png``, ``metrics.json``, ``features/`` and the run itself.
        data: your own radiograph, folder or CSV manifest, trained on along with the demo's.
        steps: optimizer steps.
        img_size: canvas side, pixels; 1280 is 6400 tokens.
        seed: of weights, augmentation and masks.
        device: where it trains: ``cpu`` or ``cuda``; a GPU if there is one by default.
    """

    out: str = "demo"
    data: str | None = None
    steps: int = 500
    img_size: int = 1280
    seed: int = 0
    device: str | None = None


def demo_radiograph() -> Path:
    """The real radiograph in the PyPI package ``pydicom-data``.

    Raises:
        MissingDependencyError: pydicom or pydicom-data is not installed.
    """
    try:
        from pydicom.data import get_testdata_file

        found = get_testdata_file(DEMO_FILE, download=False)
    except (ImportError, ValueError):
        found = None
    if not found:
        raise MissingDependencyError(
            f"the demo's radiograph comes from pydicom-data; install it with: {install('dicom', 'demo')}"
        )
    return Path(found)


def run_demo(config: DemoConfig) -> dict:
    """Run the demo and return what ``metrics.json`` holds.

    Raises:
        ConfigError: ``config.out`` holds files of the demo's names, or a folder ``run``, that the demo did not make.
        MissingDependencyError: pydicom or pydicom-data is not installed.
        TrainingError: it was told to stop (SIGTERM) before its last step.
    """
    from ..features.feature_pictures import draw_features
    from ..pretrain.task import run_pretraining
    from ..training.run_folder import LOG
    from ..weights.shipped import PRETRAINED

    out = Path(config.out)
    run = out / "run"
    paths = [demo_radiograph(), *(list_images(config.data) if config.data else [])]
    names, manifest = ("images.csv", "panel.png", "metrics.json", "cache"), out / "images.csv"
    refuse_foreign(out, "demo", names)
    refuse_foreign(out / "features", "features", ("unreadable.csv", f"{paths[0].stem}.features.png"))
    refuse_to_clear(run, "demo")
    claim_names(out, "demo", names)
    if (run / LOG).exists():
        note(f"{visible(run)}: the run of an earlier demo is replaced; another --out keeps it")
    begin_anew(run, "demo")  # each demo starts afresh
    with written_whole(manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_table(stream, ("image",), ([str(path.absolute())] for path in paths), names=("image",))
    lines: list[dict] = []
    training = PretrainConfig(
        data=str(manifest),
        out=str(run),
        cache=str(out / "cache"),
        model="vit_tiny_patch16",
        decoder="cross",
        img_size=config.img_size,
        augment=False,  # one radiograph and a few minutes: the model learns this image by heart
        norm_pix_loss=False,  # so that the picture shows raw predictions, nothing borrowed from the original
        steps=config.steps,
        batch_size=1,
        lr=2e-3,
        weight_decay=0.0,
        save_every=config.steps,
        picture_every=0,
        tensorboard=False,
        seed=config.seed,
        device=config.device,
    )
    try:
        result = run_pretraining(training, on_step=lines.append)
    except KeyboardInterrupt:
        note(_stopped(lines, config))
        raise
    if not result.finished:  # there is no picture, nor a model
        raise TrainingError(_stopped(lines, config))
    inside, confidence = (result.images.column(name)[0].as_py() for name in ("inside_share", "confidence"))
    with written_whole(out / "panel.png") as temporary:
        shutil.copyfile(result.picture, temporary)
    drawn = draw_features(paths[0], PRETRAINED, out / "features", img_size=config.img_size, force=True)
    metrics = {
        "image": result.images.source(0),
        "loss_first": result.losses[0],
        "loss_last": result.losses[-1],
        "seconds_per_step": round(result.seconds_per_step, 4),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "tokens_total": (config.img_size // 16) ** 2,
        "tokens_kept": lines[-1]["tokens_kept"],
        "inside_share": round(inside, 4),
        "contour_confidence": round(confidence, 4),
        "steps": config.steps,
        "features": [str(picture) for picture in drawn.pictures.values()],
    }
    with written_whole(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _stopped(lines: list[dict], config: DemoConfig) -> str:
    """What a demo that ends before its last step says; ``lines`` are of the log."""
    at = lines[-1]["step"] if lines else 0
    other = f"{program()} features YOUR_FOLDER --weights pretrained --out pictures"
    return (
        f"the demo was stopped at step {at} of {config.steps}, before its pictures; it begins anew each time (--steps "
        f"takes fewer); pictures that need no training: {other}"
    )


def _short(metrics: dict) -> str:
    """What a demo of fewer steps than usual says of its picture."""
    if metrics["steps"] >= DemoConfig.steps:
        return ""
    minutes = max(1, round(metrics["seconds_per_step"] * DemoConfig.steps / 60))
    usual = f"{DemoConfig.steps} take about {counted(minutes, 'minute')} here"
    return f"          after {metrics['steps']} steps it is less than the demo can show; the usual {usual}\n"


def describe(metrics: dict, out: str | Path) -> str:
    """What the demo did and what to do next, for the terminal."""
    out = Path(out)
    return f"""
read      {metrics["image"]}
contour   {metrics["inside_share"]:.0%} of the patches inside, confidence {metrics["contour_confidence"]:.2f}
tokens    {metrics["tokens_kept"]} of {metrics["tokens_total"]} shown to the encoder
loss      {metrics["loss_first"]:.4f} at the first step, {metrics["loss_last"]:.4f} at step {metrics["steps"]}
speed     {metrics["seconds_per_step"]:.2f} s a step, {metrics["peak_rss_mib"]:.0f} MiB peak memory

picture   {out / "panel.png"}   <- open this one: what was reconstructed
{_short(metrics)}features  {" ".join(metrics["features"])}   <- and this one: what a pre-trained encoder sees
figures   {out / "metrics.json"}
model     {out / "run" / "model"}   (hdxray_fast.load_model)

next      {program()} pretrain --data YOUR_FOLDER --out runs/first --steps 1000
          {program()} probe --data YOUR_LABELS.csv --weights pretrained --out results/probe
          {program()} predict YOUR_FOLDER --model results/probe --out predictions.csv
          {program()} contour YOUR_FOLDER --out contours
          {program()} doctor
"""


def peak_rss_mib() -> float:
    """Peak resident memory of this process, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB elsewhere


def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    demo = parser_class(
        examples=["demo", "demo --data chest.dcm --out demo-of-mine"],
        description="Train a small model on a real radiograph and show what it reconstructs.",
    )
    demo.add_class_arguments(DemoConfig)
    commands.add_subcommand("demo", demo)


def run_demo_command(**options) -> int:
    metrics = run_demo(DemoConfig(**options))
    print(describe(metrics, options["out"]))
    return 0


COMMANDS = {"demo": run_demo_command}
