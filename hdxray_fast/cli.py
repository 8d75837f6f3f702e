"""The command line: ``hdxray-fast doctor | demo | contour | embed | convert | pretrain | finetune | ...``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from .errors import ConfigError, HDXrayError, MissingDependencyError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (2 for an error named on stderr)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["doctor"] and set(argv[1:]) <= {
            "--json"
        }:  # must work when the optional packages are missing: that is what it reports
            return _doctor(as_json="--json" in argv)
        return _run(argv)
    except (HDXrayError, OSError) as error:
        print(f"hdxray-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hdxray-fast: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise MissingDependencyError("the command line needs jsonargparse: pip install 'hdxray-fast[train]'") from error
    from . import classify_cli
    from .config import PretrainConfig
    from .demo import DemoConfig
    from .planning import add_commands as add_plan
    from .planning import run_plan_command
    from .prepared.cli import add_commands as add_prepare
    from .prepared.cli import run_merge_command, run_prepare_command, run_stream_command
    from .reports.cli import add_commands as add_report
    from .reports.cli import run_report_command

    parser = ArgumentParser(
        exit_on_error=False, prog="hdxray-fast", description="High-definition chest X-ray pre-training, made fast."
    )
    commands = parser.add_subcommands(required=True, dest="command")

    doctor = ArgumentParser(
        exit_on_error=False, description="What this machine has, which backend each operation uses, what is missing."
    )
    doctor.add_argument("--json", action="store_true", help="machine-readable")
    commands.add_subcommand("doctor", doctor, help="versions, backends, what is missing")

    demo = ArgumentParser(
        exit_on_error=False, description="Train a small model on a real radiograph and show what it reconstructs."
    )
    demo.add_class_arguments(DemoConfig)
    commands.add_subcommand("demo", demo, help="from a DICOM file to a reconstruction in minutes")

    contour = ArgumentParser(
        exit_on_error=False, description="Find the chest contour of radiographs: overlay, JSON and a contact sheet."
    )
    contour.add_argument("paths", nargs="+", help="radiographs, folders of them, or CSV manifests")
    contour.add_argument("--out", required=True, help="folder for the pictures and JSON files")
    contour.add_argument("--method", default="network", help="network, classical, prior or rectangle")
    contour.add_argument("--size", type=int, default=1280, help="canvas side, pixels")
    contour.add_argument("--patch_size", type=int, default=16, help="side of a patch, pixels")
    contour.add_argument("--workers", type=int, default=0, help="processes that read files; -1 takes one per core")
    commands.add_subcommand("contour", contour, help="chest contours of radiographs, as pictures and JSON")

    embed = ArgumentParser(
        exit_on_error=False, description="Features of radiographs as a Parquet table; interrupted, it goes on."
    )
    embed.add_argument("paths", nargs="+", help="radiographs, folders of them, or CSV manifests")
    embed.add_argument("--weights", required=True, help="a model folder of this package, or other published weights")
    embed.add_argument("--out", required=True, help="Parquet file, such as features.parquet")
    embed.add_argument("--pool", help="cls, mean or attention; left out, the encoder's, or mean")
    embed.add_argument("--keep", help="all, valid or contour; left out, the encoder's")
    embed.add_argument("--img_size", type=int, help="canvas side, pixels; left out, the encoder's")
    embed.add_argument("--batch_size", type=int, default=4)
    embed.add_argument("--workers", type=int, default=-1, help="processes that read files; -1: one per core")
    embed.add_argument("--device", help="where the encoder runs; left out, a GPU if there is one")
    commands.add_subcommand("embed", embed, help="features of radiographs, as a table")

    export = ArgumentParser(exit_on_error=False, description="Write an encoder as an ONNX file with a dynamic batch.")
    export.add_argument("weights", help="a model folder of this package, or other published weights")
    export.add_argument("--out", required=True, help="ONNX file, such as encoder.onnx")
    export.add_argument("--output", default="features", help="features, tokens or map")
    export.add_argument("--pool", help="cls, mean or attention; left out, the encoder's")
    export.add_argument("--img_size", type=int, help="side of the images, pixels; left out, the encoder's")
    export.add_argument("--normalise", action="store_true", help="the graph takes pixels on [0, 1]")
    commands.add_subcommand("export", export, help="an encoder as an ONNX file")

    convert = ArgumentParser(
        exit_on_error=False,
        description="Published weights as a model folder of this package; says what became of each.",
    )
    convert.add_argument("source", help="a file or folder of weights, hf:org/name, hf:org/name@revision or timm:name")
    convert.add_argument("folder", help="where model.safetensors and config.json go")
    convert.add_argument(
        "--img_size", type=int, nargs="+", help="side, or height and width; left out, the weights' own"
    )
    convert.add_argument("--in_chans", type=int, help="1 or 3; left out, the weights' own")
    convert.add_argument("--num_heads", type=int, help="where the weights do not tell")
    convert.add_argument("--partial", action="store_true", help="take weights that lack or have more than an encoder")
    commands.add_subcommand("convert", convert, help="published weights to safetensors and config.json")

    add_prepare(commands, ArgumentParser)
    add_plan(commands, ArgumentParser)
    add_report(commands, ArgumentParser)

    pretrain = ArgumentParser(exit_on_error=False, description="Pre-train a contour-masked auto-encoder.")
    pretrain.add_argument("--config", action="config", help="YAML file with any of the settings below")
    pretrain.add_class_arguments(PretrainConfig)
    commands.add_subcommand("pretrain", pretrain, help="pre-train on a folder of radiographs")

    classify_cli.add_commands(commands, ArgumentParser)

    try:
        argv = _with_underscores(argv)
        parsed = parser.parse_args(classify_cli.join_lists(argv) if argv[:1] in (["probe"], ["finetune"]) else argv)
    except (ArgumentError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        hint = f"hdxray-fast {argv[0]} --help" if argv and not argv[0].startswith("-") else "hdxray-fast --help"
        raise ConfigError(f"{reason} ({hint} lists the settings)") from error
    options = parsed[parsed.command]
    options.pop("config", None)
    return {
        "doctor": lambda json: _doctor(json),
        "demo": _demo,
        "contour": _contour,
        "embed": _embed,
        "convert": _convert,
        "export": _export,
        "prepare": run_prepare_command,
        "merge": run_merge_command,
        "report": run_report_command,
        "stream": run_stream_command,
        "plan": run_plan_command,
        "pretrain": _pretrain,
        "probe": classify_cli.run_probe_command,
        "finetune": classify_cli.run_finetune_command,
        "predict": classify_cli.run_predict_command,
        "evaluate": classify_cli.run_evaluate_command,
    }[parsed.command](**options.as_dict())


def _with_underscores(argv: list[str]) -> list[str]:
    """``--batch-size 4`` and ``--batch_size 4`` mean the same."""
    renamed = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        renamed.append(name + equals + value)
    return renamed


def _doctor(as_json: bool) -> int:
    from .env import doctor_report, format_doctor

    report = doctor_report()
    print(json.dumps(report, indent=1) if as_json else format_doctor(report))
    return 0


def _demo(**options) -> int:
    from .demo import DemoConfig, describe, run_demo

    metrics = run_demo(DemoConfig(**options))
    print(describe(metrics, options["out"]))
    return 0


def _contour(paths: list[str], out: str, workers: int, **options) -> int:
    from .contour_files import write_contours
    from .listing import list_images
    from .reader_pool import worker_count

    files = [file for path in paths for file in list_images(path, exclude=(out,))]
    summary = write_contours(files, out, workers=worker_count(workers), **options)
    return 0 if summary["written"] else 2


def _embed(paths: list[str], out: str, **options) -> int:
    from .embedding_files import embed_files

    done = embed_files(paths, out, **options)
    print(f"{done.rows} rows of {done.width} numbers in {done.out} ({done.new} new)")
    if done.unreadable:
        print(f"{done.unreadable} files could not be read: {done.unreadable_csv}", file=sys.stderr)
    return 0 if done.rows else 2


def _export(weights: str, out: str, img_size: int | None, **options) -> int:
    from .encoder import create_encoder
    from .export import export_onnx

    encoder = create_encoder(weights=weights)
    encoder.keep = "all"  # the graph has no contours
    if img_size is not None:
        encoder.set_input_size(img_size)
    print(export_onnx(encoder, out, **options))
    return 0


def _convert(
    source: str, folder: str, img_size: list[int] | None, in_chans: int | None, num_heads: int | None, partial: bool
) -> int:
    from .weights import convert

    size = None if img_size is None else img_size[0] if len(img_size) == 1 else tuple(img_size)
    overrides = {} if num_heads is None else {"num_heads": num_heads}
    print(convert(source, folder, img_size=size, in_chans=in_chans, strict=not partial, **overrides))
    return 0


def _pretrain(**options) -> int:
    from .config import PretrainConfig
    from .pretrain import run_pretraining

    result = run_pretraining(PretrainConfig(**options))
    if int(os.environ.get("RANK", "0")):
        return 0  # of several processes one speaks
    if result.losses:
        print(f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}")
        print(f"(predicting each patch by its own mean would give {result.baseline:.4f})")
    if result.picture:
        print(f"picture: {result.picture}")
    where = result.out / "model" if result.finished else result.out / "checkpoints"
    print(f"{'model' if result.finished else 'stopped early; resume with --resume auto'}: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
