"""The commands ``export`` and ``convert``."""

from __future__ import annotations

import warnings

from ..progress import note
from ..terminal import visible


def add_commands(commands, parser_class) -> None:
    """Add them to jsonargparse's subcommands."""
    export = parser_class(
        examples=[
            "export runs/first/model --out encoder.onnx",
            "export results/finetune/model --out classifier.onnx --output probabilities",
        ],
        description="Write a model as an ONNX file with a dynamic batch: an encoder, or a classifier with its head.",
    )
    export.add_argument("weights", help="pretrained, a run or model folder, a classifier's too, or published weights")
    export.add_argument("--out", required=True, help="ONNX file, such as encoder.onnx")
    export.add_argument("--output", help="features, tokens or map; of a classifier logits (default) or probabilities")
    export.add_argument("--pool", help="cls, mean or attention; left out, the encoder's, or cls")
    export.add_argument("--img-size", type=int, help="side of the images, pixels; left out, the encoder's")
    export.add_argument("--normalise", action="store_true", help="the graph takes pixels on [0, 1]")
    export.add_argument(
        "--pixels",
        default="float",
        help="dtype of the images: float, or uint8 or uint16, which the graph normalises itself",
    )
    export.add_argument(
        "--valid",
        action="store_true",
        help="an input of the graph says which patches are no padding, over which images are normalised",
    )
    export.add_argument(
        "--keep",
        choices=["all", "valid", "contour"],
        help="patches that are looked at; left out, the model's. Where not all, an input of the graph says which. "
        "With another than it was trained with, a classifier has other probabilities",
    )
    commands.add_subcommand("export", export)

    convert = parser_class(
        examples=[
            "convert weights.pth models/published",
            "convert timm:vit_small_patch16_224 models/small --img-size 1280 --in-chans 1",
            "convert pretrained models/tiny12 --depth 12",
        ],
        description="Published weights as a model folder of this package; says what became of each.",
    )
    convert.add_argument(
        "source", help="pretrained, a file, a folder of weights or of a run, hf:org/name[@revision], timm:name"
    )
    convert.add_argument("folder", help="where model.safetensors and config.json go")
    convert.add_argument(
        "--img-size", type=int, nargs="+", help="side, or height and width; left out, the weights' own"
    )
    convert.add_argument("--in-chans", type=int, help="1 or 3; left out, the weights' own")
    convert.add_argument(
        "--depth",
        type=int,
        help="take the first so many blocks; left out, all (of pretrained, those that are read best)",
    )
    convert.add_argument("--num-heads", type=int, help="where the weights do not tell")
    convert.add_argument("--partial", action="store_true", help="take weights that lack or have more than an encoder")
    commands.add_subcommand("convert", convert)


def run_export_command(weights: str, out: str, img_size: int | None, keep: str | None, **options) -> int:
    from ..classify.classifier import CLASSIFIER_FILE, load_classifier
    from ..data.result_files import file_named_by
    from ..interop.export import export_onnx
    from ..weights.create import encoder_of_size
    from ..weights.model_folders import model_folder

    out = file_named_by(out, "encoder.onnx", (".onnx",))
    if (model_folder(weights, CLASSIFIER_FILE) / CLASSIFIER_FILE).is_file():
        model = load_classifier(weights)
        encoder, own = model.encoder, model.encoder.img_size
        if img_size is not None:
            encoder.set_input_size(img_size)
        resized = [] if encoder.img_size == own else [f"{own[0]} x {own[1]} to {img_size} x {img_size} pixels"]
    else:
        model = encoder = encoder_of_size(weights, img_size)
        resized = encoder.load_report.resized
    if keep is not None:
        encoder.keep = keep
    with warnings.catch_warnings():  # said below, by the name of the option
        warnings.filterwarnings("ignore", "valid: is left out", UserWarning)
        path = export_onnx(model, out, **options)
    for line in resized:
        note(f"the weights are of another size of images: {line}")
    of_features = model is encoder and options["output"] in (None, "features") and encoder.cls_token is not None
    if of_features and (options["pool"] or encoder.pool) is None:
        note("the features are class tokens; those of embed are means of the patches: --pool mean")
    normalises = options["normalise"] or options["pixels"] != "float"
    if normalises and encoder.normalisation == "per_image" and not options["valid"]:
        note(
            "mean and deviation are taken over whole images: of films that are not square padding counts, as it does "
            "not in the model itself; --valid makes an input of the graph for the patches that are none"
        )
    if encoder.keep != "all":
        height, width = encoder.grid_size
        whose = "hx.create_encoder(weights=...)" if model is encoder else "hx.load_classifier(...).encoder"
        note(
            f"beside images the graph takes keep [batch, {height}, {width}] bool, the patches that are looked at: "
            f"{whose}.kept_patches(images, inside, valid) makes it (--keep all goes without)"
        )
    print(path)
    return 0


def run_convert_command(
    source: str, folder: str, img_size: list[int] | None, in_chans: int | None, partial: bool, **sizes: int | None
) -> int:
    from ..weights.load import convert

    size = None if img_size is None else img_size[0] if len(img_size) == 1 else tuple(img_size)
    overrides = {name: value for name, value in sizes.items() if value is not None}
    print(convert(source, folder, img_size=size, in_chans=in_chans, strict=not partial, **overrides))
    print(f"encoder: {visible(folder)}")
    return 0


COMMANDS = {"export": run_export_command, "convert": run_convert_command}
