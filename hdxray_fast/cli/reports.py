"""The command group ``report``: ``train``, ``generate`` and ``evaluate``."""

from __future__ import annotations

from dataclasses import replace

from ..progress import note
from ..terminal import counted, fitted, visible
from ..training.resuming import STOPPED, stopped_early
from .options import (
    add_columns,
    add_part,
    add_precision,
    add_reading,
    add_training,
    loss_line,
    tell_start,
    tell_waiting,
)


def add_commands(commands, parser_class) -> None:
    """Add ``report`` with its own subcommands to jsonargparse's subcommands."""
    purpose = "Radiology reports: train a model that writes them, generate, evaluate."
    report = parser_class(description=purpose)
    commands.add_subcommand("report", report)  # outer before inner ones
    own = report.add_subcommands(required=True, dest="report_command")
    _add_train(own, parser_class)
    _add_generate(own, parser_class)
    _add_evaluate(own, parser_class)


def run_report_command(report_command: str, **options) -> int:
    """Run one of the group's commands with the settings under its name."""
    settings = dict(options[report_command])
    settings.pop("config", None)
    run = {"train": run_train_command, "generate": run_generate_command, "evaluate": run_evaluate_command}
    return run[report_command](**settings)


def _add_train(commands, parser_class) -> None:
    from ..reports.config import ReportConfig

    train = parser_class(
        examples=["report train --data annotation.json --weights runs/first/model --out runs/report"],
        description="Train a model that writes reports on radiographs.",
    )
    add_training(train, ReportConfig)
    commands.add_subcommand("train", train, help="studies to a model that writes reports")


def _add_generate(commands, parser_class) -> None:
    from ..reports.writing_options import WritingOptions

    generate = parser_class(
        examples=[
            "report generate chest.dcm --model runs/report --out reports",
            "report generate --data annotation.json --model runs/report --out reports",
        ],
        description="Write reports on radiographs, with a picture of what each sentence was read off.",
    )
    paths = "radiographs, folders of them, CSV manifests, or prepared sets: a study for each radiograph"
    generate.add_argument("paths", nargs="*", help=paths)
    generate.add_argument("--model", required=True, help="the folder that report train wrote")
    generate.add_argument(
        "--out", help="folder for predictions.csv, a page of all, and pictures; left out, text is printed alone"
    )
    generate.add_argument("--together", action="store_true", help="all paths are views of one study")
    generate.add_argument("--data", help="instead of paths: annotation.json, a CSV, or a folder of reports")
    generate.add_argument("--prepared", help="prepared set that holds the radiographs of --data")
    _add_studies(generate)
    generate.add_argument("--sample", action="store_true", help="draw words at random; set --num-beams 1 with it")
    generate.add_class_arguments(WritingOptions, skip={"sample"})
    generate.add_argument("--pictures", type=int, default=8, help="so many studies get a picture")
    generate.add_argument("--batch-size", type=int, default=4, help="studies at once")
    add_reading(generate)
    add_part(generate)
    generate.add_argument("--device", help="where the model runs; left out, a GPU if there is one")
    add_precision(generate)
    commands.add_subcommand("generate", generate, help="radiographs to reports")


def _add_evaluate(commands, parser_class) -> None:
    evaluate = parser_class(
        examples=["report evaluate reports/predictions.csv --data annotation.json --out results/scores"],
        description="Scores of generated reports, each labelled by what it was computed on; a page to look at.",
    )
    evaluate.add_argument("predictions", help="CSV or JSON with id, generated and, without --data, reference")
    evaluate.add_argument("--out", required=True, help="folder for metrics.json, metrics.md, scores.csv, report.html")
    evaluate.add_argument("--data", help="where references are: annotation.json, a CSV, or a folder of reports")
    _add_studies(evaluate)
    evaluate.add_argument("--language", default="en", help="en or zh, of reports that do not say")
    evaluate.add_argument(
        "--model", help="whose predictions they are: its own split is taken; told by what lies beside"
    )
    evaluate.add_argument("--r2gen", help="also on R2Gen's references: iu-xray, mimic-cxr or none; left out, by --data")
    evaluate.add_argument("--partial", action="store_true", help="go on where studies have no generated text")
    evaluate.add_argument("--clinical", nargs="+", default=[], help="radgraph, chexbert")
    evaluate.add_argument("--radgraph-model", default="radgraph-xl", help="radgraph, radgraph-xl, modern-radgraph-xl")
    evaluate.add_argument("--device", help="where clinical models run")
    add_reading(evaluate)
    evaluate.add_argument("--bootstraps", type=int, default=1000, help="drawings for the 95 % intervals; 0 for none")
    evaluate.add_argument("--bootstrap-seed", type=int, default=0, help="of these drawings")
    evaluate.add_argument("--meteor", type=bool, default=True, help="METEOR, where Java is; false saves its seconds")
    commands.add_subcommand("evaluate", evaluate, help="generated reports against references")


