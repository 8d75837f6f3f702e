"""The commands ``probe``, ``finetune``, ``predict`` and ``evaluate``."""

from __future__ import annotations

import os
from pathlib import Path

from ..classify.config import FinetuneConfig
from ..classify.label_presets import PRESETS
from ..classify.operating_points import ONE_SIDED
from ..classify.probe_config import ProbeConfig
from ..data.film_views import describe_left_out, describe_not_frontal, describe_view
from ..data.quarantine import first_unreadable
from ..errors import ConfigError
from ..progress import note
from ..regular_files import RUN_JSON, read_json
from ..terminal import aligned, counted, first_names, fitted, visible
from ..training.resuming import STOPPED
from .options import (
    add_columns,
    add_config,
    add_image_column,
    add_inference,
    add_part,
    add_reading,
    add_training,
    tell_encoder,
    tell_start,
    tell_waiting,
)

PREDICTIONS = "predictions.csv"
MANY = 10  # images from which on predict tells that one answer is given for all of them


def add_commands(commands, parser_class) -> None:
    """Add them to jsonargparse's subcommands."""
    probe = parser_class(
        examples=["probe --data labels.csv --out results/probe"],
        description="A linear probe on the features of a frozen encoder.",
    )
    add_config(probe)
    probe.add_class_arguments(ProbeConfig)
    commands.add_subcommand("probe", probe)

    finetune = parser_class(
        examples=[
            "finetune --data labels.csv --out results/finetune --keep contour",
            "finetune --data labels.csv --weights runs/first/model --out results/few --label-fractions 0.01 0.1 1",
        ],
        description="Fine-tune an encoder to recognise diseases.",
    )
    add_training(finetune, FinetuneConfig)
    commands.add_subcommand("finetune", finetune)

    predict = parser_class(
        examples=[
            "predict chest.dcm --model results/finetune --maps maps",
            "predict new/ --model results/finetune --out predictions.csv",
        ],
        description="Probabilities of a saved classifier for new files.",
    )
    predict.add_argument("paths", nargs="+", help="radiographs, folders of them, CSV manifests, or prepared sets")
    kinds = "file, .csv, .xlsx, .json or .parquet, or a folder for predictions.csv; left out, a table is printed"
    predict.add_argument("--out", help=kinds)
    predict.add_argument("--maps", help="folder for a picture of each radiograph with where the model looked")
    force = "replace predictions of other films or of another model in --out, and pictures of such in --maps"
    predict.add_argument("--force", action="store_true", help=force)
    add_image_column(predict)
    _add_model(predict)
    commands.add_subcommand("predict", predict)

    evaluate = parser_class(
        examples=[
            "evaluate --data labels.csv --model results/finetune --out results/scores",
            "evaluate --data other.csv --split all --model results/finetune --out results/other",
        ],
        description="Metrics of a saved classifier on labelled files.",
    )
    evaluate.add_argument("--data", required=True, help="CSV manifest, or what the preset reads")
    evaluate.add_argument("--out", required=True, help="folder for metrics, predictions and plots")
    evaluate.add_argument("--images", help="folder that relative paths in the manifest start from")
    add_columns(evaluate)
    evaluate.add_argument("--prepared", help="prepared set that holds the images, read in place of their files")
    evaluate.add_argument("--preset", help=f"one of {', '.join(PRESETS)}")
    evaluate.add_argument("--split", default="test", help="train, val, test, or all (of data that the model never saw)")
    share = "of the classes where they will be looked for, for predictive values: 0.05, or Edema=0.05, ..."
    evaluate.add_argument("--prevalence", help=share)
    evaluate.add_argument("--bootstraps", type=int, default=1000, help="draws of patients, for intervals")
    evaluate.add_argument("--bootstrap-seed", type=int, default=0, help="of the draws of patients for intervals")
    rename = "classes that the table calls otherwise than the model: effusions=effusion, ..."
    evaluate.add_argument("--rename", help=rename)
    again = "test on what is mostly of patients, or pixels, that the model was trained or validated on"
    evaluate.add_argument("--allow-training-patients", action="store_true", help=again)
    bad = "share of the images that may be unreadable"
    evaluate.add_argument("--max-bad-share", type=float, default=0.05, help=bad)
    against = "another model folder: evaluated on the same files and compared by pairs, in OUT/comparison"
    evaluate.add_argument("--against", help=against)
    force = "replace an evaluation of another model, split or table in --out"
    evaluate.add_argument("--force", action="store_true", help=force)
    _add_model(evaluate)
    commands.add_subcommand("evaluate", evaluate)


