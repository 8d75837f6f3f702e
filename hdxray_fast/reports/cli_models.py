"""The commands ``report train`` and ``report generate``."""

from __future__ import annotations

import sys


def add_model_commands(commands, parser_class) -> None:
    """Add both to the subcommands of ``report``."""
    from .config import ReportConfig

    train = parser_class(exit_on_error=False, description="Train a model that writes reports on radiographs.")
    train.add_argument("--config", action="config", help="YAML file with any of the settings below")
    train.add_class_arguments(ReportConfig)
    commands.add_subcommand("train", train, help="studies to a model that writes reports")

    generate = parser_class(
        exit_on_error=False,
        description="Write reports on radiographs, with a picture of what each sentence was read off.",
    )
    generate.add_argument("paths", nargs="*", help="radiographs, folders of them, or CSV manifests: a study each")
    generate.add_argument("--model", required=True, help="the folder that report train wrote")
    generate.add_argument("--out", help="folder for predictions.csv and pictures; left out, text is printed alone")
    generate.add_argument("--together", action="store_true", help="all paths are views of one study")
    generate.add_argument("--data", help="instead of paths: annotation.json, a CSV, or a folder of reports")
    generate.add_argument("--layout", help="r2gen, csv, iu-xray or mimic-cxr; left out, told by what --data is")
    generate.add_argument("--images", help="folder that relative image paths of --data start from")
    generate.add_argument("--split", default="test", help="of --data: train, val, test, or all")
    generate.add_argument("--sections", default="findings", help="of --data, as references: findings, impression, both")
    generate.add_argument("--report_column", help="the CSV column that holds the report")
    generate.add_argument("--val_share", type=float, default=0.1, help="of patients, where --data has no splits")
    generate.add_argument("--test_share", type=float, default=0.2, help="likewise")
    generate.add_argument("--seed", type=int, default=0, help="of splits made here, and of sampling")
    generate.add_argument("--num_beams", type=int, default=3, help="1 is greedy")
    generate.add_argument("--sample", action="store_true", help="draw words at random; set --num-beams 1 with it")
    generate.add_argument("--temperature", type=float, default=1.0, help="of sampling")
    generate.add_argument("--top_p", type=float, default=1.0, help="of sampling")
    generate.add_argument("--top_k", type=int, default=0, help="of sampling; 0 for all words")
    generate.add_argument("--length_penalty", type=float, default=1.0, help="of beams; above 0 favours longer ones")
    generate.add_argument("--no_repeat_ngram_size", type=int, default=0, help="3 blocks repeated trigrams")
    generate.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 discourages repeats")
    generate.add_argument("--min_length", type=int, default=0, help="tokens")
    generate.add_argument("--max_length", type=int, help="tokens; left out, the model's limit")
    generate.add_argument("--pictures", type=int, default=8, help="so many studies get a picture")
    generate.add_argument("--batch_size", type=int, default=4, help="studies at once")
    generate.add_argument("--workers", type=int, default=-1, help="processes that read files; -1: one per core")
    generate.add_argument("--device", help="where the model runs; left out, a GPU if there is one")
    commands.add_subcommand("generate", generate, help="radiographs to reports")


def run_train_command(**options) -> int:
    from .config import ReportConfig
    from .run import run_report_training

    config = ReportConfig(**options)
    result = run_report_training(config)
    if result.losses:
        print(f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}")
    if not result.finished:
        print(f"stopped early; resume with --resume auto: {result.out / 'checkpoints'}")
        return 0
    if result.best_step:
        print(f"best {config.metric} on {config.validate_split}: {result.best:.4f} at step {result.best_step}")
    print(f"model: {result.out / 'model'}")
    return 0


def run_generate_command(paths: list[str], model: str, out: str | None, **options) -> int:
    from ..errors import ConfigError
    from .layouts import read_studies
    from .saving import load_report_model
    from .writing import studies_of_files, write_reports
    from .writing_options import WritingOptions

    seed, data = options.pop("seed"), options.pop("data")
    together, split = options.pop("together"), options.pop("split")
    reading = {
        name: options.pop(name) for name in ("layout", "images", "sections", "report_column", "val_share", "test_share")
    }
    writing = WritingOptions(
        seed=seed, **{name: options.pop(name) for name in WritingOptions.__dataclass_fields__ if name != "seed"}
    )
    if bool(paths) == (data is not None):
        raise ConfigError("paths, data: give radiographs, or studies with --data, and not both")
    loaded = load_report_model(model, options.pop("device"))
    language = loaded.config.language
    if data is None:
        studies = studies_of_files(paths, together, language)
    else:
        table = read_studies(data, language=language, seed=seed, **reading)
        for note in table.notes:
            print(f"note: {note}", file=sys.stderr)
        studies = table.studies if split == "all" else table.split(split)
        if not studies:
            raise ConfigError(f"split: {data} has no study in {split!r}, accepted are 'train', 'val', 'test' and 'all'")
    done = write_reports(studies, loaded, options=writing, out=out, progress=sys.stderr.isatty(), **options)
    for row in done.rows:
        print(f"{row.study.id}\n  {row.text or '(nothing)'}")
        if row.picture:
            print(f"  picture: {row.picture}")
    for bad in done.quarantined:
        print(f"unreadable: {bad.path}: {bad.reason}", file=sys.stderr)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if done.predictions:
        print(f"{len(done.rows)} reports in {done.predictions}")
    return 0 if done.rows else 2
