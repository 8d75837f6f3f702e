"""The commands at a glance, by what somebody sets out to do: what ``hdxray-fast`` alone prints."""

from __future__ import annotations

from .. import __version__
from .program import program

OVERVIEW = {
    "Begin": {
        "demo": "from one DICOM file to a reconstruction, in minutes",
        "doctor": "what this machine has, and what is missing",
    },
    "Radiographs": {
        "prepare": "files, folders and archives to a prepared data set",
        "merge": "parts of a prepared data set to one",
        "stream": "a prepared data set to chunks for an object store",
        "contour": "chest contours, as pictures and JSON",
    },
    "Encoders": {
        "plan": "memory, storage and days of a pre-training",
        "pretrain": "pre-train on radiographs",
        "embed": "a feature for each radiograph, as a table",
        "features": "what an encoder sees in radiographs, as pictures",
        "similar": "the nearest radiographs of a table of features",
        "convert": "published weights to a model folder",
        "export": "an encoder or a classifier as an ONNX file",
    },
    "Diseases": {
        "probe": "labels and an encoder to test metrics, in minutes",
        "finetune": "labels and an encoder to a classifier and its test metrics",
        "predict": "probabilities of a classifier for new radiographs",
        "evaluate": "a classifier on labelled radiographs",
        "compare": "two models or more on the same cases, by pairs",
    },
    "Reports": {
        "report train": "studies to a model that writes reports",
        "report generate": "radiographs to reports",
        "report evaluate": "generated reports against references",
    },
}


def overview() -> str:
    """Every command with a line, in groups, and where more is said."""
    width = max(len(name) for commands in OVERVIEW.values() for name in commands)
    lines = [f"hdxray-fast {__version__}: chest X-ray encoders, pre-trained in high definition"]
    for title, commands in OVERVIEW.items():
        lines += ["", title, *(f"  {name:<{width}}  {what}" for name, what in commands.items())]
    more = {"COMMAND --help": "its settings, with examples", "--version": "", "--completion bash": "or zsh, tcsh, ..."}
    lines += ["", f"More, behind {program()}"]
    lines += [f"  {words:<{width}}  {what}".rstrip() for words, what in more.items()]
    return "\n".join(lines)
