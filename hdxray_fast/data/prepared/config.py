"""The settings of a preparation: what is read, what is left out, and how it is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_type_hints

from ...errors import ConfigError
from ...images.contour_methods import ContourMethod
from ..reader_pool import MAX_MEMORY, TIMEOUT, check_caps


@dataclass(frozen=True)
class PrepareConfig:
    """Radiographs to a prepared data set.

    Args:
        sources: folders, image files, ``.zip`` and ``.tar`` archives, CSV manifests.
        out: folder of the data set.
        images: folder that relative paths in manifests start from; the manifest's own by default.
        image_column: the column of the manifests' files, where it goes by none of the usual names.
        patient_column: likewise, that of the patients.
        img_size: canvas side, pixels.
        bits: 8 or 16 per pixel.
        format: ``raw`` is read fastest (img_size² bytes an image), ``png`` loses nothing, ``jpeg`` is the smallest.
        quality: of JPEG.
        contour: how the chest contour is found: ``network``, ``classical``, ``prior`` or ``rectangle``.
        view: ``frontal`` leaves out what header or pixels show to be lateral, or no chest film; ``lateral`` what is not
            known to be lateral; ``any`` nothing.
        body_part: ``chest`` leaves out what a DICOM header calls another part, ``any`` nothing.
        modality: ``radiograph`` leaves out what a DICOM header calls CT, MR and the like, ``any`` nothing.
        min_side: least rows and columns of the stored image, pixels.
        min_confidence: least confidence of the contour, 0 to 1.
        keep_duplicates: keep images whose stored pixels are those of an earlier one.
        shard_size: images in a shard; what an interruption can cost.
        part: ``i/n``: the i-th of n shares of the shards, counted from 1, for as many machines; ``merge`` joins them.
        workers: processes that read files; -1 takes one per core; 0 reads in this process, without caps.
        timeout: seconds that one file may take.
        max_memory: MiB that one file may take.
        max_members: files that one archive may list.
        max_scratch: MiB that may be unpacked from compressed tars and wait for readers.
        patient_key: file with the secret that patient ids are hashed with; made beside ``out`` if not given.
        add: take sources in that were not there when the data set was begun.
        retry: read the unreadable files again, once they are mended or a decoder installed.
    """

    # What a preparation can go on with otherwise; everything else decides what the shards hold.
    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset(
        (
            *("sources", "images", "image_column", "patient_column", "out", "part", "patient_key", "add", "retry"),
            *("workers", "timeout", "max_memory", "max_members", "max_scratch"),
        )
    )

    sources: list[str]
    out: str
    images: str | None = None
    image_column: str | None = None
    patient_column: str | None = None
    img_size: int = 1280
    bits: Literal[8, 16] = 8
    format: Literal["raw", "png", "jpeg"] = "raw"
    quality: int = 95
    contour: ContourMethod = "network"
    view: Literal["frontal", "lateral", "any"] = "frontal"
    body_part: Literal["chest", "any"] = "chest"
    modality: Literal["radiograph", "any"] = "radiograph"
    min_side: int = 0
    min_confidence: float = 0.0
    keep_duplicates: bool = False
    shard_size: int = 256
    part: str = "1/1"
    workers: int = -1
    timeout: float = TIMEOUT
    max_memory: int = MAX_MEMORY
    max_members: int = 1_000_000
    max_scratch: int = 4096
    patient_key: str | None = None
    add: bool = False
    retry: bool = False

    def __post_init__(self) -> None:
        if not self.sources or not self.out:
            raise ConfigError("sources and out must both be named: the radiographs, and a folder for the data set")
        choices = get_type_hints(PrepareConfig)
        for name in ("bits", "format", "contour", "view", "body_part", "modality"):
            accepted = get_args(choices[name])
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, accepted are {', '.join(map(str, accepted))}")
        if self.bits == 16 and self.format == "jpeg":
            raise ConfigError("format: jpeg holds 8 bits a pixel; take raw or png with bits=16")
        if self.img_size < 64 or self.img_size % 16:
            raise ConfigError(f"img_size: got {self.img_size}, accepted are multiples of 16 from 64 on")
        for name, least in (
            ("shard_size", 1), ("min_side", 0), ("workers", -1), ("max_members", 1), ("max_scratch", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted are whole numbers from {least} on")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality: got {self.quality}, accepted are whole numbers from 1 to 100")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence: got {self.min_confidence:g}, accepted are numbers from 0 to 1")
        check_caps(self.timeout, self.max_memory)
        self.share()

    def share(self) -> tuple[int, int]:
        """``part`` as (which, of how many), counted from 0."""
        return which_part(self.part)

    def recipe(self) -> dict:
        """What decides the content of the shards, JSON-able, under the names that data sets have on disk."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in self.FREE_ON_RESUME}
        return {"size" if name == "img_size" else name: value for name, value in found.items()}


def which_part(part: str) -> tuple[int, int]:
    """``i/n`` as (which, of how many), counted from 0."""
    which, slash, of = part.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
        raise ConfigError(f"part: got {part!r}, accepted is i/n with i from 1 to n, such as 3/8")
    return int(which) - 1, int(of)
