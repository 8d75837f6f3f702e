"""High-definition chest X-ray masked auto-encoders, made fast: see README.md for the way through the house."""

from __future__ import annotations

import importlib

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
from .interop import registration as _registration

__version__ = "0.1.0"

# Rooms load on first use (PEP 562), so that a data-loading worker that only reads canvases never pays for torch.
_ROOMS = {
    "Canvas": "images.canvas",
    "Limits": "images.canvas",
    "read_canvas": "images.canvas",
    "Contour": "images.contour",
    "find_contour": "images.contour",
    "find_view": "images.contour",
    "ChestView": "images.view",
    "find_contours": "images.contour",
    "MaskPlan": "ops.plan",
    "plan_masks": "ops.mask_plan",
    "plan_all": "ops.mask_plan",
    "plan_bounds": "ops.mask_plan",
    "gather_patches": "ops.gather",
    "reconstruction_loss": "ops.loss",
    "View": "ops.view",
    "view_patches": "ops.view",
    "attention": "ops.attention",
    "debug_checks": "ops.debug",
    "create_encoder": "weights.create",
    "list_encoders": "weights.create",
    "EncoderConfig": "models.encoder_config",
    "create_mae": "models.mae",
    "embed": "features.embedding",
    "embed_files": "features.embedding_files",
    "draw_features": "features.feature_pictures",
    "find_similar": "features.neighbours",
    "export_onnx": "interop.export",
    "export_program": "interop.export",
    "load_model": "weights.model_folders",
    "save_model": "weights.model_folders",
    "ReportConfig": "reports.config",
    "run_report_training": "reports.run",
    "read_studies": "reports.layouts",
    "load_report_model": "reports.saving",
    "write_reports": "reports.writing",
    "compare_reports": "reports.compare",
    "PretrainConfig": "pretrain.config",
    "run_pretraining": "pretrain.task",
    "FinetuneConfig": "classify.config",
    "run_finetuning": "classify.finetune",
    "ProbeConfig": "classify.probe_config",
    "run_probe": "classify.probe",
    "load_classifier": "classify.classifier",
    "predict": "classify.evaluation",
    "compare": "classify.compare",
    "read_labels": "classify.labels",
    "PreparedSet": "data.prepared.reading",
    "PreparedLoader": "data.prepared.loader",
    "TrainingConfig": "training.config",
    "Task": "training.task",
    "Training": "training.loop",
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