def _add_model(parser) -> None:
    parser.add_argument("--model", required=True, help="the model folder that probe or finetune wrote")
    names = "names to ask about, left out those it was trained on; label queries with text take any"
    parser.add_argument("--classes", nargs="+", help=names)
    parser.add_argument("--batch-size", type=int, default=4, help="images at once")
    view = "frontal leaves out what header or pixels show to be no frontal chest, and lists it"
    parser.add_argument("--view", choices=["any", "frontal"], default="any", help=view)
    add_reading(parser)
    add_part(parser)
    parser.add_argument("--device", help="where the model runs; left out, a GPU if there is one")
    add_inference(parser)


def run_probe_command(**options) -> int:
    from ..classify.probe import describe_probe, run_probe

    tell_encoder(options["weights"])
    result = run_probe(ProbeConfig(**options))
    print(fitted(describe_probe(result)))
    _tell_of_excel(result.out / PREDICTIONS)
    return 0


def run_finetune_command(**options) -> int:
    from ..classify.finetune import describe_finetuning, run_finetuning

    config = FinetuneConfig(**options)
    tell_start(config.runs()[0], "model")
    results = run_finetuning(config)
    print(fitted(describe_finetuning(config, results)))
    if len(results) == 1:
        _tell_of_excel(results[0].out / PREDICTIONS)
    return 0 if results[-1].finished else STOPPED


def run_predict_command(paths: list[str], model: str, out: str | None, maps: str | None, **options) -> int:
    from ..classify.evaluation import predict, predict_files
    from ..classify.operating_points import describe_one_sided
    from ..classify.predictions import FRONTAL_ALONE, LEFT_OUT

    if out is None:
        part = options.pop("part")
        if part != "1/1" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("out: what several processes predict is joined in a file; name it")
        found = predict(paths, model, progress=True, maps=maps, **options)
    else:
        done = predict_files(paths, model, out, progress=True, maps=maps, **options)
        found = done.found
        if found is None:
            tell_waiting(done.waiting)
            return 0
    lost = [(bad.path, bad.reason) for bad in found.quarantined]
    if lost and out is not None:
        note(first_unreadable(lost, len(lost), visible(done.out.with_suffix(".unreadable.csv"))))
    for path, reason in lost if out is None else []:
        note(f"unreadable: {visible(path)}: {visible(reason)}")
    for path, view in found.left_out.items() if out is None else ():
        note(f"left out: {visible(path)}: {describe_view(view)}")
    listed = "named above" if out is None else f"listed in {visible(done.out.with_suffix(f'.{LEFT_OUT}'))}"
    if told := describe_left_out(found.left_out, len(found.left_out) + len(found.images), listed):
        note(told)
    aside = found.not_frontal
    if told := describe_not_frontal(aside, len(found.images), FRONTAL_ALONE):
        note(told)
    if unsure := [image for image in found.flagged if image not in aside]:
        count = f"{len(unsure)} of {len(found.images)}"
        note(f"{count} may be no frontal chest radiograph: no contour to rely on; look at {first_names(unsure)}")
    if not found.images:
        unread = lost and not found.left_out
        note("nothing is predicted: none of the files can be read" if unread else "nothing is predicted")
        return 2
    if out is None:
        print(fitted(format_predictions(found)))
    if not found.multiclass:
        pairs = zip(found.classes, found.thresholds, strict=True)
        from_where = ", ".join(f"{threshold:.3g} ({visible(name)})" for name, threshold in pairs)
        print(fitted(f"present from {from_where}"))
        rows = [row for image, row in zip(found.images, found.present, strict=True) if image not in aside]
        if len(rows) >= MANY:
            called = {
                visible(name): (sum(name in row for row in rows), len(rows), threshold)
                for name, threshold in zip(found.classes, found.thresholds, strict=True)
            }
            for line in describe_one_sided(called):
                print(fitted(line))
        else:
            for line in _told_when_tested(model):
                note(line)
    if out is not None:
        _tell_of_excel(done.out, f"--out {visible(done.out.with_suffix('.xlsx'))} writes a workbook")
        print(f"{counted(len(found.images), 'image')} in {visible(done.out)}")
    if maps is not None:
        print(f"where the model looked: {visible(maps)}")
    return 0


