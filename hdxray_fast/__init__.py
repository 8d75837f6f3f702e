"""High-definition chest X-ray masked auto-encoders, made fast: see README.md for the way through the house."""

from __future__ import annotations

import importlib

from . import registration as _registration
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    CheckpointError,
    ConfigError,
    HDXrayError,
    ImageReadError,
    ImageTooLargeError,
    MissingDependencyError,
    TrainingError,
    UnsupportedImageError,
)

__version__ = "0.1.0"

# Rooms load on first use (PEP 562), so that a data-loading worker that only reads canvases never pays for torch.
_ROOMS = {
    "Canvas": "canvas",
    "Limits": "canvas",
    "read_canvas": "canvas",
    "Contour": "contour",
    "find_contour": "contour",
    "find_contours": "contour",
    "MaskPlan": "plan",
    "plan_masks": "masking",
    "plan_all": "masking",
    "plan_bounds": "masking",
    "gather_patches": "ops.gather",
    "reconstruction_loss": "ops.loss",
    "attention": "ops.attention",
    "debug_checks": "debug",
    "create_encoder": "create",
    "list_encoders": "create",
    "EncoderConfig": "encoder_config",
    "create_mae": "mae",
    "embed": "embedding",
    "embed_files": "embedding_files",
    "export_onnx": "export",
    "export_program": "export",
    "load_model": "model_folders",
    "save_model": "model_folders",
    "ReportConfig": "reports.config",
    "run_report_training": "reports.run",
    "load_report_model": "reports.saving",
    "write_reports": "reports.writing",
    "PretrainConfig": "pretrain_config",
    "run_pretraining": "pretrain",
    "FinetuneConfig": "classify_config",
    "run_finetuning": "classify",
    "ProbeConfig": "probe_config",
    "run_probe": "probe",
    "load_classifier": "classifier",
    "predict": "evaluation",
    "read_labels": "labels",
    "PreparedSet": "prepared.reading",
    "PreparedLoader": "prepared.loader",
    "TrainingConfig": "training_config",
    "Task": "task",
    "Training": "training",
}

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "HDXrayError",
    "ImageReadError",
    "ImageTooLargeError",
    "MissingDependencyError",
    "TrainingError",
    "UnsupportedImageError",
    "__version__",
    *_ROOMS,
]


_registration.register_or_wait()


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
