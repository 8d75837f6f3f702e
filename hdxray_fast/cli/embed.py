"""The command ``embed``."""

from __future__ import annotations

from ..progress import note
from ..terminal import counted, visible
from .options import WEIGHTS, add_image_column, add_inference, add_part, add_reading, tell_encoder, tell_waiting


def add_commands(commands, parser_class) -> None:
    """Add it to jsonargparse's subcommands."""
    embed = parser_class(
        examples=[
            "embed new/ --out features.parquet",
            "embed new/ --weights runs/first/model --out features.parquet --part 1/8",
        ],
        description="Features of radiographs as a table; interrupted, it goes on.",
    )
    embed.add_argument("paths", nargs="+", help="radiographs, folders of them, CSV manifests, or prepared sets")
    embed.add_argument("--weights", default="pretrained", help=WEIGHTS)
    embed.add_argument("--out", required=True, help="file, .parquet or .csv, or a folder for features.parquet")
    embed.add_argument("--pool", help="cls, mean or attention; left out, the encoder's, or mean")
    embed.add_argument("--keep", help="all, valid or contour; left out, the encoder's")
    embed.add_argument("--img-size", type=int, help="canvas side, pixels; left out, the encoder's")
    embed.add_argument("--batch-size", type=int, default=4, help="images at once")
    add_image_column(embed)
    add_reading(embed)
    add_part(embed)
    embed.add_argument("--device", help="where the encoder runs; left out, a GPU if there is one")
    add_inference(embed)
    commands.add_subcommand("embed", embed)


def run_embed_command(paths: list[str], out: str, weights: str, **options) -> int:
    from ..data.film_views import describe_not_frontal
    from ..data.quarantine import first_unreadable
    from ..features.embedding_files import embed_files

    tell_encoder(weights)
    done = embed_files(paths, out, weights, **options)
    if not done.joined:
        tell_waiting(done.waiting)
        return 0
    if done.unreadable:
        files = [(item.path, item.reason) for item in done.quarantined]
        note(first_unreadable(files, done.unreadable, done.unreadable_csv))
    if not done.rows:
        note(f"hdxray-fast: no file can be read; {visible(done.out)} is not written")
        return 2
    if told := describe_not_frontal(done.not_frontal, done.rows):
        note(told)
    lost = f"; {counted(done.unreadable, 'file')} could not be read" if done.unreadable else ""
    more = f", {done.others} of files not named now" if done.others else ""
    rows = counted(done.rows, "row")
    print(f"{rows} of {done.width} numbers in {visible(done.out)} ({done.new} new{more}){lost}")
    if done.table != done.out:
        print(f"{visible(done.table)} holds them as well, and is what a later embed goes on from")
    return 0


COMMANDS = {"embed": run_embed_command}
