"""The command ``compare``: models on the same cases, by pairs."""

from __future__ import annotations

from pathlib import Path

from ..terminal import fitted, visible
from .options import add_columns


def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    compare = parser_class(
        examples=["compare linear=results/probe tuned=results/finetune --out results/comparison"],
        description="Differences between models on the same cases, each with its interval over patients and p.",
    )
    run = "name=path, or name=path,path,... for runs with other seeds; a results folder or a file of predictions"
    compare.add_argument("models", nargs="+", help=f"two or more, each compared with the first: {run}")
    compare.add_argument("--out", required=True, help="folder for the comparison as JSON, CSV, Markdown and plot")
    compare.add_argument("--data", help="labels, or studies: for patients and what the predictions have no truth of")
    compare.add_argument("--images", help="folder that relative paths of --data start from")
    add_columns(compare)
    compare.add_argument("--preset", help="how labels are read, as for evaluate")
    compare.add_argument("--multiclass", action="store_true", help="--data has one label an image")
    compare.add_argument("--classes", nargs="+", help="names to compare; left out, those that all models have")
    compare.add_argument("--rename", help="classes that --data calls otherwise than the predictions, as for evaluate")
    compare.add_argument("--layout", help="how studies are read, as for report evaluate")
    compare.add_argument("--split", help="of studies: train, val, test (left out) or all")
    compare.add_argument("--sections", help="of studies, as references, as for report evaluate")
    compare.add_argument("--report-column", help="of studies: the CSV column that holds the report")
    compare.add_argument("--language", help="en or zh, of reports that do not say")
    partial = "go on where studies have no generated text; all models lack the same ones"
    compare.add_argument("--partial", action="store_true", help=partial)
    allow = "compare reports on studies most of which a model was trained on, too, or ids that are other patients here"
    compare.add_argument("--allow-training-patients", action="store_true", help=allow)
    compare.add_argument("--bootstraps", type=int, default=2000, help="paired draws of patients")
    compare.add_argument("--seed", type=int, default=0, help="of the draws")
    commands.add_subcommand("compare", compare)


OF_LABELS = ("preset", "multiclass", "classes", "rename")
OF_REPORTS = ("layout", "split", "sections", "report_column", "language", "partial", "allow_training_patients")


def run_compare_command(models: list[str], out: str, **options) -> int:
    from ..data.named_runs import name_runs
    from ..errors import ConfigError
    from ..reports.compare import holds_reports

    runs = [run for given in name_runs(models).values() for run in given]
    kinds = {holds_reports(run) for run in runs}
    if len(kinds) > 1:
        odd = next(run for run in runs if holds_reports(run) != holds_reports(runs[0]))
        raise ConfigError(f"models: {runs[0]} and {odd} are a classifier's predictions and generated reports")
    without = OF_LABELS if kinds == {True} else OF_REPORTS
    if given := [name for name in without if options[name]]:
        raise ConfigError(f"{given[0]}: has no meaning for {'reports' if kinds == {True} else 'classifiers'}")
    options = {name: value for name, value in options.items() if name not in without and value is not None}
    report = _compare_reports(models, out, options) if kinds == {True} else _compare(models, out, options)
    print(fitted(report))
    plot = " and forest.png" if (Path(out) / "forest.png").exists() else ", and no plot, since nothing was compared,"
    print(f"comparison.md, comparison.csv, comparison.json{plot} are in {visible(out)}")
    return 0


def _compare(models: list[str], out: str, options: dict) -> str:
    from ..classify.compare import compare
    from ..classify.comparison_files import format_comparison

    return format_comparison(compare(models, out, **options), ("auroc", "auprc", "f1"))


def _compare_reports(models: list[str], out: str, options: dict) -> str:
    from ..reports.compare import compare_reports
    from ..reports.comparison_files import format_comparison

    return format_comparison(compare_reports(models, out, **options))


COMMANDS = {"compare": run_compare_command}
