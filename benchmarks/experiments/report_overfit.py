"""Can a report model learn real pairs by heart? It trains on a few radiographs and texts, and writes on the same.

    python benchmarks/experiments/report_overfit.py --data pairs.csv --report-column report --out results/overfit

It shows that radiographs reach the decoder and that training, saving, loading and writing are one whole: a model that
did not look at its images could not tell the pairs apart. It says nothing about new patients. The encoder is frozen:
that of ``--weights``, or an untrained one, or with ``--pretrain-steps`` one that was pre-trained on the same images.
Interrupted, it goes on. ``<out>/overfit.md`` holds times, scores and texts side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from pathlib import Path

import torch
from runs import pretrained
from slices import begin

from hdxray_fast.files import written_whole
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.evaluate import evaluate_reports
from hdxray_fast.reports.evaluation_files import write_evaluation
from hdxray_fast.reports.layouts import read_studies
from hdxray_fast.reports.run import run_report_training
from hdxray_fast.reports.writing import write_reports
from hdxray_fast.weights.model_folders import save_model

SHOWN = 6  # texts in overfit.md


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CSV with images and texts")
    parser.add_argument("--images", help="folder that relative paths start from")
    parser.add_argument("--report-column", default="report")
    parser.add_argument("--out", default="results/report_overfit")
    parser.add_argument("--pairs", type=int, default=40, help="the first so many with different texts")
    parser.add_argument("--weights", help="of the encoder")
    parser.add_argument("--encoder", default="vit_tiny_patch16", help="preset, without --weights")
    parser.add_argument("--pretrain-steps", type=int, default=0)
    parser.add_argument("--img-size", type=int, default=1280)
    parser.add_argument("--decoder", default="transformer", help="transformer or relational")
    parser.add_argument("--keep", default="contour", help="all, valid or contour")
    parser.add_argument("--visual-tokens", type=int, default=49)
    parser.add_argument("--max-length", type=int, default=160)
    parser.add_argument("--width", type=int, default=192, help="of the decoder; R2Gen has 512")
    parser.add_argument("--layers", type=int, default=2, help="of the decoder; R2Gen has 3")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    out = Path(options.out)
    free = ("out", "threads")
    begin(out, {name: value for name, value in vars(options).items() if name not in free}, "encoder")
    began = time.perf_counter()
    seconds = {}

    pairs = write_pairs(options, out / "pairs.csv")
    weights = options.weights or encoder_folder(options, pairs, out)
    seconds["encoder"] = time.perf_counter() - began
    result = run_report_training(
        ReportConfig(
            data=str(pairs), out=str(out / "run"), weights=str(weights), encoder_lr=0, val_share=0, test_share=0,
            decoder=options.decoder, keep=options.keep, visual_tokens=options.visual_tokens, max_views=1,
            width=options.width, layers=options.layers, ffn=2 * options.width,
            max_length=options.max_length, dropout=0, min_frequency=1, min_patients=1, digits=True, cleaning="english",
            steps=options.steps, batch_size=options.batch_size, lr=options.lr, weight_decay=0, validate_split="train",
            validate_every=options.steps, num_beams=1, threads=options.threads, tensorboard=False, resume="auto",
        )
    )  # fmt: skip
    if not result.finished:
        raise SystemExit(f"stopped; start again to go on with {out}")
    seconds["training with features and validation"] = time.perf_counter() - began - sum(seconds.values())
    studies = read_studies(pairs, val_share=0, test_share=0).studies
    written = write_reports(studies, out / "run", out=out / "generated", pictures=4, progress=True)
    seconds["writing from the files, with pictures"] = time.perf_counter() - began - sum(seconds.values())
    evaluation = evaluate_reports(written.predictions)
    write_evaluation(evaluation, out / "evaluation")
    scores = evaluation.metrics["languages"]["en"]["scores"][0]
    about = {
        "settings": vars(options),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "cpu_minutes": round(time.process_time() / 60, 2),
        "seconds_per_step": result.seconds_per_step,
        "loss": result.losses[-1:] and round(result.losses[-1], 4),
        "scores": scores,
        "different": evaluation.metrics["languages"]["en"]["repeats"]["different"],
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    }
    with written_whole(out / "overfit.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n")
    rows = [f"| {s.study.id} | {s.study.report} | {s.text} |" for s in written.rows[:SHOWN]]
    lines = [
        f"# {len(studies)} pairs learned by heart",
        "",
        f"BLEU-4 {scores['bleu4']:.4f}, ROUGE-L {scores['rouge_l']:.4f} on the training pairs; {about['different']} "
        f"different texts; {about['minutes']} minutes in all, {about['cpu_minutes']} of CPU time; in seconds: "
        + ", ".join(f"{name} {value}" for name, value in about["seconds"].items()),
        "",
        "| study | reference | generated |",
        "|---|---|---|",
        *rows,
    ]
    with written_whole(out / "overfit.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def write_pairs(options: argparse.Namespace, path: Path) -> Path:
    """The first pairs with different texts, all to train on."""
    table = read_studies(
        options.data, images=options.images, report_column=options.report_column, val_share=0, test_share=0
    )
    first = {" ".join(study.report.split()): study for study in reversed(table.studies)}
    chosen = [study for study in table.studies if first[" ".join(study.report.split())] is study][: options.pairs]
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "image", "report", "split"])
        rows.writerows([s.id, Path(s.images[0]).resolve(), " ".join(s.report.split()), "train"] for s in chosen)
    return path


def encoder_folder(options: argparse.Namespace, pairs: Path, out: Path) -> Path:
    """An encoder without weights of its own: pre-trained on the pairs' images, or as it is made."""
    folder = out / "encoder"
    if not folder.exists():
        if options.pretrain_steps:
            encoder = pretrained(
                out / "pretrain", data=str(pairs), cache=str(out / "run" / "cache"), model=options.encoder,
                img_size=options.img_size, steps=options.pretrain_steps, batch_size=4, threads=options.threads,
            )  # fmt: skip
        else:
            from runs import untrained

            encoder = untrained(options.encoder, options.img_size, seed=0)
        save_model(encoder, folder)
    return folder


if __name__ == "__main__":
    main()
