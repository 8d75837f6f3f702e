"""The command group ``report``."""

from __future__ import annotations

from .cli_models import add_model_commands, run_generate_command, run_train_command


def add_commands(commands, parser_class) -> None:
    """Add ``report`` with its own subcommands to jsonargparse's subcommands."""
    purpose = "Radiology reports: train a model that writes them, generate, evaluate."
    report = parser_class(exit_on_error=False, description=purpose)
    commands.add_subcommand("report", report, help="radiology reports from radiographs")  # outer before inner ones
    own = report.add_subcommands(required=True, dest="report_command")
    add_model_commands(own, parser_class)
    _add_evaluate(own, parser_class)


def run_report_command(report_command: str, **options) -> int:
    """Run one of the group's commands with the settings under its name."""
    settings = dict(options[report_command])
    settings.pop("config", None)
    run = {"train": run_train_command, "generate": run_generate_command, "evaluate": run_evaluate_command}
    return run[report_command](**settings)


def _add_evaluate(commands, parser_class) -> None:
    evaluate = parser_class(
        exit_on_error=False,
        description="Scores of generated reports, each labelled by what it was computed on; a page to look at.",
    )
    evaluate.add_argument("predictions", help="CSV or JSON with id, generated and, without --data, reference")
    evaluate.add_argument("--out", required=True, help="folder for metrics.json, metrics.md, scores.csv, report.html")
    evaluate.add_argument("--data", help="where references are: annotation.json, a CSV, or a folder of reports")
    evaluate.add_argument("--layout", help="r2gen, csv, iu-xray or mimic-cxr; left out, told by what --data is")
    evaluate.add_argument("--images", help="folder that relative image paths start from, for thumbnails")
    evaluate.add_argument("--split", default="test", help="train, val, test, or all")
    evaluate.add_argument("--sections", default="findings", help="findings, impression or both")
    evaluate.add_argument("--report_column", help="the CSV column that holds the report")
    evaluate.add_argument("--language", default="en", help="en or zh, of reports that do not say")
    evaluate.add_argument("--val_share", type=float, default=0.1, help="of patients, where --data has no splits")
    evaluate.add_argument("--test_share", type=float, default=0.2, help="likewise")
    evaluate.add_argument("--seed", type=int, default=0, help="of splits made here and of the intervals")
    evaluate.add_argument("--r2gen", help="also on R2Gen's references: iu-xray, mimic-cxr or none; left out, by layout")
    evaluate.add_argument("--partial", action="store_true", help="go on where studies have no generated text")
    evaluate.add_argument("--clinical", nargs="+", default=[], help="radgraph, chexbert")
    evaluate.add_argument("--radgraph_model", default="radgraph-xl", help="radgraph, radgraph-xl, modern-radgraph-xl")
    evaluate.add_argument("--device", help="where clinical models run")
    evaluate.add_argument("--bootstraps", type=int, default=1000, help="drawings for the 95 %% intervals; 0 for none")
    evaluate.add_argument("--meteor", type=bool, default=True, help="METEOR, where Java is; false saves its seconds")
    commands.add_subcommand("evaluate", evaluate, help="generated reports against references")


def run_evaluate_command(predictions: str, out: str, **options) -> int:
    from .evaluate import evaluate_reports
    from .evaluation_files import write_evaluation
    from .evaluation_table import format_evaluation

    evaluation = evaluate_reports(predictions, **options)
    folder = write_evaluation(evaluation, out)
    print(format_evaluation(evaluation.metrics))
    print(f"metrics.json, metrics.md, scores.csv and report.html are in {folder}")
    return 0
