"""The command ``compare``: models on the same cases, by pairs."""

from __future__ import annotations


def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    compare = parser_class(
        exit_on_error=False,
        description="Differences between models on the same cases, each with its interval over patients and p.",
    )
    run = "name=path, or name=path,path,... for runs with other seeds; a results folder or a file of predictions"
    compare.add_argument("models", nargs="+", help=f"two or more, each compared with the first: {run}")
    compare.add_argument("--out", required=True, help="folder for the comparison as JSON, CSV, Markdown and plot")
    compare.add_argument("--data", help="table of labels: for patients and, where predictions have none, labels")
    compare.add_argument("--images", help="folder that relative paths of --data start from")
    compare.add_argument("--preset", help="how --data is read, as for evaluate")
    compare.add_argument("--multiclass", action="store_true", help="--data has one label an image")
    compare.add_argument("--classes", nargs="+", help="names to compare; left out, those that all models have")
    compare.add_argument("--bootstraps", type=int, default=2000, help="paired draws of patients")
    compare.add_argument("--seed", type=int, default=0, help="of the draws")
    commands.add_subcommand("compare", compare, help="two models or more on the same cases, by pairs")


def run_compare_command(out: str, **options) -> int:
    from ..classify.compare import compare
    from ..classify.comparison_files import format_comparison

    report = compare(out=out, **options)
    print(format_comparison(report, ("auroc", "auprc", "f1")))
    print(f"comparison.md (all metrics), comparison.csv, comparison.json and forest.png are in {out}")
    return 0


COMMANDS = {"compare": run_compare_command}
