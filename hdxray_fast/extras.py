"""The packages of each extra, and the words that install those that are missing."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import sys
from pathlib import Path

# Distributions of each extra, as in pyproject.toml (a test compares the two): metadata is not there in a source tree.
EXTRAS = {
    "dicom": [
        "pydicom>=3",
        "pylibjpeg>=2",
        "pylibjpeg-libjpeg>=2.1",
        "pylibjpeg-openjpeg>=2.3",
        "pylibjpeg-rle>=2",
    ],
    "train": [
        "accelerate>=1",
        "jsonargparse[signatures]>=4.35",
        "tensorboard>=2.15",
        "tqdm>=4.66",
        "pyyaml>=6",
        "loky>=3.4",
        "pebble>=5",
        "pyarrow>=23.0.1",
        "filelock>=3.13",
        "matplotlib>=3.8",
    ],
    "demo": ["pydicom-data>=1"],
    "embed": ["pyarrow>=23.0.1"],
    "prepare": ["matplotlib>=3.8"],
    "streaming": ["litdata>=0.2.40", "fsspec>=2024.2"],
    "hf": ["transformers>=5.3", "pillow>=12.2"],
    "timm": ["timm>=1.0.9"],
    "export": ["onnx>=1.17", "onnxscript>=0.5"],
    "classify": ["scikit-learn>=1.3", "scipy>=1.10", "pandas>=2", "matplotlib>=3.8", "openpyxl>=3.1"],
    "excel": ["openpyxl>=3.1"],
    "report": ["transformers>=5.3", "tokenizers>=0.21", "scipy>=1.10", "matplotlib>=3.8"],
    "report-scores": ["pycocoevalcap>=1.2"],
    "report-chinese": ["jieba>=0.42"],
    "clinical": ["radgraph>=0.1.18", "f1chexbert>=0.0.2"],
    "lora": ["peft>=0.13"],
    "text": ["sentence-transformers>=3"],
    "wandb": ["wandb>=0.19"],
}


def installed(distribution: str) -> str | None:
    """The version of a distribution; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_of(extra: str) -> list[str]:
    """Requirements of an extra whose distributions are not installed."""
    return [wanted for wanted in EXTRAS[extra] if installed(re.split(r"[\[<>=]", wanted)[0]) is None]


def install(*extras: str) -> str:
    """The command that installs what is missing of extras, or all of them where all is there and something is broken.

    It names the packages themselves and not the extra: ``hdxray-fast[wandb]`` is found by pip only where this package
    came from an index that has it, and not where it came from a folder, a file or a repository.
    """
    missing = [wanted for extra in extras for wanted in missing_of(extra)]
    wanted = missing or [wanted for extra in extras for wanted in EXTRAS[extra]]
    return f"{_pip()} install {' '.join(map(shlex.quote, wanted))}"


def _pip() -> str:
    """The pip of the Python that runs: of several installations another's would not help."""
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
