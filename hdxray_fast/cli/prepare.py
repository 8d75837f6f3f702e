"""The commands ``prepare``, ``merge`` and ``stream``."""

from __future__ import annotations

from pathlib import Path

from ..progress import note
from ..terminal import counted, visible
from .options import add_config
from .program import program

FLAGS = {  # --add, where class arguments would want --add true
    "keep_duplicates": "keep images whose stored pixels are those of an earlier one",
    "add": "take sources in that were not there when the data set was begun",
    "retry": "read the unreadable files again, once they are mended or a decoder installed",
}


def add_commands(commands, parser_class) -> None:
    """Add them to jsonargparse's subcommands."""
    from ..data.prepared.config import PrepareConfig

    prepare = parser_class(
        examples=[
            "prepare /data/xrays more.zip list.csv --out sets/chest",
            "prepare /data/xrays --out sets/chest --part 2/8",
        ],
        description="Canvas and contour of every radiograph, once, into shards that training reads at once.",
    )
    add_config(prepare)
    prepare.add_argument("sources", nargs="+", help="folders, images, .zip and .tar archives, CSV manifests")
    prepare.add_class_arguments(PrepareConfig, skip={"sources", *FLAGS})
    for name, words in FLAGS.items():
        prepare.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=words)
    commands.add_subcommand("prepare", prepare)

    merge = parser_class(examples=["merge sets/chest"], description="Join the parts of a prepared data set.")
    merge.add_argument("folder", help="of the data set")
    commands.add_subcommand("merge", merge)

    stream = parser_class(
        examples=["stream sets/chest --out chunks --part 3/8"],
        description="Write a prepared data set as chunks for an object store.",
    )
    stream.add_argument("folder", help="of the prepared data set")
    stream.add_argument("--out", required=True, help="an empty folder, or one to go on in; copy it to the store")
    stream.add_argument("--chunk-mib", type=int, default=64, help="about how large a chunk is, MiB")
    stream.add_argument("--part", default="1/1", help="i/n: the i-th of n shares of the chunks, for as many processes")
    commands.add_subcommand("stream", stream)


def run_prepare_command(**options) -> int:
    from ..data.prepared.config import PrepareConfig
    from ..data.prepared.index import QUARANTINE
    from ..data.prepared.run import run_prepare

    config = PrepareConfig(**options)
    result = run_prepare(config)
    if result.summary is None:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(result.counts.items()))
        print(f"part {config.part}: {counts or 'nothing to do'}; {result.made} shards made, {result.found} were there")
        _tell_unreadable(result.unreadable, f"{QUARANTINE} once all parts are merged")
        print(f"other parts are not done yet; the last one merges, or: {program()} merge {config.out}")
        return 0
    if result.was_whole:
        print(
            f"nothing to do: {counted(result.summary['images'], 'image')} of "
            f"{counted(result.summary['sources'], 'source')}, prepared before; --add takes in what has come since, "
            "--retry reads the unreadable files again"
        )
        _tell_place(result.out, result.summary)
        return 0
    _tell_merged(result.out, result.summary)
    if result.summary["patients"]:  # else the key hides nobody yet
        note(_about_key(result.key, result.out))
    return 0


def _about_key(key: Path, out: Path) -> str:
    from ..data.prepared.patient_key import beside

    if key.absolute().parent == out.absolute():
        return (
            f"warning: the patients' key lies in the data set ({key}); move it to {beside(out)} before you copy the set"
        )
    return f"the patients' key is {key}: keep it, and keep it apart from copies of the data set"


def run_merge_command(folder: str) -> int:
    from ..data.prepared.index import merge

    _tell_merged(Path(folder), merge(folder))
    return 0


def _tell_merged(out: Path, summary: dict) -> None:
    from ..data.prepared.index import QUARANTINE, read_unreadable
    from ..data.prepared.tally import describe

    print(describe(summary))
    _tell_unreadable(read_unreadable(out), out / QUARANTINE)
    _tell_place(out, summary)


def _tell_place(out: Path, summary: dict) -> None:
    from ..data.prepared.index import QUARANTINE, TILES
    from ..data.prepared.summary import PICTURES

    pictures = ", ".join(name for name in PICTURES if (out / name).exists())
    lists = f" and {QUARANTINE}" if summary["unreadable"] or summary["filtered"] else ""
    print(f"the data set is {visible(out)}; look at {pictures} ({TILES}: the file of each tile){lists} in it")


def _tell_unreadable(files: list[tuple[str, str]], listed: str | Path) -> None:
    from ..data.quarantine import first_unreadable

    if files:
        note(first_unreadable(files, len(files), listed))


def run_stream_command(folder: str, out: str, chunk_mib: int, part: str) -> int:
    from ..data.prepared.stream_writing import write_stream
    from ..errors import ConfigError

    if chunk_mib < 1:
        raise ConfigError(f"chunk_mib: got {chunk_mib}, accepted are whole numbers from 1 on")
    written = write_stream(folder, out, chunk_bytes=chunk_mib << 20, part=part, progress=True)
    print(f"{written} images in {out}" if written else f"part {part} is in {out}; other parts are missing")
    return 0


COMMANDS = {"prepare": run_prepare_command, "merge": run_merge_command, "stream": run_stream_command}
