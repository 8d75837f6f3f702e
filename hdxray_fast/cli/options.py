"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import note
from ..terminal import visible

WEIGHTS = "pretrained for the encoder that comes with the package, a run or model folder, or published weights"


def tell_encoder(weights: str) -> None:
    """Note where features come from the encoder that is taken where none is named."""
    from ..weights.shipped import DEFAULT, PRETRAINED, blocks_read_best

    if weights == PRETRAINED:
        blocks = f"the first {blocks_read_best()} blocks of {DEFAULT}"
        note(f"encoder: {blocks}, which comes with the package (--weights takes others)")


def tell_start(config, preset: str) -> None:
    """Note what a training trains, from what, and what may be wanted in its place."""
    from torch.cuda import is_available

    from ..training.run_folder import begun_settings
    from ..training.starting import with_start
    from ..weights.shipped import PRETRAINED

    start = with_start(config, preset, PRETRAINED)
    if start.weights is None:
        note(
            f"encoder: {getattr(start, preset)}, untrained: it needs many films and days to learn what --weights "
            "pretrained, which comes with the package, begins with"
        )
    else:
        given = getattr(config, preset)
        if config.weights is not None and given is not None and begun_settings(config) is None:
            # no refusal, for configurations of runs with weights hold this preset
            note(f"--{preset} {given} has no part in this: --weights {visible(start.weights)} say what the encoder is")
        tell_encoder(start.weights)
    if preset == "model" and start.tune == "all" and start.device != "cuda" and not is_available():
        note("the whole encoder is trained, which is slow without a GPU; probe trains a head alone, in minutes")


def add_config(parser) -> None:
    """Settings of a file, for every command that has a class of them."""
    kept = "YAML file with any of these settings, spelt with _ and without --"
    parser.add_argument("--config", action="config", help=kept)


def add_training(parser, config_class: type) -> None:
    """Settings of a training, and of a file that holds some."""
    add_config(parser)
    parser.add_class_arguments(config_class, skip={"force"})
    anew = "begin anew where --out holds a run: what it wrote is removed, but for its cache of images read once"
    parser.add_argument("--force", action="store_true", help=anew)


def add_reading(parser) -> None:
    """How files are read, for every command that reads them and has no class of settings with these names."""
    from ..data.reader_pool import MAX_MEMORY, TIMEOUT

    workers = "processes that read files; -1: one per core; 0: in this process, without caps"
    parser.add_argument("--workers", type=int, default=-1, help=workers)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds that one file may take")
    parser.add_argument("--max-memory", type=int, default=MAX_MEMORY, help="MiB that one file may take")


def add_force(parser, folder: str = "--out") -> None:
    """What becomes of pictures of another call, for every command that draws some for each file into a folder."""
    force = f"replace what a call with other files or settings drew in {folder}, which is refused else"
    parser.add_argument("--force", action="store_true", help=force)


def add_image_column(parser, table: str = "a CSV") -> None:
    """Which column of a user's table names the files, for every command that reads some beside folders."""
    parser.add_argument("--image-column", help=f"column of {table} that names the files, if it has no usual name")


def add_columns(parser, table: str = "--data") -> None:
    """Which columns a table of the user's has, for every command that reads one and has no class of settings."""
    add_image_column(parser, table)
    parser.add_argument("--patient-column", help="likewise, that of the patients")


def add_part(parser) -> None:
    """Which share of the files a process takes, for every command whose parts are joined by the last of them."""
    part = "i/n: the i-th of n shares of the files, for as many processes or machines; the one that ends last joins"
    parser.add_argument("--part", default="1/1", help=part)


def tell_waiting(shares: Sequence[int]) -> None:
    """Print which shares, counted from 1, have not ended; nothing where another process speaks of them."""
    if shares:
        some = ", ".join(map(str, shares[:8])) + (", ..." if len(shares) > 8 else "")
        print(f"this part is done; {len(shares)} shares are not ({some}): the last to end joins them")


def loss_line(result) -> str:
    """How the loss of a training fell; of one that went on, since when."""
    since = f" since step {result.start + 1}, where it went on" if result.start else ""
    return f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f}{since}"


def add_precision(parser) -> None:
    """In what a model that is not trained computes, for every command that has one."""
    parser.add_argument("--precision", default="auto", help="fp32, bf16, or auto: bf16 on GPUs that have it")


def add_inference(parser) -> None:
    """How a model of fixed shapes runs that is not trained."""
    add_precision(parser)
    compiles = "on, off, or auto: through torch.compile on a GPU, for 150,000 images and more"
    parser.add_argument("--compile", default="auto", help=compiles)
