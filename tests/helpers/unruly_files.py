"""Readers that a file's name makes misbehave: ``hangs*`` takes a minute, ``grows*`` 8 GiB."""

from __future__ import annotations

import os
import time

from hdxray_fast.data import contour_files, radiographs
from hdxray_fast.data.prepared import worker


def misbehave(path: str) -> None:
    name = os.path.basename(path)
    if name.startswith("hangs"):
        time.sleep(60)
    if name.startswith("grows"):
        bytearray(8 << 30)


def prepare_source(source, *more):
    misbehave(source.path)
    return worker.prepare_source(source, *more)


def read_radiograph(image, *more):
    misbehave(image)
    return radiographs.read_radiograph(image, *more)


def read_contour(source, *more):
    misbehave(source)
    return contour_files.read_contour(source, *more)
