"""Archives of radiographs, whole, damaged and hostile, as bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterable

import numpy as np
from fuzz_makers import mutate

PACK = {
    "gz": lambda data: gzip.compress(data, 1),
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}
KINDS = ("zip", "tar", *PACK)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG_NAME = "study/" + "long/" * 40  # needs a header of its own in every format of tar


def suffix(kind: str) -> str:
    return f".{kind}" if kind in ("zip", "tar") else f".tar.{kind}"


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header block, its checksum right; sizes that octal digits cannot hold are written in base 256, as GNU does."""
    digits = b"%011o\0" % size if 0 <= size < 8**11 else size.to_bytes(12, "big", signed=True)
    if size >= 8**11:
        digits = b"\x80" + digits[1:]
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + digits + b"0" * 11 + b"\0")
    head += b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247)
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while size != len(b"%d %s=%s\n" % (size, key, value)):
        size = len(b"%d %s=%s\n" % (size, key, value))
    return b"%d %s=%s\n" % (size, key, value)


def hostile_tars(image: bytes) -> dict[str, bytes]:
    """Tars that each ask for something that no reader should do, by what it is."""
    good = tar_header(b"good.png", len(image)) + padded(image)
    negative = pax_record(b"size", b"-512")
    return {
        "negative size": good + tar_header(b"a.png", -512) + bytes(1024),
        "negative size of the first": tar_header(b"a.png", -512) + bytes(1024),
        "negative size in a record": (
            good + tar_header(b"x", len(negative), b"x") + padded(negative) + tar_header(b"a.png", 0) + bytes(1024)
        ),
        "negative size of a record": good + tar_header(b"x", -512, b"x") + tar_header(b"a.png", 0) + bytes(1024),
        "long record": tar_header(b"x", 8 << 30, b"x") + bytes(9 << 20),
        "long name": tar_header(b"x", 8 << 30, b"L") + bytes(9 << 20),
        "records without end": (tar_header(b"x", 512, b"x") + bytes(512)) * 4000 + good,
        "size beyond all files": good + tar_header(b"a.png", 1 << 80) + bytes(1024),
        "a broken header within": good + b"rubbish".ljust(512, b"\1") + good + bytes(1024),
        "no text for a name": tar_header(b"\xff\xfe\xed\xa0\x80.png", len(image)) + padded(image) + bytes(1024),
    }


def damaged(kind: str, images: Iterable[bytes], rng: np.random.Generator) -> bytes:
    """An archive whose headers, or any other bytes, are wrong; of a compressed one also those of the tar inside."""
    files = {f"{LONG_NAME if number == 1 else ''}{number}.png": image for number, image in enumerate(images)}
    if kind == "zip":
        method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[rng.integers(4)]
        whole = zip_of(files, method)
        directory = int.from_bytes(whole[-6:-2], "little")
        if rng.integers(2):
            return whole[:directory] + mutate(whole[directory:], rng)
        return mutate(whole, rng)
    whole = tar_of(files, FORMATS[rng.integers(3)])
    inside = kind == "tar" or rng.integers(4)
    if inside and rng.integers(8) == 0:
        hostile = list(hostile_tars(next(iter(files.values()))).values())
        whole = hostile[rng.integers(len(hostile))]
    elif inside:
        whole = _with_bad_header(whole, rng)
    if kind == "tar":
        return whole
    packed = PACK[kind](whole)
    return packed if inside else mutate(packed, rng)


def _with_bad_header(whole: bytes, rng: np.random.Generator) -> bytes:
    """One field of a header is rubbish or extreme, under a checksum that mostly is right."""
    heads = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    at = heads[rng.integers(len(heads))]
    head = bytearray(whole[at : at + 512])
    start, stop = [(0, 100), (100, 108), (124, 136), (124, 136), (124, 136), (156, 157), (257, 265), (345, 500)][
        rng.integers(8)
    ]
    size = stop - start
    extreme = (b"\xff" * size, b"\x80" + bytes(size - 1), b"7" * size, bytes(size), (b"-1").ljust(size, b"\0")[:size])
    if size == 1:
        head[start] = b"01234567LKxgSDX\0\xff"[rng.integers(17)]
    elif rng.integers(2):
        head[start:stop] = extreme[rng.integers(len(extreme))]
    else:
        head[start + rng.integers(size)] = rng.integers(256)
    if rng.integers(8):
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    return whole[:at] + bytes(head) + whole[at + 512 :]