def _add_studies(parser) -> None:
    """How the studies of ``--data`` are read."""
    from ..reports.layouts import LAYOUTS
    from ..reports.studies import SECTIONS

    parser.add_argument("--layout", help=f"{', '.join(LAYOUTS)}; left out, told by what --data is")
    parser.add_argument("--images", help="folder that relative image paths of --data start from")
    parser.add_argument("--split", default="test", help="of --data: train, val, test, or all")
    counted = "studies, or images: each radiograph of --data with its study's report, as R2Gen counts MIMIC-CXR"
    parser.add_argument("--count", default="studies", help=counted)
    parser.add_argument("--sections", default="findings", help=f"of --data, as references: {', '.join(SECTIONS)}")
    add_columns(parser)
    parser.add_argument("--report-column", help="the CSV column that holds the report")
    drawn = "of patients, where --data has no splits; left out, as the model's was"
    parser.add_argument("--val-share", type=float, help=drawn)
    parser.add_argument("--test-share", type=float, help="likewise")
    parser.add_argument("--split-seed", type=int, help="of splits drawn here; left out, as the model's was")
    again = "test on what is mostly of patients that the model was trained or validated on"
    parser.add_argument("--allow-training-patients", action="store_true", help=again)


def run_train_command(**options) -> int:
    from ..reports.config import ReportConfig
    from ..reports.run import run_report_training
    from ..reports.saving import validation_of

    config = ReportConfig(**options)
    tell_start(config, "encoder")
    result = run_report_training(config)
    if result.losses:
        print(loss_line(result))
    if not result.finished:
        print(stopped_early(result.out, config.resume, config.force))
        return STOPPED
    if result.best_step:
        print(f"best {config.metric} on {config.validate_split}: {result.best:.4f} at step {result.best_step}")
    validated = validation_of(result.out / "model")
    if validated is not None and (warning := validated.warning()):
        note(f"warning: {warning}")
    print(f"model: {result.out / 'model'}")
    return 0


def run_generate_command(paths: list[str], model: str, out: str | None, **options) -> int:
    from ..data.prepared.reading import is_prepared
    from ..errors import ConfigError
    from ..features.shares import Share
    from ..reports.layouts import STUDY_SETTINGS
    from ..reports.own_split import overlap_with, read_own_split
    from ..reports.r2gen_sets import check_count, per_image
    from ..reports.saving import load_report_model
    from ..reports.writing import refuse_other_files, studies_of_files, write_reports
    from ..reports.writing_options import WritingOptions

    data, together, split = (options.pop(name) for name in ("data", "together", "split"))
    allowed, count = options.pop("allow_training_patients"), check_count(options.pop("count"))
    reading = {name: options.pop(name) for name in STUDY_SETTINGS if name in options}
    decoding = {name: options.pop(name) for name in WritingOptions.__dataclass_fields__ if name in options}
    writing = WritingOptions(**decoding)
    if bool(paths) == (data is not None):
        raise ConfigError("paths, data: give radiographs, or studies with --data, and not both")
    prepared = [path for path in paths if is_prepared(path)]
    if reading["prepared"] is not None:
        if data is None:
            raise ConfigError("prepared: holds the radiographs of data; give a prepared set by itself as a path")
        prepared = [reading["prepared"]]
    studies = studies_of_files(paths, together) if data is None else []
    if out is not None:
        refuse_other_files(out, studies, options["pictures"])
    share = Share.of_part(options["part"])
    if share.of > 1 and out is None:
        raise ConfigError("part: shares are joined in the folder out; name it")
    loaded = load_report_model(model, share.device(options.pop("device")))
    language = loaded.config.language
    studies = [replace(study, language=language) for study in studies]
    if data is not None:
        table = read_own_split(data, loaded.seen, language=language, **reading)
        for told in table.notes if share.is_main else ():
            note(f"note: {visible(told)}")
        studies = table.studies if split == "all" else table.split(split)
        if not studies:
            raise ConfigError(f"split: {data} has no study in {split!r}, accepted are 'train', 'val', 'test' and 'all'")
        overlap = overlap_with(loaded.seen, studies, split, data, allowed)
        if share.is_main and overlap and (told := overlap.describe([study.named for study in studies])):
            note(f"note: {visible(told)}")
        studies = per_image(studies) if count == "images" else studies
    done = write_reports(studies, loaded, options=writing, out=out, progress=True, prepared=prepared, **options)
    if not done.joined:
        tell_waiting(done.waiting)
        return 0
    for row in done.rows:
        print(f"{': '.join([visible(row.study.files), *row.views_in_words])}\n  {visible(row.text) or '(nothing)'}")
        if row.picture:
            print(f"  picture: {visible(row.picture)}")
    for bad in done.quarantined:
        note(f"unreadable: {visible(bad.path)}: {visible(bad.reason)}")
    for told in done.notes:
        note(f"note: {visible(told)}")
    if done.warning:
        note(f"warning: {done.warning}")
    if done.predictions:
        print(f"{counted(len(done.rows), 'report')} in {done.predictions}; all on one page: {visible(done.page)}")
    return 0 if done.rows else 2


def run_evaluate_command(predictions: str, out: str, **options) -> int:
    from ..data.reader_pool import check_caps
    from ..reports.evaluate import evaluate_reports
    from ..reports.evaluation_files import refuse_other_files, write_evaluation
    from ..reports.evaluation_table import format_evaluation

    reading = {name: options.pop(name) for name in ("workers", "timeout", "max_memory")}
    check_caps(reading["timeout"], reading["max_memory"])
    refuse_other_files(out)
    evaluation = evaluate_reports(predictions, **options)
    folder = write_evaluation(evaluation, out, **reading)
    print(fitted(format_evaluation(evaluation.metrics)))
    print(f"metrics.json, metrics.md, scores.csv and report.html are in {folder}")
    return 0


COMMANDS = {"report": run_report_command}