def _told_when_tested(model: str) -> list[str]:
    """What the test of the training found of the thresholds, for films too few to show it again."""
    for folder in (Path(model), Path(model).parent):
        try:
            notes = read_json(folder / "metrics.json", RUN_JSON)["notes"]
            found = [text.removeprefix("warning: ") for text in notes if text.startswith(ONE_SIDED)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return [f"warning: when this model was tested: {visible(text)}" for text in found]
    return []


def _tell_of_excel(table: Path, way_out: str = "there, Data > From Text/CSV reads it") -> None:
    """Say that a CSV with letters which are not ASCII is not for a double click; it stays as programs want it."""
    if table.suffix.lower() == ".csv" and table.is_file() and not table.read_bytes().isascii():
        words = "is UTF-8 with commas, for programs; a double click in Excel shows letters such as ü wrongly"
        note(f"{visible(table)} {words}: {visible(way_out)}")


def format_predictions(found) -> str:
    """Probabilities as a table for a terminal, of few films with a line for each class; what is called present has an
    asterisk. Of a film that shows no frontal chest nothing is, and its row says so."""
    aside = found.not_frontal
    rows = [["", *map(visible, found.classes), *(["view"] if aside else [])]]
    for image, row, present in zip(found.images, found.probabilities, found.present, strict=True):
        pairs = zip(found.classes, row, strict=True)
        numbers = [f"{value:.3f}{'*' if name in present and image not in aside else ' '}" for name, value in pairs]
        rows.append([visible(image), *numbers, *([_view_in_words(aside.get(image))] if aside else [])])
    if len(found.images) < len(found.classes):
        rows = list(zip(*rows, strict=True))
    called = any(present for image, present in zip(found.images, found.present, strict=True) if image not in aside)
    legend = ["*: called present"] if called else []
    told = ["no frontal chest: such films are answered all the same, and nothing is called present"] if aside else []
    return "\n".join([*aligned(rows), *legend, *told])


def _view_in_words(view: str | None) -> str:
    return f"NO FRONTAL CHEST ({view})" if view else ""


def run_evaluate_command(model: str, against: str | None, **options) -> int:
    from ..classify.compare import evaluate_against
    from ..classify.comparison_files import format_comparison
    from ..classify.evaluation import evaluate_files
    from ..classify.metrics import format_metrics
    from ..classify.predictions import PAGE_FILE

    if against is None:
        report, comparison = evaluate_files(model, **options), None
    else:
        report, comparison = evaluate_against(model, against, **options)
    if "waiting" in report:
        tell_waiting(report["waiting"])
        return 0
    print(fitted(format_metrics(report)))
    if comparison is not None:
        print(fitted(format_comparison(comparison, ("auroc", "auprc", "f1"))))
    _tell_of_excel(Path(options["out"]) / PREDICTIONS)
    what = "and plots" if options.get("classes") else "plots and the most confident errors"  # no sheet of new names
    page = os.path.join(options["out"], PAGE_FILE)
    print(f"metrics, predictions, {what} are in {options['out']}; all on one page: {page}")
    return 0


COMMANDS = {
    "probe": run_probe_command,
    "finetune": run_finetune_command,
    "predict": run_predict_command,
    "evaluate": run_evaluate_command,
}
