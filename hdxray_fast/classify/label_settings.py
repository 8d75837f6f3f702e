"""Which labels are read, and how: what a probe and a fine-tuning are told under the same names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How labels are read; see :func:`hdxray_fast.read_labels`.

    Args:
        images: folder that relative paths in the manifest start from.
        image_column: the column of the manifest that names the images' files, where it goes by no usual name.
        patient_column: that of the patients, likewise.
        preset: ``chexpert``, ``mimic-cxr``, ``nih14``, ``rsna``, ``vindr`` or ``padchest``.
        classes: which classes; all by default.
        multiclass: exactly one class of each image holds.
        uncertain: what -1 means in training (elsewhere it counts for nothing): ``ignore``, ``zeros``, ``ones``, or
            ``Edema=ones, ...`` for single classes.
        val_share: share of the images, of undivided patients, that choose the model, where there is no such split.
        test_share: share of the images to test on, likewise.
        split_seed: of splits drawn here, whatever other seeds are.
    """

    images: str | None = None
    image_column: str | None = None
    patient_column: str | None = None
    preset: str | None = None
    classes: list[str] | None = None
    multiclass: bool = False
    uncertain: str = "ignore"
    val_share: float = 0.1
    test_share: float = 0.2
    split_seed: int = 0
